"""The addresses of a name, by getaddrinfo(3), and the name of an address, by getnameinfo(3): from
/etc/hosts, DNS, whatever nsswitch.conf(5) says.
"""

from __future__ import annotations

from _socket import (
    EAI_AGAIN,
    IPPROTO_TCP,
    NI_NAMEREQD,
    NI_NUMERICSERV,
    SOCK_STREAM,
    gaierror,
    getaddrinfo,
    getnameinfo,
)

from muonsocks.address import format_address, is_name, parse_address
from muonsocks.errors import NameNotResolved

MOST_ADDRESSES = 64  # of one name that are of use


def addresses_of(host: str) -> list[tuple[bytes, int]]:
    """Look a name up, and wait for it: its addresses in the order to try them (RFC 6724).

    Each is packed and has its scope, the number of the interface that a link-local address is on,
    or 0. Raises NameNotResolved, or OSError when the system cannot look anything up.
    """
    try:
        name = host.encode("ascii")  # as bytes, or Python would import an IDNA codec
        # AI_ADDRCONFIG is not asked for: what has no route fails at once, and the next is tried.
        found = getaddrinfo(name, None, 0, SOCK_STREAM, IPPROTO_TCP)
    except gaierror as error:
        raise _not_resolved(host, error) from None
    except UnicodeError:
        raise NameNotResolved(f"{host} is not a name") from None
    addresses = []
    for _, _, _, _, sockaddr in found[:MOST_ADDRESSES]:
        packed = parse_address(str(sockaddr[0]).partition("%")[0])
        if packed is not None:
            scope = sockaddr[3] if len(sockaddr) == 4 else 0
            addresses.append((packed, int(scope)))
    return addresses


def name_of_address(packed: bytes) -> str:
    """Look up which name an address has, and wait for it. Raises as `addresses_of`.

    Whoever owns the address says the name: what no name may be, or is an address, is none.
    """
    host = format_address(packed)
    try:
        name, _ = getnameinfo((host, 0), NI_NAMEREQD | NI_NUMERICSERV)
    except gaierror as error:
        raise _not_resolved(host, error) from None
    except UnicodeError:
        name = ""
    if not name.isascii() or not is_name(name.encode()) or parse_address(name) is not None:
        raise NameNotResolved(f"{host}: its name is none")
    return name


def _not_resolved(host: str, error: gaierror) -> NameNotResolved:
    passing = ", for now" if error.errno == EAI_AGAIN else ""
    return NameNotResolved(f"{host}: {error.strerror}{passing}")
