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

import errno
import socket
from _socket import gethostbyaddr as _gethostbyaddr
from _socket import gethostbyname as _gethostbyname
from _socket import getnameinfo as _getnameinfo
from _thread import allocate_lock
from socket import getaddrinfo as _found_here

from muonsocks.address import Endpoint, format_address, parse_address
from muonsocks.client.errand import endpoint_of
from muonsocks.client.fake_addresses import FakeAddresses, is_fake
from muonsocks.client.proxies import DIRECT, from_environment
from muonsocks.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from muonsocks.socks.rules import Chain


_MOST_DIRECT = 4096  # addresses that have been looked up to be gone to directly
_EVERY_PORT = 0
_SPECIAL = ("", "<broadcast>")  # to gethostbyname(), which asks nobody then
# What is of no use, or does harm, where an address is there already.
_FOR_NAMES = socket.AI_CANONNAME | socket.AI_ADDRCONFIG | socket.AI_V4MAPPED | socket.AI_ALL
_HOST_NOT_FOUND = 1  # netdb.h
_LOOPBACK = (b"\x7f\0\0\1", bytes(15) + b"\1")
_ITSELF = (bytes(4), bytes(16), _LOOPBACK[1])  # and 127.0.0.0/8


class LookUps:
    """The functions of the socket module that are about names, and where a connection leads."""

    def __init__(self, environ: Mapping[str, str], hosts: str = "/etc/hosts") -> None:
        """Have the proxies of this environment, as it is now: a program that changes its own goes
        through them all the same.
        """
        self.environ = dict(environ)
        self._of_this_host = _of_this_host(hosts)
        self._fakes = FakeAddresses()
        self._lock = allocate_lock()
        self._direct: dict[tuple[bytes, int], None] = {}  # addresses and ports

    def renew_lock(self) -> None:
        """Go on in a child process, where the thread that had the lock may not be."""
        self._lock = allocate_lock()

    # Where a connection leads

    def meant(self, address: Any) -> Endpoint:
        """Say which destination an address for connect() and the like means. OSError
        (EHOSTUNREACH) for one that does not stand for a name any more.
        """
        endpoint = endpoint_of(*address[:2])
        if endpoint.packed is None or not is_fake(endpoint.packed):
            return endpoint
        with self._lock:
            name = self._fakes.name_of(endpoint.packed)
        if name is None:
            reason = f"{endpoint.host} does not stand for a name, or not any more"
            raise OSError(errno.EHOSTUNREACH, reason)
        return Endpoint(name, endpoint.port)

    def way_to(self, destination: Endpoint) -> Chain:
        """Say which proxies lead to a destination that is meant. UsageError."""
        packed, port = destination.packed, destination.port
        if packed is None:
            if self._addresses_here(destination.host):
                return DIRECT
        elif _is_here(packed):
            return DIRECT
        else:
            with self._lock:
                if (packed, _EVERY_PORT) in self._direct or (packed, port) in self._direct:
                    return DIRECT
        chain = from_environment(destination, self.environ)
        return DIRECT if _is_proxy_itself(destination, chain) else chain

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
        with self._lock:
            if family == socket.AF_INET6:
                return format_address(self._fakes.ipv6_of(name))
            return format_address(self._fakes.ipv4_of(name))

    def _addresses_here(self, name: str) -> list[bytes]:
        """Give the addresses of a name of this host; none if it is none."""
        name = name.lower().rstrip(".")
        if found := self._of_this_host.get(name):
            return [packed for packed, _ in found]
        return [*_LOOPBACK] if name == "localhost" or name.endswith(".localhost") else []

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
        addresses = self._addresses_here(name)
        if not addresses:
            chain = from_environment(destination, self.environ)
            is_proxy = _is_proxy_itself(destination, chain)
            if is_proxy or not chain or not chain[-1].resolves:
                found = list(_found_here(host, port, family, type, proto, flags))
                if is_proxy or not chain:
                    self._note(found, destination.port if is_proxy else _EVERY_PORT)
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
        if _is_here(packed):
            for name, found in self._of_this_host.items():
                for one, names in found:
                    if one == packed and (_is_address(host) or name == host.lower()):
                        return names[0], names[1:], [address]
            return "localhost", [], [address]
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
            if packed is not None and not is_fake(packed):
                with self._lock:
                    self._direct[packed, port] = self._direct.pop((packed, port), None)
                    if len(self._direct) > _MOST_DIRECT:
                        del self._direct[next(iter(self._direct))]


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


def _is_proxy_itself(destination: Endpoint, chain: Chain) -> bool:
    return bool(chain) and not chain[0].path and destination == chain[0].endpoint


def _is_here(packed: bytes) -> bool:
    """Say whether an address is this host's own, and that of no other host at all."""
    return packed in _ITSELF or (len(packed) == 4 and packed[0] == 127)


def _is_address(host: Any) -> bool:
    return isinstance(host, str) and parse_address(host) is not None


def _of_this_host(path: str) -> dict[str, list[tuple[bytes, list[str]]]]:
    """Read which names hosts(5) has for loopback addresses: each with all names of the line."""
    found: dict[str, list[tuple[bytes, list[str]]]] = {}
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.partition("#")[0].split() for line in file]
    except OSError:
        return found  # as the C library has it: then there are no names
    for address, *names in filter(None, lines):
        packed = parse_address(address)
        if packed is not None and _is_here(packed):
            for name in names:
                found.setdefault(name.lower(), []).append((packed, names))
    return found


def _no_name() -> socket.gaierror:
    return socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def _unknown() -> socket.herror:
    return socket.herror(_HOST_NOT_FOUND, "Unknown host")
