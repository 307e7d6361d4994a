"""A port: what leads to the other side, be it a socket, a device, a terminal or two pipes."""

from __future__ import annotations

import termios
from _socket import SOCK_STREAM
from errno import ENODEV
from os import readv, write

from muonsocks.net.stream import MORE, send_queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from muonsocks.net.stream import Stream

_ENOUGH = 1 << 17  # bytes of input that are worth being looked at, and written in one go


class Port:
    """A stream to the other side. `backlog` is what was written and it would not take yet.

    If it `can_return`, as a virtio port does, its end is none: the other side may come back to it,
    unless it was taken out of the machine.
    """

    __slots__ = (
        "_drains",
        "_is_socket",
        "_mode",
        "backlog",
        "can_return",
        "reader",
        "stream",
        "writer",
    )

    def __init__(
        self,
        stream: Stream,
        can_return: bool = False,
        mode: list[Any] | None = None,
    ) -> None:
        """`mode` is what a terminal is to be left in."""
        self.stream = stream
        self._mode = mode
        self.can_return = can_return
        self.reader = stream.reader
        self.writer = stream.writer
        # A read that is short has taken all there was.
        self._drains = hasattr(stream, "socket") and stream.socket.type == SOCK_STREAM
        self._is_socket = hasattr(stream, "socket")
        self.backlog: memoryview | bytes = b""

    def read_into(self, room: memoryview, events: int) -> tuple[int, bool]:
        """Read for as long as it is worth it: the number of bytes, and whether that is all.

        EOFError if the other side is not there, or OSError.
        """
        drains = self._drains and not events & MORE
        total = 0
        while total < _ENOUGH:
            try:
                count = readv(self.reader, (room[total:],))
            except BlockingIOError:
                return total, True
            except OSError as error:
                if error.errno == ENODEV:
                    self.can_return = False
                raise
            if not count:
                if total:
                    return total, False
                raise EOFError
            total += count
            if drains and total < len(room):
                return total, True
        return total, False

    def write(self, data: memoryview | bytes) -> bool:
        """Write as much as it takes now; there must be no backlog. False if that is not all."""
        while data:
            try:
                data = data[write(self.writer, data) :]
            except BlockingIOError:
                self.backlog = data
                return False
        return True

    def write_backlog(self) -> bool:
        """Write what it would not take before. False if that is still not all."""
        data, self.backlog = self.backlog, b""
        return self.write(data)

    def is_read(self) -> bool:
        """Say whether all that was written has been taken, as far as a port can tell."""
        return not self._is_socket or not send_queue(self.writer)

    def close(self) -> None:
        """Leave it as it was found."""
        if self._mode is not None:
            try:
                termios.tcsetattr(self.reader, termios.TCSANOW, self._mode)
            except termios.error:
                pass  # nobody has its other side open any more
        self.stream.close()
