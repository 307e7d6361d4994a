"""Addresses, networks and endpoints as values. Nothing here touches the network.

An address is its packed form, 4 bytes (IPv4) or 16 (IPv6) in network order; glibc's inet_pton and
inet_ntop, which are pure functions, turn text into it and back. (`ipaddress` would cost every
connection 3 ms of start-up.)
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton

from muonsocks.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LONGEST_UNIX_PATH = 107  # bytes, unix(7)
_MAPPED = bytes(10) + b"\xff\xff"


def parse_address(text: str) -> bytes | None:
    """Pack a literal IPv4 or IPv6 address; None if `text` is not one in full dotted or colon form.

    An IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2) is the IPv4 address that it means.
    """
    try:
        if ":" in text:
            return unmapped(inet_pton(AF_INET6, text))
        return inet_pton(AF_INET, text)
    except (OSError, ValueError):  # ValueError: a NUL, or text that is not ASCII
        return None


def format_address(packed: bytes) -> str:
    """Write an address as text, IPv6 in the canonical form (RFC 5952)."""
    return inet_ntop(AF_INET if len(packed) == 4 else AF_INET6, packed)


def unmapped(packed: bytes) -> bytes:
    """Give the IPv4 address inside an IPv4-mapped one, and any other address as it is."""
    return packed[12:] if len(packed) == 16 and packed.startswith(_MAPPED) else packed


def mapped(packed: bytes) -> bytes:
    """Give the IPv4-mapped form of an IPv4 address, and any other address as it is."""
    return _MAPPED + packed if len(packed) == 4 else packed


def expect_unix_path(text: str) -> None:
    """Hold that this can be the path of a unix socket; with @ in front it is an abstract name.
    UsageError.
    """
    length = len(text.encode("utf-8", "surrogateescape"))
    if text == "@" or "\0" in text or not 0 < length <= LONGEST_UNIX_PATH:
        problem = f"{text[:60]!r} is no path of a socket"
        raise UsageError(problem, f"a path or @NAME of {LONGEST_UNIX_PATH} bytes at most fits")


class Endpoint:
    """A host and a port. `packed` is the address, or None when `host` is a name to be resolved.

    `scope` is the number of the interface that a link-local address is on, or 0.
    """

    __slots__ = ("host", "packed", "port", "scope")

    def __init__(self, host: str, port: int) -> None:
        self.packed = parse_address(host)
        self.host = host if self.packed is None else format_address(self.packed)
        self.port = port
        self.scope = 0

    @classmethod
    def at(cls, packed: bytes, port: int, scope: int = 0) -> Endpoint:
        """Make an endpoint of a packed address (4 or 16 bytes)."""
        self = cls.__new__(cls)
        self.packed = unmapped(packed)
        self.host = format_address(self.packed)
        self.port = port
        self.scope = scope
        return self

    @classmethod
    def of_socket(cls, name: tuple[Any, ...]) -> Endpoint:
        """Make an endpoint of what getsockname(2) and the like give for TCP and UDP."""
        host, port = name[:2]
        if ":" in host:
            self = cls(host.partition("%")[0], port)
            self.scope = name[3] if len(name) == 4 else 0
            return self
        self = cls.__new__(cls)  # the system writes it as we would
        self.packed = inet_pton(AF_INET, host)
        self.host = host
        self.port = port
        self.scope = 0
        return self

    @property
    def family(self) -> int:
        """The address family, of one that is no name."""
        return AF_INET6 if ":" in self.host else AF_INET

    @property
    def sockaddr(self) -> tuple[Any, ...]:
        """What connect(2) and the like are given, of one that is no name."""
        if ":" in self.host:
            return self.host, self.port, 0, self.scope
        return self.host, self.port

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"Endpoint({self.host!r}, {self.port})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Endpoint):
            return NotImplemented
        return (self.host, self.port) == (other.host, other.port)

    def __hash__(self) -> int:
        return hash((self.host, self.port))


def is_name(raw: bytes) -> bool:
    """Say whether `raw` can be a host name: 1 to 255 bytes of printable ASCII without a space.

    No hyphen in front, which would be an option to a program that is given the name. No backslash:
    glibc takes that for an escape (RFC 1035 section 5.1), and a name would have a second spelling
    that no rule knows.
    """
    if not 0 < len(raw) < 256 or raw.startswith(b"-"):
        return False
    return all(0x20 < byte < 0x7F and byte != 0x5C for byte in raw)


class Network:
    """An IPv4 or IPv6 network. `address in network` compares a packed address with it."""

    __slots__ = ("_length", "_prefix", "_shift", "text")

    def __init__(self, packed: bytes, bits: int) -> None:
        self._length = len(packed)
        self._shift = 8 * len(packed) - bits
        self._prefix = int.from_bytes(packed, "big") >> self._shift
        self.text = f"{format_address(packed)}/{bits}"

    @classmethod
    def parse(cls, text: str) -> Network:
        """Read `ADDRESS` or `ADDRESS/BITS`; a network with host bits set is a UsageError."""
        address, slash, bits = text.partition("/")
        packed = parse_address(address)
        if packed is None:
            raise UsageError(f"{text!r} is not a network", "write ADDRESS or ADDRESS/BITS")
        width = 8 * len(packed)
        if not slash:
            return cls(packed, width)
        # An IPv4-mapped network is the IPv4 network that it means.
        mapped = 96 if len(packed) == 4 and ":" in address else 0
        well_formed = bits.isascii() and bits.isdecimal() and len(bits) <= 3
        if not well_formed or not mapped <= int(bits) <= mapped + width:
            usable = f"write {mapped} to {mapped + width}"
            raise UsageError(f"{text[:60]!r} has no valid prefix length", usable)
        shift = mapped + width - int(bits)
        number = int.from_bytes(packed, "big")
        if number >> shift << shift != number:
            first = format_address((number >> shift << shift).to_bytes(len(packed), "big"))
            raise UsageError(f"{text!r} has host bits set", f"did you mean {first}/{bits}?")
        return cls(packed, width - shift)

    def __contains__(self, packed: bytes) -> bool:
        packed = unmapped(packed)
        return (
            len(packed) == self._length
            and int.from_bytes(packed, "big") >> self._shift == self._prefix
        )

    def __repr__(self) -> str:
        return f"Network({self.text!r})"


def parse_networks(text: str) -> tuple[Network, ...]:
    """Read networks separated by commas or white space."""
    return tuple(Network.parse(word) for word in text.replace(",", " ").split())


# NAT64 for local use, RFC 8215. The IPv4 address may begin after 48, 56, 64 or 96 bits, and leaves
# out the ninth byte (RFC 6052 section 2.2); zeros, of which the rest consists, then mean nothing.
_NAT64_LOCAL = b"\0\x64\xff\x9b\0\1"

# IPv6 forms that carry an IPv4 address: prefix in bytes, and where the IPv4 address begins.
_EMBEDDING = (
    (bytes(12), 12),  # IPv4-compatible, RFC 4291 section 2.5.5.1 (:: and ::1 are among them)
    (_MAPPED, 12),
    (bytes(8) + b"\xff\xff\0\0", 12),  # IPv4-translated, RFC 2765 section 2.1
    (b"\0\x64\xff\x9b" + bytes(8), 12),  # NAT64, RFC 6052 section 2.1
    (_NAT64_LOCAL, 12),
    (b"\x20\x02", 2),  # 6to4, RFC 3056 section 2
)


def is_own_side(packed: bytes) -> bool:
    """Say whether an address is on this host's own side: loopback, "this" host and network,
    link-local, multicast or broadcast, or an IPv6 form that embeds such an IPv4 address.

    127.0.0.0/8 0.0.0.0/8 224.0.0.0/4 169.254.0.0/16 255.255.255.255, ::1 :: ff00::/8 fe80::/10.
    """
    first = packed[0]
    if len(packed) == 4:
        return (
            first in (0, 127)
            or 224 <= first <= 239
            or packed.startswith(b"\xa9\xfe")
            or packed == b"\xff\xff\xff\xff"
        )
    if packed.startswith(_NAT64_LOCAL) and any(
        layout[0] and is_own_side(layout)
        for layout in (
            packed[6:8] + packed[9:11],
            packed[7:8] + packed[9:12],
            packed[9:13],
        )
    ):
        return True
    if first == 0xFF or (first == 0xFE and packed[1] >> 6 == 0b10):
        return True
    return any(
        packed.startswith(prefix) and is_own_side(packed[start : start + 4])
        for prefix, start in _EMBEDDING
    )
