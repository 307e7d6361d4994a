"""Where a program's socket is while a connection for it is made with another one.

It is connected over loopback to us, and its buffers are full: so it is connected and has no room
for output, which is what a program that looks at it takes for a connection under way (connect(2)).
When we read what it is full of, there is room: that is how a program is told that it is connected.

If the program closes it, that is a reset at once, as it lingers for no time (socket(7), SO_LINGER).
"""

from __future__ import annotations

import errno
import os
from _socket import (
    AF_INET,
    AF_INET6,
    IPPROTO_IPV6,
    IPPROTO_TCP,
    IPV6_V6ONLY,
    MSG_DONTWAIT,
    MSG_EOR,
    MSG_NOSIGNAL,
    MSG_PEEK,
    SO_LINGER,
    SO_RCVBUF,
    SO_SNDBUF,
    SOL_SOCKET,
    TCP_NOTSENT_LOWAT,
    socket,
)

from muonsocks.intercept.arrivals import Arrivals
from muonsocks.intercept.own_socket import unconnect
from muonsocks.intercept.socket_options import SO_BUF_LOCK, buffer_locks
from muonsocks.net.stream import RESET_ON_CLOSE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.net.loop import Loop

_TCP_FASTOPEN_CONNECT = 30  # connect(2) does nothing then, up to the first byte
_FILLING = bytes(512)  # less than goes into one segment: half of what the window is
_MOST_FILLINGS = 64
_ROOM = 1 << 17  # bytes of a receive buffer, when there is something to receive
_LINGER_SIZE = 8  # struct linger


class Parking:
    """A socket of the program's that is connected to `far` and has no room for output.

    It does not know that socket: who has that open must not be us, or it would never be closed.
    """

    __slots__ = ("_before", "_left", "far")

    def __init__(self, far: socket, before: _Before) -> None:
        self.far = far
        self._before: _Before | None = before
        self._left = 0

    @property
    def is_empty(self) -> bool:
        """Whether all has been read that it was full of."""
        return not self._left

    def fill(self, sock: socket) -> None:
        """Leave no room. OSError, ENOBUFS if there always is some."""
        try:
            for _ in range(_MOST_FILLINGS):
                # MSG_EOR: nothing is added to what waits already, so that is all that there is.
                flags = MSG_DONTWAIT | MSG_NOSIGNAL | MSG_EOR
                self._left += sock.send(_FILLING, flags)
        except BlockingIOError:
            # Later what is left of the window is used up; there is to be no room then, either, as
            # long as a byte waits to be sent.
            sock.setsockopt(IPPROTO_TCP, TCP_NOTSENT_LOWAT, 1)
            return
        raise OSError(errno.ENOBUFS, "a socket that is never full")

    def give_back(self, sock: socket) -> None:
        """Have the program's socket be as it has set it, once. It may still be full."""
        before, self._before = self._before, None
        if before is not None:
            before.restore(sock)

    def make_room(self) -> bool:
        """Read what it is full of; False if the rest has not come yet, and then this is to be
        called again when it has. What the program has written comes after that. OSError,
        ECONNRESET if the program has closed it.
        """
        self.far.setsockopt(SOL_SOCKET, SO_RCVBUF, _ROOM)
        while self._left:
            try:
                data = self.far.recv(self._left)
            except BlockingIOError:
                return False
            if not data:
                raise OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            self._left -= len(data)
        return True

    def has_been_written_to(self) -> bool:
        """Say whether there is something that the program has written, or an end."""
        if self._left:
            return False
        try:
            self.far.recv(1, MSG_PEEK | MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def pass_on_the_rest(self, new: socket) -> None:
        """Give to the socket that has replaced it what another thread has written just before.
        OSError.
        """
        try:
            while self.make_room() and (data := self.far.recv(_ROOM)):
                while data:
                    data = data[new.send(data, MSG_DONTWAIT | MSG_NOSIGNAL) :]
        except ConnectionResetError:
            return  # nobody has it open any more
        except BlockingIOError:
            return  # that is all; and a new connection has room for as little as that

    def reset(self) -> None:
        """Close our end, which is an error at the other one."""
        self.far.setsockopt(SOL_SOCKET, SO_LINGER, RESET_ON_CLOSE)
        self.far.close()


class _Before:
    """What a parked socket has for us, and had otherwise before."""

    __slots__ = ("_linger", "_locks", "_room", "_unsent")

    def __init__(self, sock: socket) -> None:
        self._unsent = sock.getsockopt(IPPROTO_TCP, TCP_NOTSENT_LOWAT)
        self._linger = sock.getsockopt(SOL_SOCKET, SO_LINGER, _LINGER_SIZE)
        self._room = sock.getsockopt(SOL_SOCKET, SO_SNDBUF)
        self._locks = buffer_locks(sock)

    def restore(self, sock: socket) -> None:
        sock.setsockopt(IPPROTO_TCP, TCP_NOTSENT_LOWAT, self._unsent)
        sock.setsockopt(SOL_SOCKET, SO_LINGER, self._linger)
        sock.setsockopt(SOL_SOCKET, SO_SNDBUF, self._room // 2)  # the kernel takes twice of it
        try:
            sock.setsockopt(SOL_SOCKET, SO_BUF_LOCK, self._locks)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:  # before Linux 5.14
                raise


class ParkingLot:
    """Parks sockets, in a loop."""

    __slots__ = ("_arrivals", "_loop")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._arrivals: dict[str, Arrivals] = {}  # by the address

    async def park(self, sock: socket) -> Parking:
        """Park a TCP socket that does not block and has never been connected or bound. OSError,
        and it is as it was: then there is no loopback, or we are short of something.
        """
        arrivals = self._arrivals_for(sock)
        before = _Before(sock)
        sock.setsockopt(SOL_SOCKET, SO_LINGER, RESET_ON_CLOSE)
        sock.setsockopt(SOL_SOCKET, SO_SNDBUF, 1)  # the least
        is_connected = False
        try:
            if sock.getsockopt(IPPROTO_TCP, _TCP_FASTOPEN_CONNECT):
                sock.setsockopt(IPPROTO_TCP, _TCP_FASTOPEN_CONNECT, 0)
            number = sock.connect_ex(arrivals.address_for(sock))
            if number not in (0, errno.EINPROGRESS):
                raise OSError(number, os.strerror(number))
            is_connected = True
            parking = Parking(await arrivals.arrival_of(sock), before)
            try:
                parking.fill(sock)
            except BaseException:
                parking.far.close()
                raise
        except BaseException:
            if is_connected:
                unconnect(sock)
            before.restore(sock)
            raise
        return parking

    def _arrivals_for(self, sock: socket) -> Arrivals:
        if sock.family == AF_INET:
            return self._arrivals_at(AF_INET, "127.0.0.1")
        try:
            return self._arrivals_at(AF_INET6, "::1")
        except OSError:
            if sock.getsockopt(IPPROTO_IPV6, IPV6_V6ONLY):
                raise
            return self._arrivals_at(AF_INET, "127.0.0.1")

    def _arrivals_at(self, family: int, host: str) -> Arrivals:
        if host not in self._arrivals:
            self._arrivals[host] = Arrivals(self._loop, family, host)
        return self._arrivals[host]

    def close(self) -> None:
        """Park no more."""
        for arrivals in self._arrivals.values():
            arrivals.close()
        self._arrivals.clear()
