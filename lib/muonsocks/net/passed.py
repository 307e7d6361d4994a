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
_STRICTEST = 2


def connection_of(fd: int, strictness: int = _STRICTEST) -> socket:
    """Make a socket of a descriptor that was received. Blocking or not, it is left as it is.

    By `strictness` it has to be 0: a socket; 1: of streams; 2 and more: in the unix, IPv4 or IPv6
    domain too, and no listener. RemoteProtocolError if it is not, and it is closed.
    """
    try:
        sock = socket(fileno=fd)
    except OSError:
        close(fd)
        raise RemoteProtocolError("a descriptor that is passed is no socket") from None
    try:
        if strictness >= 1 and sock.type != SOCK_STREAM:
            raise RemoteProtocolError("a socket that is passed is no stream")
        if strictness >= 2 and sock.family not in _STREAM_PROTOCOLS:
            raise RemoteProtocolError("a socket that is passed is neither IPv4, IPv6 nor unix")
        if strictness >= 2 and sock.getsockopt(SOL_SOCKET, SO_ACCEPTCONN):
            raise RemoteProtocolError("a socket that is passed is a listener")
    except BaseException:
        sock.close()
        raise
    return sock


def check(fd: int, strictness: int = _STRICTEST) -> None:
    """Check a descriptor that was received as `connection_of` does, for who wants no socket of it.
    With 0 it may be anything.
    """
    if strictness > 0:
        connection_of(fd, strictness).detach()


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
            sock = connection_of(waiting.pop(), strictness=0)
            made.append(sock)
            if not is_connection(sock):
                raise RemoteProtocolError("a socket that is passed is no connection")
    except BaseException:
        for sock in made:
            sock.close()
        close_all(waiting)
        raise
    return made


def is_connection(sock: socket) -> bool:
    """Say whether this is one end of a stream, TCP (or MPTCP) or unix, and no listener."""
    if sock.type != SOCK_STREAM or sock.getsockopt(SOL_SOCKET, SO_ACCEPTCONN):
        return False
    protocol = sock.getsockopt(SOL_SOCKET, SO_PROTOCOL)  # sock.proto is what it was made with
    return protocol in _STREAM_PROTOCOLS.get(sock.family, ())
