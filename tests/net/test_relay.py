"""The relay: the conformance suite on all kinds of descriptors, and what is the relay's own."""

import errno
import os
import resource
import select
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from conformance import Conformance, Thread
from ends import (
    KINDS,
    PATIENCE,
    End,
    Lines,
    Ours,
    Outcome,
    at_once,
    no_garbage,
    noise,
    nothing_left_behind,
    tcp_pair,
)
from places import descriptor_limit, in_child

from muonsocks.net import half, pipes
from muonsocks.net.dial import Dialler
from muonsocks.net.inherit import Peer
from muonsocks.net.loop import Loop
from muonsocks.net.relay import Ended, Relay
from muonsocks.net.stream import Stream
from muonsocks.net.task import Mailbox
from muonsocks.socks.rules import Rules
from muonsocks.socks.session import Access, Limits, Policy, Session

MIB = 1 << 20


async def as_a_server(loop: Loop, coroutine: Coroutine[Any, None, None]) -> None:
    """Run a session as one task of many; what its event handlers raise is raised here."""
    over = Mailbox()

    async def session() -> None:
        try:
            await coroutine
        finally:
            over.post("over")

    loop.spawn(session(), over.post)
    with loop.deadline(3 * PATIENCE):
        failure = await over.take()
        await loop.sleep(0.001)
    assert failure == "over", failure


def relayed(
    client: Ours,
    far: Ours,
    early: bytes = b"",
    idle: float = PATIENCE,
    half_close: float = PATIENCE,
) -> Callable[[], Outcome]:
    """Join two descriptors by `Session.relay` in a thread; give what waits for the outcome."""
    log = Lines()

    def run() -> None:
        loop = Loop()
        client_stream, far_stream = client.stream(loop), far.stream(loop)
        limits = Limits(PATIENCE, idle, half_close)
        policy = Policy(Access(), Rules((), allow_local=True), Dialler(), limits)
        session = Session(client_stream, Peer("test"), policy, log)

        async def story() -> Ended:
            try:
                return await session.relay(far_stream, early)
            finally:
                far_stream.close()

        loop.run(as_a_server(loop, session.logged(story)))
        assert not loop.handlers
        assert not any(timer.callback for _, _, timer in loop._timers)
        loop.close()

    thread = Thread(run)

    def over() -> Outcome:
        thread.join()
        return Outcome.of("\n".join(log.lines))

    return over


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


@pytest.fixture(autouse=True)
def leaks_nothing() -> Iterator[None]:
    with nothing_left_behind():
        yield


class Pair:
    """A relay between two ends of one kind each, for `with`; `sent` is there when it begins."""

    def __init__(
        self, client: str = "tcp", far: str = "tcp", sent: bytes = b"", **options: Any
    ) -> None:
        ours, self.client = KINDS[client].make(Path())
        our_far, self.far = KINDS[far].make(Path())
        if sent and self.client.sock and ours.sock:
            ours.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MIB)
            self.client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * len(sent))
            self.client.send(sent)
        self._start = lambda: relayed(ours, our_far, **options)

    def __enter__(self) -> "Pair":
        self.over = self._start()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.client.close()
        self.far.close()
        if kind is None:
            self.over()


# Regular files, which epoll refuses


@pytest.mark.parametrize("size", [0, 1, 65536, 3 * MIB + 1])
@pytest.mark.parametrize("kind", ["tcp", "unix", "pipes", "fifos"])
def test_regular_files(tmp_path: Path, kind: str, size: int) -> None:
    (tmp_path / "in").write_bytes(noise(size))
    client = Ours(
        os.open(tmp_path / "in", os.O_RDONLY),
        os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT),
    )
    our_far, far = KINDS[kind].make(tmp_path if kind != "fifos" else make(tmp_path / "fifos"))
    over = relayed(client, our_far)
    answer = noise(size, 2)
    received, _ = at_once(far.read_to_end, lambda: far.send(answer))
    assert received == (noise(size), "end")
    far.close()
    assert over() == ("closed", size, size)
    assert (tmp_path / "out").read_bytes() == answer


def make(directory: Path) -> Path:
    directory.mkdir()
    return directory


@pytest.mark.parametrize("spliced", [True, False])
def test_more_than_one_turn_of_what_is_always_ready(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spliced: bool
) -> None:
    """No event says that there is more of a file."""
    real, moved = half.splice, [0]

    def splice(*arguments: Any, **options: Any) -> int:
        moved.append(real(*arguments, **options))
        return moved[-1]

    monkeypatch.setattr(half, "splice", splice)
    size = 40 * MIB if spliced else 3 * MIB
    with open(tmp_path / "in", "wb") as file:
        file.truncate(size)
    out = os.O_WRONLY | os.O_CREAT | (0 if spliced else os.O_APPEND)
    over = relayed(
        Ours(os.open(tmp_path / "in", os.O_RDONLY), os.open("/dev/null", os.O_WRONLY)),
        Ours(os.open("/dev/null", os.O_RDONLY), os.open(tmp_path / "out", out)),
    )
    assert over() == ("closed", size, 0)
    assert (tmp_path / "out").stat().st_size == size
    assert sum(moved) > size if spliced else sum(moved) < size


