"""The few questions that rtnetlink(7) is asked to set up a network: a link, addresses, routes."""

from __future__ import annotations

import errno
import os
from _socket import AF_INET, AF_NETLINK, NETLINK_ROUTE, SOCK_CLOEXEC, SOCK_RAW, socket
from struct import Struct

_HEADER = Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_LINK = Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, which of them to change
_ADDRESS = Struct("=BBBBI")  # struct ifaddrmsg: family, bits, flags, scope, index
_ROUTE = Struct("=BBBBBBBBI")  # struct rtmsg: family, bits of both ends, table and so on
_ATTRIBUTE = Struct("=HH")  # struct rtattr: length, type
_INT = Struct("=i")

_ERROR = 2  # NLMSG_ERROR, which says that there was none, too
_NEW_LINK, _NEW_ADDRESS, _NEW_ROUTE = 16, 20, 24  # RTM_
_CHANGES, _CREATES = 0x5, 0x605  # NLM_F_REQUEST and _ACK, with _CREATE and _EXCL
_UP = 1  # IFF_UP
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFA_NO_DETECTION = 2  # IFA_F_NODAD
_IFLA_MTU = 4
_RTA_DESTINATION, _RTA_LINK, _RTA_SOURCE = 1, 4, 7
_MAIN_TABLE, _LOCAL_TABLE = 254, 255
_BY_BOOT = 3  # RTPROT_BOOT
_SCOPE_LINK, _SCOPE_HOST = 253, 254
_UNICAST, _LOCAL = 1, 2  # RTN_


class Network:
    """The network namespace that it is made in. All methods raise OSError."""

    __slots__ = ("_socket",)

    def __init__(self) -> None:
        self._socket = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE)

    def close(self) -> None:
        """Be done with it."""
        self._socket.close()

    def bring_up(self, link: int, mtu: int = 0) -> None:
        """Have the interface of that number work, with packets of so many bytes at most."""
        attributes = {_IFLA_MTU: _INT.pack(mtu)} if mtu else {}
        self._ask(_NEW_LINK, _LINK.pack(0, 0, link, _UP, _UP), attributes, "link")

    def add_address(self, link: int, packed: bytes) -> None:
        """Give an interface an address, which is a network of its own."""
        family = _family(packed)
        head = _ADDRESS.pack(family, 8 * len(packed), _IFA_NO_DETECTION, 0, link)
        self._ask(_NEW_ADDRESS, head, {_IFA_LOCAL: packed, _IFA_ADDRESS: packed}, "address")

    def have_local(self, family: int, link: int, packed: bytes = b"") -> None:
        """Have an address be one of this host's, or every one of its family (AnyIP).

        That is done for the addresses of interfaces, too, but for IPv6 not at once.
        """
        bits, kind = 8 * len(packed), (_LOCAL_TABLE, _BY_BOOT, _SCOPE_HOST, _LOCAL)
        attributes = {_RTA_DESTINATION: packed} if packed else {}
        attributes[_RTA_LINK] = _INT.pack(link)
        self._ask(_NEW_ROUTE, _ROUTE.pack(family, bits, 0, 0, *kind, 0), attributes, "local route")

    def send_all_to(self, family: int, link: int, source: bytes) -> None:
        """Have an interface be the way to all addresses of a family, from a source address."""
        scope = _SCOPE_LINK if family == AF_INET else 0
        head = _ROUTE.pack(family, 0, 0, 0, _MAIN_TABLE, _BY_BOOT, scope, _UNICAST, 0)
        attributes = {_RTA_LINK: _INT.pack(link), _RTA_SOURCE: source}
        self._ask(_NEW_ROUTE, head, attributes, "route")

    def _ask(self, kind: int, head: bytes, attributes: dict[int, bytes], what: str) -> None:
        body = head
        for number, value in attributes.items():  # all of them are of whole words
            body += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), number) + value
        flags = _CHANGES if kind == _NEW_LINK else _CREATES
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body)
        answer = self._socket.recv(1 << 13)
        if len(answer) < 20 or _HEADER.unpack_from(answer)[1] != _ERROR:
            raise OSError(errno.EPROTO, f"{what}: rtnetlink answers something else")
        number = -_INT.unpack_from(answer, _HEADER.size)[0]
        if number:
            raise OSError(number, f"{what}: {os.strerror(number)}")


def _family(packed: bytes) -> int:
    return AF_INET if len(packed) == 4 else 10
