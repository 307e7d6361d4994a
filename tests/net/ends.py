"""The ends of a connection that a test holds, and the ways in which they are joined to ours."""

import contextlib
import errno
import fcntl
import gc
import os
import random
import re
import select
import socket
import struct
import termios
import time
import tty
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from muonsocks.log import INFO, Log
from muonsocks.net import pipes
from muonsocks.net.borrowed import Pair
from muonsocks.net.loop import Loop
from muonsocks.net.stream import Stream, prepare_tcp

PATIENCE = 15.0  # s until something that has to happen is declared a hang
SMALL_BUFFER = 1 << 16  # bytes asked for in sockets, so that backpressure comes soon
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def noise(size: int, seed: int = 1) -> bytes:
    """Bytes without a pattern, the same ones each time."""
    return random.Random(seed).randbytes(size)


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Make calls that block, in a thread each; give what they return or raise what one raised."""
    with ThreadPoolExecutor(len(calls)) as threads:
        return [future.result() for future in [threads.submit(call) for call in calls]]


def descriptors(pid: int | str = "self") -> dict[int, str]:
    """What a process has open, as number and target; what it closes meanwhile is left out."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return found


class CountedRounds:
    """Stands before a loop's epoll and counts how often that waits for events; and the looks, which
    do not wait.
    """

    def __init__(self, loop: Loop) -> None:
        self.count = 0
        self.looks = 0
        self._epoll = loop._epoll
        loop._epoll = self  # type: ignore[assignment]

    def poll(self, seconds: float) -> list[tuple[int, int]]:
        if isinstance(seconds, int):
            self.looks += 1
        else:
            self.count += 1
        return self._epoll.poll(seconds)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Hold that what is opened is closed, and pipes are given back, empty."""
    pipes._in_use = 0  # whatever another test has left
    _close_idle_pipes()
    collects = gc.isenabled()
    gc.disable()  # or what another test has left is closed meanwhile
    try:
        before = descriptors()
        yield
        assert pipes._in_use == 0, "a pipe was not released"
        _close_idle_pipes()
        left = dict(descriptors().items() - before.items())  # what is gone may be another test's
        assert left == {}, "descriptors have leaked"
    finally:
        if collects:
            gc.enable()


@contextmanager
def no_garbage() -> Iterator[None]:
    """Hold that nothing of ours has to be collected: it is freed when it is forgotten."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield
        gc.collect()
        ours = {_description(thing) for thing in gc.garbage} - {""}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not ours, "reference cycles"


def _description(thing: object) -> str:
    code = getattr(thing, "f_code", None) or getattr(thing, "cr_code", None)
    if code is not None and "/muonsocks/" in code.co_filename:
        return f"frame of {code.co_qualname}"
    name = type(thing).__module__
    return type(thing).__qualname__ if name.startswith("muonsocks") else ""


def _close_idle_pipes() -> None:
    while pipes._pool:
        pipe = pipes._pool.pop()
        assert pipe.left == 0
        assert not select.select([pipe.reader], [], [], 0)[0], "a pipe in the pool has bytes"
        os.close(pipe.reader)
        os.close(pipe.writer)


