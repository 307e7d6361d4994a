"""A stream: reads, writes, ends, and how it is closed; of two descriptors as of a socket."""

import errno
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conformance import Thread
from ends import PATIENCE, End, Ours, made, noise, run, tcp_pair

from muonsocks.address import Endpoint
from muonsocks.net.entrance import Passed
from muonsocks.net.inherit import Peer
from muonsocks.net.loop import Loop
from muonsocks.net.stream import Stream, prepare_tcp

ALL = ("tcp", "unix", "pipes", "fifos", "pty")


@pytest.mark.parametrize("kind", ALL)
def test_receive(loop: Loop, tmp_path: Path, kind: str) -> None:
    stream, end = made(loop, kind, tmp_path)

    async def story() -> None:
        loop.call_later(0.001, lambda: end.send(b"later"))
        assert await stream.receive(100) == b"later"
        end.send(b"at once")
        assert await stream.receive(2) == b"at"
        assert await stream.receive(100) == b" once"
        loop.call_later(0.001, end.close)
        if kind != "pty":
            assert await stream.receive(100) == b""
            assert await stream.receive(100) == b""

    run(loop, story, stream, end)


@pytest.mark.parametrize("kind", ALL)
def test_send_all_of_it(loop: Loop, tmp_path: Path, kind: str) -> None:
    stream, end = made(loop, kind, tmp_path)
    data, received = noise(3_000_000), []

    async def story() -> None:
        reader = Thread(lambda: received.append(end.read_exactly(len(data))))
        await stream.send(data)
        await stream.send(b"")
        reader.join()

    run(loop, story, stream, end)
    assert received == [data]


@pytest.mark.parametrize("end_first", [False, True])
def test_data_and_end_in_one_event(loop: Loop, end_first: bool) -> None:
    """A short read of TCP means drained, but not when the end is there too."""
    stream, end = made(loop, "tcp")

    async def story() -> None:
        if end_first:
            end.send(b"data")
            end.end_output()
            end.wait_until_acknowledged()
            await loop.sleep(0.001)
            assert await stream.receive(100) == b"data"
        else:
            end.send(b"data")
            await loop.sleep(0.001)
            assert await stream.receive(100) == b"data"
            end.end_output()
        assert await stream.receive(100) == b""

    run(loop, story, stream, end)


def test_receive_byte_by_byte_and_wait_for_more(loop: Loop) -> None:
    stream, end = made(loop, "tcp")

    async def story() -> None:
        for message in (b"one", b"two", b"three"):
            loop.call_later(0.001, lambda message=message: end.send(message))
            got = b""
            while len(got) < len(message):
                got += await stream.receive(1)
            assert got == message

    run(loop, story, stream, end)


def test_urgent_byte_does_not_stop_a_reader(loop: Loop) -> None:
    stream, end = made(loop, "tcp")

    async def story() -> None:
        assert end.sock
        end.send(b"before")
        end.sock.send(b"!", socket.MSG_OOB)
        end.send(b"after")
        end.wait_until_acknowledged()
        got = b""
        while len(got) < 12:
            got += await stream.receive(100)
        assert got == b"before!after"

    run(loop, story, stream, end)


def test_reset_is_raised(loop: Loop) -> None:
    stream, end = made(loop, "tcp")

    async def story() -> None:
        loop.call_later(0.001, end.reset)
        with pytest.raises(ConnectionResetError):
            await stream.receive(100)
        with pytest.raises(BrokenPipeError):
            await stream.send(b"x")
        stream.end_output()  # harmless

    run(loop, story, stream, end)


def test_interrupted_receive_leaves_the_stream_usable(loop: Loop) -> None:
    stream, end = made(loop, "unix")

    async def story() -> None:
        with pytest.raises(TimeoutError), loop.deadline(0.001):
            await stream.receive(100)
        end.send(b"late")
        await loop.sleep(0.001)
        assert await stream.receive(100) == b"late"

    run(loop, story, stream, end)


@pytest.mark.parametrize("kind", ["tcp", "unix", "pipes", "fifos"])
def test_end_output_is_an_end_for_the_peer_only(loop: Loop, tmp_path: Path, kind: str) -> None:
    stream, end = made(loop, kind, tmp_path)

    async def story() -> None:
        await stream.send(b"last")
        stream.end_output()
        assert end.read_to_end() == (b"last", "end")
        end.send(b"answer")
        assert await stream.receive(100) == b"answer"

    run(loop, story, stream, end)


@pytest.mark.parametrize("peer", [Peer("here"), Passed("there")])
def test_who_has_come_in(loop: Loop, peer: Peer) -> None:
    ours, theirs = tcp_pair()
    with theirs:
        stream = Stream.of_client(loop, ours, peer)
        assert stream.is_shared == isinstance(peer, Passed)
        stream.close()


