"""The relay: the conformance suite on all kinds of descriptors, and what is the relay's own."""

import os
import random
import select
import socket
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conformance import Conformance
from ends import (
    KINDS,
    PATIENCE,
    End,
    Ours,
    Outcome,
    no_garbage,
    noise,
    tcp_pair,
)
from joined import MIB, Pair, as_a_server, carried, leaks_nothing, relayed  # noqa: F401

from muonsocks.net import pipes
from muonsocks.net.loop import Loop
from muonsocks.net.relay import Ended, Relay
from muonsocks.net.stream import Stream


class TestConformance(Conformance):
    """`Session.relay` in a thread, between two ends of any kind."""

    kinds = (
        "tcp-tcp",
        "unix-unix",
        "pipes-pipes",
        "fifos-unix",
        "pty-tcp",
        "tcp-unix",
        "unix-tcp",
        "pipes-tcp",
        "tcp-pty",
    )

    def start(
        self, ours: Ours, theirs: End, kind: str, place: Path, early: bytes
    ) -> tuple[End, Callable[[], Outcome]]:
        (place / "far").mkdir()
        our_far, far = KINDS[kind.partition("-")[2]].make(place / "far")
        return far, relayed(ours, our_far, early)


# Time limits


def both_ways(small_far: bool = False) -> tuple[Loop, Relay, socket.socket, socket.socket]:
    loop = Loop()
    (ours, client), (our_far, far) = tcp_pair(), tcp_pair(small_far)
    streams = [Ours(sock.fileno(), sock.fileno(), sock).stream(loop) for sock in (ours, our_far)]
    for end in (client, far):
        end.setblocking(False)
    return loop, Relay(*streams), client, far


def run_for(loop: Loop, joined: Relay, idle: float, half_close: float, story: Any = None) -> Ended:
    """Run a relay, with another task beside it, and close its streams."""

    async def main() -> Ended:
        if story is not None:
            loop.spawn(story(), pytest.fail)
        with loop.deadline(PATIENCE):
            return await carried(joined, idle, half_close)

    streams = (joined.up.source, joined.down.source)
    ended = loop.run(main())
    for stream in streams:
        stream.close()
    loop.close()
    return ended


def test_idle_timeout_resets_both_sides() -> None:
    with Pair(idle=0.05) as pair:
        pair.client.send(b"one")
        assert pair.far.read_exactly(3) == b"one"
        assert pair.client.read_to_end() == (b"", "reset")
        assert pair.far.read_to_end() == (b"", "reset")
        assert pair.over() == ("idle-timeout", 3, 0)


def test_half_close_timeout() -> None:
    with Pair(half_close=0.05) as pair:
        pair.client.send(b"one")
        pair.client.end_output()
        assert pair.far.read_to_end() == (b"one", "end")
        assert pair.client.read_to_end() == (b"", "reset")
        assert pair.over() == ("half-close-timeout", 3, 0)
        with pytest.raises(ConnectionError):
            pair.far.send(b"too late")


@pytest.mark.parametrize("direction", [0, 1], ids=["up", "down"])
def test_traffic_resets_the_idle_clock(direction: int) -> None:
    """In either direction; and the relay ends a whole limit after the last byte."""
    loop, joined, *ends = both_ways()
    times = []

    async def chat() -> None:
        for _ in range(8):
            await loop.sleep(0.05)
            ends[direction].send(b".")
            times.append(loop.now)

    ended = run_for(loop, joined, 0.12, 60, chat)
    assert ended.reason == "idle-timeout"
    assert len(times) == 8
    assert loop.now - times[-1] >= 0.12
    assert [joined.up.count, joined.down.count] == ([8, 0] if direction == 0 else [0, 8])
    for end in ends:
        end.close()


@pytest.mark.parametrize("limits", [(0.05, 0.3), (60, 0.3)])
def test_half_closed_relay_has_its_own_limit(limits: tuple[float, float]) -> None:
    """It counts from the last byte, whichever of the two is longer."""
    loop, joined, client, far = both_ways()
    seen = []

    async def watch() -> None:
        await loop.sleep(0.15)
        seen.append(joined.reason)
        far.send(b"late")
        seen.append(loop.now)

    client.shutdown(socket.SHUT_WR)
    ended = run_for(loop, joined, *limits, watch)
    assert ended.reason == "half-close-timeout"
    assert seen[0] == ""
    assert loop.now - seen[1] >= 0.3
    assert joined.down.count == 4
    assert client.recv(10) == b"late"
    client.close()
    far.close()