class End:
    """The end that the test holds: raw system calls, which give up after PATIENCE."""

    def __init__(
        self, reader: int, writer: int = -1, sock: socket.socket | None = None, is_pty: bool = False
    ) -> None:
        self.reader = reader
        self.writer = reader if writer < 0 else writer
        self.sock = sock
        self.is_pty = is_pty
        for fd in {self.reader, self.writer}:
            os.set_blocking(fd, False)

    @classmethod
    def of(cls, sock: socket.socket) -> "End":
        return cls(sock.fileno(), sock=sock)

    @property
    def is_tcp(self) -> bool:
        return self.sock is not None and self.sock.family != socket.AF_UNIX

    def wait_for(self, event: int, patience: float = PATIENCE) -> bool:
        """Wait until the end is readable or writable; False if it is not in time."""
        poll = select.poll()
        poll.register(self.reader if event == select.POLLIN else self.writer, event)
        return bool(poll.poll(patience * 1000))

    def send(self, data: bytes) -> None:
        """Write all of it. What the system raises passes."""
        rest = memoryview(data)
        while rest:
            assert self.wait_for(select.POLLOUT), f"{len(rest)} of {len(data)} bytes are not taken"
            try:
                rest = rest[os.write(self.writer, rest) :]
            except BlockingIOError:
                assert not self.is_pty or select.select([], [], [], 0.0005), "a pty is never sure"

    def stuff(self, data: bytes, patience: float) -> int:
        """Write until nothing is taken for so many seconds, and say how much was."""
        taken = 0
        while taken < len(data) and self.wait_for(select.POLLOUT, patience):
            try:
                taken += os.write(self.writer, data[taken : taken + 65536])
            except BlockingIOError:
                # A terminal may say that it is writable and take nothing for a moment.
                patience = patience if not self.is_pty else patience - 0.01
        return taken

    def read(self, limit: int = 1 << 18) -> bytes:
        """Read what there is, at least a byte; b"" at the end. ConnectionResetError passes."""
        while True:
            assert self.wait_for(select.POLLIN), "nothing comes, and no end"
            try:
                return os.read(self.reader, limit)
            except BlockingIOError:
                continue
            except OSError as error:
                if self.is_pty and error.errno == errno.EIO:
                    return b""  # nobody has the other side open
                raise

    def read_exactly(self, count: int) -> bytes:
        parts = []
        while count:
            part = self.read(count)
            assert part, f"the end has come {count} bytes too early"
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def read_to_end(self) -> tuple[bytes, str]:
        """Read all there is: the bytes, and whether an "end" or a "reset" came then."""
        data = bytearray()
        try:
            while part := self.read():
                data += part
        except ConnectionResetError:
            return bytes(data), "reset"
        return bytes(data), "end"

    def end_output(self) -> None:
        if self.sock is not None:
            self.sock.shutdown(socket.SHUT_WR)
        else:
            assert self.writer != self.reader, "this kind has no half-close"
            os.close(self.writer)
            self.writer = -1

    def unacknowledged(self) -> int:
        """How many bytes a socket has not seen arrive at the other end's."""
        return int(struct.unpack("i", fcntl.ioctl(self.writer, termios.TIOCOUTQ, bytes(4)))[0])

    def wait_until_acknowledged(self) -> None:
        """Wait until all that was sent is in the other end's buffer, or beyond."""
        deadline = time.monotonic() + PATIENCE
        while self.unacknowledged():
            assert time.monotonic() < deadline, "what was sent is not acknowledged"
            select.select([], [], [], 0.002)

    def reset(self) -> None:
        """Close with a TCP RST."""
        assert self.sock is not None
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.close()

    def close(self) -> None:
        if self.reader < 0:
            return
        if self.sock is not None:
            self.sock.close()
        else:
            for fd in {self.reader, self.writer} - {-1}:
                os.close(fd)
        self.reader = self.writer = -1


class Ours(NamedTuple):
    """What our side is given: two descriptors, which may be those of one socket."""

    reader: int
    writer: int
    sock: socket.socket | None = None

    def stream(self, loop: Loop) -> Stream:
        for fd in (self.reader, self.writer):
            os.set_blocking(fd, False)
        if self.sock is None:
            return Pair(loop, self.reader, self.writer, ())
        if self.sock.family != socket.AF_UNIX:
            prepare_tcp(self.sock)
        return Stream(loop, self.sock)

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
        else:
            os.close(self.reader)
            os.close(self.writer)


