"""Streams of descriptors that came from another process, and that others may have open too.

Such a descriptor is made non-blocking for the time of its use, and blocking again before it is
closed: the mode belongs to the open file, which all of them share.
"""

from __future__ import annotations

from os import close, set_blocking
from select import EPOLLIN, EPOLLOUT

from muonsocks.net.stream import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

    from muonsocks.net.loop import Loop


class BorrowedSocket(Stream):
    """A socket. The descriptors of it in `borrowed` were blocking."""

    __slots__ = ("borrowed",)

    def __init__(self, loop: Loop, sock: socket, borrowed: tuple[int, ...]) -> None:
        """Take over a socket that does not block any more."""
        super().__init__(loop, sock)
        self.borrowed = borrowed
        self.is_shared = True

    def close(self) -> None:
        if self.reader in self.borrowed:
            set_blocking(self.reader, True)
        super().close()

    def give_away(self) -> None:
        self.borrowed = ()
        self.close()


class Pair(Stream):
    """Two descriptors: pipes, files, or a terminal twice. Those of `borrowed` were blocking.

    A device may be one for both. It has no `socket`.
    """

    __slots__ = ("always_ready", "borrowed")

    def __init__(self, loop: Loop, reader: int, writer: int, borrowed: tuple[int, ...]) -> None:
        """Take over descriptors that do not block any more."""
        self.task = self._watcher = None
        self.loop = loop
        self.reader = reader
        self.writer = writer
        self.name = "-"
        self.is_tcp = False
        self.is_shared = True
        self.borrowed = borrowed
        self._wanted = 0
        self._tells_room = True
        self.always_ready = 0
        if reader == writer:
            if not loop.register(reader, self._on_event, room=True):
                self.always_ready = EPOLLIN | EPOLLOUT
        else:
            if not loop.register(reader, self._on_event):
                self.always_ready = EPOLLIN
            if not loop.register(writer, self._on_event, room=True):
                self.always_ready |= EPOLLOUT
        self.ready = EPOLLOUT | self.always_ready

    def watch(self) -> None:
        """Do nothing: when a pipe is hung up, the other one may still be read."""

    def end_output(self) -> None:
        if self.writer >= 0:
            writer, self.writer = self.writer, -1
            self._let_go(writer)
            if self.reader in self.borrowed:
                set_blocking(self.reader, False)  # of a terminal, both share the mode

    def close(self) -> None:
        reader, writer = self.reader, self.writer
        self.reader = self.writer = -1  # first: a signal may cut this short, and it is called again
        if writer >= 0:
            self._let_go(writer)
        if reader >= 0 and reader != writer:
            self._let_go(reader)

    def give_away(self) -> None:
        self.borrowed = ()
        self.close()

    def _let_go(self, fd: int) -> None:
        self.loop.unregister(fd)
        if fd in self.borrowed:
            set_blocking(fd, True)
        close(fd)


Borrowed = BorrowedSocket | Pair
