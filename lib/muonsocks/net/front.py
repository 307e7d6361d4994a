"""Listening sockets whose clients are served by other programs: they have what is asked for, and
nothing else that accepted sockets would inherit.
"""

from __future__ import annotations

import errno
import os
from _socket import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPPROTO_TCP,
    IPV6_V6ONLY,
    SO_REUSEADDR,
    SO_REUSEPORT,
    SO_TYPE,
    SOCK_STREAM,
    SOL_SOCKET,
    if_nametoindex,
    socket,
)

from muonsocks.address import format_address
from muonsocks.errors import UsageError

# Linux has these, and Python does not: ip(7), linux/in6.h.
_IP_FREEBIND, _IP_TRANSPARENT = 15, 19
_IPV6_TRANSPARENT, _IPV6_FREEBIND = 75, 78
_FREEBIND = {AF_INET: (IPPROTO_IP, _IP_FREEBIND), AF_INET6: (IPPROTO_IPV6, _IPV6_FREEBIND)}
_TRANSPARENT = {
    AF_INET: (IPPROTO_IP, _IP_TRANSPARENT),
    AF_INET6: (IPPROTO_IPV6, _IPV6_TRANSPARENT),
}


class BindOptions:
    """How a socket is bound: also to an address that is not this host's (`freebind`), and for
    connections that are to other addresses and come here all the same (`transparent`).
    """

    __slots__ = ("freebind", "reuse_address", "reuse_port", "transparent")

    def __init__(
        self,
        transparent: bool = False,
        freebind: bool = False,
        reuse_address: bool = True,
        reuse_port: bool = False,
    ) -> None:
        self.transparent = transparent
        self.freebind = freebind
        self.reuse_address = reuse_address
        self.reuse_port = reuse_port


def bind_front(
    address: bytes, port: int, options: BindOptions, scope: str = "", both_families: bool = True
) -> socket:
    """Bind a TCP socket to a packed address; it does not listen yet. `scope` is the interface of a
    link-local address, by name or number.

    `::` takes IPv4 in as well unless it is not to be for `both_families`; and ::ffff:a.b.c.d is
    IPv4 over an IPv6 socket. OSError that says where.
    """
    family = AF_INET if len(address) == 4 else AF_INET6
    text = format_address(address)
    where = f"[{text}{'%' * bool(scope)}{scope}]:{port}" if family == AF_INET6 else f"{text}:{port}"
    sock = None
    try:
        sock = socket(family, SOCK_STREAM, IPPROTO_TCP)
        sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, options.reuse_address)
        if options.reuse_port:
            sock.setsockopt(SOL_SOCKET, SO_REUSEPORT, 1)
        if options.freebind:
            sock.setsockopt(*_FREEBIND[family], 1)
        if options.transparent:
            sock.setsockopt(*_TRANSPARENT[family], 1)
        if family == AF_INET:
            sock.bind((text, port))
        else:
            sock.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, not both_families)
            sock.bind((text, port, 0, _interface(scope)))
    except OSError as error:
        if sock is not None:
            sock.close()
        raise OSError(error.errno, f"cannot listen on {where}: {error.strerror}") from None
    return sock


def _interface(scope: str) -> int:
    if not scope:
        return 0
    if scope.isascii() and scope.isdecimal() and len(scope) < 10:
        return int(scope)
    try:
        return if_nametoindex(scope)
    except OSError:
        raise OSError(errno.ENODEV, f"there is no interface {scope}") from None


def adopt(fd: int, what: str) -> socket:
    """Take over an inherited stream socket, of the Internet or unix. UsageError if it is none."""
    try:
        os.set_inheritable(fd, False)
        sock = socket(fileno=fd)
        kind = sock.getsockopt(SOL_SOCKET, SO_TYPE)
    except OSError as error:
        hint = f"leave a socket open for this program, as {fd}"
        raise UsageError(f"{what}: descriptor {fd}: {error.strerror}", hint) from None
    if kind != SOCK_STREAM or sock.family not in (AF_INET, AF_INET6, AF_UNIX):
        sock.detach()
        raise UsageError(f"{what}: descriptor {fd} is no socket to listen on", "give a TCP socket")
    return sock


def clear_transparent(sock: socket) -> None:
    """Let a socket be an ordinary one again, as it is to be given away. OSError if it cannot be."""
    option = _TRANSPARENT.get(sock.family)
    if option is not None:
        sock.setsockopt(*option, 0)
