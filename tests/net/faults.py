"""The nth system call goes wrong, as a kernel could have it.

A Fault happens at one of all calls of `readv`, `write`, `splice` and so on; `calls` then says how
many there were, so that a test can go through all of them. A fault is true to the kernel:

    EINTR    a signal arrives: its handler runs, and Python makes the call again (PEP 475)
    EAGAIN   the call gives nothing now; since epoll is edge-triggered, an edge comes right after it
    short    the call does less than it was asked; what was not there "comes", with an edge
    reset    the peer resets the connection just before the call, which then finds ECONNRESET
    close    the peer closes just before the call: an end of file, or EPIPE for who writes
"""

import errno
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ends import End, Ours

from muonsocks.net import dial, half, stream
from muonsocks.net.loop import _INPUT_AND_ROOM, Loop

FAULTS = ("EINTR", "EAGAIN", "short", "reset", "close")


class Fault:
    """One fault at the nth call. `struck` says which call that was."""

    def __init__(self, loop: Loop, kind: str, nth: int) -> None:
        """Prepare for one fault; `peers` has who is behind our descriptors."""
        self.loop = loop
        self.kind = kind
        self.nth = nth
        self.calls = 0
        self.struck = ""
        self.peers: dict[int, Peer] = {}

    def install(self, monkeypatch: Any) -> None:
        """Put it between the modules and the system."""
        monkeypatch.setattr(half, "readv", self._readv)
        monkeypatch.setattr(half, "write", self._write)
        monkeypatch.setattr(half, "splice", self._splice)
        monkeypatch.setattr(stream, "read", self._read)
        monkeypatch.setattr(stream, "write", self._write)
        monkeypatch.setattr(dial, "socket", self._socket_class())

    def _strikes(self, name: str, fd: int) -> str:
        """Count a call on `fd` (not a pipe of ours); give the fault if it is to happen now."""
        self.calls += 1
        if self.calls != self.nth:
            return ""
        self.struck = f"{name} on fd {fd}"
        if self.kind == "EINTR":
            signal.raise_signal(signal.SIGUSR1)
        elif self.kind == "EAGAIN":
            if self.rearm(fd):
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        elif self.kind in ("reset", "close"):
            if fd in self.peers:
                self.peers[fd].leave(self.kind)
        elif self.kind == "short":
            return "short"
        return ""

    def rearm(self, fd: int) -> bool:
        """Let what is ready be an event again; False if the descriptor has none."""
        if fd not in self.loop.handlers:
            return False
        self.loop._epoll.modify(fd, _INPUT_AND_ROOM)
        return True

    def _readv(self, fd: int, buffers: list[bytearray]) -> int:
        if self._strikes("readv", fd) == "short":
            view = memoryview(buffers[0])[:1000]
            count = os.readv(fd, [view])
            self.rearm(fd)
            return count
        return os.readv(fd, buffers)

    def _read(self, fd: int, limit: int) -> bytes:
        if self._strikes("read", fd) == "short":
            data = os.read(fd, 1)
            self.rearm(fd)
            return data
        return os.read(fd, limit)

    def _write(self, fd: int, data: Any) -> int:
        if self._strikes("write", fd) == "short":
            count = os.write(fd, data[: (len(data) + 1) // 2])
            self.rearm(fd)
            return count
        return os.write(fd, data)

    def _splice(self, source: int, sink: int, count: int, flags: int) -> int:
        into_pipe = count == 1 << 20 and source in self.loop.handlers
        fd = source if into_pipe else sink
        if self._strikes("splice", fd) == "short":
            return os.splice(source, sink, min(count, 5000), flags=flags)
        return os.splice(source, sink, count, flags=flags)

    def _socket_class(self) -> type:
        fault = self

        class Socket(socket.SocketType):
            """A socket of the dialler's."""

            def connect_ex(self, address: Any) -> int:
                first = self.fileno() not in fault.loop.handlers
                try:
                    strikes = fault._strikes("connect", -1 if first else self.fileno())
                except BlockingIOError:
                    return errno.EINPROGRESS  # not yet, and an edge comes when it is
                if strikes == "short" and first:
                    return errno.EADDRNOTAVAIL  # no port is free
                return super().connect_ex(address)

        return Socket


class Peer:
    """What is behind a descriptor of ours: sends its script, ends its output, keeps what comes."""

    def __init__(self, loop: Loop, end: End, script: bytes) -> None:
        self.loop = loop
        self.end = end
        self.script = script
        self.sent = 0
        self.received = bytearray()
        self.ended = ""  # how the end of what it received was
        self.left = ""  # how it has left
        self.is_tcp = end.is_tcp
        self.acknowledged = 0  # bytes, when it has left by a reset
        for fd in {end.reader, end.writer}:
            loop.register(fd, self.on_event, room=True)

    def on_event(self, _: int = 0) -> None:
        """Send what can be sent, read what there is."""
        self._send()
        try:
            while self.end.reader >= 0 and not self.ended:
                part = os.read(self.end.reader, 1 << 18)
                self.received += part
                if not part:
                    self.ended = "end"
        except BlockingIOError:
            return
        except OSError as error:
            self.ended = type(error).__name__

    def _send(self) -> None:
        try:
            while self.sent < len(self.script):
                self.sent += os.write(self.end.writer, self.script[self.sent :])
            if self.script:
                self.script = b""
                self.forget()
                self.end.end_output()
        except BlockingIOError:
            return
        except OSError:
            self.script = b""  # what comes from there still counts

    def forget(self) -> None:
        """Let the loop forget a descriptor that is about to be closed."""
        if self.end.sock is None:
            self.loop.unregister(self.end.writer)

    def leave(self, kind: str) -> None:
        """Close, or reset the connection."""
        if self.left:
            return
        self.left = kind
        if kind == "reset" and self.end.is_tcp:
            self.acknowledged = self.sent - self.end.unacknowledged()
            self.close(self.end.reset)
        else:
            self.close(self.end.close)

    def close(self, how: Callable[[], None] | None = None) -> None:
        """Close what is still open."""
        for fd in {self.end.reader, self.end.writer} - {-1}:
            self.loop.unregister(fd)
        (how or self.end.close)()


class Files:
    """A regular file to read from and one to write to, where a peer would be."""

    left = ""
    ended = "end"
    is_tcp = False
    acknowledged = 0

    def __init__(self, place: Path, script: bytes) -> None:
        self.sent = len(script)
        (place / "in").write_bytes(script)
        (place / "out").write_bytes(b"")
        self._out = place / "out"
        self.ours = Ours(os.open(place / "in", os.O_RDONLY), os.open(self._out, os.O_WRONLY))

    @property
    def received(self) -> bytes:
        return self._out.read_bytes()

    def on_event(self) -> None:
        """Nothing happens to a file."""

    def leave(self, _: str) -> None:
        """A file stays."""

    def close(self) -> None:
        """It is ours."""


def each_call(run: Callable[[int], int], first: int = 1, most: int = 2000) -> int:
    """Call `run(nth)` for each nth call; it says how many calls there were. Give the number."""
    nth = first
    while run(nth) >= nth:
        nth += 1
        assert nth < most, "no end of calls"
    return nth - 1
