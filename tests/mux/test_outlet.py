"""The way out: what is written, in which order, and how the room of a port is shared."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from classic_port import frame
from ends import noise
from hand import Hand, play, rounds

from muonsocks.mux import port as port_module
from muonsocks.mux.classic import Classic
from muonsocks.mux.connection import Connection
from muonsocks.mux.frames import HEADER, LARGEST, MAGIC, Eof, Ping, Reset, decode
from muonsocks.mux.machine import Mux
from muonsocks.mux.outlet import Outlet
from muonsocks.mux.port import Port
from muonsocks.net.borrowed import Pair
from muonsocks.net.loop import WRITABLE, Loop
from muonsocks.net.stream import Stream

FOREVER = 1 << 40  # bytes of credit


def a_mux() -> Mux:
    return Mux(True, 100, 1 << 20, lambda: os.urandom(8))


class Way:
    """An outlet with a port; the handlers of that are as a link has them."""

    def __init__(self, loop: Loop, hand: Hand, mux: Any = None) -> None:
        self.loop = loop
        self.failures: list[str] = []
        self.outlet = Outlet(loop, self._on_failure)
        self.mux = self.outlet.mux = mux or a_mux()
        stream = Stream(loop, hand.ours)
        self.port = self.outlet.port = Port(stream)
        stream.watch_room()
        loop.handlers[hand.ours.fileno()] = self._on_port

    def _on_port(self, events: int) -> None:
        if events & WRITABLE:
            self.outlet.flush()

    def _on_failure(self, reason: str) -> None:
        self.failures.append(reason)
        self.close()

    def close(self) -> None:
        self.outlet.port = None
        self.port.backlog = b""
        self.port.close()


class Sender:
    """One who has `data` to send, and reads it into the batch as a carriage does."""

    def __init__(self, way: Way, number: int, data: bytes) -> None:
        self.way = way
        self.connection = Connection(number, FOREVER, FOREVER)
        self.data = data
        self.turns = 0
        self.is_bulk = False

    def wait(self) -> None:
        self.way.outlet.wait_for_turn(self)  # type: ignore[arg-type]

    def take_turn(self) -> None:
        outlet = self.way.outlet
        if outlet.is_congested:
            self.wait()
            return
        part = self.data[: outlet.share(self.is_bulk)]
        self.data = self.data[len(part) :]
        self.is_bulk = True
        self.turns += 1
        self.send(part)
        if self.data:
            self.wait()

    def send(self, part: bytes) -> None:
        """Send it now, as one who has its turn."""
        rest = part
        for place in self.way.outlet.batch.places_for(len(part)):
            place[:], rest = rest[: len(place)], rest[len(place) :]
        self.way.outlet.send(self.connection, len(part))


def send(way: Way, number: int, data: bytes) -> None:
    """Send data of a connection that has its turn."""
    Sender(way, number, b"").send(data)


@contextmanager
def way_out(loop: Loop, kind: int = socket.SOCK_STREAM, mux: Any = None) -> Iterator[Any]:
    with Hand(loop, kind) as hand:
        way = Way(loop, hand, mux)
        yield way, hand
        way.close()


# When it is written


def test_nothing_is_written_without_a_port(loop: Loop) -> None:
    async def story() -> None:
        outlet = Outlet(loop, pytest.fail)
        outlet.mux = a_mux()
        outlet.mux.output.append(b"x")
        assert outlet.is_congested
        outlet.flush_soon()
        await rounds(loop)
        assert outlet.mux.output == [b"x"]

    play(loop, story)


def test_messages_of_one_round_are_one_write(loop: Loop) -> None:
    async def story() -> None:
        with way_out(loop, socket.SOCK_SEQPACKET) as (way, hand):
            for number in range(50):
                way.mux.output.append(Eof(number).encode())
                way.outlet.flush_soon()
            await rounds(loop)
            assert hand.sock.recv(1 << 16) == b"".join(Eof(n).encode() for n in range(50))
            await rounds(loop)
            assert hand.take() == b""

    play(loop, story)


@pytest.mark.parametrize("size", [1, 4096])
def test_small_data_of_many_is_one_write(loop: Loop, size: int) -> None:
    """Whoever has it waits for a turn; and a larger one between is in its place."""

    async def story() -> None:
        with way_out(loop, socket.SOCK_SEQPACKET) as (way, hand):
            sizes = [size] * 10 + [4097] + [size] * 10
            for number, length in enumerate(sizes):
                Sender(way, number, bytes([number]) * length).wait()
            await rounds(loop)
            pieces = []
            try:
                while True:
                    pieces.append(hand.sock.recv(1 << 20))
            except BlockingIOError:
                pass
            assert len(pieces) == 3, "up to the larger one, that one, and the rest"
            assert len(pieces[1]) == 4 + 4097
            hand.came = b"".join(pieces)
            assert hand.heard() == [(n, bytes([n]) * length) for n, length in enumerate(sizes)]

    play(loop, story)


def test_data_of_one_alone_is_written_at_once(loop: Loop) -> None:
    """It need not wait for others, who may not come."""

    async def story() -> None:
        with way_out(loop) as (way, hand):
            await rounds(loop)
            loop.busy = 1
            send(way, 7, b"small")
            assert hand.heard() == [(7, b"small")]
            loop.busy = 2
            send(way, 7, b"others")
            assert hand.heard() == []
            await rounds(loop)
            assert hand.heard() == [(7, b"others")]

    play(loop, story)


def test_a_message_and_small_data_are_one_write(loop: Loop) -> None:
    async def story() -> None:
        with way_out(loop, socket.SOCK_SEQPACKET) as (way, hand):
            await rounds(loop)
            loop.busy = 1
            way.mux.output.append(Ping(bytes(8)).encode())
            send(way, 7, b"small")
            await rounds(loop)
            assert hand.sock.recv(100) == Ping(bytes(8)).encode() + b"\7\0\5\0small"

    play(loop, story)


# In which order


@pytest.mark.parametrize("busy", [1, 2])
@pytest.mark.parametrize("size", [1, 4096, 4097, LARGEST])
@pytest.mark.parametrize("is_full", [False, True])
def test_the_order_of_what_is_said(loop: Loop, size: int, busy: int, is_full: bool) -> None:
    """A connection's data and its end are in their order, behind what was said before."""

    async def story() -> None:
        with way_out(loop) as (way, hand):
            junk = bytes(1 << 22) if is_full else b""
            if is_full:
                assert not way.port.write(junk)
            loop.busy = busy
            output = way.mux.output
            output.append(Ping(b"1" * 8).encode())
            if not is_full:
                send(way, 1, b"a" * size)
                output.append(Eof(1).encode())
                send(way, 2, b"b" * size)
                output.append(Reset(2, 1).encode())
                loop.busy = 1
                send(way, 3, b"c" * size)
            way.outlet.send_copy(Connection(4, FOREVER, 0), b"d" * size)
            output.append(Eof(4).encode())
            way.outlet.flush_soon()
            came = 0
            while is_full and came < len(junk):
                came += len(hand.sock.recv(min(1 << 16, len(junk) - came)))
                await rounds(loop, 2)
            await rounds(loop)
            assert hand.heard() == [
                Ping(b"1" * 8),
                *(
                    []
                    if is_full
                    else [
                        (1, b"a" * size),
                        Eof(1),
                        (2, b"b" * size),
                        Reset(2, 1),
                        (3, b"c" * size),
                    ]
                ),
                (4, b"d" * size),
                Eof(4),
            ]

    play(loop, story)


