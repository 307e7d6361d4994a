"""What a program whose sockets go through proxies is told of names and addresses.

A name that a proxy is to look up gets an address that stands for it, see `fake_addresses`; no
question leaves this host. Three kinds of names are others:

    localhost, what ends with .localhost, and names that /etc/hosts has a loopback address for:
    they are this host, which is gone to without a proxy, as its loopback addresses are. For what
    else /etc/hosts has, the names count as names.

    what no_proxy or NO_PROXY has: looked up here, by DNS, and gone to without a proxy. (So is the
    first proxy itself: a program may have its own ways to go through that.)

    all names, if the URL of the last proxy is socks5:// or socks4://: looked up here, by DNS, as
    such a URL has it; what is found is gone to through the proxy.

The name of an address is likewise the name that it stands for, or that of this host. Others have
none, unless they are of one of the two latter kinds.
"""

from __future__ import annotations

import socket
from _socket import gethostbyaddr as _gethostbyaddr
from _socket import gethostbyname as _gethostbyname
from _socket import getnameinfo as _getnameinfo
from socket import getaddrinfo as _found_here

from muonsocks.address import Endpoint, format_address, parse_address
from muonsocks.client.destinations import EVERY_PORT, HOSTS, Destinations, is_here, is_proxy_itself
from muonsocks.client.errand import endpoint_of
from muonsocks.client.fake_addresses import is_fake
from muonsocks.client.proxies import from_environment
from muonsocks.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from muonsocks.socks.rules import Chain


_SPECIAL = ("", "<broadcast>")  # to gethostbyname(), which asks nobody then
# What is of no use, or does harm, where an address is there already.
_FOR_NAMES = socket.AI_CANONNAME | socket.AI_ADDRCONFIG | socket.AI_V4MAPPED | socket.AI_ALL
_HOST_NOT_FOUND = 1  # netdb.h


