"""Descriptors on their way: what arrives, what is refused, and that nothing else stays open."""

import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from ends import PATIENCE, nothing_left_behind
from places import descriptor_limit

from muonsocks.errors import RemoteProtocolError
from muonsocks.net import passing
from muonsocks.net.listen import listen_at
from muonsocks.net.loop import Loop
from muonsocks.net.passing import Passage

MOST = 253  # descriptors in one message, unix(7): SCM_MAX_FD


# What is closed by being forgotten only was not closed.
pytestmark = [
    pytest.mark.filterwarnings("error::ResourceWarning"),
    pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def leaks_nothing() -> Iterator[None]:
    with nothing_left_behind():
        yield


@pytest.fixture
def ways() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection of messages, which block: it is the call that must not."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        yield one, other


Ways = tuple[socket.socket, socket.socket]


def send_fds(sock: socket.socket, data: bytes, *fds: int) -> None:
    socket.send_fds(sock, [data], list(fds))


# One message


def test_data_and_descriptors_arrive(ways: Ways) -> None:
    reader, writer = os.pipe()
    assert passing.send(ways[0], b"two ends", (reader, writer)) == 8
    os.close(reader)
    os.close(writer)
    data, fds = passing.receive(ways[1], 100, 2)
    assert data == b"two ends"
    os.write(fds[1], b"through")
    assert os.read(fds[0], 100) == b"through"
    passing.close_all(fds)


def test_what_arrives_is_closed_on_exec(ways: Ways) -> None:
    passing.send(ways[0], b".", (0, 1, 2))
    _, fds = passing.receive(ways[1], 1, 3)
    assert [fcntl.fcntl(fd, fcntl.F_GETFD) for fd in fds] == [fcntl.FD_CLOEXEC] * 3
    passing.close_all(fds)


@pytest.mark.parametrize("count", [0, 1, 2, 3, MOST])
def test_as_many_as_are_expected(ways: Ways, count: int) -> None:
    passing.send(ways[0], b".", [0] * count)
    data, fds = passing.receive(ways[1], 1, count)
    assert (data, len(fds)) == (b".", count)
    passing.close_all(fds)


def test_fewer_than_are_expected(ways: Ways) -> None:
    passing.send(ways[0], b".", (0,))
    _, fds = passing.receive(ways[1], 1, 5)
    assert len(fds) == 1
    passing.close_all(fds)


@pytest.mark.parametrize(("sent", "most"), [(1, 0), (2, 1), (3, 2), (4, 2), (MOST, 2)])
def test_more_than_are_expected(ways: Ways, sent: int, most: int) -> None:
    passing.send(ways[0], b".", [0] * sent)
    with pytest.raises(RemoteProtocolError, match=f"more than {most} descriptors"):
        passing.receive(ways[1], 1, most)


def test_more_than_can_be_sent(ways: Ways) -> None:
    with pytest.raises(OSError) as raised:
        passing.send(ways[0], b".", [0] * (MOST + 1))
    assert raised.value.errno == errno.EINVAL


def test_a_message_that_is_too_long(ways: Ways) -> None:
    passing.send(ways[0], b"123456", (0, 1))
    with pytest.raises(RemoteProtocolError, match="longer than 5 bytes"):
        passing.receive(ways[1], 5, 2)
    passing.send(ways[0], b"12345")
    assert passing.receive(ways[1], 5) == (b"12345", [])


def test_descriptors_without_a_word(ways: Ways) -> None:
    send_fds(ways[0], b"", 0)
    with pytest.raises(RemoteProtocolError, match="no word"):
        passing.receive(ways[1], 5, 1)


@pytest.mark.parametrize("free", [0, 1])
def test_no_room_for_what_is_passed(ways: Ways, free: int) -> None:
    passing.send(ways[0], b".", (0, 1))
    with descriptor_limit(free), pytest.raises(OSError) as raised:
        passing.receive(ways[1], 1, 2)
    assert raised.value.errno == errno.EMFILE


def test_the_end(ways: Ways) -> None:
    passing.send(ways[0], b"last")
    ways[0].close()
    assert passing.receive(ways[1], 100) == (b"last", [])
    assert passing.receive(ways[1], 100) == (b"", [])
    with pytest.raises(BrokenPipeError):
        passing.send(ways[1], b".")


def test_neither_blocks(ways: Ways) -> None:
    with pytest.raises(BlockingIOError):
        passing.receive(ways[1], 1, 1)
    with pytest.raises(BlockingIOError):
        while True:
            passing.send(ways[0], bytes(10000))


def test_over_a_stream() -> None:
    """Which takes a part of the data, but all descriptors with that."""
    one, other = socket.socketpair()
    with one, other:
        data = bytes(1 << 20)
        taken = passing.send(one, data, (0,))
        assert 0 < taken < len(data)
        got, fds = passing.receive(other, 1 << 20, 1)
        assert data.startswith(got) and len(fds) == 1
        passing.close_all(fds)


def test_over_datagrams() -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        passing.send(one, b"word", (0,))
        data, fds = passing.receive(other, 100, 1)
        assert (data, len(fds)) == (b"word", 1)
        passing.close_all(fds)


# The first descriptor of a message

KINDS = [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_STREAM]
SO_TIMESTAMP, SO_PASSPIDFD = 29, 76
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


@contextmanager
def joined(kind: socket.SocketKind) -> Iterator[Ways]:
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    with one, other:
        yield one, other


def same_file(fd: int, other: int) -> bool:
    return os.path.samestat(os.fstat(fd), os.fstat(other))


@each_kind
@pytest.mark.parametrize("count", [1, 2, 100, MOST])
@pytest.mark.parametrize("data", [b"\0", b"\3\0\0\0", bytes(1000), bytes(4096)], ids=len)
def test_the_first_descriptor(kind: socket.SocketKind, count: int, data: bytes) -> None:
    """And all others are closed, which the fixture sees."""
    reader, writer = os.pipe()
    with joined(kind) as (one, other):
        for _ in range(2):
            passing.send(one, data, (writer, *[reader] * (count - 1)))
        for _ in range(2):
            fd = passing.receive_first(other)
            assert fd is not None
            assert same_file(fd, writer) and fd != writer
            assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
            assert fcntl.fcntl(fd, fcntl.F_GETFD) == fcntl.FD_CLOEXEC
            os.close(fd)
        with pytest.raises(BlockingIOError):
            passing.receive_first(other)
    os.close(reader)
    os.close(writer)


def test_an_empty_message_is_not_the_end() -> None:
    """Not even when the sender has closed, if more has come before that."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        for _ in range(2):
            theirs.send(b"")
        socket.send_fds(theirs, [b"\0"], [0])
        theirs.close()
        for _ in range(2):
            with pytest.raises(RemoteProtocolError, match="without a descriptor"):
                passing.receive_first(ours)
        fd = passing.receive_first(ours)
        assert fd is not None
        os.close(fd)
        assert passing.receive_first(ours) is None


@pytest.mark.parametrize("kind", KINDS[:2], ids=lambda kind: kind.name)
@pytest.mark.parametrize("data", [b"", bytes(5000)], ids=len)
def test_the_first_descriptor_with_nothing_and_with_much(
    kind: socket.SocketKind, data: bytes
) -> None:
    with joined(kind) as (one, other):
        for _ in range(2):
            send_fds(one, data, 0)
        for _ in range(2):
            fd = passing.receive_first(other)
            assert fd is not None
            os.close(fd)


@each_kind
def test_a_message_without_a_descriptor_is_not_the_end(kind: socket.SocketKind) -> None:
    words = [b"word"] if kind == socket.SOCK_STREAM else [b"", b"word"]
    with joined(kind) as (one, other):
        for data in words:
            one.send(data)
            with pytest.raises(RemoteProtocolError, match="without a descriptor"):
                passing.receive_first(other)
        one.send(b"last")
        one.close()
        with pytest.raises(RemoteProtocolError, match="without a descriptor"):
            passing.receive_first(other)


@pytest.mark.parametrize("kind", KINDS[:2], ids=lambda kind: kind.name)
@pytest.mark.parametrize("data", [b"word", b""], ids=len)
def test_a_descriptor_after_a_message_without_one(kind: socket.SocketKind, data: bytes) -> None:
    with joined(kind) as (one, other):
        one.send(data)
        passing.send(one, b".", (0,))
        if data:
            one.close()
        with pytest.raises(RemoteProtocolError, match="without a descriptor"):
            passing.receive_first(other)
        fd = passing.receive_first(other)
        assert fd is not None
        os.close(fd)


def test_a_descriptor_that_is_not_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a security module, say, or as a thread was faster: that is no end."""
    monkeypatch.setattr(passing, "_ANY_CONTROL", 1)
    with joined(socket.SOCK_SEQPACKET) as (one, other):
        passing.send(one, b".", (0,))
        with pytest.raises(RemoteProtocolError, match="the system does not let in"):
            passing.receive_first(other)


@pytest.mark.parametrize("kind", KINDS[1:], ids=lambda kind: kind.name)
@pytest.mark.parametrize("how", ["closed", "reset", "shut", "shut here"])
def test_the_end_of_descriptors(kind: socket.SocketKind, how: str) -> None:
    """After all that came before it."""
    with joined(kind) as (one, other):
        passing.send(one, b".", (0,))
        if how == "reset":
            other.send(b"unread")
        if how.startswith("shut"):
            (other if how.endswith("here") else one).shutdown(socket.SHUT_RDWR)
        else:
            one.close()
        fd = passing.receive_first(other)
        assert fd is not None
        os.close(fd)
        assert passing.receive_first(other) is None


def test_datagrams_have_no_end() -> None:
    """Who has left, or connected to another, says nothing of the rest."""
    with (
        joined(socket.SOCK_DGRAM) as (one, other),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as third,
    ):
        third.bind(f"\0muonsocks-test-{os.getpid()}")
        passing.send(one, b".", (0,))
        other.send(b"unread")
        one.connect(third.getsockname())
        fd = passing.receive_first(other)
        assert fd is not None
        os.close(fd)
        one.close()
        with pytest.raises(BlockingIOError):
            passing.receive_first(other)


@each_kind
def test_a_look_at_the_first_descriptor(kind: socket.SocketKind) -> None:
    """It is there as often as one looks, until it is dropped, with what else came."""
    reader, writer = os.pipe()
    with joined(kind) as (one, other):
        passing.send(one, b"word", (writer, reader))
        passing.send(one, b"more", (reader,))
        with descriptor_limit(0), pytest.raises(OSError) as raised:
            passing.peek_first(other)
        assert raised.value.errno == errno.EMFILE
        for expected in (writer, reader):
            for _ in range(2):
                fd = passing.peek_first(other)
                assert fd is not None and same_file(fd, expected)
                os.close(fd)
            passing.drop(other)
        with pytest.raises(BlockingIOError):
            passing.peek_first(other)
    os.close(reader)
    os.close(writer)


@each_kind
def test_a_descriptor_waits_for_room(kind: socket.SocketKind) -> None:
    """The kernel would take the message off, and drop what there is no room for."""
    reader, writer = os.pipe()
    with joined(kind) as (one, other):
        passing.send(one, b".", (writer, reader, reader))
        with descriptor_limit(0):
            for _ in range(3):
                with pytest.raises(OSError) as raised:
                    passing.receive_first(other)
                assert raised.value.errno == errno.EMFILE
        with descriptor_limit(1):  # the others are dropped
            fd = passing.receive_first(other)
        assert fd is not None and same_file(fd, writer)
        os.close(fd)
    os.close(reader)
    os.close(writer)


def test_what_else_comes_with_a_message() -> None:
    """By options of the socket, which somebody else may have made. A pidfd is a descriptor too."""
    with joined(socket.SOCK_DGRAM) as (one, other):
        other.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        other.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMP, 1)
        try:
            other.setsockopt(socket.SOL_SOCKET, SO_PASSPIDFD, 1)
        except OSError:
            pass  # before Linux 6.5: the others are worth it
        passing.send(one, b".", [0] * MOST)
        fd = passing.receive_first(other)
        assert fd is not None and same_file(fd, 0)
        os.close(fd)
        passing.send(one, b".")
        with pytest.raises(RemoteProtocolError, match="without a descriptor"):
            passing.receive_first(other)


