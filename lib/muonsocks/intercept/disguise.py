"""Connections that are of another family than the program's listener, and do not show it.

A program that listens for IPv4 may have no room for another address, and may not know what it is.
Of such an IPv6 socket the kernel makes an IPv4 one (IPV6_ADDRFORM, ipv6(7)), where it can; of all
others we say what they would be.
"""

from __future__ import annotations

import errno
from _socket import AF_INET, AF_INET6, AF_UNIX, IPPROTO_IPV6, socket
from contextlib import closing
from os import fstat

from muonsocks.address import Endpoint
from muonsocks.intercept.cookies import cookie_of
from muonsocks.intercept.notify import Call
from muonsocks.intercept.socket_address import SHORTEST, address_of

MIXED = -1  # in place of a family
_IPV6_ADDRFORM = 1
_MOST = 1 << 14  # that are known; the oldest are forgotten, and show what they are
_UNIX = {AF_INET: Endpoint("127.0.0.1", 0), AF_INET6: Endpoint("::1", 0)}


class Disguise:
    """What a socket is taken for: its family and its addresses, as the kernel writes them."""

    __slots__ = ("cookie", "family", "local", "remote")

    def __init__(self, sock: socket, family: int, local: bytes, remote: bytes) -> None:
        self.cookie = cookie_of(sock)
        self.family = family
        self.local = local
        self.remote = remote


class Disguises:
    """All that there are."""

    __slots__ = ("_by_inode",)

    def __init__(self) -> None:
        self._by_inode: dict[int, Disguise] = {}

    def __bool__(self) -> bool:
        return bool(self._by_inode)

    def name(self, call: Call, inode: int, is_remote: bool) -> bytes:
        """Give an address of the socket that a call is about, b"" if it is in no disguise."""
        found = self._of(call, inode)
        if found is None:
            return b""
        return found.remote if is_remote else found.local

    def family(self, call: Call, inode: int) -> int:
        """Give the family of the socket that a call is about, 0 if it is in no disguise."""
        found = self._of(call, inode)
        return 0 if found is None else found.family

    def _of(self, call: Call, inode: int) -> Disguise | None:
        found = self._by_inode.get(inode)
        if found is None:
            return None
        with closing(call.duplicate()) as sock:  # the inode may be that of another one by now
            if cookie_of(sock) == found.cookie:
                return found
        del self._by_inode[inode]
        return None

    def put_on(self, sock: socket, family: int, local: bytes, remote: bytes) -> None:
        """Have a socket taken for what it is not."""
        inode = fstat(sock.fileno()).st_ino
        self._by_inode.pop(inode, None)
        while len(self._by_inode) >= _MOST:
            del self._by_inode[next(iter(self._by_inode))]
        self._by_inode[inode] = Disguise(sock, family, local, remote)

    def peer(self, sock: socket, family: int, room: int = 0) -> bytes:
        """Give the address of who is connected, for a listener of a family, 0 if it has none; and
        have the socket be, or be taken for, one of that family. OSError if the peer has gone.

        A listener may stand for several of both families (MIXED): then an address is as it is,
        unless the program has so little `room` for it that it can only be of IPv4.
        """
        remote = sock.getpeername()
        if family == MIXED:
            family = AF_INET if room == SHORTEST[AF_INET] else client_family(sock)
        if sock.family == AF_UNIX:
            if family in (0, AF_UNIX):
                return AF_UNIX.to_bytes(2, "little")
            remote_name = local_name = address_of(_UNIX[family], family)
            self.put_on(sock, family, local_name, remote_name)
            return remote_name
        endpoint = Endpoint.of_socket(remote)
        if family in (0, sock.family):
            return address_of(endpoint, sock.family)
        remote_name = address_of(endpoint, family)
        if family == AF_INET and _becomes_ipv4(sock):
            return remote_name
        self.put_on(sock, family, _local(sock, family), remote_name)
        return remote_name


def client_family(sock: socket) -> int:
    """Give the family of who is connected: that of a mapped address is IPv4. OSError if it has
    gone.
    """
    remote = sock.getpeername()
    return sock.family if sock.family == AF_UNIX else Endpoint.of_socket(remote).family


def _local(sock: socket, family: int) -> bytes:
    return address_of(Endpoint.of_socket(sock.getsockname()), family)


def _becomes_ipv4(sock: socket) -> bool:
    """Let the kernel make an IPv4 socket of an IPv6 one, if the addresses are of IPv4."""
    try:
        sock.setsockopt(IPPROTO_IPV6, _IPV6_ADDRFORM, AF_INET)
    except OSError as error:
        # IPv6 indeed; the peer has ended its part; MPTCP
        if error.errno not in (errno.EADDRNOTAVAIL, errno.ENOTCONN, errno.EBUSY, errno.ENOPROTOOPT):
            raise
        return False
    return True
