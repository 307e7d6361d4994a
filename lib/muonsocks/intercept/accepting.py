"""accept(2) of a receiver: who has been passed to it is handed on to the program.

What has been passed stays in the queue until the program has it: a signal may end a call at any
time, and then the next one gets it.
"""

from __future__ import annotations

import errno
import os
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET, socket
from select import POLLIN, poll
from struct import Struct

from muonsocks.errors import RemoteProtocolError
from muonsocks.intercept.disguise import Disguises
from muonsocks.intercept.notify import Call, Refused, int_of
from muonsocks.intercept.receiver import Receiver, Waiter
from muonsocks.net.loop import Loop
from muonsocks.net.passed import connection_of
from muonsocks.net.passing import drop, has_hung_up, peek_first, receive_first

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_SO_RCVTIMEO = 20
_TIME = Struct("=qq")  # struct timeval: seconds and microseconds
_NO_SUCH_OPTION = (errno.EOPNOTSUPP, errno.ENOPROTOOPT)  # what is passed need not be of TCP
_FLAGS = SOCK_NONBLOCK | SOCK_CLOEXEC


class Accepting:
    """Answers accept(2) and accept4(2)."""

    __slots__ = ("_disguises", "_loop", "_report", "_strictness")

    def __init__(
        self,
        loop: Loop,
        disguises: Disguises,
        strictness: int,
        report: Callable[[str], None],
    ) -> None:
        """`strictness` is about what may be passed (net/passed.py); `report` is told of what has
        been passed and is dropped.
        """
        self._loop = loop
        self._disguises = disguises
        self._strictness = strictness
        self._report = report

    async def accept(self, call: Call, receiver: Receiver) -> None:
        """Answer with a connection that has been passed to a receiver, when there is one."""
        flags = int_of(call.arguments[3]) if call.name == "accept4" else 0
        if flags & ~_FLAGS or not receiver.is_listening:
            raise Refused(errno.EINVAL)
        room = call.room_at(call.arguments[2]) if call.arguments[1] else 0
        sock = receiver.hold(call)
        try:
            may_wait = receiver.kept is not None or _is_readable(sock)
            if may_wait and self._deliver(call, sock, receiver, flags, room):
                return
            if not os.get_blocking(sock.fileno()):
                raise Refused(errno.EAGAIN)
            await self._wait(call, sock, receiver, flags, room)
        finally:
            receiver.let_go_soon()

    async def _wait(
        self, call: Call, sock: socket, receiver: Receiver, flags: int, room: int
    ) -> None:
        waiter = Waiter(call)

        def is_late() -> None:
            waiter.is_late = True
            waiter.wake()

        seconds, micros = _TIME.unpack(sock.getsockopt(SOL_SOCKET, _SO_RCVTIMEO, _TIME.size))
        timer = None
        if seconds or micros:
            timer = self._loop.call_later(seconds + micros * 1e-6, is_late)
        try:
            while True:
                await receiver.wait(sock, waiter)
                sock = receiver.hold(call)  # there may be another one by now
                if self._deliver(call, sock, receiver, flags, room):
                    return
        finally:
            receiver.leave(waiter)
            if timer is not None:
                timer.cancel()

    def _deliver(self, call: Call, sock: socket, receiver: Receiver, flags: int, room: int) -> bool:
        """Answer with the first connection that waits; say whether there was one."""
        while True:
            try:
                connection = self._next(sock, receiver)
            except BlockingIOError:
                if has_hung_up(sock):
                    raise Refused(errno.EINVAL) from None
                return False
            except RemoteProtocolError as error:
                drop(sock)
                self._report(str(error))
                continue
            try:
                name = self._peer(connection, receiver, room)
                if name:
                    self._give(call, connection, receiver, flags, room, name)
            except BaseException:
                self._keep(connection, receiver)
                raise
            if not receiver.is_stream:
                drop(sock)  # first of all: the program may look already whether more waits
                receiver.refill()
            connection.close()
            if name:
                return True

    def take_passed(self, sock: socket) -> socket:
        """Take a connection that has been passed. BlockingIOError if there is none; OSError if it
        cannot be had now.
        """
        while True:
            try:
                fd = receive_first(sock)
                if fd is not None:  # there is no end to datagrams
                    return connection_of(fd, self._strictness)
            except RemoteProtocolError as error:
                self._report(str(error))

    def _peer(self, connection: socket, receiver: Receiver, room: int) -> bytes:
        """Give the address of the client, b"" if it has gone."""
        try:
            return self._disguises.peer(connection, receiver.family, room)
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.EINVAL):
                raise
            return b""

    def _keep(self, connection: socket, receiver: Receiver) -> None:
        """Have it for the next call: what has been passed is in the queue still."""
        if receiver.is_stream:
            receiver.kept = connection
        else:
            connection.close()

    def _next(self, sock: socket, receiver: Receiver) -> socket:
        """Give the connection that has been passed, and leave it in the queue."""
        if receiver.is_stream:
            return self._accepted(sock, receiver)
        fd = peek_first(sock)
        if fd is None:
            raise Refused(errno.EINVAL)  # nothing can come any more
        return connection_of(fd, self._strictness)

    def _accepted(self, sock: socket, receiver: Receiver) -> socket:
        """Accept a connection of a unix socket, or give the one that nobody was there for."""
        kept, receiver.kept = receiver.kept, None
        if kept is not None:
            return kept
        if not _is_readable(sock):
            raise BlockingIOError
        return socket(AF_UNIX, SOCK_STREAM, 0, sock._accept()[0])  # type: ignore[attr-defined]

    def _give(
        self,
        call: Call,
        connection: socket,
        receiver: Receiver,
        flags: int,
        room: int,
        name: bytes,
    ) -> None:
        for level, option, value in receiver.inherited:
            try:
                connection.setsockopt(level, option, value)
            except OSError as error:
                if error.errno not in _NO_SUCH_OPTION:
                    raise
        fd, blocks = connection.fileno(), not flags & SOCK_NONBLOCK
        if os.get_blocking(fd) != blocks:
            os.set_blocking(fd, blocks)
        if call.arguments[1]:
            size = len(name).to_bytes(4, "little")
            call.write_two((call.arguments[1], name[:room]), (call.arguments[2], size))
        try:
            call.give(fd, bool(flags & SOCK_CLOEXEC))
        except OSError as error:
            if error.errno == errno.EMFILE:  # of the program; it stays where it is
                raise Refused(errno.EMFILE) from None
            raise


def _is_readable(sock: socket) -> bool:
    look = poll()
    look.register(sock, POLLIN)
    return bool(look.poll(0))
