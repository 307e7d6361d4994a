"""What a SocksSocket that does not block is while it connects, or a proxy begins to listen.

Its descriptor is a parked one. The first call after the end puts the connection into its place, in
the thread of whoever calls: nothing changes under a program's hands.
"""

from __future__ import annotations

import errno
import os
from _socket import SO_ERROR, SOCK_STREAM, SOL_SOCKET, socket
from _thread import allocate_lock

from muonsocks.client.background import Pending
from muonsocks.client.errors import number_of, timed_out
from muonsocks.client.parking import Parking, replace
from muonsocks.client.parts import be_again
from muonsocks.client.socks_socket import SocksSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from muonsocks.client.background import Start
    from muonsocks.client.errand import Granted
    from muonsocks.client.socks_socket import Arrive


class Journey:
    """An errand in the background, for a descriptor that is parked meanwhile.

    `arrive` is for what has been granted, when that is in its place; `options` have been set on the
    way; of several threads, one at a time has `lock`.
    """

    __slots__ = ("_parking", "_pending", "arrive", "lock", "options")

    def __init__(self, fd: int, start: Start, arrive: Arrive, tells_input: bool) -> None:
        """Begin. OSError."""
        self.arrive = arrive
        self.options: list[tuple[Any, ...]] = []
        self.lock = allocate_lock()
        self._parking = Parking(tells_input)
        try:
            self._pending = Pending(start, self._parking.end)
            replace(fd, self._parking.sock, True, must_be=True)
        finally:
            self._parking.sock.close()

    @property
    def is_over(self) -> bool:
        """Whether there is something to be had from `end`."""
        return self._pending.is_over

    @property
    def has_failed(self) -> bool:
        """Whether that is an error."""
        return self._pending.has_failed

    def wait(self, timeout: float | None) -> bool:
        """Wait until it is over, for so many seconds at most; say whether it is."""
        return self._pending.wait(timeout)

    def end(self) -> Granted:
        """Give what has been granted, or raise why there is nothing."""
        self._parking.close()
        return self._pending.take()

    def drop(self) -> None:
        """Have nobody wait for it any more. Harmless when it has ended."""
        if hasattr(self, "_pending"):
            self._pending.drop()
        self._parking.close()

    def __del__(self) -> None:
        if hasattr(self, "_parking"):
            self.drop()  # of a socket that nobody has closed


class UnderWay(SocksSocket):
    """The methods that are others."""

    def __repr__(self) -> str:
        """Name it; that alone must not be the call that finds out how it has ended."""
        return f"<{type(self).__module__}.{type(self).__name__} fd={self.fileno()}, under way>"

    def connect(self, address: Any) -> None:
        """Say that it is still on its way (EALREADY), or how that has ended."""
        _await_end(self, errno.EALREADY)
        if self._peer is None or not self.type & SOCK_STREAM:
            self.connect(address)  # that was another way, or destination

    _connect = connect

    def listen(self, backlog: int = 1, *, peer: tuple[str, int] = ("0.0.0.0", 0)) -> None:
        """The same."""
        _await_end(self, errno.EALREADY)
        if self._asking is None:
            self.listen(backlog, peer=peer)

    def bind(self, address: Any) -> None:
        """Say that it is too late (EINVAL)."""
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def getpeername(self) -> Any:
        """Give the destination when it is connected to that; ENOTCONN before, or if it has failed,
        which another call will tell.
        """
        journey = self._journey
        if journey is not None and (not journey.is_over or journey.has_failed):
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        _end(self, journey)
        return self.getpeername()

    def setsockopt(self, *option: Any) -> None:
        """Set an option, now and of what will be in its place."""
        journey = self._journey
        self._expect_option(option)
        self._of_a_fresh_one(socket.setsockopt, *option)
        self._options[option[:2]] = option
        if journey is not None:
            journey.options.append(option)

    def getsockopt(self, *option: Any) -> Any:
        """Give an option; for SO_ERROR, 0 while it is on its way."""
        if option[:2] != (SOL_SOCKET, SO_ERROR):
            return self._of_a_fresh_one(socket.getsockopt, *option)
        journey = self._journey
        if journey is not None and journey.is_over:
            try:
                _end(self, journey)
            except OSError as error:
                self.failure = error
                return number_of(error)
        return 0


# No methods, as another thread may have changed the class of a socket already.


def _await_end(sock: SocksSocket, number: int) -> None:
    journey, timeout = sock._journey, sock.gettimeout()
    if journey is not None and not journey.is_over:
        if timeout == 0:
            raise OSError(number, os.strerror(number))
        if not journey.wait(timeout):
            raise timed_out()
    _end(sock, journey)


def _end(sock: SocksSocket, journey: Journey | None) -> None:
    """Have it be a SocksSocket again, which has arrived; or raise why it has not."""
    if journey is None or sock.fileno() < 0:
        _expect_open(sock)
        return
    with journey.lock:
        if sock._journey is not journey:
            _expect_open(sock)
            return  # another thread has been here
        try:
            granted = journey.end()
        except BaseException:
            _be_again(sock)
            sock._become_fresh()
            raise
        sock._take_over(granted.sock, True)
        journey.arrive(sock, granted)
        _be_again(sock)
        for option in journey.options:
            sock.setsockopt(*option)


def _be_again(sock: SocksSocket) -> None:
    be_again(sock)
    sock._journey = None  # after that, or it would look as if it had been closed


def _expect_open(sock: SocksSocket) -> None:
    if isinstance(sock, UnderWay) or sock.fileno() < 0:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))  # another thread closes it


def _at_the_end(name: str) -> Callable[..., Any]:
    def method(self: UnderWay, *arguments: Any, **named: Any) -> Any:
        _await_end(self, errno.EAGAIN)
        return getattr(self, name)(*arguments, **named)

    method.__name__ = name
    method.__doc__ = "Do it when the connection is up; EAGAIN before."
    return method


for _name in (
    *("accept", "detach", "dup", "getsockname", "shutdown"),
    *("recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into"),
    *("send", "sendall", "sendfile", "sendmsg", "sendto"),
):
    setattr(UnderWay, _name, _at_the_end(_name))
