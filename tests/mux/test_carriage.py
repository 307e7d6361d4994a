"""A stream joined with another through a mux: the conformance suite, and what is its own."""

import os
import random
import socket
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from both import MEMORY, Both, Side
from conformance import Conformance, Thread
from ends import (
    KINDS,
    PATIENCE,
    End,
    Lines,
    Ours,
    Outcome,
    descriptors,
    made,
    no_garbage,
    noise,
)
from hand import WINDOW, Hand, play, rounds, stuff, until

from muonsocks.mux import carriage as carriage_module
from muonsocks.mux.carriage import Carriage
from muonsocks.mux.channel import Channel
from muonsocks.mux.connection import ResetReason
from muonsocks.mux.frames import Credit, Done, Eof, Reset, frames_of
from muonsocks.net.borrowed import Pair
from muonsocks.net.dial import Dialler
from muonsocks.net.inherit import Peer
from muonsocks.net.loop import Loop
from muonsocks.socks.policy import Access, Limits, Policy
from muonsocks.socks.rules import Rules
from muonsocks.socks.session import Session


class _Session(Session):
    __slots__ = ()
    kind_of_relay = Carriage


def carried(client: Ours, far: Ours, early: bytes = b"") -> Callable[[], Outcome]:
    """Join two descriptors through a mux, in a thread; give what waits for the outcome."""
    log = Lines()

    async def story(loop: Loop, streams: tuple[Any, Any]) -> None:
        both = Both(loop)
        await both.meet()
        ours, theirs = await both.channels()
        policy = Policy(Access(), Rules(), Dialler(), Limits(PATIENCE, PATIENCE, PATIENCE))
        guest = _Session(streams[0], Peer("guest"), policy, log)
        host = _Session(theirs, Peer("host"), policy, Lines())
        over = [
            loop.spawn(guest.logged(lambda: relay(guest, ours, early)), pytest.fail),
            loop.spawn(host.logged(lambda: relay(host, streams[1])), pytest.fail),
        ]
        with loop.deadline(3 * PATIENCE):
            while not all(task.is_over for task in over) or both.has_connections:
                await loop.sleep(0.001)
        both.close()
        await loop.sleep(0.001)

    async def relay(session: Session, far: Any, early: bytes = b"") -> Any:
        return session.join(far, early)

    def run() -> None:
        loop = Loop()
        streams = client.stream(loop), far.stream(loop)
        loop.run(story(loop, streams))
        assert not loop.handlers
        assert not any(timer.callback for _, _, timer in loop.timers)
        loop.close()

    thread = Thread(run)

    def over() -> Outcome:
        thread.join()
        return Outcome.of("\n".join(log.lines))

    return over


class TestConformance(Conformance):
    """Two sessions, a guest's and a host's, between two ends of any kind."""

    kinds = ("tcp-tcp", "unix-unix", "pipes-pipes", "fifos-unix", "pty-tcp", "tcp-pty")

    def start(
        self, ours: Ours, theirs: End, kind: str, place: Path, early: bytes
    ) -> tuple[End, Callable[[], Outcome]]:
        (place / "far").mkdir()
        our_far, far = KINDS[kind.partition("-")[2]].make(place / "far")
        return far, carried(ours, our_far, early)


# One carriage, a test at the other side of the mux


