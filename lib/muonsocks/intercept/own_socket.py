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
    AF_UNIX,
    IPPROTO_IPV6,
    IPPROTO_TCP,
    IPV6_V6ONLY,
    SO_KEEPALIVE,
    SO_LINGER,
    SO_OOBINLINE,
    SO_PRIORITY,
    SO_RCVBUF,
    SO_RCVTIMEO,
    SO_SNDBUF,
    SO_SNDTIMEO,
    SOL_SOCKET,
    TCP_INFO,
    TCP_KEEPCNT,
    TCP_KEEPIDLE,
    TCP_KEEPINTVL,
    TCP_NODELAY,
    TCP_USER_TIMEOUT,
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

# What a program may have set, with the bytes that it has.
_OPTIONS = (
    (SOL_SOCKET, SO_KEEPALIVE, 4),
    (SOL_SOCKET, SO_OOBINLINE, 4),
    (SOL_SOCKET, SO_PRIORITY, 4),
    (SOL_SOCKET, SO_LINGER, 8),
    (SOL_SOCKET, SO_RCVTIMEO, 16),
    (SOL_SOCKET, SO_SNDTIMEO, 16),
    (IPPROTO_TCP, TCP_NODELAY, 4),
    (IPPROTO_TCP, TCP_KEEPIDLE, 4),
    (IPPROTO_TCP, TCP_KEEPINTVL, 4),
    (IPPROTO_TCP, TCP_KEEPCNT, 4),
    (IPPROTO_TCP, TCP_USER_TIMEOUT, 4),
)
_BUFFERS = ((SO_SNDBUF, 1), (SO_RCVBUF, 2))  # and the bits that say it has set them
_SO_BUF_LOCK = 72
_TCP_SYN_SENT, _TCP_CLOSE = 2, 7  # of tcpi_state, the first byte of struct tcp_info
_STILL_CONNECTING = (errno.EINPROGRESS, errno.EALREADY)


class OwnSocket(Dialler):
    """Dials with `sock`, which does not block, and stays the caller's."""

    __slots__ = ("_is_used", "_sock")

    def __init__(
        self,
        sock: socket,
        timeout: float,
        lookup: Callable[[str], Awaitable[list[tuple[bytes, int]]]] | None = None,
    ) -> None:
        """All may take so many seconds, and each address a part of them."""
        super().__init__(connect_timeout=timeout / 4, dial_timeout=timeout, lookup=lookup)
        self._sock = sock
        self._is_used = False

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
            candidate = _Mapped(candidate)
        self.give_up()
        number = self._sock.connect_ex(candidate.sockaddr)
        if number == errno.EISCONN:
            raise OSError(number, os.strerror(number))
        self._is_used = True
        if number == errno.EINPROGRESS:  # on this host nothing takes time
            number = self._sock.connect_ex(candidate.sockaddr)
        if number not in (0, errno.EISCONN, *_STILL_CONNECTING):
            raise OSError(number, os.strerror(number))
        ours = socket(
            self._sock.family, self._sock.type, self._sock.proto, os.dup(self._sock.fileno())
        )
        if number in _STILL_CONNECTING:
            stream = await self._attempt(Attempt(loop, ours, candidate, self.connect_timeout))
        else:
            stream = Stream(loop, ours, str(candidate))
        stream.is_shared = True
        return stream

    async def _attempt(self, attempt: Attempt) -> Stream:
        attempt.mailbox = Mailbox()
        number = errno.ECANCELED
        try:
            while (number := attempt.result()) in _STILL_CONNECTING:
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
            kernel.disconnect(self._sock.fileno())


def number_against(sock: socket) -> int:
    """Give the errno why connect(2) would not connect a TCP socket, 0 if it would."""
    state = sock.getsockopt(IPPROTO_TCP, TCP_INFO, 1)[0]
    if state == _TCP_CLOSE:
        return 0
    return errno.EALREADY if state == _TCP_SYN_SENT else errno.EISCONN


def make_like(stand_in: socket, sock: socket) -> None:
    """Let a socket have the options that another one has, as far as its kind has them. OSError."""
    options = [one for one in _OPTIONS if one[0] == SOL_SOCKET or stand_in.family != AF_UNIX]
    for level, name, size in options:
        value = sock.getsockopt(level, name, size)
        if value != stand_in.getsockopt(level, name, size):
            stand_in.setsockopt(level, name, value)
    locked = sock.getsockopt(SOL_SOCKET, _SO_BUF_LOCK)
    for name, bit in _BUFFERS:
        if locked & bit:  # socket(7): they tell twice of what they are told
            stand_in.setsockopt(SOL_SOCKET, name, sock.getsockopt(SOL_SOCKET, name) // 2)


class _Mapped(Endpoint):
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