class LookUps:
    """The functions of the socket module that are about names, and where a connection leads."""

    def __init__(self, environ: Mapping[str, str], hosts: str = HOSTS) -> None:
        """Have the proxies of this environment, as it is now: a program that changes its own goes
        through them all the same.
        """
        self.environ = dict(environ)
        self._destinations = Destinations(self._chain_to, hosts)

    def renew_lock(self) -> None:
        """Go on in a child process, where the thread that had the lock may not be."""
        self._destinations.renew_lock()

    def _chain_to(self, destination: Endpoint) -> Chain:
        return from_environment(destination, self.environ)

    # Where a connection leads

    def meant(self, address: Any) -> Endpoint:
        """Say which destination an address for connect() and the like means. OSError
        (EHOSTUNREACH) for one that does not stand for a name any more.
        """
        return self._destinations.meant(endpoint_of(*address[:2]))

    def way_to(self, destination: Endpoint) -> Chain:
        """Say which proxies lead to a destination that is meant. UsageError."""
        return self._destinations.way_to(destination)

    def without_name(self, address: tuple[Any, ...], family: int, kind: int) -> tuple[Any, ...]:
        """Give an address that has no name in it, which the C library would ask DNS for. OSError as
        `getaddrinfo`.
        """
        if address[0] in _SPECIAL:
            return address
        meant = self.meant(address)
        if meant.packed is not None:
            return address
        found: tuple[Any, ...] = self.getaddrinfo(meant.host, meant.port, family, kind)[0][4]
        return found

    def stand_in(self, name: str, family: int) -> str:
        """Give the address of a family that stands for a name."""
        return self._destinations.stand_in(name, family)

    # What the socket module has: the same arguments, results and errors

    def getaddrinfo(
        self,
        host: Any,
        port: bytes | str | int | None,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> list[tuple[Any, ...]]:
        """Give the addresses of a host, as socket.getaddrinfo does."""
        try:
            numeric = flags | socket.AI_NUMERICHOST
            return list(_found_here(host, port, family, type, proto, numeric))
        except socket.gaierror as error:
            if error.errno != socket.EAI_NONAME or not host or flags & socket.AI_NUMERICHOST:
                raise
            destination = _named(host, port)
            if destination.packed is not None:
                raise
        name = destination.host
        addresses = self._destinations.addresses_here(name)
        if not addresses:
            chain = self._chain_to(destination)
            is_proxy = is_proxy_itself(destination, chain)
            if is_proxy or not chain or not chain[-1].resolves:
                found = list(_found_here(host, port, family, type, proto, flags))
                if is_proxy or not chain:
                    self._note(found, destination.port if is_proxy else EVERY_PORT)
                return found
            stand_in = parse_address(self.stand_in(name, family))
            assert stand_in is not None
            addresses = [stand_in]
        return _answer(name, addresses, (port, family, type, proto, flags))

    def gethostbyname(self, host: Any) -> str:
        """Give the IPv4 address of a host, as socket.gethostbyname does."""
        if host in _SPECIAL:
            return _gethostbyname(host)
        found = self.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
        return str(found[0][4][0])

    def gethostbyname_ex(self, host: Any) -> tuple[str, list[str], list[str]]:
        """Give all IPv4 addresses of a host, as socket.gethostbyname_ex does."""
        kind = socket.SOCK_STREAM
        found = self.getaddrinfo(host, None, socket.AF_INET, kind, 0, socket.AI_CANONNAME)
        name = found[0][3] or (host if isinstance(host, str) else bytes(host).decode())
        return name, [], [one[4][0] for one in found]

    def gethostbyaddr(self, host: Any) -> tuple[str, list[str], list[str]]:
        """Give the name of an address, as socket.gethostbyaddr does. That of a name is itself."""
        address = str(self.getaddrinfo(host, None, 0, socket.SOCK_STREAM)[0][4][0])
        packed = parse_address(address.partition("%")[0])
        assert packed is not None
        if is_fake(packed):
            try:
                return self.meant((address, 0)).host, [], [address]
            except OSError:
                raise _unknown() from None
        if is_here(packed):
            names = self._destinations.names_here(packed, "" if _is_address(host) else host.lower())
            return names[0], names[1:], [address]
        chain = self.way_to(Endpoint(address, 0))
        if chain and chain[-1].resolves:
            raise _unknown()
        return _gethostbyaddr(host)

    def getnameinfo(self, sockaddr: tuple[Any, ...], flags: int) -> tuple[str, str]:
        """Give the names of an address and a port, as socket.getnameinfo does."""
        numeric = (flags | socket.NI_NUMERICHOST) & ~socket.NI_NAMEREQD
        host, service = _getnameinfo(sockaddr, numeric)
        if flags & socket.NI_NUMERICHOST:
            return host, service
        try:
            return self.gethostbyaddr(host)[0], service
        except socket.herror:
            if flags & socket.NI_NAMEREQD:
                raise _no_name() from None
            return host, service

    def _note(self, found: list[tuple[Any, ...]], port: int) -> None:
        """Remember addresses as those of a host that is gone to directly."""
        for one in found:
            packed = parse_address(str(one[4][0]).partition("%")[0])
            if packed is not None:
                self._destinations.note(packed, port)


def _answer(name: str, addresses: list[bytes], rest: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Give what getaddrinfo() does for a name that has these addresses."""
    port, family, kind, proto, flags = rest
    numeric = flags & ~_FOR_NAMES | socket.AI_NUMERICHOST
    found: list[tuple[Any, ...]] = []
    for packed in addresses:
        one = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
        if family in (0, one):
            found += _found_here(format_address(packed), port, one, kind, proto, numeric)
    if not found:
        raise _no_name()
    if flags & socket.AI_CANONNAME:
        found[0] = (*found[0][:3], name, found[0][4])
    return found


def _named(host: Any, port: Any) -> Endpoint:
    """Make a destination of what getaddrinfo() is given; its port is 0 if that is no number."""
    try:
        return endpoint_of(host, port if isinstance(port, int) and 0 < port < 65536 else 0)
    except UsageError:
        raise _no_name() from None


def _is_address(host: Any) -> bool:
    return isinstance(host, str) and parse_address(host) is not None


def _no_name() -> socket.gaierror:
    return socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def _unknown() -> socket.herror:
    return socket.herror(_HOST_NOT_FOUND, "Unknown host")