def test_who_cannot_be_waited_for(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """epoll(7) has a limit for each user. Then the connection is closed."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Loop, "register", fail)
    ours, theirs = tcp_pair()
    with theirs:
        with pytest.raises(OSError, match="No space"):
            Stream.of_client(loop, ours, Peer("here"))
        assert theirs.recv(1) == b""


def test_what_another_process_has_open_is_watched_no_more(loop: Loop) -> None:
    """Else it would be, under a number that the next descriptor gets."""
    (ours, theirs), (next_ours, next_theirs) = tcp_pair(), tcp_pair()
    fd, copy = ours.fileno(), ours.dup()
    stream = Stream(loop, ours)
    stream.is_shared = True
    stream.close()
    os.dup2(next_ours.fileno(), fd)
    seen: list[int] = []

    async def story() -> None:
        loop.handlers[fd] = seen.append
        theirs.close()
        await loop.sleep(0.01)
        del loop.handlers[fd]

    loop.run(story())
    assert not seen
    os.close(fd)
    for sock in (copy, next_ours, next_theirs):
        sock.close()


def test_close_twice(loop: Loop) -> None:
    stream, end = made(loop, "pipes")
    stream.end_output()
    stream.close()
    stream.close()
    end.close()


@pytest.mark.parametrize("kind", ALL)
def test_linger_ends_with_the_peer(loop: Loop, tmp_path: Path, kind: str) -> None:
    """What the peer still sends is dropped, and the last words are not lost by a reset."""
    stream, end = made(loop, kind, tmp_path)

    async def story() -> None:
        end.send(b"x" * 2000)
        await stream.send(b"last words")
        if kind != "pty":
            loop.call_later(0.005, end_output_of(end))
        await stream.linger(0.02 if kind == "pty" else PATIENCE)
        if kind == "pty":
            return
        stream.close()
        assert end.read_to_end() == (b"last words", "end")

    run(loop, story, stream, end)


def end_output_of(end: End) -> Callable[[], None]:
    def call() -> None:
        end.send(b"more")
        end.end_output()

    return call


@pytest.mark.parametrize("sends", [b"", b"x" * 60_000])
def test_linger_has_a_limit(loop: Loop, sends: bytes) -> None:
    stream, end = made(loop, "unix")

    async def story() -> float:
        end.send(sends)
        start = time.monotonic()
        await stream.linger(0.02)
        return time.monotonic() - start

    assert run(loop, story, stream, end) >= 0.02


def test_linger_reads_no_endless_amount(loop: Loop) -> None:
    zero = Ours(os.open("/dev/zero", os.O_RDONLY), os.open("/dev/null", os.O_WRONLY))
    stream = zero.stream(loop)

    async def story() -> None:
        await stream.linger(PATIENCE)

    run(loop, story, stream)


@pytest.mark.parametrize("size", [0, 10, 100_000])
def test_abort_is_a_reset_behind_all_data(loop: Loop, size: int) -> None:
    stream, end = made(loop, "tcp")

    async def story() -> tuple[bytes, str]:
        await stream.send(noise(size))
        end.send(b"unread")
        await stream.abort(1)
        return end.read_to_end()

    assert run(loop, story, stream, end) == (noise(size), "reset")


def test_abort_does_not_wait_for_ever(loop: Loop) -> None:
    ours, theirs = tcp_pair(small_buffers=True)
    stream, end = Ours(ours.fileno(), ours.fileno(), ours).stream(loop), End.of(theirs)

    async def story() -> tuple[int, str]:
        End(copy := os.dup(stream.reader)).stuff(bytes(4 << 20), 0)
        os.close(copy)
        await stream.abort(0.02)
        received, how = end.read_to_end()
        return len(received), how

    count, how = run(loop, story, stream, end)
    assert 0 < count < 4 << 20
    assert how == "reset"


def test_abort_does_not_wait_for_who_is_gone(loop: Loop) -> None:
    """What is left in the queue of a connection that was reset is never acknowledged."""
    ours, theirs = tcp_pair(small_buffers=True)
    stream, end = Ours(ours.fileno(), ours.fileno(), ours).stream(loop), End.of(theirs)

    async def story() -> None:
        End(copy := os.dup(stream.reader)).stuff(bytes(4 << 20), 0)
        os.close(copy)
        end.reset()
        await stream.abort(1000 * PATIENCE)

    run(loop, story, stream)


@pytest.mark.parametrize("kind", ["unix", "pipes"])
def test_abort_where_there_is_no_reset(loop: Loop, kind: str) -> None:
    stream, end = made(loop, kind)

    async def story() -> tuple[bytes, str]:
        await stream.send(b"last")
        await stream.abort(PATIENCE)
        return end.read_to_end()

    assert run(loop, story, stream, end) == (b"last", "end")


def test_local_addresses(loop: Loop) -> None:
    ours, theirs = tcp_pair()
    stream, end = Ours(ours.fileno(), ours.fileno(), ours).stream(loop), End.of(theirs)
    assert stream.local_endpoint() == Endpoint(*ours.getsockname())
    stream.close()
    end.close()
    for kind in ("unix", "pipes"):
        stream, end = made(loop, kind)
        assert stream.local_endpoint() == Endpoint("0.0.0.0", 0)
        stream.close()
        end.close()


def test_tcp_is_prepared() -> None:
    with socket.socket() as sock:
        prepare_tcp(sock)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)