@pytest.mark.parametrize("leavers", [0, 1, 7, 19, 20])
def test_relays_are_watched_together(leavers: int) -> None:
    """By one timer, and none when they are over; if some leave early, the others end in time."""
    loop, ends, ended = Loop(), [], {}

    async def join(number: int, joined: Relay) -> None:
        reason = (await carried(joined, 0.4, 60)).reason
        ended[number] = (reason, loop.now - joined.active)
        for half in (joined.up, joined.down):
            half.source.close()

    async def main() -> None:
        for number in range(20):
            (ours, client), (our_far, far) = tcp_pair(), tcp_pair()
            streams = [
                Ours(one.fileno(), one.fileno(), one).stream(loop) for one in (ours, our_far)
            ]
            ends.append((client, far))
            loop.spawn(join(number, Relay(*streams)), pytest.fail)
        assert sum(timer.callback is not None for _, _, timer in loop.timers) == 1
        for client, far in random.Random(leavers).sample(ends, leavers):
            client.close()
            far.close()
        await loop.sleep(0.1)
        for client, far in ends:
            if client.fileno() >= 0:
                far.send(b"late")
        while len(ended) < 20:
            await loop.sleep(0.01)

    loop.run(main())
    reasons = Counter(reason for reason, _ in ended.values())
    assert reasons == Counter({"closed": leavers, "idle-timeout": 20 - leavers})
    assert all(0.4 <= quiet < 0.6 for reason, quiet in ended.values() if reason != "closed")
    assert not loop.watches and not any(timer.callback for _, _, timer in loop.timers)
    loop.close()
    for end in sum(ends, ()):
        end.close()


@pytest.mark.parametrize("size", [100_000, 3 * MIB])
def test_timeout_while_the_sink_is_full(size: int) -> None:
    """What is pending is dropped, its pipe too, and the count says what was delivered."""
    loop, joined, client, far = both_ways(small_far=True)
    if size < MIB:  # it is copied; else it waits in a pipe
        joined.up.sink.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MIB)
    sent = 0
    while sent < size:
        try:
            sent += client.send(bytes(size - sent))
        except BlockingIOError:
            break
    waiting: list[object] = []

    async def look() -> None:
        await loop.sleep(0.03)
        waiting.append(type(joined.up.pending))

    ended = run_for(loop, joined, 0.05, 0.05, look)
    assert waiting == [bytes if size < MIB else pipes.Pipe]
    assert ended.reason == "idle-timeout"
    received = End.of(far).read_to_end()[0]
    assert 0 < len(received) == joined.up.count <= sent
    client.close()
    far.close()


# Who has ended, and then is gone altogether


@pytest.mark.parametrize("kind, leave", [("unix", "close"), ("pipes", "close"), ("tcp", "reset")])
def test_gone_after_its_end(kind: str, leave: str) -> None:
    """The far end is silent, and need not be waited for."""
    with Pair(kind, half_close=5) as pair:
        pair.client.send(b"question")
        pair.client.end_output()
        assert pair.far.read_to_end() == (b"question", "end")
        getattr(pair.client, leave)()
        assert pair.over().end in ("broken-pipe", "reset")


def test_what_another_process_has_too_is_told_its_end() -> None:
    """Closing it would not: a relay that hangs may hold what was offered to it."""
    loop, joined, client, far = both_ways()
    kept = []
    for stream in (joined.up.source, joined.down.source):
        stream.is_shared = True
        kept.append(os.dup(stream.reader))
    for end in (client, far):
        end.shutdown(socket.SHUT_WR)
    assert run_for(loop, joined, PATIENCE, PATIENCE).reason == "closed"
    for end in (client, far):
        end.settimeout(PATIENCE)
        assert end.recv(1) == b""
        end.close()
    for fd in kept:
        os.close(fd)


def test_client_that_still_sends_gets_its_answer_whole() -> None:
    """It is told of an end, and not by a reset, though nobody takes what it sends."""
    answer = noise(50_000)
    with Pair() as pair:
        pair.far.send(answer)
        pair.far.close()
        for _ in range(30):
            pair.client.send(b"x" * 100)
            select.select([], [], [], 0.001)
        pair.client.end_output()
        assert pair.client.read_to_end() == (answer, "end")


# One among many


