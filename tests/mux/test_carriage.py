"""A stream joined with another through a mux: the conformance suite, and what is its own."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from both import Both, Side
from carried import Carried, sends
from conformance import Conformance, Thread
from ends import (
    KINDS,
    PATIENCE,
    End,
    Lines,
    Ours,
    Outcome,
    made,
    noise,
)
from hand import WINDOW, Hand, play, rounds, until

from muonsocks.mux import carriage as carriage_module
from muonsocks.mux.carriage import Carriage
from muonsocks.mux.frames import Credit, Eof, Reset, frames_of
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