def test_dev_null_on_both_sides() -> None:
    client = Ours(os.open("/dev/null", os.O_RDONLY), os.open("/dev/null", os.O_WRONLY))
    our_far, far = KINDS["unix"].make(Path())
    over = relayed(client, our_far)
    far.send(noise(MIB))
    assert far.read_to_end() == (b"", "end")
    far.close()
    assert over() == ("closed", 0, MIB)


@pytest.mark.parametrize("size", [1000, 40_000, 3 * MIB])
def test_append_only_file_cannot_be_spliced_to(tmp_path: Path, size: int) -> None:
    out = tmp_path / "out"
    out.write_bytes(b"before ")
    reader, writer = os.pipe()
    over = relayed(Ours(reader, os.open(out, os.O_WRONLY | os.O_APPEND)), far_of(ends := []))
    os.close(writer)
    data = noise(size)
    ends[0].send(data)
    assert ends[0].read_to_end() == (b"", "end")
    ends[0].close()
    assert over() == ("closed", 0, size)
    assert out.read_bytes() == b"before " + data


def far_of(ends: list[End], kind: str = "tcp") -> Ours:
    ours, end = KINDS[kind].make(Path())
    ends.append(end)
    return ours


def test_file_that_takes_little_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(half, "write", lambda fd, data: os.write(fd, data[:1000]))
    out = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    over = relayed(Ours(os.open("/dev/null", os.O_RDONLY), out), far_of(ends := []))
    data = noise(50_000)
    ends[0].send(data)
    ends[0].close()
    assert over()[1:] == (0, len(data))
    assert (tmp_path / "out").read_bytes() == data


@pytest.mark.parametrize("limit", [10_000, 100_000, 200_000, 2 * MIB + 1])
def test_file_that_takes_only_a_part(tmp_path: Path, limit: int) -> None:
    """A disk that is full: a short write and then an error, and no event for either."""

    def run() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        out = tmp_path / "out"
        client = Ours(os.open("/dev/null", os.O_RDONLY), os.open(out, os.O_WRONLY | os.O_CREAT))
        over = relayed(client, far_of(ends := []), half_close=5)
        data = noise(3 * MIB)
        with pytest.raises(ConnectionError):
            ends[0].send(data)
            ends[0].send(data)
        ends[0].close()
        assert over() == ("broken-pipe", 0, limit)
        assert out.read_bytes() == data[:limit]

    in_child(run)


# Urgent data stays in its place


@pytest.mark.parametrize("behind", [b"", b"behind"])
@pytest.mark.parametrize("direction", [0, 1], ids=["up", "down"])
@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 200_000, 3 * MIB])
def test_urgent_byte(direction: int, size: int, behind: bytes) -> None:
    with Pair() as pair:
        writer, reader = [(pair.client, pair.far), (pair.far, pair.client)][direction]
        data = noise(size)

        def write() -> None:
            writer.send(data)
            send_urgent(writer)
            writer.send(behind)

        _, received = at_once(write, lambda: reader.read_exactly(size + 1 + len(behind)))
        assert received == data + b"!" + behind


def send_urgent(end: End) -> None:
    assert end.sock
    assert end.wait_for(select.POLLOUT)
    end.sock.send(b"!", socket.MSG_OOB)


@pytest.mark.parametrize("direction", [0, 1], ids=["up", "down"])
def test_urgent_bytes_amid_bulk(direction: int) -> None:
    pieces = [noise(size, size) for size in (MIB, 3 * MIB, 1, 0, 65536, 2 * MIB, 5)]
    with Pair() as pair:
        writer, reader = [(pair.client, pair.far), (pair.far, pair.client)][direction]

        def write() -> None:
            for piece in pieces:
                writer.send(piece)
                send_urgent(writer)
            writer.end_output()

        _, received = at_once(write, reader.read_to_end)
        assert received == (b"".join(piece + b"!" for piece in pieces), "end")