def test_bulk_leaves_the_others_their_turn() -> None:
    """A stream that never pauses is served in turns, and its turns do not pile up."""
    loop, joined, client, far = both_ways()
    data, turns, received = noise(64 * 1024), [], [0]

    def on_far(_: int) -> None:
        try:
            while count := len(far.recv(MIB)):
                received[0] += count
        except BlockingIOError:
            return

    def on_client(_: int) -> None:
        try:
            while received[0] < 30 * MIB:
                client.send(data)
        except BlockingIOError:
            return
        if client.fileno() >= 0:
            client.close()

    async def count_turns() -> None:
        loop.register(far.fileno(), on_far)
        loop.register(client.fileno(), on_client, room=True)
        while not joined.down.over and received[0] < 30 * MIB:
            await loop.sleep(0)
            turns.append(sum(due <= loop.now for due, _, _ in loop.timers))

    def close_far() -> None:
        loop.unregister(far.fileno())
        far.close()

    async def story() -> None:
        await count_turns()
        close_far()

    ended = run_for(loop, joined, PATIENCE, PATIENCE, story)
    assert ended.reason
    assert max(turns) <= 2, "one turn for each direction"
    assert len(turns) > 10
    client.close()


def test_relay_without_splice_leaves_turns_too(tmp_path: Path) -> None:
    """An endless source that is always ready does not keep timers from being due."""
    loop = Loop()
    zero = Ours(os.open("/dev/zero", os.O_RDONLY), os.open("/dev/null", os.O_WRONLY))
    null = Ours(os.open("/dev/null", os.O_RDONLY), os.open("/dev/null", os.O_WRONLY))
    client, far = zero.stream(loop), null.stream(loop)
    joined, fired = Relay(client, far), []

    async def main() -> None:
        try:
            with loop.deadline(0.05):
                await carried(joined, PATIENCE, PATIENCE)
        except TimeoutError:
            fired.append(loop.now)

    loop.run(main())
    assert fired
    assert joined.up.count > 0
    client.close()
    far.close()
    loop.close()


# Nothing is left behind

WAYS: tuple[Callable[[End, End, Any], object], ...] = (
    lambda client, far, task: (client.close(), far.close()),
    lambda client, far, task: (client.end_output(), far.end_output()),
    lambda client, far, task: (client.send(b"x" * 1000), far.close(), client.close()),
    lambda client, far, task: client.reset() if client.is_tcp else client.close(),
    lambda client, far, task: (client.end_output(), far.reset() if far.is_tcp else far.close()),
    lambda client, far, task: None,  # until it has been idle for too long
    lambda client, far, task: task.interrupt(KeyboardInterrupt()),
    lambda client, far, task: client.stuff(bytes(MIB), 0),
    lambda client, far, task: (client.stuff(bytes(MIB), 0), far.close()),
)


def test_no_cycles() -> None:
    """A resident server runs with gc off: 300 relays, ended in all ways, leave no garbage."""
    loop = Loop()

    async def one(client: Stream, far: Stream, reasons: list[str]) -> None:
        try:
            reasons.append((await carried(Relay(client, far), 0.02, 0.02)).reason)
        except KeyboardInterrupt:
            reasons.append("interrupted")
        finally:
            client.close()
            far.close()

    async def main() -> None:
        reasons: list[str] = []
        for number in range(300):
            kind = KINDS["tcp" if number % 2 else "unix"]
            (ours, client), (our_far, far) = kind.make(Path()), kind.make(Path())
            streams = ours.stream(loop), our_far.stream(loop)
            task = loop.spawn(one(*streams, reasons), pytest.fail)
            WAYS[number % len(WAYS)](client, far, task)
            while not task.is_over:
                await loop.sleep(0.001)
            client.close()
            far.close()
        assert len(reasons) == 300
        assert {"closed", "reset", "broken-pipe", "idle-timeout", "interrupted"} < set(reasons)

    with no_garbage():
        loop.run(main())
        loop.close()


def test_a_reset_ends_what_only_waits_for_more() -> None:
    """The far end reads no more, so that nothing of the client matters; then the client resets."""
    loop, client, far = Loop(), tcp_pair(), socket.socketpair()
    ours = [Ours(sock.fileno(), sock.fileno(), sock).stream(loop) for sock in (client[0], far[0])]
    relay = Relay(*ours)

    async def story() -> None:
        far[1].shutdown(socket.SHUT_RD)
        client[1].send(b"x")
        while not relay.up.over:
            await loop.sleep(0.001)
        client[1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client[1].close()

    ended = run_for(loop, relay, PATIENCE, PATIENCE, story)
    assert ended.reason == "broken-pipe"
    far[1].close()
