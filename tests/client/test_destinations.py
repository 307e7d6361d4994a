"""What is gone to without a proxy, and what addresses stand for."""

import errno
import socket
from pathlib import Path

import pytest

from muonsocks.address import Endpoint
from muonsocks.client import destinations
from muonsocks.client.destinations import Destinations, is_here, is_proxy_itself
from muonsocks.client.proxies import DIRECT
from muonsocks.socks.proxy_address import ProxyAddress

CHAIN = (ProxyAddress.parse("socks5h://192.0.2.9:1080"),)
HOSTS = """
127.0.0.1 localhost itself # nothing.here
127.0.1.1 Box box.example
::1 localhost ip6-localhost
192.0.2.7 other.example
not an address
127.0.0.1
"""


@pytest.fixture
def some(tmp_path: Path) -> Destinations:
    (tmp_path / "hosts").write_text(HOSTS)
    return Destinations(lambda _: CHAIN, str(tmp_path / "hosts"))


@pytest.mark.parametrize(
    ("host", "is_direct"),
    [
        *((host, True) for host in ("127.0.0.1", "127.9.9.9", "0.0.0.0", "::1", "::")),
        *(
            (host, True)
            for host in ("localhost", "LocalHost.", "a.localhost", "box", "BOX.example")
        ),
        *((host, False) for host in ("192.0.2.7", "::2", "other.example", "nothing.here", "hosts")),
        ("::ffff:127.0.0.1", True),
    ],
)
def test_this_host_is_gone_to_directly(some: Destinations, host: str, is_direct: bool) -> None:
    assert some.way_to(Endpoint(host, 80)) == (DIRECT if is_direct else CHAIN)


def test_the_first_proxy_is_gone_to_directly(some: Destinations) -> None:
    assert some.way_to(Endpoint("192.0.2.9", 1080)) == DIRECT
    assert some.way_to(Endpoint("192.0.2.9", 1081)) == CHAIN
    assert not is_proxy_itself(Endpoint("192.0.2.9", 1080), DIRECT)


def test_what_has_been_noted_is_gone_to_directly(some: Destinations) -> None:
    one, other = Endpoint("192.0.2.1", 80), Endpoint("192.0.2.2", 80)
    some.note(one.packed or b"")
    some.note(other.packed or b"", 81)
    assert some.way_to(one) == some.way_to(Endpoint("192.0.2.2", 81)) == DIRECT
    assert some.way_to(other) == CHAIN


def test_the_oldest_note_is_forgotten(some: Destinations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(destinations, "_MOST_DIRECT", 2)
    ends = [Endpoint(f"192.0.2.{number}", 80) for number in (1, 2, 3)]
    for end in (ends[0], ends[1], ends[0], ends[2]):
        some.note(end.packed or b"")
    assert [some.way_to(end) == DIRECT for end in ends] == [True, False, True]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_an_address_stands_for_a_name(some: Destinations, family: int) -> None:
    address = some.stand_in("a.example", family)
    assert some.stand_in("a.example", family) == address != some.stand_in("b.example", family)
    meant = some.meant(Endpoint(address, 443))
    assert (meant.host, meant.port) == ("a.example", 443)
    packed = Endpoint(address, 0).packed or b""
    some.note(packed)
    assert some.name_of(packed) == "a.example" and some.way_to(Endpoint(address, 1)) == CHAIN


def test_one_that_stands_for_nothing_is_an_error(some: Destinations) -> None:
    with pytest.raises(OSError, match=r"198\.18\.9\.9 does not stand for a name") as failure:
        some.meant(Endpoint("198.18.9.9", 1))
    assert failure.value.errno == errno.EHOSTUNREACH
    assert some.meant(Endpoint("192.0.2.1", 1)) == Endpoint("192.0.2.1", 1)


def test_names_of_this_host(some: Destinations) -> None:
    loopback, own = b"\x7f\0\0\1", b"\x7f\0\1\1"
    assert some.addresses_here("box") == [own]
    assert some.addresses_here("localhost") == [loopback, bytes(15) + b"\1"]
    assert some.addresses_here("x.localhost") == [loopback, bytes(15) + b"\1"]
    assert some.addresses_here("other.example") == []
    assert some.names_here(own) == ["Box", "box.example"]
    assert some.names_here(loopback, "itself") == ["localhost", "itself"]
    assert some.names_here(b"\x7f\2\2\2") == ["localhost"]


def test_without_a_file_there_are_no_names(tmp_path: Path) -> None:
    some = Destinations(lambda _: CHAIN, str(tmp_path / "none"))
    assert some.addresses_here("box") == []
    assert some.way_to(Endpoint("localhost", 1)) == DIRECT


@pytest.mark.parametrize("packed", [b"\x80\0\0\1", b"\x7f" + bytes(15)])
def test_other_addresses_are_not_here(packed: bytes) -> None:
    assert not is_here(packed)
