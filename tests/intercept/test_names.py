"""What a program is told of names, and by whom they are looked up."""

import asyncio
from pathlib import Path

import pytest
from queries import MX, Read, query, wire

from muonsocks.address import Endpoint, format_address, parse_address
from muonsocks.errors import NameNotResolved
from muonsocks.intercept.dns import AAAA, ANY, PTR, A
from muonsocks.intercept.names import Names, searched
from muonsocks.intercept.search import Search
from muonsocks.intercept.ways import Ways
from muonsocks.socks.proxy_address import ProxyAddress

HOSTS = "127.0.0.1 localhost\n127.0.1.1 box.example box\n::1 box\n192.0.2.7 far.example\n"
FOUND = [(b"\xc0\0\2\7", 0), (bytes.fromhex("20010db8000000000000000000000007"), 0)]


class Here:
    """Looks up what it is told to; notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.error: OSError | None = None

    async def __call__(self, host: str) -> list[tuple[bytes, int]]:
        self.asked.append(host)
        if self.error is not None:
            raise self.error
        return FOUND


class Some:
    def __init__(
        self,
        place: Path,
        proxy: str = "socks5h://192.0.2.1",
        exceptions: str = "",
        search: Search | None = None,
        has_ipv6: bool = True,
    ) -> None:
        (place / "hosts").write_text(HOSTS)
        self.ways = Ways((ProxyAddress.parse(proxy),), (), exceptions, str(place / "hosts"))
        self.here = Here()
        self.names = Names(self.ways, self.here, search, has_ipv6)

    def ask(self, name: str, kind: int = A) -> Read:
        message = query(name, kind)
        return Read(asyncio.run(self.names.answer(message)), message)

    def addresses(self, name: str, kind: int = A) -> list[str]:
        read = self.ask(name, kind)
        assert not read.code
        return [format_address(data) for _, data in read.records]


@pytest.fixture
def some(tmp_path: Path) -> Some:
    return Some(tmp_path)


def test_a_name_gets_addresses_that_stand_for_it(some: Some) -> None:
    assert some.addresses("Www.Example") == ["198.18.0.1"]
    assert some.addresses("www.example", AAAA) == ["fd6d:756f:6e73:6f63::1"]
    assert some.addresses("other.example", ANY) == ["198.18.0.2", "fd6d:756f:6e73:6f63::2"]
    assert some.ways.meant(Endpoint("198.18.0.1", 80)).host == "www.example"
    assert not some.here.asked


def test_there_is_nothing_else_of_it(some: Some) -> None:
    for kind in (MX, 65, 16, 33):
        read = some.ask("www.example", kind)
        assert (read.code, read.records) == (0, [])
    assert some.addresses("", A) == []


def test_a_name_that_is_none_is_unknown(some: Some) -> None:
    for name in ("a b.example", "10.1"):
        assert some.ask(name).code == 3


@pytest.mark.parametrize("address", ["198.18.0.1", "fd6d:756f:6e73:6f63::1"])
def test_the_address_has_that_name(some: Some, address: str) -> None:
    some.addresses("www.example")
    packed = parse_address(address) or b""
    name = ".".join(str(byte) for byte in reversed(packed)) + ".in-addr.arpa"
    if len(packed) == 16:
        name = ".".join(reversed(packed.hex())) + ".ip6.arpa"
    assert some.ask(name, PTR).records == [(PTR, wire("www.example"))]


def test_names_of_other_addresses(some: Some) -> None:
    assert some.ask("1.0.0.127.in-addr.arpa", PTR).records == [(PTR, wire("localhost"))]
    assert some.ask("1.1.0.127.in-addr.arpa", PTR).records == [(PTR, wire("box.example"))]
    for name in ("9.0.18.198.in-addr.arpa", "1.2.0.192.in-addr.arpa", "www.example"):
        assert some.ask(name, PTR).code == 3
    assert not some.here.asked


def test_names_of_this_host_are_this_host(some: Some) -> None:
    assert some.addresses("localhost") == ["127.0.0.1"]
    assert some.addresses("LOCALHOST", AAAA) == []  # as its /etc/hosts has it
    assert some.addresses("a.localhost", AAAA) == ["::1"]
    assert some.addresses("box") == ["127.0.1.1"] and some.addresses("box", AAAA) == ["::1"]
    assert some.addresses("far.example") == ["198.18.0.1"]


def test_what_is_gone_to_directly_is_looked_up(tmp_path: Path) -> None:
    some = Some(tmp_path, exceptions="inside.example")
    assert some.addresses("a.inside.example") == ["192.0.2.7"]
    assert some.addresses("a.inside.example", AAAA) == ["2001:db8::7"]
    assert some.here.asked == ["a.inside.example"] * 2
    assert some.ways.way_to(Endpoint("192.0.2.7", 80)) == ()
    assert some.addresses("a.inside.example", MX) == [] and len(some.here.asked) == 2


@pytest.mark.parametrize("scheme", ["socks5", "socks4"])
def test_a_proxy_may_be_told_addresses_only(tmp_path: Path, scheme: str) -> None:
    some = Some(tmp_path, proxy=f"{scheme}://192.0.2.1")
    assert some.addresses("www.example") == ["192.0.2.7"]
    assert some.ways.way_to(Endpoint("192.0.2.7", 80))  # through the proxy all the same


@pytest.mark.parametrize(
    ("error", "code"),
    [(NameNotResolved("unknown"), 3), (NameNotResolved("in time", 110), 2), (OSError(5, "no"), 2)],
)
def test_what_cannot_be_looked_up(tmp_path: Path, error: OSError, code: int) -> None:
    some = Some(tmp_path, proxy="socks5://192.0.2.1")
    some.here.error = error
    assert some.ask("www.example").code == code


def test_names_that_a_resolver_makes_up_are_unknown(tmp_path: Path) -> None:
    search = Search(["office.example"], 5)
    some = Some(tmp_path, exceptions="direct.office.example", search=search)
    for kind in (A, AAAA, MX):
        assert some.ask("api.github.com.office.example", kind).code == 3
    assert some.addresses("intranet.office.example") == ["198.18.0.1"]
    assert some.addresses("a.direct.office.example") == ["192.0.2.7"]


def test_without_ipv6_there_are_no_addresses_of_it(tmp_path: Path) -> None:
    some = Some(tmp_path, exceptions="inside.example", has_ipv6=False)
    for name in ("www.example", "inside.example", "a.localhost"):
        assert some.addresses(name, AAAA) == [] and len(some.addresses(name)) == 1


def test_errors_are_answered_and_answers_not(some: Some) -> None:
    assert asyncio.run(some.names.answer(query(flags=0x8180))) == b""
    assert Read(asyncio.run(some.names.answer(query()[:-1])), b"").code == 1


def test_the_file_may_be_missing(tmp_path: Path) -> None:
    assert searched({"LOCALDOMAIN": "a"}, str(tmp_path / "none")).domains == ("a",)
    (tmp_path / "some").write_text("search b\n")
    assert searched({}, str(tmp_path / "some")).domains == ("b",)
