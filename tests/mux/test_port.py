"""A port: what is read and written at a time, and how it is left."""

import errno
import os
import socket
import termios
import tty
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from select import EPOLLIN, EPOLLRDHUP

import pytest
from ends import made, noise, tcp_pair
from hand import stuff

from muonsocks.mux import port as port_module
from muonsocks.mux.port import Port
from muonsocks.net.borrowed import BorrowedSocket, Pair
from muonsocks.net.loop import Loop
from muonsocks.net.stream import Stream

ROOM = 1 << 19


@contextmanager
def socket_port(loop: Loop, kind: int = socket.SOCK_STREAM) -> Iterator[tuple[Port, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    for sock in (ours, theirs):
        sock.setblocking(False)
    port = Port(Stream(loop, ours))
    with theirs:
        yield port, theirs
    port.close()


class Reads:
    """Counts the reads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        monkeypatch.setattr(port_module, "readv", self._readv)

    def _readv(self, fd: int, rooms: tuple[memoryview]) -> int:
        self.count += 1
        return os.readv(fd, rooms)


@pytest.mark.parametrize(
    ("kind", "events", "reads"),
    [
        (socket.SOCK_STREAM, EPOLLIN, 1),
        (socket.SOCK_STREAM, EPOLLIN | EPOLLRDHUP, 2),
        (socket.SOCK_SEQPACKET, EPOLLIN, 2),
    ],
)
def test_a_short_read(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, kind: int, events: int, reads: int
) -> None:
    """Of a byte stream it has taken all there was, unless more may come without an event."""
    counted = Reads(monkeypatch)
    with socket_port(loop, kind) as (port, theirs):
        theirs.send(b"data")
        room = memoryview(bytearray(ROOM))
        assert port.read_into(room, events) == (4, True)
        assert room[:4] == b"data" and counted.count == reads
        assert port.read_into(room, events) == (0, True)


def test_packets_are_read_until_there_is_enough(loop: Loop) -> None:
    """One behind the other; and then it is said that this may not be all."""
    with socket_port(loop, socket.SOCK_SEQPACKET) as (port, theirs):
        packets = [noise(20_000, number) for number in range(8)]
        for packet in packets:
            theirs.send(packet)
        room = memoryview(bytearray(ROOM))
        assert port.read_into(room, EPOLLIN) == (140_000, False)
        assert room[:140_000] == b"".join(packets[:7])
        assert port.read_into(room, EPOLLIN) == (20_000, True)
        assert room[:20_000] == packets[7]


def test_the_room_is_read_full(loop: Loop) -> None:
    with socket_port(loop) as (port, theirs):
        theirs.send(bytes(100_000))
        room = memoryview(bytearray(90_000))
        assert port.read_into(room, EPOLLIN) == (90_000, False)
        assert port.read_into(room, EPOLLIN) == (10_000, True)


@pytest.mark.parametrize("size", [0, 5, 100_000])
def test_the_end(loop: Loop, size: int) -> None:
    """What came before it is not lost."""
    with socket_port(loop) as (port, theirs):
        theirs.send(bytes(size))
        theirs.close()
        room = memoryview(bytearray(ROOM))
        if size:
            assert port.read_into(room, EPOLLIN | EPOLLRDHUP) == (size, False)
        with pytest.raises(EOFError):
            port.read_into(room, EPOLLIN | EPOLLRDHUP)


def test_a_reset(loop: Loop) -> None:
    with socket_port(loop) as (port, theirs):
        port.write(b"unread")
        theirs.close()
        with pytest.raises(ConnectionResetError):
            port.read_into(memoryview(bytearray(ROOM)), EPOLLIN)
        with pytest.raises(BrokenPipeError):
            port.write(b"x")


# Writing


def test_what_is_not_taken_is_kept(loop: Loop) -> None:
    with socket_port(loop) as (port, theirs):
        data = noise(3 << 20)
        assert port.write(b"")
        assert not port.write(memoryview(data))
        assert 0 < len(port.backlog) < len(data)
        assert not port.write_backlog()
        got = b""
        while True:
            while True:
                try:
                    got += theirs.recv(1 << 20)
                except BlockingIOError:
                    break
            if port.write_backlog():
                break
        while len(got) < len(data):
            got += theirs.recv(1 << 20)
        assert got == data and not port.backlog
        assert port.write_backlog(), "there is none"


def test_what_has_been_read(loop: Loop) -> None:
    """As far as can be told."""
    with socket_port(loop) as (port, theirs):
        assert port.is_read()
        port.write(b"data")
        assert not port.is_read()
        theirs.recv(2)
        assert not port.is_read()
        theirs.recv(2)
        assert port.is_read()
    stream, end = made(loop, "pipes")
    port = Port(stream)
    port.write(b"data")
    assert port.is_read(), "nothing tells"
    port.close()
    end.close()


def test_a_tcp_socket(loop: Loop) -> None:
    """It is a port as any other."""
    ours, theirs = tcp_pair()
    ours.setblocking(False)
    port = Port(Stream(loop, ours))
    with theirs:
        assert port.write(b"data") and theirs.recv(9) == b"data"
        theirs.sendall(b"answer")
        room = memoryview(bytearray(ROOM))
        while (read := port.read_into(room, EPOLLIN)) == (0, True):
            continue
        assert read == (6, True)
        theirs.setblocking(False)
        assert stuff(theirs)
    port.close()


# How it is left


def test_a_terminal_is_left_as_it_was(loop: Loop) -> None:
    master, slave = os.openpty()
    before = termios.tcgetattr(slave)
    reader, writer = os.dup(slave), os.dup(slave)
    for fd in (reader, writer):
        os.set_blocking(fd, False)
    port = Port(Pair(loop, reader, writer, ()), mode=before)
    tty.setraw(slave)
    assert termios.tcgetattr(slave) != before
    port.close()
    assert termios.tcgetattr(slave) == before
    os.close(slave)
    os.close(master)


def test_a_terminal_that_has_gone(loop: Loop) -> None:
    """There is nobody it could be left for."""
    master, slave = os.openpty()
    before = termios.tcgetattr(slave)
    port = Port(Pair(loop, slave, os.dup(slave), ()), mode=before)
    os.close(master)
    port.close()


@pytest.mark.parametrize("kind", ["socket", "pipes"])
def test_borrowed_descriptors_block_again(loop: Loop, kind: str) -> None:
    if kind == "socket":
        ours, theirs = socket.socketpair()
        other = os.dup(ours.fileno())
        ours.setblocking(False)
        port = Port(BorrowedSocket(loop, ours, (ours.fileno(),)))
        ends = [other]
        theirs.close()
    else:
        (reader, their_writer), (their_reader, writer) = os.pipe(), os.pipe()
        ends = [os.dup(reader), os.dup(writer)]
        for fd in (reader, writer):
            os.set_blocking(fd, False)
        port = Port(Pair(loop, reader, writer, (reader, writer)))
        for fd in (their_writer, their_reader):
            os.close(fd)
    assert not any(os.get_blocking(fd) for fd in ends)
    port.close()
    assert all(os.get_blocking(fd) for fd in ends)
    for fd in ends:
        os.close(fd)


# One that is taken out of the machine

GROUPS, PROCESSES = Path("/sys/fs/cgroup"), "cgroup.procs"


@pytest.fixture
def taken_away() -> Iterator[int]:
    """A descriptor of something that is not there any more, as a virtio port's is in the end.

    It is of a file in a control group: for that the kernel says ENODEV, too.
    """
    # in the second of these places where there are hierarchies of version 1, too
    hierarchies = [path for path in (GROUPS, GROUPS / "unified") if (path / PROCESSES).exists()]
    if os.geteuid() != 0 or not hierarchies:
        pytest.skip("to make a control group takes root, and where they are mounted")
    group = hierarchies[0] / f"muonsocks-{uuid.uuid4()}"
    group.mkdir()
    try:
        fd = os.open(group / PROCESSES, os.O_RDWR | os.O_NONBLOCK)
    finally:
        group.rmdir()
    yield fd


def test_one_that_is_taken_out_does_not_return(taken_away: int) -> None:
    loop = Loop()
    port = Port(Pair(loop, taken_away, os.dup(taken_away), ()), can_return=True)
    with pytest.raises(OSError) as caught:
        port.read_into(memoryview(bytearray(100)), 0)
    assert caught.value.errno == errno.ENODEV
    assert not port.can_return
    port.stream.close()
    loop.close()