class Carried:
    """A host's carriage between a hand and an end of some kind."""

    def __init__(self, loop: Loop, hand: Hand, kind: str = "tcp", place: Path = Path()) -> None:
        self.loop = loop
        self.hand = hand
        self.stream, self.end = made(loop, kind, place)
        self.got = b""
        self.reason = ""

    async def begin(self, window: int = WINDOW, early: bytes = b"") -> None:
        self.side = Side(self.loop, True)
        self.side.attach(self.hand.ours)
        await self.hand.meet(self.side)
        self.channel = await self.hand.opened(self.side, window=window)
        if early:
            self.relay = Carriage(self.stream, self.channel, early)  # as at a guest's
        else:
            self.relay = Carriage(self.channel, self.stream)
        self.relay.start(PATIENCE, PATIENCE)

    def read(self) -> bytes:
        """Take what there is at the end."""
        try:
            while data := os.read(self.end.reader, 1 << 20):
                self.got += data
        except BlockingIOError:
            pass
        return self.got

    async def gets(self, data: bytes) -> None:
        """Wait until the end has got this, and no more."""
        while len(self.got) < len(data):
            self.read()
            await rounds(self.loop, 2)
        assert self.got == data
        self.got = b""

    async def stuff(self) -> bytes:
        """Let there be no room for what comes; give what the end gets before it."""
        count = 0
        while more := stuff(self.stream.socket):
            count += more
            await rounds(self.loop)
        return bytes(count)

    async def fill(self) -> bytes:
        """Send as much as there is a window for, none of which is taken yet; give all of it."""
        stuffed = await self.stuff()
        await self.hand.say_much(frames_of(0, noise(WINDOW)))
        await rounds(self.loop)
        assert self.relay.up.pending is not None
        return stuffed + noise(WINDOW)

    async def over(self) -> str:
        """Wait for the end of it, and do what a session does then."""
        await until(self.loop, lambda: self.relay.reason)
        ended = self.relay.stop()
        for stream in ended.owed_resets:
            stream.reset_on_close()
        self.close()
        return ended.reason

    def close(self) -> None:
        self.channel.close()
        self.stream.close()

    def leave(self) -> None:
        """Let the other side of the mux go, and the end."""
        self.side.link.detach("enough")
        self.end.close()


# Credit


@pytest.mark.parametrize("window", [1, 1000, 32764, 32765, WINDOW])
def test_no_more_is_sent_than_there_is_credit_for(loop: Loop, window: int) -> None:
    """And it goes on, from whatever it had come to, with the next."""

    async def story() -> None:
        with Hand(loop) as hand:
            carried = Carried(loop, hand, "unix")
            await carried.begin(window)
            data = noise(3 * window + 5)
            loop.spawn(sends(loop, carried.end, data), pytest.fail)
            got, allowed = b"", window
            for more in (window, 3, window, 2, 0):
                while len(got) < allowed:
                    got += b"".join(part for number, part in hand.heard() if number == 0)
                    await rounds(loop, 1)
                await rounds(loop)
                assert got == data[:allowed] and hand.heard() == []
                hand.say(Credit(0, more))
                allowed += more
            assert len(got) == len(data)
            carried.end.end_output()
            hand.say(Credit(0, 1))  # or it is not looked whether there is more
            await rounds(loop)
            assert hand.heard() == [Eof(0)]
            hand.say(Eof(0))
            assert await carried.over() == "closed"
            carried.leave()

    play(loop, story)


async def sends(loop: Loop, end: End, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(end.writer, data) :]
        except BlockingIOError:
            await rounds(loop, 1)


@pytest.mark.parametrize("credit", [0, 1, 99, 100, 101])
def test_early_data_and_credit(loop: Loop, credit: int) -> None:
    """What has been read before goes first, within the credit, and then the rest."""

    async def story() -> None:
        with Hand(loop) as hand:
            carried = Carried(loop, hand, "unix")
            await carried.begin(credit, early=b"e" * 100)
            await sends(loop, carried.end, b"later")
            await rounds(loop)
            whole = b"e" * 100 + b"later"
            got = b"".join(part for number, part in hand.heard())
            assert got == whole[:credit]
            for _ in range(105 - credit):
                hand.say(Credit(0, 1))
                await rounds(loop)
                got += b"".join(part for number, part in hand.heard())
                assert got == whole[: len(got)]
            assert got == whole and carried.relay.up.count == len(whole)
            hand.say(Reset(0, 1))
            await carried.over()
            carried.leave()

    play(loop, story)


def test_credit_is_given_as_data_is_taken(loop: Loop) -> None:
    """What waits for a slow sink is not paid for; what goes on is, in large coins."""

    async def story() -> None:
        with Hand(loop) as hand:
            carried = Carried(loop, hand)
            await carried.begin()
            data = await carried.fill()
            given = sum(m.count for m in hand.heard() if isinstance(m, Credit))
            waits = sum(map(len, carried.relay.up.pending or ()))
            assert carried.relay.up.count + waits == WINDOW
            assert given <= carried.relay.up.count
            await carried.gets(data)
            credits = [m.count for m in hand.heard() if isinstance(m, Credit)]
            assert len(credits) <= 3 and given + sum(credits) >= WINDOW // 2
            hand.say(Eof(0))
            carried.end.end_output()
            assert await carried.over() == "closed"
            carried.leave()

    play(loop, story)


