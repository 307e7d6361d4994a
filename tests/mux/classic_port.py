"""The serial port as a half of the older pair uses it (see classic.py): one buffer, a frame a read,
and a write a frame. What came in two reads is not put together again.
"""

import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TextIO

PATIENCE = 15.0  # s until something that has to happen is declared a hang
HEADER = struct.Struct("<HH")


class Over(Exception):
    """The model has been closed, or its port is at its end."""


class Wire(NamedTuple):
    """The bytes of one read of the port, or of one frame written there."""

    sent: bool
    data: bytes

    def __str__(self) -> str:
        header, rest = self.data[:4].hex(" ", 2), self.data[4:].hex()
        return f"{'<<' if self.sent else '>>'} {header} {rest}".rstrip()


def frame(number: int, payload: bytes) -> bytes:
    """The bytes of a frame for a connId."""
    return HEADER.pack(number, len(payload)) + payload


class Port:
    """The port, what was seen there, and waiting that can be ended.

    `port` is a socket or the path of one, or of a device; a socket given is ours to close.
    `log` has each read of the port, when it has been made, and each write, when it begins: what
    has arrived is in the log of who sent it. `out` gets it as lines of text: `>>` read, `<<`
    written, in hexadecimal digits. `over` says that the port is at its end, or has been closed.
    """

    def __init__(
        self, port: socket.socket | str | Path, frame_limit: int, out: TextIO | None
    ) -> None:
        self.log: list[Wire] = []
        self.over = False
        self._out = out
        self._buffer = bytearray(frame_limit)
        self._changed = threading.Condition()
        self._writing = threading.Lock()
        self._port = _open(port)
        self._stop, self._stopper = os.pipe()

    def close(self) -> None:
        """Close what is open. Nobody may be waiting any more."""
        self._halt()
        for fd in {self._port, self._stop} - {-1}:
            os.close(fd)
        self._port = self._stop = -1

    def wait_until(self, condition: Callable[[], Any], seconds: float | None = PATIENCE) -> None:
        """Wait for something that shows in `log`, `over` and so on, or raise TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(condition, seconds):
                raise TimeoutError(f"waited in vain; the port has seen:\n{self.transcript()}")

    def transcript(self) -> str:
        """The log as text, a line a read or write."""
        return "\n".join(map(str, list(self.log)))

    def sent(self, number: int) -> list[bytes]:
        """What this half has written for a connId: the payload of each frame."""
        start = HEADER.pack(number, 0)[:2]
        return [w.data[4:] for w in list(self.log) if w.sent and w.data.startswith(start)]

    def _halt(self) -> None:
        with self._changed:
            if not self.over:
                self.over = True
                os.close(self._stopper)
            self._changed.notify_all()

    def _wait(self, fd: int, event: int, seconds: float | None = None) -> bool:
        """Block as a system call would, until a descriptor is ready; False if it is not in time."""
        poll = select.poll()
        poll.register(fd, event)
        poll.register(self._stop, select.POLLIN)
        ready = dict(poll.poll(None if seconds is None else seconds * 1000))
        if self._stop in ready:
            raise Over
        return bool(ready)

    def _read(self) -> None:
        """Read the port once, over what the last read has left in the buffer."""
        self._wait(self._port, select.POLLIN)
        try:
            count = os.readv(self._port, [self._buffer])
        except ConnectionResetError:
            count = 0
        if not count:
            self._halt()
            raise Over
        self._note(Wire(False, bytes(self._buffer[:count])))

    def _first_frame(self) -> tuple[int, bytes]:
        """The connId and payload of what is at the start of the buffer."""
        number, length = HEADER.unpack_from(self._buffer)
        return number, bytes(self._buffer[4 : 4 + length])

    def _write(self, number: int, payload: bytes) -> None:
        """Write a frame; the next is written when the port has taken it."""
        data = frame(number, payload)
        with self._writing:
            self._note(Wire(True, data))
            rest = memoryview(data)
            while rest:
                self._wait(self._port, select.POLLOUT)
                try:
                    rest = rest[os.write(self._port, rest) :]
                except BlockingIOError:
                    continue
                except (BrokenPipeError, ConnectionResetError):
                    self._halt()
                    raise Over from None

    def _note(self, wire: Wire) -> None:
        with self._changed:
            self.log.append(wire)
            self._changed.notify_all()
            if self._out:
                self._out.write(f"{wire}\n")
                self._out.flush()


def _open(port: socket.socket | str | Path) -> int:
    """A descriptor of the port; a device is left blocking."""
    if not isinstance(port, socket.socket):
        if not Path(port).is_socket():
            return os.open(port, os.O_RDWR | os.O_NOCTTY)
        path, port = port, socket.socket(socket.AF_UNIX)
        try:
            port.connect(str(path))
        except OSError:
            port.close()
            raise
    port.setblocking(False)
    return port.detach()