# In a loop


def run(story: Callable[[Loop], Any]) -> Any:
    loop = Loop()

    async def main() -> Any:
        with loop.deadline(PATIENCE):
            return await story(loop)

    try:
        return loop.run(main())
    finally:
        assert not loop.handlers
        loop.close()


def pair(loop: Loop) -> tuple[Passage, Passage]:
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one, other = (Passage.over(loop, end) for end in ends)
    return one, other


def test_messages_stay_apart() -> None:
    async def story(loop: Loop) -> None:
        one, other = pair(loop)
        await one.send_message(b"one")
        await one.send_message(b"two", (0,))
        loop.call_later(0.005, one.close)
        assert await other.receive_message(100, 1) == (b"one", [])
        data, [fd] = await other.receive_message(100, 1)
        os.close(fd)
        assert data == b"two"
        assert await other.receive_message(100, 1) == (b"", [])
        other.close()

    run(story)


def test_waits_for_a_message() -> None:
    async def story(loop: Loop) -> None:
        one, other = pair(loop)
        for word in (b"one", b"two"):
            loop.call_later(0.005, lambda word=word: passing.send(one.socket, word))
            assert await other.receive_message(100) == (word, [])
        one.close()
        other.close()

    run(story)


def test_waits_for_room() -> None:
    """And says nothing twice."""

    async def story(loop: Loop) -> None:
        one, other = pair(loop)
        got: list[bytes] = []

        async def read() -> None:
            await loop.sleep(0.01)
            while (message := await other.receive_message(100_000))[0]:
                got.append(message[0])
            other.close()

        loop.spawn(read(), pytest.fail)
        for number in range(200):
            await one.send_message(bytes([number]) * 20_000)
        one.close()
        while len(got) < 200:
            await loop.sleep(0.001)
        assert got == [bytes([number]) * 20_000 for number in range(200)]
        await loop.sleep(0.001)

    run(story)


