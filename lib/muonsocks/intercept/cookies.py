"""What sockets are known by, under all their descriptors: cookies, which no other one ever gets."""

from __future__ import annotations

from _socket import SOL_SOCKET, socket

_SO_COOKIE, _SO_NETNS_COOKIE = 57, 71  # socket(7) does not have them yet
_SIZE = 8  # bytes


def cookie_of(sock: socket) -> bytes:
    """Give the cookie of a socket, Linux 4.12. OSError."""
    return sock.getsockopt(SOL_SOCKET, _SO_COOKIE, _SIZE)


def network_of(sock: socket) -> bytes:
    """Give the cookie of the network namespace that a socket is of, Linux 5.14. OSError."""
    return sock.getsockopt(SOL_SOCKET, _SO_NETNS_COOKIE, _SIZE)