def test_credit_of_early_data_is_given(loop: Loop) -> None:
    """That of what had come before there was a carriage."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, True)
            side.attach(hand.ours)
            await hand.meet(side)
            channel = await hand.opened(side)
            await hand.say_much(frames_of(0, noise(WINDOW)))
            await until(loop, lambda: len(channel.early) == WINDOW)
            stream, end = made(loop, "unix")
            relay = Carriage(channel, stream)
            relay.start(PATIENCE, PATIENCE)
            got = b""
            while len(got) < WINDOW:
                await rounds(loop)
                got += end.read()
            await rounds(loop)
            assert sum(m.count for m in hand.heard() if isinstance(m, Credit)) >= WINDOW // 2
            hand.data(0, b"more")
            await rounds(loop)
            assert end.read() == b"more"
            relay.stop()
            channel.close()
            stream.close()
            end.close()
            side.link.detach("enough")

    play(loop, story)


def test_early_data_of_which_all_is_taken_at_once(loop: Loop) -> None:
    """There is nobody else then who would write the credit."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, True)
            side.attach(hand.ours)
            await hand.meet(side)
            channel = await hand.opened(side)
            await hand.say_much(frames_of(0, noise(WINDOW)))
            await until(loop, lambda: len(channel.early) == WINDOW)
            with open("/dev/null", "wb") as null, open("/dev/zero", "rb") as zero:
                stream = Pair(loop, os.dup(zero.fileno()), os.dup(null.fileno()), ())
            relay = Carriage(channel, stream)
            channel.connection.credit = 0
            relay.start(PATIENCE, PATIENCE)
            await rounds(loop)
            assert sum(m.count for m in hand.heard() if isinstance(m, Credit)) >= WINDOW
            relay.stop()
            channel.close()
            stream.close()
            side.link.detach("enough")

    play(loop, story)


def test_who_waits_for_a_turn_has_one(loop: Loop) -> None:
    """However often its stream has something new meanwhile."""

    async def story() -> None:
        with Hand(loop) as hand:
            carried = Carried(loop, hand)
            await carried.begin()
            outlet = carried.side.link.outlet
            carried.side.link.outlet.send_copy(carried.channel.connection, bytes(WINDOW - 100))
            await rounds(loop)
            port = carried.side.link._port
            assert port is not None
            if not port.backlog:
                port.write(bytes(1 << 22))
            for _ in range(5):
                await sends(loop, carried.end, b"more")
                await rounds(loop)
                assert len(outlet._senders) == 1
            hand.sock.close()
            assert await carried.over() == "reset"
            carried.leave()

    play(loop, story)


# What waits


def test_what_waits_is_bounded_by_the_window(loop: Loop) -> None:
    """Of a peer that keeps to it: it is not given any more."""

    async def story() -> None:
        with Hand(loop) as hand:
            carried = Carried(loop, hand)
            await carried.begin()
            await carried.fill()
            assert sum(map(len, carried.relay.up.pending)) <= WINDOW
            for _ in range(10):
                before = sum(m.count for m in hand.heard() if isinstance(m, Credit))
                await rounds(loop)
            assert not before
            carried.end.reset()
            hand.say(Reset(0, 1))
            await carried.over()
            carried.leave()

    play(loop, story)


