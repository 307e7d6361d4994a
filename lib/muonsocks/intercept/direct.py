"""The way without proxies, to an address: the kernel goes it, and we look how far it is.

It goes on by itself when nobody waits for it any more, as after a signal; who calls connect(2) once
more waits for the same connection, or is told how it is.
"""

from __future__ import annotations

import errno
import os
from _socket import IPPROTO_TCP, SO_ERROR, SOL_SOCKET, TCP_INFO, socket

from muonsocks.intercept.own_socket import (
    STILL_CONNECTING,
    TCP_CLOSE,
    TCP_SYN_RECV,
    TCP_SYN_SENT,
    begin_connecting,
    unconnect,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from muonsocks.address import Endpoint
    from muonsocks.net.loop import Loop


class DirectWay:
    """A connection on such a way. Its socket stays the caller's, which may block.

    `number` is what connect(2) has said at first.
    """

    __slots__ = ("_destination", "_loop", "_on_end", "_on_failure", "_sock", "number")

    def __init__(
        self,
        loop: Loop,
        sock: socket,
        on_failure: Callable[[BaseException], None],
        on_end: Callable[[OSError | None], None],
    ) -> None:
        """`on_end` is told the error that has come of it, or None if it is up; `on_failure` what
        nobody has expected, and that it is interrupted.
        """
        self._loop = loop
        self._sock = sock
        self._on_failure = on_failure
        self._on_end = on_end
        self.number = 0

    def begin(self, destination: Endpoint) -> None:
        """Begin, or join what has been begun. It may end before this returns."""
        self._destination = destination
        self.number = begin_connecting(self._sock, destination)
        if self.number not in STILL_CONNECTING:
            self._end(self.number)
            return
        self._loop.register(self._sock.fileno(), self._on_event, room=True)
        self._on_event(0)  # on this host nothing takes time

    def interrupt(self, error: BaseException) -> None:
        """Look no more."""
        self._loop.unregister(self._sock.fileno())
        self._on_failure(error)

    def _on_event(self, _: int) -> None:
        try:
            state = self._sock.getsockopt(IPPROTO_TCP, TCP_INFO, 1)[0]
            if state in (TCP_SYN_SENT, TCP_SYN_RECV):
                return
            self._loop.unregister(self._sock.fileno())
            if state == TCP_CLOSE:
                number = self._sock.getsockopt(SOL_SOCKET, SO_ERROR) or errno.ECONNABORTED
                if number != errno.ECONNRESET:  # by shutdown(2), and a call would begin anew
                    unconnect(self._sock)
            else:
                number = begin_connecting(self._sock, self._destination)  # which it says once
                if number == errno.EISCONN:
                    number = 0  # another thread has asked
        except BaseException as error:
            self._loop.unregister(self._sock.fileno())
            self._on_failure(error)
        else:
            self._end(number)

    def _end(self, number: int) -> None:
        self._on_end(OSError(number, os.strerror(number)) if number else None)
