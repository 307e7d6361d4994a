"""Which addresses a rule on them is about, and how far off others are."""

import pytest

from muonsocks.address import parse_address
from muonsocks.socketbox.conditions import (
    Masked,
    Spans,
    prefix_length,
    prefix_mask,
    read_addresses,
    read_ports,
)
from muonsocks.socketbox.connection import LOCAL_ADDRESS, LOCAL_PORT, number_of


def number(address: str) -> int:
    packed = parse_address(address)
    assert packed
    return number_of(packed)


@pytest.mark.parametrize(
    ("asked", "inside", "outside"),
    [
        ("192.0.2.0/24", ("192.0.2.0", "192.0.2.255"), ("192.0.3.0", "192.0.1.255", "::c000:201")),
        ("::ffff:192.0.2.0/120", ("192.0.2.0", "192.0.2.255"), ("192.0.3.0",)),
        ("192.0.2.1/255.0.0.255", ("192.9.9.1",), ("192.0.2.2", "193.0.2.1")),
        ("0.0.0.0/0", ("0.0.0.0", "255.255.255.255"), ("::", "::1", "2001:db8::")),
        ("::/0", ("0.0.0.0", "255.255.255.255", "::", "ffff::"), ()),
        ("2001:db8::9/32", ("2001:db8::", "2001:db8:ffff::"), ("2001:db9::", "192.0.2.1")),
        ("::1/::ffff", ("::1", "2001:db8::1"), ("::2", "1:1::1:2")),
        (
            "192.0.2.9-192.0.3.1",
            ("192.0.2.9", "192.0.3.0", "192.0.3.1"),
            ("192.0.2.8", "192.0.3.2"),
        ),
        ("::ffff:192.0.2.9-192.0.2.10", ("192.0.2.9", "192.0.2.10"), ("192.0.2.11",)),
        ("2001:db8::-2001:db8::ff", ("2001:db8::", "2001:db8::ff"), ("2001:db8::100",)),
    ],
)
def test_addresses_of_a_rule(asked: str, inside: tuple[str, ...], outside: tuple[str, ...]) -> None:
    condition = read_addresses(asked)
    for address in inside:
        assert condition.holds(number(address))
        assert condition.distance(number(address)) == 0
    for address in outside:
        assert not condition.holds(number(address))
        assert condition.distance(number(address)) > 0


def test_what_is_nearer() -> None:
    network = read_addresses("2001:db8::/32")
    near, far = (network.distance(number(address)) for address in ("2001:db9::", "2003:db8::"))
    assert (near, far) == (97, 114)
    ports = Spans(((80, 89), (443, 443)))
    assert [ports.distance(port) for port in (80, 90, 79, 442, 93, 65535)] == [0, 1, 1, 1, 3, 16]


def test_ports_of_a_rule() -> None:
    ports = read_ports("443,80-89,85-95,0,20,65535,86,443")
    held = [port for port in range(65536) if ports.holds(port)]
    assert held == [0, 20, *range(80, 96), 443, 65535]
    ports = read_ports(",".join(map(str, [1] * 200000 + [5])))
    assert isinstance(ports, Spans)
    assert ports.spans == [(1, 1), (5, 5)]


def test_masks() -> None:
    assert [prefix_length(prefix_mask(bits)) for bits in range(129)] == [*range(129)]
    for mask in (1, (1 << 127) - 1, prefix_mask(64) | 1):
        assert prefix_length(mask) is None


def test_what_does_not_count_is_dropped() -> None:
    assert Masked(0xFF, 0xF0).pattern == 0xF0
    assert Masked(80, 65535).text(LOCAL_PORT) == "80"
    assert Masked(0, 0).text(LOCAL_ADDRESS) == "::/0"
