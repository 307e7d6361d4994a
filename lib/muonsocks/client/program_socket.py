"""The sockets of a program that knows nothing of proxies: what `program` puts in socket's place."""

from __future__ import annotations

import errno
import os
import socket
from _socket import MSG_FASTOPEN
from _socket import socket as c_socket
from collections import OrderedDict

from muonsocks.address import Endpoint
from muonsocks.client.socks_socket import SocksSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from muonsocks.client.errand import Granted
    from muonsocks.client.look_ups import LookUps
    from muonsocks.client.socks_socket import Arrive
    from muonsocks.socks.rules import Chain

# What leads to no other host: it is left as it is. Where these lead is not known here: AF_PACKET,
# AF_SMC, AF_TIPC and whatever will be.
_HARMLESS = tuple(
    getattr(socket, name)
    for name in ("AF_UNIX", "AF_NETLINK", "AF_ALG", "AF_VSOCK", "AF_CAN", "AF_BLUETOOTH")
    if hasattr(socket, name)  # that depends on how Python was built
)
# IGMP and MLD say these to the network (ip(7), ipv6(7)): IP_ADD_MEMBERSHIP and the like.
_JOINING = (
    *((socket.IPPROTO_IP, number) for number in (35, 39, 42, 46)),
    *((socket.IPPROTO_IPV6, number) for number in (20, 27, 42, 46)),
)
_MOST_KNOWN = 4096  # connections


class ProgramSocket(SocksSocket):
    """A socket of such a program. What can lead to other hosts without a proxy cannot be made
    (EPERM): raw sockets, those of packets, protocols other than TCP and UDP, members of groups.

    It listens here. Names, and the addresses that stand for them, are gone to through the proxies
    that `look_ups` has for them; getpeername() gives such an address.
    """

    listens_here = True
    look_ups: LookUps

    def __init__(
        self,
        family: int = -1,
        type: int = -1,
        proto: int = -1,
        fileno: int | None = None,
        *,
        proxy: object = None,
    ) -> None:
        """`proxy` is of no importance."""
        super().__init__(family, type, proto, fileno)
        is_harmless = self.family in _HARMLESS
        if self._is_for_proxies:
            is_harmless = fileno is None or self._is_of_its_kind()
        if not is_harmless:
            if fileno is None:
                self.close()
            else:
                self.detach()
            raise _not_permitted()
        if fileno is not None and self._is_for_proxies:
            self._peer, self._bound = _known.get(_identity(fileno), (None, None))

    def _is_of_its_kind(self) -> bool:
        """Say whether a descriptor is not of the other kind: one of UDP would not go through
        proxies with the methods for TCP.
        """
        if c_socket.getsockopt(self, socket.SOL_SOCKET, socket.SO_DOMAIN) == socket.AF_UNIX:
            return True  # that of a proxy, or one that is parked
        kind = c_socket.getsockopt(self, socket.SOL_SOCKET, socket.SO_TYPE)
        return bool(kind == c_socket.type.__get__(self))

    def _way_to(self, address: Any) -> tuple[Endpoint, Chain]:
        destination = self.look_ups.meant(address)
        chain = self.look_ups.way_to(destination)
        stands_in = destination.packed is None and destination.host != address[0]
        if stands_in and not chain and self.type != socket.SOCK_STREAM:
            raise OSError(errno.ENETUNREACH, f"no proxy takes datagrams to {destination}")
        return destination, chain

    def _for_system(self, address: Any) -> Any:
        if not self._is_for_proxies or not isinstance(address, tuple):
            return address
        return self.look_ups.without_name(address, self.family, self.type)

    def _set_out(
        self,
        command: int,
        destination: Endpoint,
        chain: Chain,
        arrive: Arrive,
    ) -> None:
        def arrive_and_tell(sock: SocksSocket, granted: Granted) -> None:
            arrive(sock, granted)
            _known[_identity(sock.fileno())] = (sock._peer, sock._bound)
            if len(_known) > _MOST_KNOWN:
                _known.popitem(last=False)  # in one step: other threads are here, too

        super()._set_out(command, destination, chain, arrive_and_tell)

    def _name(self, endpoint: Endpoint) -> tuple[Any, ...]:
        if endpoint.packed is None:
            stand_in = self.look_ups.stand_in(endpoint.host, self.family)
            endpoint = Endpoint(stand_in, endpoint.port)
        return super()._name(endpoint)

    def _expect_option(self, option: tuple[Any, ...]) -> None:
        if self._is_for_proxies and option[:2] in _JOINING:
            raise PermissionError(errno.EPERM, "groups cannot be joined through proxies")

    # TCP Fast Open connects without connect(). An address is of no use without it, but what names
    # it has would be looked up.

    def sendto(self, *arguments: Any) -> int:
        """Send, but do not connect."""
        if len(arguments) == 3:
            self._expect_no_connection(arguments[1])
        if len(arguments) > 1:
            arguments = (*arguments[:-1], self._for_system(arguments[-1]))
        return super().sendto(*arguments)

    def sendmsg(self, *arguments: Any) -> int:
        """Send, but do not connect."""
        if len(arguments) > 3:
            self._expect_no_connection(arguments[2])
            arguments = (*arguments[:3], self._for_system(arguments[3]))
        return super().sendmsg(*arguments)

    def _expect_no_connection(self, flags: int) -> None:
        if self._is_for_proxies and flags & MSG_FASTOPEN:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def _not_permitted() -> PermissionError:
    return PermissionError(errno.EPERM, "such a socket cannot go through proxies")


# Where the connections lead whose descriptors are handed on from socket to socket, as ssl and dup()
# do: by the inode, which is no other connection's as long as this one lasts, and long after.
_known: OrderedDict[int, tuple[Endpoint | None, Endpoint | None]] = OrderedDict()


def _identity(fd: int) -> int:
    return os.fstat(fd).st_ino
