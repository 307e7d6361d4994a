"""Which way a program's connections go."""

import errno
from pathlib import Path

import pytest

from muonsocks.address import Endpoint, Network
from muonsocks.intercept.notify import Refused
from muonsocks.intercept.ways import Ways
from muonsocks.socks.proxy_address import ProxyAddress

CHAIN = (
    ProxyAddress.parse("socks5h://192.0.2.1:1080"),
    ProxyAddress.parse("socks5h://next.example"),
)
FAKE = "198.18.0.1"


def ways(tmp_path: Path, direct: str = "", exceptions: str = "") -> Ways:
    (tmp_path / "hosts").write_text("127.0.1.1 box.example\n192.0.2.9 far.example\n")
    networks = [Network.parse(word) for word in direct.split()]
    return Ways(CHAIN, networks, exceptions, str(tmp_path / "hosts"))


def is_direct(some: Ways, host: str, port: int = 80) -> bool:
    chain = some.way_to(Endpoint(host, port))
    assert chain in ((), CHAIN)
    return not chain


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [
        ("192.0.2.7", 80, False),
        ("2001:db8::1", 80, False),
        ("www.example", 80, False),
        ("far.example", 80, False),
        ("127.0.0.1", 80, True),
        ("127.255.0.1", 80, True),
        ("::1", 80, True),
        ("::ffff:127.0.0.1", 80, True),
        ("0.0.0.0", 80, True),
        ("::", 80, True),
        ("localhost", 80, True),
        ("box.example", 80, True),
        ("192.0.2.1", 1080, True),  # the first proxy itself
        ("::ffff:192.0.2.1", 1080, True),
        ("192.0.2.1", 1081, False),
        ("next.example", 1080, False),
    ],
)
def test_this_host_and_the_proxy_are_gone_to_directly(
    tmp_path: Path, host: str, port: int, expected: bool
) -> None:
    assert is_direct(ways(tmp_path), host, port) is expected


def test_networks_that_are_named_are(tmp_path: Path) -> None:
    some = ways(tmp_path, direct="10.0.0.0/8 2001:db8::/32")
    for host, expected in (
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("11.1.2.3", False),
        ("2001:db8::1", True),
        ("2001:db9::1", False),
    ):
        assert is_direct(some, host) is expected


def test_exceptions_are(tmp_path: Path) -> None:
    some = ways(tmp_path, exceptions="inside.example, 10.0.0.0/8")
    for host, expected in (
        ("inside.example", True),
        ("a.inside.example", True),
        ("outside.example", False),
        ("10.0.0.1", True),
    ):
        assert is_direct(some, host) is expected


def test_addresses_that_have_been_noted_are(tmp_path: Path) -> None:
    some = ways(tmp_path)
    some.destinations.note(b"\xc0\0\2\7")
    assert is_direct(some, "192.0.2.7") and not is_direct(some, "192.0.2.8")


def test_an_address_that_stands_for_a_name_means_that(tmp_path: Path) -> None:
    some = ways(tmp_path, direct="198.18.0.0/15")
    assert some.destinations.stand_in("www.example", 2) == FAKE
    for host in (FAKE, "::ffff:" + FAKE, "fd6d:756f:6e73:6f63::1"):
        assert some.meant(Endpoint(host, 443)) == Endpoint("www.example", 443)
    assert some.meant(Endpoint("192.0.2.7", 1)) == Endpoint("192.0.2.7", 1)


@pytest.mark.parametrize("host", ["198.18.0.2", "198.19.255.255", "fd6d:756f:6e73:6f63::2"])
def test_one_that_stands_for_nothing_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(Refused) as caught:
        ways(tmp_path).meant(Endpoint(host, 80))
    assert caught.value.errno == errno.EHOSTUNREACH
