"""Who connections are passed to: the programs that receive them at unix sockets.

A receiver takes a connection at once, as long as there is room in its queue, which by default is
for ten (net.unix.max_dgram_qlen). When there is none, or nobody is there, the connection waits: a
receiver may be slow for a moment, or be restarted. One that need not wait costs one call of the
kernel.
"""

from __future__ import annotations

import errno
import os
from _socket import AF_UNIX, MSG_DONTWAIT, SOCK_DGRAM, SOCK_NONBLOCK, socket

from muonsocks.net.loop import READABLE
from muonsocks.net.passing import WORD, send
from muonsocks.net.registration import CONNECTION
from muonsocks.net.stream import unix_address
from muonsocks.socketbox.waiting import AWAY, Receiver, Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from muonsocks.net.loop import Loop
    from muonsocks.socketbox.waiting_room import WaitingRoom


class AtPath(Receiver):
    """A receiver of datagrams at a path; with @ in front it is an abstract name.

    All of a process are sent to by one socket, `sender`. While connections wait for one that is
    full there is another socket, connected to it: the kernel tells that when there is room.
    """

    __slots__ = ("_connected", "_path", "_sender")

    def __init__(self, loop: Loop, room: WaitingRoom, sender: socket, path: str) -> None:
        super().__init__(loop, room, os.fsencode(path))
        self._sender = sender
        self._path = path
        self._connected: socket | None = None

    def _send(self, fd: int) -> None:
        if self._connected is None:
            send(self._sender, WORD, (fd,), self._path)
        else:
            send(self._connected, WORD, (fd,))

    def _watch(self) -> None:
        sock = None
        try:
            sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK)
            sock.connect(unix_address(self._path))
            self._loop.register(sock.fileno(), self._on_event, room=True)
        except OSError:  # it has just gone, or there is no descriptor for this: the timer will do
            if sock is not None:
                sock.close()
        else:
            self._connected = sock

    def _unwatch(self) -> None:
        sock, self._connected = self._connected, None
        if sock is not None:
            self._loop.unregister(sock.fileno())
            sock.close()


class OverSocket(Receiver):
    """A receiver at the other end of a connected unix socket, for as long as it is there: when it
    `has_gone` nothing more can be sent.
    """

    __slots__ = ("_sock", "has_gone")

    def __init__(self, loop: Loop, room: WaitingRoom, sock: socket) -> None:
        super().__init__(loop, room, b"fd %d" % sock.fileno())
        self._sock = sock
        self.has_gone = False

    def _send(self, fd: int) -> None:
        if not self.has_gone:
            try:
                send(self._sock, WORD, (fd,))
                return
            except OSError as error:
                if error.errno not in AWAY:
                    raise
                self.has_gone = True
        raise Refused("it has gone")

    def _watch(self) -> None:
        try:
            self._loop.register(self._sock.fileno(), self._on_event, room=True)
        except OSError:
            pass  # epoll(7) has a limit for each user: the timer will do

    def _unwatch(self) -> None:
        self._loop.unregister(self._sock.fileno())


class Group(Receiver):
    """The receivers that register for a group, one after the other: each over the connection by
    which it did. It says no more, and when it closes that, connections wait for the next one.

    The connection is in the loop, which tells that it ends.
    """

    __slots__ = ("_on_end", "_sock")

    away = "nobody has registered"

    def __init__(self, loop: Loop, room: WaitingRoom, number: int = 0) -> None:
        super().__init__(loop, room, b"group %d" % number)
        self._sock: socket | None = None
        self._on_end: Callable[[], None]

    @property
    def is_there(self) -> bool:
        """Whether one has registered."""
        return self._sock is not None

    def register(self, sock: socket, on_end: Callable[[], None]) -> None:
        """Send to this one from now on, which is ours to close; `on_end` is called when that is
        over. OSError, and nothing is taken over, if it cannot be waited for.
        """
        self._loop.register(sock.fileno(), self._on_event)
        self._sock = sock
        self._on_end = on_end
        self._look()

    def leave(self) -> None:
        """Send it no more, and let go of it. Harmless when nobody has registered."""
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.unregister(sock.fileno())
            sock.close()
            self._on_end()

    def _send(self, fd: int) -> None:
        if self._sock is None:
            raise OSError(errno.ENOTCONN, self.away)
        try:
            send(self._sock, CONNECTION, (fd,))
        except OSError as error:
            if error.errno in AWAY:  # EPIPE: it may be there still, and reads no more
                self.leave()
            raise

    def _watch(self) -> None:
        if self._sock is not None:
            self._loop.watch_room(self._sock.fileno())

    def _unwatch(self) -> None:
        if self._sock is not None:
            self._loop.watch_room(self._sock.fileno(), False)

    def _on_event(self, events: int) -> None:
        if events & READABLE and self._has_ended():
            self.leave()
        super()._on_event(events)

    def _has_ended(self) -> bool:
        """Say whether it has closed, or says what it has no business to."""
        if self._sock is None:
            return False
        try:
            self._sock.recv(1, MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True  # a reset
        return True