def test_small_parts_that_wait_do_not_cost_much(loop: Loop) -> None:
    """A frame of one byte has to be kept in less than a window's memory."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, True)
            side.attach(hand.ours)
            await hand.meet(side)
            all_carried = []
            for number in range(2):
                stream, end = made(loop, "unix")
                channel = await hand.opened(side, number)
                relay = Carriage(channel, stream)
                relay.start(PATIENCE, PATIENCE)
                all_carried.append((relay, channel, stream, end))
            for number, (relay, *_) in enumerate(all_carried):
                await hand.say_much(frames_of(number, bytes(WINDOW - 30_000)))
                await rounds(loop)
                if relay.up.pending is None:
                    stuffing = bytes(1 << 16)
                    while relay.up.sink.send_now(stuffing) != stuffing:
                        pass
            count = 25_000
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            # Of two connections in turn: parts of one that follow each other are one event.
            await hand.say_much(b"\0\0\1\0a\1\0\1\0b" * count)
            await rounds(loop, 100)
            grown = tracemalloc.get_traced_memory()[0] - before
            tracemalloc.stop()
            assert all(relay.up.pending is not None for relay, *_ in all_carried)
            assert grown < 10 * 2 * count
            for number, (relay, channel, stream, end) in enumerate(all_carried):
                got = b""
                while relay.up.pending is not None:
                    got += end.read()
                    await rounds(loop, 2)
                got += end.read()
                assert got.endswith(b"ab"[number : number + 1] * count)
                relay.stop()
                channel.close()
                stream.close()
                end.close()
            side.link.detach("enough")

    play(loop, story)


def test_parts_that_wait_stay_in_order(loop: Loop) -> None:
    """However they come, and however they are taken."""
    dice = random.Random(5)

    async def story() -> None:
        with Hand(loop) as hand:
            carried = Carried(loop, hand)
            await carried.begin()
            sent, got, credit = await carried.stuff(), b"", WINDOW
            for turn in range(400):
                size = min(dice.choice((1, 5, 100, 4000, 30_000)), credit)
                if size:
                    part = noise(size, turn)
                    hand.data(0, part)
                    sent += part
                    credit -= size
                await rounds(loop, dice.choice((1, 3)))
                if dice.random() < 0.5:
                    try:
                        got += os.read(carried.end.reader, dice.choice((10, 3000, 1 << 18)))
                    except BlockingIOError:
                        pass
                credit += sum(m.count for m in hand.heard() if isinstance(m, Credit))
            hand.say(Eof(0))
            carried.got = got
            await carried.gets(sent)
            carried.end.end_output()
            assert await carried.over() == "closed"
            carried.leave()

    play(loop, story)


def test_many_parts_at_once(loop: Loop) -> None:
    """More than writev(2) takes."""

    async def story() -> None:
        with Hand(loop) as hand:
            carried = Carried(loop, hand, "unix")
            await carried.begin()
            hand.say(b"".join(b"\0\0\1\0" + bytes([n % 256]) for n in range(3000)))
            await carried.gets(bytes(n % 256 for n in range(3000)))
            hand.say(b"".join(b"\0\0\1\0" + bytes([n % 256]) for n in range(1000)))
            await carried.gets(bytes(n % 256 for n in range(1000)))
            hand.say(Reset(0, 1))
            await carried.over()
            carried.leave()

    play(loop, story)


def test_one_that_is_blocked_and_others(loop: Loop) -> None:
    """It has its window; the others go on for as long as they like."""

    async def story() -> None:
        both = Both(loop)
        await both.meet()
        joints = [await joined(both) for _ in range(6)]
        blocked, *others = joints
        stuffed = bytes(32 << 20)
        loop.spawn(sends_to_a_leaver(loop, blocked.near, stuffed), pytest.fail)
        await rounds(loop, 200)
        for turn in range(5):
            data = [noise(1 << 20, turn * 10 + n) for n in range(5)]
            for one, part in zip(others, data, strict=True):
                loop.spawn(sends(loop, one.near, part), pytest.fail)
            got = [b""] * 5
            while any(len(a) < len(b) for a, b in zip(got, data, strict=True)):
                for number, one in enumerate(others):
                    got[number] += now(one.far)
                await rounds(loop, 1)
            assert got == data
        for one in joints:
            await one.end()
        both.close()

    play(loop, story, 60)


class Joined:
    """Two ends, joined through both sides."""

    def __init__(self, both: Both, channels: tuple[Channel, Channel]) -> None:
        loop = both.loop
        self.loop, self.channels = loop, channels
        self.client, self.near = made(loop, "unix")
        self.server, self.far = made(loop, "unix")
        self.relays = (
            Carriage(self.client, channels[0]),
            Carriage(channels[1], self.server),
        )
        for relay in self.relays:
            relay.start(PATIENCE, PATIENCE)

    async def end(self) -> None:
        for end in (self.near, self.far):
            end.close()
        left = [
            (self.relays[0], self.client, self.channels[0]),
            (self.relays[1], self.server, self.channels[1]),
        ]
        while left:
            await rounds(self.loop, 1)
            for relay, *streams in [one for one in left if one[0].reason]:
                relay.stop()
                for stream in streams:
                    stream.close()
            left = [one for one in left if not one[0].reason]


async def joined(both: Both) -> Joined:
    return Joined(both, await both.channels())


def now(end: End) -> bytes:
    try:
        return os.read(end.reader, 1 << 20)
    except BlockingIOError:
        return b""


async def sends_to_a_leaver(loop: Loop, end: End, data: bytes) -> None:
    while data and end.reader >= 0:
        try:
            data = data[os.write(end.writer, data) :]
        except (BlockingIOError, BrokenPipeError):
            await rounds(loop, 1)


# Ends


@pytest.mark.parametrize("how", ["eof", "reset", "goodbye", "the port"])
def test_the_end_while_data_waits(loop: Loop, how: str) -> None:
    """The sink gets it all, and then the end as it was."""

    async def story() -> None:
        with Hand(loop) as hand:
            carried = Carried(loop, hand)
            await carried.begin()
            data = await carried.fill()
            if how == "eof":
                hand.say(Eof(0))
            elif how == "reset":
                hand.say(Reset(0, ResetReason.RESET))
            elif how == "goodbye":
                carried.side.link.detach("told to stop")
            else:
                hand.sock.close()
            await rounds(loop)
            assert not carried.relay.reason
            await carried.gets(data)
            if how == "eof":
                await rounds(loop)
                assert carried.end.read() == b""
                carried.end.end_output()
            assert await carried.over() == ("closed" if how == "eof" else "reset")
            assert carried.end.read_to_end() == (b"", "end" if how == "eof" else "reset")
            carried.leave()

    play(loop, story)


@pytest.mark.parametrize("has_credit", [True, False])
def test_a_reset_by_the_other_side_is_one_at_the_end(loop: Loop, has_credit: bool) -> None:
    """Also while what the end sends waits for credit."""

    async def story() -> None:
        with Hand(loop) as hand:
            carried = Carried(loop, hand)
            await carried.begin(1 << 30 if has_credit else 10)
            await sends(loop, carried.end, bytes(1000))
            await rounds(loop)
            hand.heard()
            hand.say(Reset(0, 1))
            assert await carried.over() == "reset"
            assert carried.end.read_to_end() == (b"", "reset")
            assert hand.heard() == [Done(0)]
            carried.leave()

    play(loop, story)


@pytest.mark.parametrize("stage", ["at once", "data", "half-closed here", "half-closed there"])
def test_a_reset_by_the_end_is_told(loop: Loop, stage: str) -> None:
    async def story() -> None:
        with Hand(loop) as hand:
            carried = Carried(loop, hand)
            await carried.begin()
            if stage == "data":
                await sends(loop, carried.end, b"last")
                await rounds(loop)
                assert hand.heard() == [(0, b"last")]
            elif stage == "half-closed here":
                hand.say(Eof(0))
                await until(loop, lambda: carried.relay.up.over)
                assert carried.end.read() == b""
            elif stage == "half-closed there":
                carried.end.end_output()
                await until(loop, lambda: carried.relay.down.over)
                assert hand.heard() == [Eof(0)]
            carried.end.reset()
            if stage == "half-closed there":
                hand.data(0, b"to nobody")
            reason = await carried.over()
            await rounds(loop)
            heard = hand.heard()
            if stage == "half-closed there":
                assert reason in ("reset", "broken-pipe", "closed")
                assert [type(one) for one in heard] == [Reset]
            else:
                assert reason == "reset"
                assert heard == [Reset(0, ResetReason.STOPPED)]
            carried.leave()

    play(loop, story)


def test_a_sink_that_takes_nothing_more(loop: Loop) -> None:
    """What its other side still sends counts; what comes for it is dropped, without credit."""

    async def story() -> None:
        with Hand(loop) as hand:
            carried = Carried(loop, hand, "pipes")
            await carried.begin()
            os.close(carried.end.reader)
            carried.end.reader = carried.end.writer
            hand.data(0, b"to nobody")
            await until(loop, lambda: carried.relay.up.over)
            hand.data(0, b"nor this")
            await sends(loop, carried.end, b"still")
            await rounds(loop)
            assert hand.heard() == [(0, b"still")] and not carried.relay.reason
            os.close(carried.end.writer)
            carried.end.reader = carried.end.writer = -1
            assert await carried.over() == "broken-pipe"
            carried.leave()

    play(loop, story)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_the_end_leaves_while_its_data_waits_for_credit(loop: Loop, kind: str) -> None:
    """What it sent arrives, and its end."""

    async def story() -> None:
        with Hand(loop) as hand:
            carried = Carried(loop, hand, kind)
            await carried.begin(10)
            await sends(loop, carried.end, noise(1000))
            carried.end.close()
            await rounds(loop)
            [(_, got)] = hand.heard()
            hand.say(Credit(0, 991))
            await rounds(loop)
            heard = hand.heard()
            assert got + b"".join(m[1] for m in heard if isinstance(m, tuple)) == noise(1000)
            assert Eof(0) in heard
            hand.say(Eof(0))
            assert await carried.over() in ("closed", "broken-pipe")
            carried.leave()

    play(loop, story)


def test_urgent_data_stays_in_its_place(loop: Loop) -> None:
    async def story() -> None:
        with Hand(loop) as hand:
            carried = Carried(loop, hand)
            await carried.begin()
            sock = carried.end.sock
            assert sock is not None
            sock.send(b"before")
            sock.send(b"!", socket.MSG_OOB)
            sock.send(b"behind")
            got = b""
            while len(got) < 13:
                got += b"".join(part for _, part in hand.heard())
                await rounds(loop)
            assert got == b"before!behind"
            hand.say(Reset(0, 1))
            await carried.over()
            carried.leave()

    play(loop, story)


@pytest.mark.parametrize("end", [Eof(0), Reset(0, 1)], ids=["eof", "reset"])
@pytest.mark.parametrize("early", [b"", b"last"])
def test_what_has_ended_before(loop: Loop, end: Any, early: bytes) -> None:
    """The sink gets what there was, and the end as it was."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, True)
            side.attach(hand.ours)
            await hand.meet(side)
            channel = await hand.opened(side)
            hand.say(frames_of(0, early), end)
            await until(loop, lambda: channel.has_ended or channel.was_lost)
            stream, far = made(loop, "tcp")
            relay = Carriage(channel, stream)
            relay.start(PATIENCE, PATIENCE)
            if isinstance(end, Reset):
                assert relay.reason == "reset"
            else:
                assert not relay.reason and far.read_to_end() == (early, "end")
                far.end_output()
                await until(loop, lambda: relay.reason)
            for one in relay.stop().owed_resets:
                one.reset_on_close()
            channel.close()
            stream.close()
            if isinstance(end, Reset):
                assert far.read_to_end()[1] == "reset"
            far.close()
            side.link.detach("enough")

    play(loop, story)


