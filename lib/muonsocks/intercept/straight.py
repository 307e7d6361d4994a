"""The straight way: to one proxy, at an address that the program's own socket can go to.

So most connections go, while the program waits. There is no more between the socket and what the
proxy is told than a handler of its events, and the proxy is at work already while all else is made
ready. `client/errand.py`, which this is in the place of, goes all ways.
"""

from __future__ import annotations

import errno
import os
from _socket import MSG_DONTWAIT, MSG_NOSIGNAL, SO_RCVLOWAT, SOL_SOCKET, socket

from muonsocks.client.errors import told
from muonsocks.errors import NotAdmitted, RemoteProtocolError, RequestImpossible
from muonsocks.intercept.own_socket import begin_connecting, unconnect
from muonsocks.net.race import dial_error
from muonsocks.socks.proxy_chain import expect_granted, failure, not_reached, silence
from muonsocks.socks.proxy_request import ProxyRequest
from muonsocks.socks.request import Command, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from muonsocks.address import Endpoint
    from muonsocks.net.loop import Loop, Timer
    from muonsocks.socks.proxy_address import ProxyAddress
    from muonsocks.socks.rules import Chain

_HOW = MSG_DONTWAIT | MSG_NOSIGNAL
_HUNG_UP = (errno.ECONNRESET, errno.EPIPE)  # as only one does that was there


def is_straight(sock: socket, destination: Endpoint, chain: Chain) -> bool:
    """Say whether the way from a socket to a destination is a straight one."""
    if len(chain) != 1:
        return False
    [proxy] = chain
    if proxy.path or proxy.endpoint.packed is None or proxy.endpoint.family != sock.family:
        return False
    return proxy.resolves or destination.packed is not None


class StraightWay:
    """A connection on such a way. Its socket stays the caller's, which may block, and wants to be
    told of no less than `enough` bytes afterwards.
    """

    __slots__ = (
        "_asking",
        "_has_sent",
        "_is_used",
        "_loop",
        "_on_end",
        "_on_failure",
        "_out",
        "_proxy",
        "_sock",
        "_timer",
        "enough",
    )

    def __init__(
        self,
        loop: Loop,
        sock: socket,
        proxy: ProxyAddress,
        on_failure: Callable[[BaseException], None],
        on_end: Callable[[OSError | None], None],
    ) -> None:
        """`on_end` is told the error that has come of it, as `client/errors.py` has them, or None
        if it is up; `on_failure` what nobody has expected.
        """
        self._loop = loop
        self._sock = sock
        self._proxy = proxy
        self._on_failure = on_failure
        self._on_end = on_end
        self._is_used = False
        self._has_sent = False  # then it is connected
        self.enough = 1
        self._out = b""
        self._timer: Timer | None = None

    def begin(self, destination: Endpoint, timeout: float) -> None:
        """Begin. It ends after so many seconds at the latest, and may before this returns."""
        sock, proxy = self._sock, self._proxy
        try:
            number = begin_connecting(sock, proxy.endpoint)
            # One that has been connected, and is closed by now, may have something to be read.
            self._is_used = number != errno.EISCONN
            self._asking = ProxyRequest(proxy, Request(Command.CONNECT, destination))
            if number not in (0, errno.EINPROGRESS):
                raise OSError(number, os.strerror(number))
            self._out = self._asking.outgoing()
            self._send()  # on this host nothing takes time
            enough = sock.getsockopt(SOL_SOCKET, SO_RCVLOWAT)
            if enough > 1:
                sock.setsockopt(SOL_SOCKET, SO_RCVLOWAT, 1)
                self.enough = enough
            self._loop.register(sock.fileno(), self._on_event, room=bool(self._out))
            self._timer = self._loop.call_later(timeout, self._on_timeout)
        except BaseException as error:
            self._fail(error)

    def interrupt(self, error: BaseException) -> None:
        """Give up, with an error that is one of ours."""
        self._fail(error)

    def _on_event(self, _: int) -> None:
        try:
            is_up = self._go_on()
        except BaseException as error:
            self._fail(error)
        else:
            if is_up:
                self._leave()
                self._on_end(None)

    def _go_on(self) -> bool:
        """Bring the proxy to its reply, and not a byte further, as far as is possible now; say
        whether it has granted the request.
        """
        asking = self._asking
        while True:
            if self._out:
                self._send()
                if self._out:
                    return False
            try:
                data = self._sock.recv(asking.wants, MSG_DONTWAIT)
            except BlockingIOError:
                return False
            if not data:
                raise silence(asking)
            asking.receive(data)
            reply = asking.next_reply()
            if reply is not None:
                expect_granted(asking, reply)
                return True
            self._out = asking.outgoing()

    def _send(self) -> None:
        try:
            self._out = self._out[self._sock.send(self._out, _HOW) :]
        except BlockingIOError:
            return
        self._has_sent = True

    def _on_timeout(self) -> None:
        self._fail(TimeoutError(errno.ETIMEDOUT, "the time limit has passed"))

    def _fail(self, error: BaseException) -> None:
        self._leave()
        if self._is_used:
            try:
                unconnect(self._sock)
            except OSError as fault:  # nobody else would be told, but whoever runs the loop
                self._on_failure(fault)
                return
        if isinstance(error, OSError | RemoteProtocolError | NotAdmitted):
            self._on_end(told(self._explained(error)))
        else:
            self._on_failure(error)

    def _explained(self, error: OSError | RemoteProtocolError | NotAdmitted) -> OSError:
        is_ours = isinstance(error, RequestImpossible)
        if not isinstance(error, OSError):
            return failure(self._proxy, error)
        if self._has_sent or is_ours or error.errno in _HUNG_UP:
            return failure(self._proxy, error)
        failures = [(self._proxy.endpoint.host, error.errno or 0)]
        return not_reached(self._proxy, dial_error(failures))

    def _leave(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._loop.unregister(self._sock.fileno())
        if self.enough > 1 and self._sock.getsockopt(SOL_SOCKET, SO_RCVLOWAT) == 1:
            self._sock.setsockopt(SOL_SOCKET, SO_RCVLOWAT, self.enough)
