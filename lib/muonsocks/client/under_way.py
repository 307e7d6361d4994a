"""What a SocksSocket that does not block is while it connects, or a proxy begins to listen.

Its descriptor is a parked one. The first call after the end puts the connection into its place, in
the thread of whoever calls: nothing changes under a program's hands.
"""

from __future__ import annotations

import errno
import os
from _socket import SO_ERROR, SOCK_STREAM, SOL_SOCKET

from muonsocks.client.background import Pending
from muonsocks.client.errors import timed_out
from muonsocks.client.parking import Parking, replace
from muonsocks.client.socks_socket import SocksSocket, be_again, number_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from muonsocks.client.background import Start
    from muonsocks.client.errand import Granted
    from muonsocks.client.socks_socket import Arrive


class Journey:
    """An errand in the background, for a descriptor that is parked meanwhile."""

    __slots__ = ("_parking", "_pending", "arrive")

    def __init__(self, fd: int, start: Start, arrive: Arrive, tells_input: bool) -> None:
        """Begin. `arrive` is for what has been granted, when that is in its place."""
        self.arrive = arrive
        self._parking = Parking(tells_input)
        replace(fd, self._parking.sock, True)
        self._pending = Pending(start, self._parking.end)

    @property
    def is_over(self) -> bool:
        """Whether there is something to be had from `end`."""
        return self._pending.is_over

    def wait(self, timeout: float | None) -> bool:
        """Wait until it is over, for so many seconds at most; say whether it is."""
        return self._pending.wait(timeout)

    def end(self) -> Granted:
        """Give what has been granted, or raise why there is nothing."""
        self._parking.close()
        return self._pending.take()

    def drop(self) -> None:
        """Have nobody wait for it any more."""
        self._pending.drop()
        self._parking.close()


class UnderWay(SocksSocket):
    """The methods that are others."""

    def connect(self, address: Any) -> None:
        """Say that it is still on its way (EALREADY), or how that has ended."""
        self._await_end(errno.EALREADY)
        if self._peer is None or not self.type & SOCK_STREAM:
            self.connect(address)  # that was another way, or destination

    _connect = connect

    def listen(self, backlog: int = 1, *, peer: tuple[str, int] = ("", 0)) -> None:
        """The same."""
        self._await_end(errno.EALREADY)

    def getsockopt(self, *option: Any) -> Any:
        """Give an option; for SO_ERROR, 0 while it is on its way."""
        if option[:2] != (SOL_SOCKET, SO_ERROR):
            return super().getsockopt(*option)
        assert self._journey is not None
        if self._journey.is_over:
            try:
                self._end()
            except OSError as error:
                self.failure = error
                return number_of(error)
        return 0

    def _await_end(self, number: int) -> None:
        journey, timeout = self._journey, self.gettimeout()
        assert journey is not None
        if not journey.is_over:
            if timeout == 0:
                raise OSError(number, os.strerror(number))
            if not journey.wait(timeout):
                raise timed_out()
        self._end()

    def _end(self) -> None:
        """Be a SocksSocket again, which has arrived; or raise why it has not."""
        journey, self._journey = self._journey, None
        assert journey is not None
        be_again(self)
        try:
            granted = journey.end()
        except BaseException:
            self._become_fresh(True)
            raise
        self._take_over(granted.sock, True)
        journey.arrive(self, granted)


def _at_the_end(name: str) -> Callable[..., Any]:
    def method(self: UnderWay, *arguments: Any, **named: Any) -> Any:
        self._await_end(errno.ENOTCONN if name == "getpeername" else errno.EAGAIN)
        return getattr(self, name)(*arguments, **named)

    method.__name__ = name
    method.__doc__ = "Do it when the connection is up; EAGAIN before."
    return method


for _name in (
    *("accept", "getpeername", "getsockname", "shutdown"),
    *("recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into"),
    *("send", "sendall", "sendfile", "sendmsg", "sendto"),
):
    setattr(UnderWay, _name, _at_the_end(_name))