@contextmanager
def full_queue() -> Iterator[tuple[socket.socket, list[socket.socket]]]:
    """A server whose queue is full, and those in it: who comes is not answered."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        there = [stack.enter_context(socket.socket()) for _ in range(3)]
        for one in there:
            one.setblocking(False)
            one.connect_ex(server.getsockname())
        yield server, there


def tcp_pair(small_buffers: bool = False) -> tuple[socket.socket, socket.socket]:
    """Two ends of one TCP connection over loopback."""
    with socket.socket() as listener:
        if small_buffers:
            set_small_buffers(listener)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        ours = socket.socket()
        if small_buffers:
            set_small_buffers(ours)
        ours.connect(listener.getsockname())
        theirs, _ = listener.accept()
    for sock in (ours, theirs):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ours, theirs


def set_small_buffers(sock: socket.socket) -> None:
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, SMALL_BUFFER)


def _tcp(_: Path) -> tuple[Ours, End]:
    ours, theirs = tcp_pair(small_buffers=True)
    return Ours(ours.fileno(), ours.fileno(), ours), End.of(theirs)


def _unix(_: Path) -> tuple[Ours, End]:
    ours, theirs = socket.socketpair()
    return Ours(ours.fileno(), ours.fileno(), ours), End.of(theirs)


def _pipes(_: Path) -> tuple[Ours, End]:
    (our_reader, their_writer), (their_reader, our_writer) = os.pipe(), os.pipe()
    return Ours(our_reader, our_writer), End(their_reader, their_writer)


def _fifos(place: Path) -> tuple[Ours, End]:
    fds = []
    for name in ("in", "out"):
        os.mkfifo(place / name)
        # A FIFO is opened for reading without waiting, and then there is a reader to write to.
        fds.append(os.open(place / name, os.O_RDONLY | os.O_NONBLOCK))
        fds.append(os.open(place / name, os.O_WRONLY))
    our_reader, their_writer, their_reader, our_writer = fds
    return Ours(our_reader, our_writer), End(their_reader, their_writer)


def _pty(_: Path) -> tuple[Ours, End]:
    master, slave = os.openpty()
    tty.setraw(slave)
    return Ours(slave, os.dup(slave)), End(master, is_pty=True)


def _pty_master(_: Path) -> tuple[Ours, End]:
    master, slave = os.openpty()
    tty.setraw(slave)
    return Ours(master, os.dup(master)), End(slave, is_pty=True)


class Kind(NamedTuple):
    """A way to be joined, and what it can say: "half-close", "reset"."""

    make: Callable[[Path], tuple[Ours, End]]
    can: frozenset[str]


KINDS = {
    "tcp": Kind(_tcp, frozenset({"half-close", "reset"})),
    "unix": Kind(_unix, frozenset({"half-close"})),
    "pipes": Kind(_pipes, frozenset({"half-close"})),
    "fifos": Kind(_fifos, frozenset({"half-close"})),
    "pty": Kind(_pty, frozenset()),
    "master": Kind(_pty_master, frozenset()),  # of a pty
}


class Lines(Log):
    """A log that is kept."""

    __slots__ = ("lines",)

    def __init__(self) -> None:
        super().__init__("test")
        self.lines: list[str] = []
        self.level = INFO

    def write(self, level: int, message: str, fields: dict[str, str] | None = None) -> None:
        if level <= self.level:
            self.lines.append(message)


class Outcome(NamedTuple):
    """What the log line at the end says."""

    end: str
    received: int
    sent: int

    @classmethod
    def of(cls, text: str) -> "Outcome":
        found = re.search(r"closed .* in=(\d+) out=(\d+) .*end=(\S+)", text)
        assert found, f"no line says how it ended: {text!r}"
        return cls(found[3], int(found[1]), int(found[2]))


def made(loop: Loop, kind: str, place: Path = Path()) -> tuple[Stream, End]:
    """A stream, and its other end."""
    ours, end = KINDS[kind].make(place)
    return ours.stream(loop), end


def run(loop: Loop, story: Callable[[], Any], stream: Stream, *ends: End) -> Any:
    """Run a story in time, and close what it is about."""

    async def main() -> Any:
        try:
            with loop.deadline(PATIENCE):
                return await story()
        finally:
            stream.close()
            for end in ends:
                end.close()

    return loop.run(main())