@pytest.mark.parametrize("size", [150_000, 200_000, 250_000])
@pytest.mark.parametrize("ends", [False, True], ids=["goes-on", "ends"])
def test_urgent_byte_while_the_sink_is_full(size: int, ends: bool) -> None:
    """The event that tells of it comes when it is of no use."""
    with Pair() as pair:
        data = noise(size)
        # More than the sink takes while nobody reads, and less than what there is room for.
        pair.client.send(data)
        send_urgent(pair.client)
        pair.client.send(data[:1000])
        if ends:
            pair.client.end_output()
        pair.client.wait_until_acknowledged()
        assert pair.far.read_exactly(size + 1001) == data + b"!" + data[:1000]
        pair.client.close()
        assert pair.far.read_to_end() == (b"", "end")


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("ends", [False, True], ids=["goes-on", "ends"])
def test_urgent_byte_just_before_a_splice(
    monkeypatch: pytest.MonkeyPatch, nth: int, ends: bool
) -> None:
    """It comes between the event and the splice, which stops in front of it and gives 0."""
    real, calls, late, data = half.splice, [0], noise(MIB, 2), noise(150_000)
    pair = Pair(far="unix", sent=data)

    def splice(source: int, sink: int, count: int, **options: Any) -> int:
        calls[0] += 1
        if calls[0] == nth:
            pair.client.send(b"in front")
            send_urgent(pair.client)
            pair.client.send(b"behind")
            if ends:
                pair.client.end_output()
            pair.client.wait_until_acknowledged()
        return real(source, sink, count, **options)

    monkeypatch.setattr(half, "splice", splice)
    with pair:
        assert pair.far.read_exactly(len(data) + 15) == data + b"in front!behind"
        pair.client.send(late[: 0 if ends else MIB])
        assert pair.far.read_exactly(0 if ends else MIB) == late[: 0 if ends else MIB]


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
            return await joined.run(idle, half_close)

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


# Where splice or its pipes cannot be had


@pytest.mark.parametrize("side", ["source", "sink"])
@pytest.mark.parametrize("kinds", [("tcp", "tcp"), ("pipes", "unix")])
def test_descriptor_that_cannot_be_spliced(
    monkeypatch: pytest.MonkeyPatch, side: str, kinds: tuple[str, str]
) -> None:
    real, refused = half.splice, [0]

    def splice(source: int, sink: int, count: int, **options: Any) -> int:
        refuses = (count == pipes.SIZE) == (side == "source")
        if refuses and (side == "source" or pipes._in_use):
            refused[0] += 1
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(source, sink, count, **options)

    monkeypatch.setattr(half, "splice", splice)
    data = noise(5 * MIB)
    with Pair(*kinds) as pair:
        for _ in range(2):
            at_once(
                lambda: pair.client.send(data),
                lambda: pair.far.send(data),
                lambda: check(pair.client, data),
                lambda: check(pair.far, data),
            )
        assert refused[0] == 2, "it is tried once in each direction"


def check(end: End, data: bytes) -> None:
    assert end.read_exactly(len(data)) == data


def test_no_pipes_to_be_had() -> None:
    with Pair() as pair:
        pair.client.send(b"up and running")
        check(pair.far, b"up and running")
        data = noise(5 * MIB)
        with descriptor_limit(0):
            sender = Thread(lambda: pair.client.send(data))
            check(pair.far, data)
            sender.join()
            assert not pipes._pool
        # And when there are descriptors again, so are pipes.
        at_once(lambda: pair.client.send(data), lambda: check(pair.far, data))
        assert pipes._pool


def test_more_stuffed_relays_than_pipes() -> None:
    """Those that get no pipe copy; the others hold theirs until somebody reads."""
    count = pipes._MOST + 6
    loop = Loop()
    (data, ends, results) = (noise(600_000), [], [])

    async def one(client: Stream, far: Stream) -> None:
        joined = Relay(client, far)
        ended = await joined.run(PATIENCE, PATIENCE)
        results.append((ended.reason, joined.up.count))
        client.close()
        far.close()

    async def main() -> None:
        for _ in range(count):
            streams = []
            for _ in range(2):
                ours, theirs = socket.socketpair()
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
                theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MIB)
                streams.append(Ours(ours.fileno(), ours.fileno(), ours).stream(loop))
                ends.append(theirs)
            ends[-2].sendall(data)
            ends[-2].shutdown(socket.SHUT_WR)
            loop.spawn(one(*streams), pytest.fail)
        with loop.deadline(PATIENCE):
            await loop.sleep(0.01)
            assert pipes._in_use <= pipes._MOST
            for far in ends[1::2]:
                received = bytearray()
                far.setblocking(False)
                while len(received) < len(data):
                    try:
                        received += far.recv(MIB)
                    except BlockingIOError:
                        await loop.sleep(0)
                assert received == data
            for end in ends:
                end.close()
            while len(results) < count:
                await loop.sleep(0.001)

    loop.run(main())
    loop.close()
    assert {delivered for _, delivered in results} == {len(data)}


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
        loop.register(client.fileno(), on_client)
        while not joined.down.over and received[0] < 30 * MIB:
            await loop.sleep(0)
            turns.append(len(loop._soon))

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
                await joined.run(PATIENCE, PATIENCE)
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
            reasons.append((await Relay(client, far).run(0.02, 0.02)).reason)
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