def test_a_write_that_is_cut_anywhere(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages, data in the batch, data that was in memory: nothing is lost, nothing twice."""
    data, copied = noise(300), noise(90, 2)
    cut = [0]

    def write(fd: int, what: Any) -> int:
        """Take a part once, and nothing right after it."""
        if cut[0] < 0:
            cut[0] = 1 << 30
            raise BlockingIOError(errno.EAGAIN, "full")
        count = os.write(fd, what[: cut[0]]) if cut[0] else 0
        if count == len(what):
            cut[0] -= count
            return count
        if not cut[0]:
            cut[0] = 1 << 30
            raise BlockingIOError(errno.EAGAIN, "full")
        cut[0] = -1
        return count

    monkeypatch.setattr(port_module, "write", write)

    async def story() -> None:
        with way_out(loop) as (way, hand):
            for place in range(500):
                cut[0] = place
                way.mux.output.append(Ping(b"before..").encode())
                loop.busy = 1
                send(way, 1, data)
                assert cut[0] < 1 << 30 or way.outlet.is_congested or way.mux.output
                way.outlet.send_copy(Connection(2, FOREVER, 0), copied)
                way.mux.output.append(Eof(1).encode())
                for _ in range(4):
                    way.outlet.flush()
                await rounds(loop, 2)
                assert not way.outlet.is_congested and not way.mux.output
                assert hand.heard() == [Ping(b"before.."), (1, data), (2, copied), Eof(1)], place

    play(loop, story)


def test_the_batch_is_not_used_before_it_is_written(loop: Loop) -> None:
    """Nobody has a turn while a part of it waits for the port to have room."""

    async def story() -> None:
        with way_out(loop) as (way, hand):
            data = [noise(600_000, number) for number in range(4)]
            senders = [Sender(way, number, one) for number, one in enumerate(data)]
            for sender in senders:
                sender.wait()
            got = [b""] * 4
            waited = 0
            while sum(map(len, got)) < sum(map(len, data)):
                if way.outlet.is_congested:
                    waited += 1
                    turns = sum(sender.turns for sender in senders)
                    way.outlet.flush_soon()
                    await rounds(loop, 2)
                    assert turns == sum(sender.turns for sender in senders)
                for number, part in hand.heard():
                    got[number] += part
                await rounds(loop, 2)
            assert got == data and waited > 3

    play(loop, story)


# Whose turn it is


def test_those_who_send_much_have_the_same(loop: Loop) -> None:
    """However slowly the port takes it, and however many they are."""

    async def story() -> None:
        with way_out(loop) as (way, hand):
            senders = [Sender(way, number, bytes(1 << 22)) for number in range(10)]
            for sender in senders:
                sender.wait()
            got = [0] * 10
            for _ in range(60):
                await rounds(loop, 3)
                for number, part in hand.heard():
                    got[number] += len(part)
                most = max(sender.turns for sender in senders)
                assert min(sender.turns for sender in senders) >= most - 1
            assert min(got) > 100_000 and max(got) - min(got) <= 1 << 19

    play(loop, story)


def test_one_with_little_does_not_wait_for_much(loop: Loop) -> None:
    """It has its turn after one of each of the others."""

    async def story() -> None:
        with way_out(loop) as (way, hand):
            senders = [Sender(way, number, bytes(1 << 22)) for number in range(8)]
            for sender in senders:
                sender.wait()
            await rounds(loop, 3)
            turns: list[int] = []

            class Late(Sender):
                def take_turn(self) -> None:
                    turns.extend(sender.turns for sender in senders)
                    self.send(self.data)

            before = [sender.turns for sender in senders]
            Late(way, 50, b"late").wait()
            while not turns:
                hand.forget()
                await rounds(loop, 1)
            assert all(now - then <= 1 for now, then in zip(turns, before, strict=True))

    play(loop, story)


def test_the_loop_has_its_turn_too(loop: Loop) -> None:
    """A port that takes everything does not keep all others from their work."""

    async def story() -> None:
        null = os.open("/dev/null", os.O_RDWR)
        with Hand(loop) as hand:
            way = Way(loop, hand)
            way.port.writer = null
            senders = [Sender(way, number, bytes(1 << 18)) for number in range(100)]
            for sender in senders:
                sender.wait()
            rounds_, before = 0, 0
            while any(sender.data for sender in senders):
                await rounds(loop, 1)
                # Two flushes: one for the port's room, and one that was due.
                assert way.outlet._sent - before <= 2 * ((1 << 20) + LARGEST)
                before = way.outlet._sent
                rounds_ += 1
            assert rounds_ >= 10 and not way.outlet._senders
            way.close()
        os.close(null)

    play(loop, story)


def test_what_one_may_read(loop: Loop) -> None:
    """A frame; much if it has much, but no more than its part of the batch."""

    async def story() -> None:
        with way_out(loop) as (way, _):
            outlet = way.outlet
            assert outlet.share(False) == LARGEST
            assert outlet.share(True) == outlet.batch.size == 16 * LARGEST
            for number in range(3):
                Sender(way, number, b"x").wait()
            assert outlet.share(False) == LARGEST
            assert outlet.share(True) == 4 * LARGEST
            for number in range(100):
                Sender(way, number, b"x").wait()
            assert outlet.share(True) == LARGEST
            await rounds(loop)

    play(loop, story)


def test_credit_is_counted(loop: Loop) -> None:
    async def story() -> None:
        with way_out(loop) as (way, hand):
            connection = Connection(3, 100, 0)
            way.outlet.send(connection, 30)
            way.outlet.send_copy(connection, b"x" * 50)
            assert connection.credit == 20
            await rounds(loop)
            assert hand.heard() == [(3, bytes(30)), (3, b"x" * 50)]

    play(loop, story)


def test_magic_in_data_is_divided(loop: Loop) -> None:
    """In both ways of sending it."""

    async def story() -> None:
        with way_out(loop) as (way, hand):
            data = b"before" + MAGIC + b"behind"
            send(way, 1, data)
            way.outlet.send_copy(Connection(2, FOREVER, 0), data)
            await rounds(loop)
            assert MAGIC not in hand.take()
            heard = hand.heard()
            for number in (1, 2):
                assert b"".join(part for n, part in heard if n == number) == data

    play(loop, story)


# The older pair


def classic() -> Classic:
    return Classic(False, 1 << 20, lambda: 0.0)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_a_frame_a_write_and_the_next_when_it_was_read(loop: Loop, kind: int) -> None:
    async def story() -> None:
        with way_out(loop, kind, classic()) as (way, hand):
            output = way.mux.output
            frames = [frame(number, b"%d" % number) for number in range(5)]
            output += frames
            way.outlet.flush()
            for left in (4, 3, 2, 1, 0):
                await loop.sleep(0.005)
                assert len(output) == left and way.outlet.is_congested is (left > 0)
                assert hand.sock.recv(1 << 16) == frames[4 - left]
                while len(output) == left > 0:
                    await loop.sleep(0.0005)
            await loop.sleep(0.003)
            assert hand.take() == b""

    play(loop, story)


def test_the_older_pair_s_port_that_is_not_read_is_looked_at_once_at_a_time(loop: Loop) -> None:
    """However often there is something to be written meanwhile."""

    async def story() -> None:
        with way_out(loop, mux=classic()) as (way, hand):
            way.mux.output += [frame(0, b"x")] * 3
            for _ in range(1000):
                way.outlet.flush()
            due = [one for _, _, one in loop.timers if one.callback is not None]
            assert len(due) <= 3, "one of them is this story's own deadline"
            for _ in range(4):
                await loop.sleep(0.003)
                hand.forget()
            assert not way.mux.output

    play(loop, story)


def test_the_older_pair_s_senders_have_the_same(loop: Loop) -> None:
    """A frame each, one after the other."""

    async def story() -> None:
        with way_out(loop, mux=classic()) as (way, hand):
            senders = [Sender(way, number, bytes(100_000)) for number in range(4)]
            for sender in senders:
                sender.wait()
            seen: list[int] = []
            while len(seen) < 40:
                await rounds(loop, 2)
                seen += [number for number, _ in hand.heard()]
            assert all({*seen[n : n + 4]} == {0, 1, 2, 3} for n in range(0, 40, 4)), seen
            way.close()
            await loop.sleep(0.005)

    play(loop, story)


def test_the_older_pair_s_frames_are_small(loop: Loop) -> None:
    async def story() -> None:
        with way_out(loop, mux=classic()) as (way, hand):
            data = noise(10_000)
            assert way.outlet.share(True) == way.outlet.share(False) == 4092
            way.outlet.send_copy(Connection(5, FOREVER, 0), data)
            got = []
            while sum(map(len, got)) < 10_000:
                await rounds(loop, 2)
                for number, part in hand.heard():
                    assert number == 5 and len(part) <= 4092
                    got.append(part)
            assert b"".join(got) == data and len(got) == 3
            await loop.sleep(0.003)

    play(loop, story)


# Failures


@pytest.mark.parametrize("how", ["flush", "send", "turns", "backlog", "small"])
def test_a_port_that_fails(loop: Loop, how: str) -> None:
    """It is told once, with the reason, wherever it is noticed; and nobody has turns any more."""

    async def story() -> None:
        with Hand(loop) as hand:
            way = Way(loop, hand)
            senders = [Sender(way, number, bytes(1 << 20)) for number in range(3)]
            if how == "backlog":
                assert not way.port.write(bytes(1 << 22))
            hand.sock.close()
            loop.busy = 1
            if how == "send":
                send(way, 1, bytes(10_000))
            elif how == "small":
                send(way, 1, b"x")
            elif how == "turns":
                for sender in senders:
                    sender.wait()
            else:
                way.mux.output.append(Ping(bytes(8)).encode())
                way.outlet.flush()
            await rounds(loop)
            assert way.failures == ["Broken pipe"]
            assert way.outlet.is_congested
            assert sum(sender.turns for sender in senders) <= 1
            way.outlet.flush()
            way.outlet.flush_soon()
            await rounds(loop)
            assert len(way.failures) == 1

    play(loop, story)


def test_a_port_of_two_pipes(loop: Loop) -> None:
    """And one that takes a part of what is written only."""

    async def story() -> None:
        (reader, other_writer), (other_reader, writer) = os.pipe(), os.pipe()
        for fd in (reader, writer, other_reader):
            os.set_blocking(fd, False)
        with Hand(loop) as hand:
            way = Way(loop, hand)
            way.close()
            way.port = way.outlet.port = Port(Pair(loop, reader, writer, ()))
            loop.handlers[writer] = way._on_port
            data = noise(500_000)
            senders = [Sender(way, 1, data)]
            senders[0].wait()
            got = b""
            while len(got) < len(data):
                await rounds(loop, 2)
                try:
                    hand.came += os.read(other_reader, 1 << 20)
                except BlockingIOError:
                    continue
                got += b"".join(part for _, part in _complete(hand))
            assert got == data
            way.close()
        os.close(other_reader)
        os.close(other_writer)

    play(loop, story)


def _complete(hand: Hand) -> Iterator[tuple[int, bytes]]:
    while len(hand.came) >= HEADER.size:
        number, length = HEADER.unpack_from(hand.came)
        if len(hand.came) < HEADER.size + length:
            return
        data = hand.came[HEADER.size : HEADER.size + length]
        hand.came = hand.came[HEADER.size + length :]
        assert number != 0xFFFF, decode(data)
        yield number, data
