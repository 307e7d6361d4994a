"""What has been passed: is it what it should be?

Who may send to us can pass anything: a file, say, or a listener.
"""

from __future__ import annotations

from _socket import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    IPPROTO_TCP,
    SO_ACCEPTCONN,
    SO_PROTOCOL,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)
from os import close

from muonsocks.errors import RemoteProtocolError, UsageError
from muonsocks.net.passing import close_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_IPPROTO_MPTCP = 262  # mptcp(7)
_TCP = (IPPROTO_TCP, _IPPROTO_MPTCP)
_STREAM_PROTOCOLS = {AF_UNIX: (0,), AF_INET: _TCP, AF_INET6: _TCP}
_STRICTEST = 2  # that a receiver can be told to be
_TO_RELAY = 3


def connection_of(fd: int, strictness: int = _STRICTEST) -> socket:
    """Make a socket of a descriptor that was received. Blocking or not, it is left as it is.

    By `strictness` it has to be 0: a socket; 1: of streams; 2: in the unix, IPv4 or IPv6 domain
    too, and no listener; 3: and of TCP, if it is not unix. RemoteProtocolError if it is not, and it
    is closed.
    """
    try:
        sock = socket(fileno=fd)
    except OSError:
        close(fd)
        raise RemoteProtocolError("a descriptor that is passed is no socket") from None
    fault = _fault(sock, strictness)
    if fault:
        sock.close()
        raise RemoteProtocolError(f"a socket that is passed is {fault}")
    return sock


def is_connection(sock: socket) -> bool:
    """Say whether this is one end of a stream, TCP (or MPTCP) or unix, and no listener."""
    return not _fault(sock, _TO_RELAY)


def _fault(sock: socket, strictness: int) -> str:
    """Say what a socket is that it must not be, or ""."""
    if strictness >= 1 and sock.type != SOCK_STREAM:
        return "no stream"
    if strictness >= 2 and sock.family not in _STREAM_PROTOCOLS:
        return "neither IPv4, IPv6 nor unix"
    if strictness >= 2 and sock.getsockopt(SOL_SOCKET, SO_ACCEPTCONN):
        return "a listener"
    if strictness >= 3:
        protocol = sock.getsockopt(SOL_SOCKET, SO_PROTOCOL)  # sock.proto is what it was made with
        if protocol not in _STREAM_PROTOCOLS[sock.family]:
            return "neither TCP nor unix"
    return ""


def strictness(environ: Mapping[str, str]) -> int:
    """Read how strict receivers are to be, by SKBOX_STRICT_STREAM_MODE. UsageError."""
    text = environ.get("SKBOX_STRICT_STREAM_MODE", "")
    if not text:
        return _STRICTEST
    if not (text.isascii() and text.isdecimal()) or len(text) > 9:
        raise UsageError(f"SKBOX_STRICT_STREAM_MODE is {text[:60]!r}", "it must be 0, 1 or 2")
    return min(int(text), _STRICTEST)


def stream_sockets(fds: list[int]) -> list[socket]:
    """Make sockets of descriptors that were received, which must be connections: TCP or unix.

    Blocking or not, they are left as they are, since others have them too. RemoteProtocolError if
    one is anything else (a listener, a file), and all are closed.
    """
    made: list[socket] = []
    waiting = fds[::-1]
    try:
        while waiting:
            made.append(connection_of(waiting.pop(), _TO_RELAY))
    except BaseException:
        for sock in made:
            sock.close()
        close_all(waiting)
        raise
    return made
