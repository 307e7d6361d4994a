"""What an entry may ask of a part of a connection: some bits of it, or that it is in a range."""

from __future__ import annotations

from bisect import bisect_right

from muonsocks.address import format_address, parse_address
from muonsocks.errors import UsageError
from muonsocks.socketbox.connection import Field, is_ipv4, number_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_EVERYTHING = (1 << 128) - 1
_NOT_IPV4 = _EVERYTHING ^ 0xFFFFFFFF  # the bits in front of an IPv4 address
_HIGHEST_PORT = 65535


class Masked:
    """The bits of `mask` are those of `pattern`: an address, a network, a port."""

    __slots__ = ("mask", "pattern")

    def __init__(self, pattern: int, mask: int) -> None:
        self.pattern = pattern & mask
        self.mask = mask

    def holds(self, value: int) -> bool:
        """Say whether a value is as wanted."""
        return value & self.mask == self.pattern

    def distance(self, value: int) -> int:
        """Say how far off a value is: 0 if it holds, else how many low bits may have to change."""
        return ((value ^ self.pattern) & self.mask).bit_length()

    def text(self, field: Field) -> str:
        """Write it as a file of rules has it, without the keyword."""
        if self.mask == field.everything:
            return field.format(self.pattern)
        if is_ipv4(self.pattern) and self.mask >> 32 == _NOT_IPV4 >> 32:
            start, size = 96, 4
        else:
            start, size = 0, 16
        low = (1 << 8 * size) - 1
        address = format_address((self.pattern & low).to_bytes(size, "big"))
        bits = prefix_length(self.mask)
        if bits is None:
            return f"{address}/{format_address((self.mask & low).to_bytes(size, 'big'))}"
        return f"{address}/{bits - start}"


class Spans:
    """The value is in one of some spans, each with its first and its last value.

    They are put in order, and together where they overlap: so they are at most as many as there
    are values, and to look among many costs hardly more.
    """

    __slots__ = ("_edges", "spans")

    def __init__(self, spans: Iterable[tuple[int, int]]) -> None:
        self.spans: list[tuple[int, int]] = []
        for first, last in sorted(spans):
            if self.spans and first <= self.spans[-1][1]:
                first, before = self.spans.pop()
                last = max(last, before)
            self.spans.append((first, last))
        self._edges = [edge for first, last in self.spans for edge in (first, last + 1)]

    def holds(self, value: int) -> bool:
        """Say whether a value is as wanted."""
        return bisect_right(self._edges, value) % 2 == 1

    def distance(self, value: int) -> int:
        """Say how far off a value is: 0 if it holds, else the bits of the smallest difference."""
        return min(max(first - value, value - last, 0) for first, last in self.spans).bit_length()

    def text(self, field: Field) -> str:
        """Write it as a file of rules has it, without the keyword."""
        return ",".join(
            field.format(first) if first == last else f"{field.format(first)}-{field.format(last)}"
            for first, last in self.spans
        )


Condition = Masked | Spans


def prefix_length(mask: int) -> int | None:
    """Give the length of a mask of addresses; None if other bits than the first are in it."""
    bits = mask.bit_count()
    return bits if mask == prefix_mask(bits) else None


def prefix_mask(bits: int) -> int:
    """Make the mask of the first bits of an address, 0 to 128."""
    return _EVERYTHING ^ (_EVERYTHING >> bits)


# What they are read from. All raise UsageError.


def read_number(text: str, low: int, high: int, hint: str = "") -> int:
    """Read a number as atoi(3) does, where it is one: a sign and leading zeros are allowed."""
    digits = text[1:] if text[:1] in ("+", "-") else text
    wanted = hint or f"write {low} to {high}"
    if not (digits.isascii() and digits.isdecimal()):
        raise UsageError(f"{text[:60]!r} is not a number", wanted)
    digits = digits.lstrip("0") or "0"
    value = int(digits) if len(digits) < 20 else high + 1
    if text[0] == "-":
        value = -value
    if not low <= value <= high:
        raise UsageError(f"{text[:60]} is out of range", wanted)
    return value


def read_port(text: str, hint: str = "") -> Masked:
    """Read one port."""
    return Masked(read_number(text, 0, _HIGHEST_PORT, hint), _HIGHEST_PORT)


def read_ports(text: str) -> Condition:
    """Read a port, or ports and ranges of them with commas between."""
    if "," not in text and "-" not in text[1:]:
        return read_port(text)
    spans = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not (first[:1].isdigit() and (last if dash else first)[:1].isdigit()):
            raise UsageError(f"{part[:60]!r} is not a port", "write 80, 80,443 or 8000-8999")
        low = read_number(first, 0, _HIGHEST_PORT)
        high = read_number(last, 0, _HIGHEST_PORT) if dash else low
        if high < low:
            raise UsageError(f"{part[:60]!r} is not a range of ports", "write the lower one first")
        spans.append((low, high))
    return _condition(spans, _HIGHEST_PORT)


def read_address(text: str, hint: str = "write an IPv4 or IPv6 address in full") -> Masked:
    """Read one address."""
    return Masked(number_of(_packed(text, hint)), _EVERYTHING)


def read_addresses(text: str) -> Condition:
    """Read an address, a network or a range: `A`, `A/BITS`, `A/MASK`, `A-B`."""
    address, slash, mask = text.partition("/")
    if slash:
        return read_masked(address, mask)
    first, dash, last = text.partition("-")
    hint = "write ADDRESS, ADDRESS/BITS, ADDRESS/MASK or FIRST-LAST"
    if not dash:
        return read_address(text, hint)
    ends = [_packed(part, hint) for part in (first, last)]
    if len(ends[0]) != len(ends[1]):
        problem = f"of {text[:60]!r} one end is an IPv4 address and one is not"
        raise UsageError(problem, "write both so; ::ffff:A.B.C.D is IPv4")
    low, high = (number_of(end) for end in ends)
    if high < low:
        raise UsageError(f"{text[:60]!r} is not a range of addresses", "write the lower one first")
    return _condition([(low, high)], _EVERYTHING)


def read_masked(address: str, mask: str) -> Masked:
    """Read an address, and which of its bits count: a number of them, or a mask.

    The kind of address that is written says from where a number counts: `192.0.2.0/24` is
    `::ffff:192.0.2.0/120`.
    """
    packed = _packed(address, "write ADDRESS/BITS or ADDRESS/MASK")
    is_short = ":" not in address
    if ":" in mask or "." in mask:
        bits = parse_address(mask)
        if bits is None or (":" not in mask and not is_short):
            usable = "an address" if is_short else "an IPv6 address"
            raise UsageError(f"{mask[:60]!r} is not a mask", f"write {usable} or a number of bits")
        # Of an IPv4 mask, all bits in front are meant; of an IPv6 one, those that it has.
        number = number_of(bits) if ":" in mask else _NOT_IPV4 | int.from_bytes(bits, "big")
    else:
        width = 32 if is_short else 128
        if not mask[:1].isdigit():
            raise UsageError(f"{mask[:60]!r} is not a number of bits", f"write 0 to {width}")
        number = prefix_mask(read_number(mask, 0, width) + 128 - width)
    return Masked(number_of(packed), number)


def _packed(text: str, hint: str) -> bytes:
    packed = parse_address(text)
    if packed is None:
        raise UsageError(f"{text[:60]!r} is not an address", hint)
    return packed


def _condition(spans: list[tuple[int, int]], everything: int) -> Condition:
    found = Spans(spans)
    (first, last), *others = found.spans
    return Masked(first, everything) if first == last and not others else found
