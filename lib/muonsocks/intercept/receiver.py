"""What stands in the place of a program's listening socket: a unix socket that connections are
passed to. It is readable exactly when one waits, so that poll(2) and the like need no help.

A socket is known by its inode, and by its cookie, which no other one ever has. We keep no duplicate
of the socket itself for long: it is to be gone as soon as the program is done with it.
"""

from __future__ import annotations

import errno
import os
from _socket import (
    IPPROTO_TCP,
    SO_KEEPALIVE,
    SO_REUSEPORT,
    SOL_SOCKET,
    TCP_KEEPCNT,
    TCP_KEEPIDLE,
    TCP_KEEPINTVL,
    TCP_NODELAY,
    TCP_USER_TIMEOUT,
    socket,
)
from contextlib import closing

from muonsocks.intercept.cookies import cookie_of
from muonsocks.intercept.descriptors import descriptor_of
from muonsocks.intercept.notify import Call, CallGone, Refused
from muonsocks.net.passing import close_all, send
from muonsocks.net.task import Waitable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.intercept.sorting import Sorter
    from muonsocks.net.listen import SocketFile
    from muonsocks.net.loop import Loop

_MANY = 64  # calls that wait; when there are more, it is looked which ones still do
_MOST_WAITING = 256  # clients for whom there is no room in the queue
_IDLE = 1.0  # s that a duplicate is kept for after it was needed
# What an accepted socket has of the listener, and is set in the listener in fact.
_INHERITED = (
    (SOL_SOCKET, SO_KEEPALIVE),
    *((IPPROTO_TCP, name) for name in (TCP_NODELAY, TCP_KEEPIDLE, TCP_KEEPINTVL)),
    *((IPPROTO_TCP, name) for name in (TCP_KEEPCNT, TCP_USER_TIMEOUT)),
)


def inode_of(call: Call) -> int:
    """Give the inode of the socket that the first argument of a call is, 0 if it is none."""
    try:
        name = os.readlink(f"/proc/{call.tid}/fd/{call.fd}")
    except OSError:  # no such descriptor, or no /proc that has it
        fd = call.descriptor(call.fd)
        try:
            return os.fstat(fd).st_ino
        finally:
            os.close(fd)
    return int(name[8:-1]) if name.startswith("socket:[") else 0


class Waiter(Waitable):
    """A call that waits for a connection."""

    __slots__ = ("call", "is_late", "is_replaced")

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call
        self.is_late = False  # the time is up that the program had set (SO_RCVTIMEO)
        self.is_replaced = False  # it has been ended by a signal, or its thread