def test_a_peer_that_leaves_with_something_unread() -> None:
    async def story(loop: Loop) -> None:
        one, other = pair(loop)
        await one.send_message(b"unread")
        other.close()
        with pytest.raises(ConnectionError):
            await one.receive_message(1)
        one.close()

    run(story)


def test_connects(tmp_path: Path) -> None:
    async def story(loop: Loop) -> None:
        for path in (str(tmp_path / "socket"), f"@muonsocks-test-{os.getpid()}"):
            with closing(listen_at(path)) as listener:
                passage = Passage.to(loop, path)
                with closing(socket.socket(fileno=listener._accept()[0])) as accepted:
                    await passage.send_message(b"word")
                    assert accepted.recv(100) == b"word"
                with pytest.raises(BlockingIOError):
                    listener._accept()
                passage.close()

    run(story)


def refusal(loop: Loop, path: Path) -> int | None:
    with pytest.raises(OSError) as raised:
        Passage.to(loop, str(path))
    return raised.value.errno


def test_nobody_to_connect_to(tmp_path: Path) -> None:
    async def story(loop: Loop) -> None:
        path = tmp_path / "socket"
        assert refusal(loop, path) == errno.ENOENT
        listen_at(str(path)).close()
        assert refusal(loop, path) == errno.ECONNREFUSED
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other_kind:
            other_kind.bind(str(path))
            other_kind.listen()
            assert refusal(loop, path) == errno.EPROTOTYPE
        refusal(loop, tmp_path / ("p" * 107))

    run(story)


