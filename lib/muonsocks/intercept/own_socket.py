"""The way to a proxy from the program's very own socket: nothing has to be copied afterwards.

There is one socket for all attempts, so they are made one after the other. A proxy that no socket
of its kind can reach is gone to by another one, which is to stand in its place.
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
    SO_ERROR,
    SOL_SOCKET,
    TCP_INFO,
    socket,
)

from muonsocks.address import Endpoint
from muonsocks.errors import RefusedByRule
from muonsocks.intercept import kernel
from muonsocks.net.dial import Dialler, permit_all
from muonsocks.net.loop import Loop
from muonsocks.net.race import Attempt, dial_error
from muonsocks.net.stream import Stream
from muonsocks.net.task import Mailbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

TCP_SYN_SENT, TCP_SYN_RECV, TCP_CLOSE = 2, 3, 7  # of tcpi_state, the first byte of struct tcp_info
STILL_CONNECTING = (errno.EINPROGRESS, errno.EALREADY)


class OwnSocket(Dialler):
    """Dials with `sock`, which does not block, and stays the caller's."""

    __slots__ = ("_is_used", "_sock")

    def __init__(
        self,
        sock: socket,
        timeout: float,
        lookup: Callable[[str], Awaitable[list[tuple[bytes, int]]]] | None = None,
    ) -> None:
        """All may take so many seconds, and each of several addresses its part of them."""
        super().__init__(connect_timeout=timeout, dial_timeout=timeout, lookup=lookup)
        self._sock = sock
        self._is_used = False
        self.for_relay = False

    def reaches(self, endpoint: Endpoint) -> bool:
        """Say whether an address can be gone to by a socket of this family."""
        if self._sock.family == endpoint.family:
            return True
        if self._sock.family == AF_INET:
            return False
        return not self._sock.getsockopt(IPPROTO_IPV6, IPV6_V6ONLY)

    async def dial(
        self, loop: Loop, destination: Endpoint, permit: Callable[[bytes], bool] = permit_all
    ) -> Stream:
        """Connect to the first address that answers."""
        candidates = [destination]
        if destination.packed is None:
            candidates = await self.look_up(loop, destination)
        permitted = [one for one in candidates if one.packed and permit(one.packed)]
        if not permitted:
            raise RefusedByRule(f"no address of {destination} is permitted")
        self.connect_timeout = self.dial_timeout / len(permitted)
        failures: list[tuple[str, int]] = []
        for candidate in permitted:
            try:
                if not self.reaches(candidate):
                    self.give_up()
                    return await super().dial(loop, candidate, permit)
                return await self._connect(loop, candidate)
            except OSError as error:
                failures.append((candidate.host, error.errno or 0))
        raise dial_error(failures)

    async def _connect(self, loop: Loop, candidate: Endpoint) -> Stream:
        if candidate.family != self._sock.family:
            candidate = Mapped(candidate)
        self.give_up()
        number = self._sock.connect_ex(candidate.sockaddr)
        if number == errno.EISCONN:
            raise OSError(number, os.strerror(number))
        self._is_used = True
        if number == errno.EINPROGRESS:  # on this host nothing takes time
            number = self._sock.connect_ex(candidate.sockaddr)
        if number not in (0, errno.EISCONN, *STILL_CONNECTING):
            raise OSError(number, os.strerror(number))
        if number not in STILL_CONNECTING:
            return _Lent(loop, self._sock, str(candidate))
        return await self._attempt(_Attempt(loop, self._sock, candidate, self.connect_timeout))

    async def _attempt(self, attempt: _Attempt) -> Stream:
        attempt.mailbox = Mailbox()
        number = errno.ECANCELED
        try:
            while (number := attempt.result()) in STILL_CONNECTING:
                await attempt.mailbox.take()
        finally:
            if number:
                attempt.close()
        if number:
            raise OSError(number, os.strerror(number))
        return attempt.stream()

    def give_up(self) -> None:
        """Let the socket be as if we had never connected it."""
        if self._is_used:
            unconnect(self._sock)


def begin_connecting(sock: socket, endpoint: Endpoint) -> int:
    """Call connect(2), and do not wait; give the errno. A socket that blocks does so afterwards."""
    fd = sock.fileno()
    blocks = os.get_blocking(fd)
    if blocks:
        os.set_blocking(fd, False)
    try:
        return sock.connect_ex(endpoint.sockaddr)
    finally:
        if blocks:
            os.set_blocking(fd, True)


def unconnect(sock: socket) -> None:
    """Let a TCP socket be as if it had never been connected: that it has been reset is no error
    that a program is to be told of. OSError.
    """
    kernel.disconnect(sock.fileno())
    sock.getsockopt(SOL_SOCKET, SO_ERROR)


def number_against(sock: socket) -> int:
    """Give the errno why connect(2) would not connect a TCP socket, 0 if it would."""
    state = sock.getsockopt(IPPROTO_TCP, TCP_INFO, 1)[0]
    if state == TCP_CLOSE:
        return 0
    return errno.EALREADY if state == TCP_SYN_SENT else errno.EISCONN


class _Lent(Stream):
    """A stream over a socket that stays open when the stream is closed."""

    __slots__ = ()

    def close(self) -> None:
        """Let nothing be told of it any more."""
        if self.reader >= 0:
            self.detach()


class _Attempt(Attempt):
    """An attempt with such a socket."""

    __slots__ = ()

    def stream(self) -> Stream:
        """Make a stream of it, as it is connected."""
        self._timer.cancel()
        return _Lent(self.loop, self._sock, str(self.candidate), known=self._ready)

    def close(self) -> None:
        """Give up."""
        self._timer.cancel()
        self.loop.unregister(self._sock.fileno())


class Mapped(Endpoint):
    """An IPv4 address as it is for an IPv6 socket (RFC 4291 section 2.5.5.2)."""

    __slots__ = ()

    def __init__(self, endpoint: Endpoint) -> None:
        self.packed = endpoint.packed
        self.host = f"::ffff:{endpoint.host}"
        self.port = endpoint.port
        self.scope = 0

    @property
    def family(self) -> int:
        return AF_INET6