# Other kinds of descriptors


def test_regular_files(loop: Loop, tmp_path: Path) -> None:
    """One to read from and one to write to: neither has events."""
    data = noise(1 << 20)

    async def story() -> None:
        both = Both(loop)
        await both.meet()
        ours, theirs = await both.channels()
        (tmp_path / "in").write_bytes(data)
        reader = os.open(tmp_path / "in", os.O_RDONLY)
        writer = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
        (our_null, their_null) = (os.open("/dev/null", os.O_RDWR) for _ in range(2))
        streams = [Pair(loop, reader, our_null, ()), Pair(loop, their_null, writer, ())]
        relays = [Carriage(streams[0], ours), Carriage(theirs, streams[1])]
        for relay in relays:
            relay.start(PATIENCE, PATIENCE)
        for relay in relays:
            await until(loop, lambda relay=relay: relay.reason)
            assert relay.reason == "closed" and relay.up.count == len(data)
            relay.stop()
        assert (tmp_path / "out").read_bytes() == data
        for one in (*streams, ours, theirs):
            one.close()
        await rounds(loop)
        assert not both.has_connections
        both.close()

    play(loop, story)


def test_a_file_that_takes_a_part(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no event when it takes the rest."""
    writes = []

    def write(fd: int, data: Any) -> int:
        writes.append(len(data))
        return os.write(fd, data[: 1 + len(data) // 2])

    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, True)
            side.attach(hand.ours)
            await hand.meet(side)
            channel = await hand.opened(side)
            writer = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
            stream = Pair(loop, os.open("/dev/null", os.O_RDONLY), writer, ())
            relay = Carriage(channel, stream)
            relay.start(PATIENCE, PATIENCE)
            with monkeypatch.context() as patch:
                patch.setattr(carriage_module, "write", write)
                hand.say(frames_of(0, noise(10_000)), Eof(0))
                await until(loop, lambda: relay.reason)
            assert (tmp_path / "out").read_bytes() == noise(10_000) and len(writes) > 5
            assert relay.stop().reason == "closed"
            channel.close()
            stream.close()
            side.link.detach("enough")

    play(loop, story)


def test_a_file_that_takes_no_more(loop: Loop) -> None:
    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, True)
            side.attach(hand.ours)
            await hand.meet(side)
            channel = await hand.opened(side)
            full, null = os.open("/dev/full", os.O_WRONLY), os.open("/dev/null", os.O_RDONLY)
            stream = Pair(loop, null, full, ())
            relay = Carriage(channel, stream)
            relay.start(PATIENCE, PATIENCE)
            hand.data(0, b"x")
            await until(loop, lambda: relay.reason)
            assert relay.stop().reason == "broken-pipe"
            channel.close()
            stream.close()
            side.link.detach("enough")

    play(loop, story)


def test_a_pipe_with_no_reader_is_noticed(loop: Loop) -> None:
    """Although nothing is to be written to it."""

    async def story() -> None:
        with Hand(loop) as hand:
            carried = Carried(loop, hand, "pipes")
            await carried.begin()
            carried.end.close()
            assert await carried.over() in ("closed", "broken-pipe")
            await rounds(loop)
            assert {type(one) for one in hand.heard()} <= {Eof, Reset}
            carried.leave()

    play(loop, story)


# Memory


def test_a_thousand_connections_leave_nothing(loop: Loop) -> None:
    """Ended in every way; no descriptor, no cycle, no window."""

    async def story() -> None:
        both = Both(loop)
        await both.meet()
        await (await joined(both)).end()
        before = len(descriptors())
        with no_garbage():
            for turn in range(1000):
                one = await joined(both)
                if turn % 4:
                    one.near.send(b"question")
                    await until(loop, lambda one=one: now(one.far))
                if turn % 4 == 1:
                    one.near.end_output()
                elif turn % 4 == 2:
                    one.far.send(bytes(100_000))
                    one.far.close()
                await one.end()
            await rounds(loop)
            del one
        assert len(descriptors()) == before
        await rounds(loop, 100)
        assert not both.has_connections
        both.close()

    play(loop, story, 60)


def test_what_waits_when_the_session_ends_is_freed(loop: Loop) -> None:
    """With the senders that were waiting for their turn, once there is a port again."""

    async def story() -> None:
        both = Both(loop)
        await both.meet()
        joints = [await joined(both) for _ in range(20)]
        for one in joints:
            loop.spawn(sends_to_a_leaver(loop, one.near, bytes(4 << 20)), pytest.fail)
        await rounds(loop, 50)
        both.pull_the_cable()
        for one in joints:
            await one.end()
        both.guest.happened._items.clear()
        both.host.happened._items.clear()
        both.join()
        await both.meet()
        await rounds(loop, 100)
        for side in (both.guest, both.host):
            assert not side.link.outlet._senders
            assert side.link.mux._windows._left == MEMORY
        both.close()

    play(loop, story, 60)