def test_who_listens_has_no_time(tmp_path: Path) -> None:
    """No place in the backlog is as good as nobody there: nothing says when there will be one."""

    async def story(loop: Loop) -> None:
        path = tmp_path / "socket"
        made = []
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(path))
            listener.listen(1)
            while len(made) < 2:
                made.append(Passage.to(loop, str(path)))
            assert refusal(loop, path) == errno.EAGAIN
        for passage in made:
            passage.close()

    run(story)


def test_the_last_message() -> None:
    """Either it was sent in time, and is read, or the sender is told that it was not."""

    async def story(loop: Loop) -> None:
        for says_it in (True, False):
            one, other = pair(loop)
            if says_it:
                await one.send_message(b"go")
            assert other.last_message(10) == (b"go" if says_it else b"")
            with pytest.raises(BrokenPipeError):
                await one.send_message(b"go")
            one.close()
            other.close()

    run(story)


@each_kind
def test_waits_for_a_descriptor(kind: socket.SocketKind) -> None:
    """On sockets that are not ours to make non-blocking."""

    async def story(loop: Loop) -> None:
        one, other = socket.socketpair(socket.AF_UNIX, kind)
        passage = Passage(loop, other)
        for _ in range(2):
            loop.call_later(0.005, lambda: passing.send(one, b".", (0,)))
            fd = await passage.receive_first()
            assert fd is not None
            os.close(fd)
        assert os.get_blocking(other.fileno())
        loop.call_later(0.005, lambda: one.send(b"word"))
        with pytest.raises(RemoteProtocolError):
            await passage.receive_first()
        loop.call_later(0.005, one.close)
        if kind != socket.SOCK_DGRAM:
            assert await passage.receive_first() is None
        else:
            with pytest.raises(TimeoutError), loop.deadline(0.05):
                await passage.receive_first()
        passage.close()

    run(story)


def test_a_descriptor_that_waits_for_room_in_a_loop() -> None:
    async def story(loop: Loop) -> None:
        one, other = pair(loop)
        await one.send_message(b".", (0,))
        with descriptor_limit(0), pytest.raises(OSError):
            await other.receive_first()
        fd = await other.receive_first()
        assert fd is not None
        os.close(fd)
        one.close()
        other.close()

    run(story)
