"""A connection as the rules see it: two addresses, two ports and a listener, as one number.

    incoming_socket 32 bits | ip 128 | port 16 | rip 128 | rport 16

So a condition on any part of it is one AND and one comparison, and what a map has for a key is one
AND. An IPv4 address is the IPv4-mapped IPv6 address that means it, ::ffff:a.b.c.d, and there is
nothing else an IPv4-mapped address could be: who listens on IPv6 for both sees the same.
"""

from __future__ import annotations

from muonsocks.address import Endpoint, format_address, mapped, unmapped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Field:
    """A part of the number: so many bits of it, with `shift` bits below.

    `name` is the token of a condition on it, `match` the one that makes it a part of a map's key.
    """

    __slots__ = ("everything", "is_address", "match", "name", "shift", "words")

    def __init__(self, name: str, match: str, words: str, shift: int, bits: int) -> None:
        self.name = name
        self.match = match
        self.words = words
        self.shift = shift
        self.everything = (1 << bits) - 1  # a mask of the whole of it
        self.is_address = bits == 128

    def __reduce__(self) -> tuple[Callable[[str], Field], tuple[str]]:
        """Be the same object where rules are read that another process has written."""
        return field_of, (self.name,)

    def of(self, key: int) -> int:
        """Give this part of a connection's number, or of a mask over such."""
        return key >> self.shift & self.everything

    def format(self, value: int) -> str:
        """Write a value of this part."""
        return format_number(value) if self.is_address else str(value)


LISTENER = Field("incoming_socket", "incoming_socket", "the listener", 288, 32)
LOCAL_ADDRESS = Field("ip", "match-lip", "the local address", 160, 128)
LOCAL_PORT = Field("port", "match-lport", "the local port", 144, 16)
REMOTE_ADDRESS = Field("rip", "match-rip", "the remote address", 16, 128)
REMOTE_PORT = Field("rport", "match-rport", "the remote port", 0, 16)
FIELDS = (LISTENER, LOCAL_ADDRESS, LOCAL_PORT, REMOTE_ADDRESS, REMOTE_PORT)
_BY_NAME = {field.name: field for field in FIELDS}


def field_of(name: str) -> Field:
    """Give the part of that name."""
    return _BY_NAME[name]


class Connection:
    """An accepted connection; `key` is the number."""

    __slots__ = ("key",)

    def __init__(
        self, local: bytes, local_port: int, remote: bytes, remote_port: int, listener: int = 0
    ) -> None:
        """Take packed addresses, 4 bytes or 16; the listeners are counted from 0."""
        self.key = (
            (listener << 288)
            | (number_of(local) << 160)
            | (local_port << 144)
            | (number_of(remote) << 16)
            | remote_port
        )

    @classmethod
    def without_addresses(cls, listener: int = 0) -> Connection:
        """Make one of a unix socket: its addresses and ports are zeros."""
        return cls(bytes(16), 0, bytes(16), 0, listener)

    def __str__(self) -> str:
        key = self.key
        ends = [
            Endpoint.at(address.of(key).to_bytes(16, "big"), port.of(key))
            for address, port in ((REMOTE_ADDRESS, REMOTE_PORT), (LOCAL_ADDRESS, LOCAL_PORT))
        ]
        return f"from {ends[0]} to {ends[1]}"


def number_of(packed: bytes) -> int:
    """Make the number of a packed address."""
    return int.from_bytes(mapped(packed), "big")


def is_ipv4(number: int) -> bool:
    """Say whether an address, as a number, is an IPv4 one."""
    return number >> 32 == 0xFFFF


def format_number(number: int) -> str:
    """Write an address that is a number."""
    return format_address(unmapped(number.to_bytes(16, "big")))