class Receiver:
    """A unix socket in the place of a listener.

    `name` is the address that the program has bound it to, `meant` the socket that it had for that,
    which has the options that only TCP has; None for a unix socket that has been there before.
    `family` is what connections have to look like, 0 if like what they are, or MIXED. With a
    `sorter` they come over `feeder`, our end of the socket.
    """

    __slots__ = (
        "_is_watched",
        "_loop",
        "_many",
        "_sock",
        "_timer_is_set",
        "_used",
        "_waiting_room",
        "cookie",
        "family",
        "fd",
        "feeder",
        "file",
        "inherited",
        "inode",
        "is_bound",
        "is_gone",
        "is_listening",
        "is_stream",
        "kept",
        "meant",
        "name",
        "path",
        "sorter",
        "tid",
        "waiting",
    )

    def __init__(self, loop: Loop, sock: socket, meant: socket | None, name: bytes) -> None:
        self._loop = loop
        self._sock: socket | None = None
        self._is_watched = self._timer_is_set = False
        self._used = 0.0
        self._many = _MANY
        self.inode = os.fstat(sock.fileno()).st_ino
        self.cookie = cookie_of(sock)
        self.meant = meant
        self.family = meant.family if meant is not None else 0
        self.name = name
        self.path = ""
        self.file: SocketFile | None = None
        self.sorter: Sorter | None = None
        self.feeder: socket | None = None
        self._waiting_room: list[int] = []  # descriptors of clients that found the queue full
        self.is_bound = self.is_listening = self.is_stream = False
        self.is_gone = False  # from where it was: of what a sorter feeds
        self.kept: socket | None = None  # of a stream: accepted, and nobody was there for it
        self.inherited: list[tuple[int, int, int]] = []
        self.waiting: dict[int, Waiter] = {}  # by thread
        self.tid = self.fd = 0  # where it was put
        self.note_inherited()

    def note_inherited(self) -> None:
        """Note the options that accepted sockets are to have, where they are not as usual."""
        if self.meant is None:
            return
        with closing(socket(self.meant.family, self.meant.type, IPPROTO_TCP)) as usual:
            self.inherited = [
                (level, name, value)
                for level, name in _INHERITED
                if (value := self.meant.getsockopt(level, name)) != usual.getsockopt(level, name)
            ]

    def may_be_shared(self, sock: socket, name: bytes) -> bool:
        """Say whether another socket may be bound, to an address, in the place of which this one
        is, too: another address, or both want that (SO_REUSEPORT).
        """
        if self.meant is None or name != self.name:
            return self.meant is not None
        return all(one.getsockopt(SOL_SOCKET, SO_REUSEPORT) for one in (self.meant, sock))

    def is_for_another_family(self, sock: socket) -> bool:
        """Say whether clients can be told from those of another socket by their family."""
        return not self.is_stream and self.family > 0 and self.family != sock.family

    def be_fed(self, feeder: socket, sorter: Sorter) -> None:
        """Get clients from a sorter from now on, over a socket of ours."""
        self.let_go()
        self.feeder, self.sorter = feeder, sorter
        sorter.receivers[self.family] = self
        for waiter in list(self.waiting.values()):
            waiter.wake()

    def feed(self, connection: socket) -> bool:
        """Have a client of our sorter's; say whether that can be: nobody may listen, any more or
        yet. When there are too many already it is closed.
        """
        if self.feeder is None or self.is_gone or not self.is_listening:
            return False
        if not self._waiting_room:
            try:
                send(self.feeder, b"\0", (connection.fileno(),))
            except BlockingIOError:
                pass
            except OSError:
                self.is_gone = True
                return False
            else:
                return True
        if len(self._waiting_room) < _MOST_WAITING:
            try:
                self._waiting_room.append(os.dup(connection.fileno()))
            except OSError:
                pass  # a shortage is one as well
        return True

    def refill(self) -> None:
        """Let those in who have found the queue full, as far as there is room now."""
        while self._waiting_room and self.feeder is not None:
            try:
                send(self.feeder, b"\0", self._waiting_room[:1])
            except BlockingIOError:
                return
            except OSError:
                pass  # nobody is there any more
            os.close(self._waiting_room.pop(0))

    def hold(self, call: Call) -> socket:
        """Give a duplicate, which stays ours. CallGone if the program has closed it since."""
        sock = self._sock
        if sock is None:
            sock = call.duplicate()
            if cookie_of(sock) != self.cookie:
                sock.close()
                raise CallGone
            self._sock = sock
        self._used = self._loop.now
        return sock

    def let_go_soon(self) -> None:
        """Close the duplicate, unless it is needed again soon."""
        if not self._timer_is_set and self._sock is not None and not self.waiting:
            self._timer_is_set = True
            self._loop.call_later(_IDLE, self._on_idle)

    def _on_idle(self) -> None:
        self._timer_is_set = False
        if self._loop.now - self._used < _IDLE:
            self.let_go_soon()
        elif not self.waiting:
            self.let_go()

    def let_go(self) -> None:
        """Close the duplicate, if there is one."""
        if self._sock is not None:
            self._loop.unregister(self._sock.fileno())
            self._is_watched = False
            self._sock.close()
            self._sock = None

    def fetch(self, call: Call) -> socket | None:
        """Get a duplicate from who has it, if only we know who that is."""
        if self._sock is not None:
            return socket(fileno=os.dup(self._sock.fileno()))
        return self.fetch_from(call.tid) or self.fetch_from(self.tid)

    def fetch_from(self, tid: int) -> socket | None:
        """Get a duplicate from a process, if that has it where it was put."""
        try:
            fd = descriptor_of(tid, self.fd)
        except OSError:
            return None  # it is not there any more
        if os.fstat(fd).st_ino == self.inode:
            return socket(fileno=fd)
        os.close(fd)
        return None

    async def wait(self, sock: socket, waiter: Waiter) -> None:
        """Wait until there may be something. CallGone if nobody waits for it any more."""
        tid = waiter.call.tid
        if self.waiting.get(tid) is not waiter:
            if len(self.waiting) >= self._many:
                self.forget_gone()
                self._many = max(_MANY, 2 * len(self.waiting))
            if tid in self.waiting:
                self._end(tid)  # it calls again
            self.waiting[tid] = waiter
        if not self._is_watched:
            self._loop.register(sock.fileno(), self._on_event)
            self._is_watched = True  # as long as it is held: the next call comes soon
        await waiter
        if waiter.is_replaced:
            raise CallGone
        if waiter.is_late:
            raise Refused(errno.EAGAIN)

    def leave(self, waiter: Waiter) -> None:
        """Wait no more. Harmless if it has not waited."""
        if self.waiting.get(waiter.call.tid) is waiter:
            del self.waiting[waiter.call.tid]

    def _on_event(self, _: int) -> None:
        for tid, waiter in list(self.waiting.items()):
            if self.waiting.get(tid) is waiter:
                waiter.wake()
                if self.waiting.get(tid) is waiter:
                    return  # there was nothing for it, nor is there for the next one

    def forget_gone(self) -> None:
        """Forget the calls that do not wait any more: of that nobody tells us."""
        for tid, waiter in list(self.waiting.items()):
            if not waiter.call.is_waiting():
                self._end(tid)

    def _end(self, tid: int) -> None:
        waiter = self.waiting[tid]
        waiter.is_replaced = True
        waiter.wake()

    def close(self) -> None:
        """Remove its file, and close what is ours."""
        self.let_go()
        if self.kept is not None:
            self.kept.close()
        if self.file is not None:
            self.file.remove()
        if self.meant is not None:
            self.meant.close()
        if self.feeder is not None:
            self.feeder.close()
        close_all(self._waiting_room)
        if self.sorter is not None:
            self.sorter.leave(self)
