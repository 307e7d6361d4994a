"""Socket addresses as the kernel has them, struct sockaddr_in and sockaddr_in6. No I/O.

All machines that we know system calls of have little-endian numbers.
"""

from __future__ import annotations

from muonsocks.address import Endpoint, mapped

AF_UNSPEC, AF_INET, AF_INET6 = 0, 2, 10
LONGEST = 128  # bytes: struct sockaddr_storage
SHORTEST = {AF_INET: 16, AF_INET6: 24}  # bytes that connect(2) wants; the scope may be missing


def family_of(raw: bytes) -> int:
    """Give the family of an address, 0 (AF_UNSPEC) if there is none."""
    return int.from_bytes(raw[:2], "little")


def endpoint_of(raw: bytes) -> Endpoint | None:
    """Read the address of an internet family; None if it is another, or too short."""
    family = family_of(raw)
    if len(raw) < SHORTEST.get(family, LONGEST + 1):
        return None
    port = int.from_bytes(raw[2:4], "big")
    if family == AF_INET:
        return Endpoint.at(raw[4:8], port)
    return Endpoint.at(raw[8:24], port, int.from_bytes(raw[24:28], "little"))


def address_of(endpoint: Endpoint, family: int) -> bytes:
    """Write an address for a socket of a family. IPv4 is mapped for IPv6 (RFC 4291 section
    2.5.5.2); of IPv6 there is no IPv4, and it is zeros then.
    """
    packed = endpoint.packed or b""
    head = family.to_bytes(2, "little") + endpoint.port.to_bytes(2, "big")
    if family == AF_INET:
        return head + (packed if len(packed) == 4 else bytes(4)) + bytes(8)
    return head + bytes(4) + mapped(packed) + endpoint.scope.to_bytes(4, "little")
