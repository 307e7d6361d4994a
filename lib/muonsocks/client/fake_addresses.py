"""Addresses for names that nobody here looks up: a bounded table of what stands for what. No I/O.

A program that wants the address of a name before it connects gets one of these; a connection to it
is one to the name, wherever that is looked up then. 198.18.0.0/15 is for tests of networks, and
nobody's (RFC 2544, RFC 6890); the prefix for IPv6 is a local one (RFC 4193), made up.
"""

from __future__ import annotations

_IPV4, _IPV6 = (bytes((198, 18)), bytes((198, 19))), bytes.fromhex("fd6d756f6e736f63")
_FIRST_IPV4 = 198 << 24 | 18 << 16
_FIRST_IPV6 = 0xFD6D_756F_6E73_6F63 << 64
_LAST = (1 << 17) - 2  # the number of the last address of 198.18.0.0/15 that is no broadcast
MOST = 1 << 15  # names in a table


def is_fake(packed: bytes) -> bool:
    """Say whether an address is one of those that stand for names, here or in another table."""
    return packed.startswith(_IPV4 if len(packed) == 4 else _IPV6)


class FakeAddresses:
    """A table. Each name in it has an IPv4 address and an IPv6 address.

    When it is full, the name that has been asked for least recently is given up. Its addresses are
    the last to stand for another name: meanwhile they stand for none.
    """

    __slots__ = ("_last", "_most", "_name_of", "_number_of")

    def __init__(self, most: int = MOST) -> None:
        """Have at most so many names, 1 to 131070."""
        if not 0 < most <= _LAST:
            raise ValueError(f"a table cannot have {most} names")
        self._most = most
        self._number_of: dict[str, int] = {}  # the least recent first
        self._name_of: dict[int, str] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._number_of)

    def ipv4_of(self, name: str) -> bytes:
        """Give the IPv4 address that stands for a name, packed."""
        return (_FIRST_IPV4 + self._number(name)).to_bytes(4, "big")

    def ipv6_of(self, name: str) -> bytes:
        """Give the IPv6 address that stands for a name, packed."""
        return (_FIRST_IPV6 + self._number(name)).to_bytes(16, "big")

    def name_of(self, packed: bytes) -> str | None:
        """Give the name that an address stands for; None if it stands for none."""
        if not is_fake(packed):
            return None
        first = _FIRST_IPV4 if len(packed) == 4 else _FIRST_IPV6
        return self._name_of.get(int.from_bytes(packed, "big") - first)

    def _number(self, name: str) -> int:
        number = self._number_of.pop(name, 0)
        if not number:
            if len(self._number_of) >= self._most:
                del self._name_of[self._number_of.pop(next(iter(self._number_of)))]
            number = self._next()
            self._name_of[number] = name
        self._number_of[name] = number
        return number

    def _next(self) -> int:
        """Give the number that has been free for longest, about."""
        number = self._last
        while True:
            number = number % _LAST + 1
            if number not in self._name_of:
                self._last = number
                return number
