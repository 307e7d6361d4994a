"""What the addresses and names mean that a program connects to, and which proxies lead there.

This host is gone to without a proxy, by its loopback addresses and by the names for them, which are
localhost, what ends with .localhost, and names that /etc/hosts has such an address for. So is the
first proxy itself, as a program may have its own ways to go through that; and so are addresses that
have been noted as those of a host without proxies.
"""

from __future__ import annotations

import errno
from _socket import AF_INET6
from _thread import allocate_lock

from muonsocks.address import Endpoint, format_address, parse_address
from muonsocks.client.fake_addresses import FakeAddresses, is_fake
from muonsocks.client.proxies import DIRECT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from muonsocks.socks.rules import Chain

HOSTS = "/etc/hosts"
EVERY_PORT = 0
_MOST_DIRECT = 4096  # addresses that have been looked up to be gone to directly
_LOOPBACK = (b"\x7f\0\0\1", bytes(15) + b"\1")
_ITSELF = (bytes(4), bytes(16), _LOOPBACK[1])  # and 127.0.0.0/8


class Destinations:
    """A table of what stands for what. Threads may share it."""

    __slots__ = ("_chain_to", "_direct", "_fakes", "_lock", "_of_this_host")

    def __init__(self, chain_to: Callable[[Endpoint], Chain], hosts: str = HOSTS) -> None:
        """`chain_to` says which proxies lead to a destination that nothing else is known of."""
        self._chain_to = chain_to
        self._of_this_host = _of_this_host(hosts)
        self._fakes = FakeAddresses()
        self._lock = allocate_lock()
        self._direct: dict[tuple[bytes, int], None] = {}  # addresses and ports

    def renew_lock(self) -> None:
        """Go on in a child process, where the thread that had the lock may not be."""
        self._lock = allocate_lock()

    def meant(self, endpoint: Endpoint) -> Endpoint:
        """Say which destination an address means. OSError (EHOSTUNREACH) for one that does not
        stand for a name any more.
        """
        if endpoint.packed is None or not is_fake(endpoint.packed):
            return endpoint
        name = self.name_of(endpoint.packed)
        if name is None:
            reason = f"{endpoint.host} does not stand for a name, or not any more"
            raise OSError(errno.EHOSTUNREACH, reason)
        return Endpoint(name, endpoint.port)

    def way_to(self, destination: Endpoint) -> Chain:
        """Say which proxies lead to a destination that is meant. UsageError."""
        packed, port = destination.packed, destination.port
        if packed is None:
            if self.addresses_here(destination.host):
                return DIRECT
        elif is_here(packed):
            return DIRECT
        elif self._direct:
            with self._lock:
                if (packed, EVERY_PORT) in self._direct or (packed, port) in self._direct:
                    return DIRECT
        chain = self._chain_to(destination)
        return DIRECT if is_proxy_itself(destination, chain) else chain

    def note(self, packed: bytes, port: int = EVERY_PORT) -> None:
        """Remember an address as that of a host that is gone to directly."""
        if is_fake(packed):
            return
        with self._lock:
            self._direct[packed, port] = self._direct.pop((packed, port), None)
            if len(self._direct) > _MOST_DIRECT:
                del self._direct[next(iter(self._direct))]

    # Names

    def stand_in(self, name: str, family: int) -> str:
        """Give the address of a family that stands for a name."""
        with self._lock:
            if family == AF_INET6:
                return format_address(self._fakes.ipv6_of(name))
            return format_address(self._fakes.ipv4_of(name))

    def name_of(self, packed: bytes) -> str | None:
        """Give the name that an address stands for; None if it stands for none."""
        with self._lock:
            return self._fakes.name_of(packed)

    def addresses_here(self, name: str) -> list[bytes]:
        """Give the addresses of a name of this host; none if it is none."""
        name = name.lower().rstrip(".")
        if found := self._of_this_host.get(name):
            return [packed for packed, _ in found]
        return [*_LOOPBACK] if name == "localhost" or name.endswith(".localhost") else []

    def names_here(self, packed: bytes, name: str = "") -> list[str]:
        """Give the names of an address of this host, of those that have `name` if that is given."""
        for one, lines in self._of_this_host.items():
            for address, names in lines:
                if address == packed and name in ("", one):
                    return names
        return ["localhost"]


def is_proxy_itself(destination: Endpoint, chain: Chain) -> bool:
    """Say whether a destination is the first of the proxies that lead there."""
    return bool(chain) and not chain[0].path and destination == chain[0].endpoint


def is_here(packed: bytes) -> bool:
    """Say whether an address is this host's own, and that of no other host at all."""
    return (len(packed) == 4 and packed[0] == 127) or packed in _ITSELF


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
        if packed is not None and is_here(packed):
            for name in names:
                found.setdefault(name.lower(), []).append((packed, names))
    return found
