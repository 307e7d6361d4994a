"""Where connections go: always to one place, or by the address that they have come to."""

import pytest

from muonsocks.address import Endpoint, parse_address
from muonsocks.errors import RefusedByRule
from muonsocks.socketbox.destination import ToAddress, ToUnixSocket, Translation


def packed(text: str) -> bytes:
    address = parse_address(text)
    assert address is not None
    return address


NAT64 = Translation(packed("64:ff9b::"), 4)
WIDE = Translation(packed("2001:db8:1:2::"), 8)


def test_always_to_one_place() -> None:
    for local in (Endpoint("::1", 7), Endpoint("192.0.2.1", 7), None):
        assert str(ToAddress(packed("::1"), 80).of(local)) == "[::1]:80"
        assert str(ToAddress(packed("192.0.2.7"), 80).of(local)) == "192.0.2.7:80"
        assert ToUnixSocket("/run/x").of(local) == "/run/x"


def test_the_scope() -> None:
    assert ToAddress(packed("fe80::1"), 80, 3).of(None).scope == 3


def test_the_port_that_they_have_come_to() -> None:
    assert ToAddress(packed("::1"), 0).of(Endpoint("::1", 7)).port == 7
    with pytest.raises(RefusedByRule, match="no address"):
        ToAddress(packed("::1"), 0).of(None)


@pytest.mark.parametrize(
    ("pattern", "translation", "local", "goes_to"),
    [
        ("::ffff:0:0", NAT64, "64:ff9b::192.0.2.33", "192.0.2.33"),
        ("0.0.0.0", NAT64, "64:ff9b::192.0.2.33", "192.0.2.33"),
        ("2001:db8::", NAT64, "64:ff9b::192.0.2.33", "2001:db8::c000:221"),
        ("2001:db8:5:6:7:8:9:a", NAT64, "64:ff9b::1", "2001:db8:5:6:7:8:0:1"),
        ("2001:db8:9::7", WIDE, "2001:db8:1:2:3:4:5:6", "2001:db8:9:0:3:4:5:6"),
        ("::", Translation(packed("::ffff:0:0"), 4), "192.0.2.33", "::192.0.2.33"),
    ],
)
def test_nat64(pattern: str, translation: Translation, local: str, goes_to: str) -> None:
    found = ToAddress(packed(pattern), 80, translation=translation).of(Endpoint(local, 7))
    assert (found.host, found.port) == (goes_to, 80)


@pytest.mark.parametrize(
    ("translation", "local", "why"),
    [
        (NAT64, "64:ff9b:0:0:0:1::", "64:ff9b::1:0:0 is not in 64:ff9b::/96"),
        (NAT64, "192.0.2.1", "192.0.2.1 is not in 64:ff9b::/96"),
        (WIDE, "2001:db8:1:3::", "2001:db8:1:3:: is not in 2001:db8:1:2::/64"),
    ],
)
def test_what_does_not_have_the_prefix(translation: Translation, local: str, why: str) -> None:
    for destination in (ToAddress(bytes(16), 0, 0, translation), ToUnixSocket("/x", translation)):
        with pytest.raises(RefusedByRule) as caught:
            destination.of(Endpoint(local, 7))
        assert str(caught.value) == why


def test_who_has_come_to_no_address() -> None:
    for destination in (ToAddress(bytes(16), 80, 0, NAT64), ToUnixSocket("/x", NAT64)):
        with pytest.raises(RefusedByRule, match="it has come to no address"):
            destination.of(None)


@pytest.mark.parametrize("prefix_end", ["::", "::1:2", "::ffff:ffff"])
def test_the_end_of_a_prefix_does_not_matter(prefix_end: str) -> None:
    translation = Translation(packed(f"64:ff9b{prefix_end}"), 4)
    assert translation.inside(packed("64:ff9b::1.2.3.4")) == bytes([1, 2, 3, 4])


def test_paths() -> None:
    assert ToUnixSocket("/run/x", NAT64).of(Endpoint("64:ff9b::1.2.3.255", 7)) == "/run/x-010203ff"
    assert ToUnixSocket("@x", WIDE).of(Endpoint("2001:db8:1:2:3:4:5:6", 7)) == "@x-00050006"
