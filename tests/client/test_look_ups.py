"""What a program is told of names: by whom they are looked up, and where it leads."""

import errno
import socket
from pathlib import Path
from typing import Any

import pytest

from muonsocks.address import Endpoint, parse_address
from muonsocks.client import destinations, look_ups
from muonsocks.client.look_ups import LookUps
from muonsocks.errors import UsageError

PROXY = "socks5h://proxy.example:1080"
HOSTS = """\
127.0.0.1 localhost
127.0.1.1 box.example box # this one
::1 box
192.0.2.7 far.example
0.0.0.0 nowhere.example
"""
FIRST, FIRST6 = "198.18.0.1", "fd6d:756f:6e73:6f63::1"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the system is asked, which answers 192.0.2.9 and 2001:db8::9."""
    names: list[Any] = []
    real = look_ups._found_here

    def found(host: Any, port: Any, *more: Any) -> Any:
        if more[-1] & socket.AI_NUMERICHOST:
            # Whether this host has addresses of a family is of no importance.
            assert not host or host[:3] not in ("198", "fd6") or not more[-1] & socket.AI_ADDRCONFIG
            return real(host, port, *more)
        names.append(host)
        family, *others, flags = more
        addresses = {socket.AF_INET: "192.0.2.9", socket.AF_INET6: "2001:db8::9"}
        results = []
        for one, address in addresses.items():
            if family in (0, one):
                results += real(address, port, one, *others, flags | socket.AI_NUMERICHOST)
        return results

    def name_of(host: str) -> tuple[str, list[str], list[str]]:
        names.append(host)
        return "nine.example", [], [host]

    monkeypatch.setattr(look_ups, "_found_here", found)
    monkeypatch.setattr(look_ups, "_gethostbyaddr", name_of)
    return names


def made(tmp_path: Path, proxy: str = PROXY, **more: str) -> LookUps:
    (tmp_path / "hosts").write_text(HOSTS)
    return LookUps({"ALL_PROXY": proxy, **more}, str(tmp_path / "hosts"))


def addresses(found: list[tuple[Any, ...]]) -> list[str]:
    return list(dict.fromkeys(one[4][0] for one in found))


def leads(some: LookUps, host: str, port: int = 80) -> list[str]:
    """The proxies that lead there."""
    return [str(proxy) for proxy in some.way_to(some.meant((host, port)))]


# Names for the proxy


def test_a_name_gets_an_address_that_stands_for_it(tmp_path: Path, asked: list[Any]) -> None:
    some = made(tmp_path)
    stream = (socket.AF_INET, socket.SOCK_STREAM, 6, "", (FIRST, 80))
    assert some.getaddrinfo("www.example", 80, type=socket.SOCK_STREAM) == [stream]
    assert some.getaddrinfo(b"www.example", "http", 0, socket.SOCK_STREAM) == [stream]
    assert addresses(some.getaddrinfo("www.example", None, socket.AF_INET6)) == [FIRST6]
    assert some.gethostbyname("www.example") == FIRST
    assert some.gethostbyname_ex("www.example") == ("www.example", [], [FIRST])
    for address in (FIRST, FIRST6):
        assert some.meant((address, 80)) == Endpoint("www.example", 80)
        assert leads(some, address) == [PROXY]
        assert some.gethostbyaddr(address) == ("www.example", [], [address])
        assert some.getnameinfo((address, 80), 0) == ("www.example", "http")
        assert some.getnameinfo((address, 80), socket.NI_NUMERICSERV) == ("www.example", "80")
        assert some.getnameinfo((address, 80), socket.NI_NUMERICHOST) == (address, "http")
    assert some.gethostbyaddr("www.example") == ("www.example", [], [FIRST])
    assert not asked


def test_flags(tmp_path: Path, asked: list[Any]) -> None:
    some = made(tmp_path)
    flags = socket.AI_CANONNAME | socket.AI_ADDRCONFIG | socket.AI_V4MAPPED | socket.AI_ALL
    found = some.getaddrinfo("www.example", 80, socket.AF_INET6, socket.SOCK_STREAM, 0, flags)
    assert found == [(socket.AF_INET6, socket.SOCK_STREAM, 6, "www.example", (FIRST6, 80, 0, 0))]
    with pytest.raises(socket.gaierror) as caught:
        some.getaddrinfo("www.example", 80, flags=socket.AI_NUMERICHOST)
    assert caught.value.errno == socket.EAI_NONAME
    with pytest.raises(socket.gaierror) as caught:
        some.getaddrinfo("www.example", 80, type=socket.SOCK_STREAM, family=socket.AF_UNIX)
    with pytest.raises(socket.gaierror) as caught:
        some.getaddrinfo("www.example", "no such service", type=socket.SOCK_STREAM)
    assert caught.value.errno == socket.EAI_SERVICE
    assert not asked


def test_a_name_that_is_not_ascii(tmp_path: Path, asked: list[Any]) -> None:
    some = made(tmp_path)
    address = some.gethostbyname("bücher.example")
    assert some.meant((address, 80)).host == "xn--bcher-kva.example"
    assert not asked


@pytest.mark.parametrize("name", ["-x", "a b", "a\\b", 300 * "a", "", "fe80::1%nosuchlink"])
def test_what_can_be_no_name(tmp_path: Path, asked: list[Any], name: str) -> None:
    with pytest.raises((socket.gaierror, UnicodeError)):
        made(tmp_path).getaddrinfo(name, 80)
    assert not asked


def test_an_address_that_stands_for_nothing(tmp_path: Path) -> None:
    some = made(tmp_path)
    for address in (FIRST, FIRST6, "::ffff:198.18.0.1"):
        with pytest.raises(OSError, match="does not stand for a name") as caught:
            some.meant((address, 80))
        assert caught.value.errno == errno.EHOSTUNREACH
    with pytest.raises(socket.herror):
        some.gethostbyaddr(FIRST)
    assert some.getnameinfo((FIRST, 80), 0) == (FIRST, "http")


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1", "10.0.0.1"])
def test_literals(tmp_path: Path, asked: list[Any], address: str) -> None:
    some = made(tmp_path)
    assert addresses(some.getaddrinfo(address, 80)) == [address]
    assert leads(some, address) == [PROXY]
    with pytest.raises(socket.herror):
        some.gethostbyaddr(address)
    assert some.getnameinfo((address, 80), 0) == (address, "http")
    with pytest.raises(socket.gaierror):
        some.getnameinfo((address, 80), socket.NI_NAMEREQD)
    assert not asked


def test_what_has_nothing_to_do_with_names(tmp_path: Path, asked: list[Any]) -> None:
    some = made(tmp_path)
    assert some.getaddrinfo(None, 80, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    assert some.gethostbyname("") == "0.0.0.0"
    assert some.gethostbyname("<broadcast>") == "255.255.255.255"
    with pytest.raises(socket.gaierror):
        some.getaddrinfo("::1", 80, socket.AF_INET)
    assert not asked


# This host


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("localhost", ["127.0.0.1"]),
        ("LocalHost.", ["127.0.0.1"]),
        ("www.localhost", ["127.0.0.1", "::1"]),
        ("box.example", ["127.0.1.1"]),
        ("Box", ["127.0.1.1", "::1"]),
        ("nowhere.example", ["0.0.0.0"]),
    ],
)
def test_names_of_this_host(
    tmp_path: Path, asked: list[Any], name: str, expected: list[str]
) -> None:
    some = made(tmp_path)
    assert addresses(some.getaddrinfo(name, 80)) == expected
    assert some.gethostbyname(name) == expected[0]
    assert leads(some, name) == []
    for address in expected:
        assert leads(some, address) == []
    assert not asked


def test_the_name_of_this_host(tmp_path: Path, asked: list[Any]) -> None:
    some = made(tmp_path)
    assert some.gethostbyaddr("box") == ("box.example", ["box"], ["127.0.1.1"])
    assert some.gethostbyaddr("127.0.1.1") == ("box.example", ["box"], ["127.0.1.1"])
    assert some.gethostbyaddr("127.0.0.1") == ("localhost", [], ["127.0.0.1"])
    assert some.gethostbyaddr("127.9.9.9") == ("localhost", [], ["127.9.9.9"])
    with pytest.raises(socket.gaierror):
        some.getaddrinfo("box.example", 80, socket.AF_INET6)
    assert not asked


def test_other_names_of_etc_hosts_are_names(tmp_path: Path, asked: list[Any]) -> None:
    assert made(tmp_path).gethostbyname("far.example") == FIRST
    assert not asked


def test_without_etc_hosts(asked: list[Any]) -> None:
    some = LookUps({"ALL_PROXY": PROXY}, "/nonexistent/hosts")
    assert some.gethostbyname("localhost") == "127.0.0.1"
    assert not asked


# What is looked up here


def test_exceptions(tmp_path: Path, asked: list[Any]) -> None:
    some = made(tmp_path, NO_PROXY="near.example,192.0.2.64/26")
    assert some.gethostbyname("www.near.example") == "192.0.2.9"
    assert asked == ["www.near.example"]
    assert leads(some, "www.near.example") == leads(some, "192.0.2.9", 1234) == []
    assert leads(some, "192.0.2.65") == []
    assert leads(some, "2001:db8::9") == leads(some, "192.0.2.10") == [PROXY]
    assert some.gethostbyaddr("192.0.2.9") == ("nine.example", [], ["192.0.2.9"])


def test_exceptions_are_forgotten_in_time(
    tmp_path: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(destinations, "_MOST_DIRECT", 3)
    some = made(tmp_path, NO_PROXY="near.example")
    for number in range(9):
        found = [(0, 0, 0, "", (f"192.0.2.{number}", 80))]
        some._note(found, 0)
        some._note([(0, 0, 0, "", ("192.0.2.0", 80))], 0)
        assert len(some._destinations._direct) <= 3
    ways = [number for number in range(9) if not leads(some, f"192.0.2.{number}")]
    assert ways == [0, 7, 8]
    some._note([(0, 0, 0, "", (FIRST, 80))], 0)
    assert (parse_address(FIRST), 0) not in some._destinations._direct


@pytest.mark.parametrize("scheme", ["socks4", "socks5"])
def test_all_names_if_the_url_says_so(tmp_path: Path, asked: list[Any], scheme: str) -> None:
    proxy = f"{scheme}://192.0.2.3:1080"
    some = made(tmp_path, proxy)
    found = some.getaddrinfo("www.example", 80, type=socket.SOCK_STREAM)
    assert addresses(found) == ["192.0.2.9", "2001:db8::9"]
    assert leads(some, "192.0.2.9") == leads(some, "www.example") == [proxy]
    assert some.gethostbyname("localhost") == "127.0.0.1"
    assert some.getnameinfo(("192.0.2.9", 80), 0) == ("nine.example", "http")
    assert asked == ["www.example", "192.0.2.9"]


def test_the_proxy_itself_is_gone_to_directly(tmp_path: Path, asked: list[Any]) -> None:
    some = made(tmp_path)
    assert addresses(some.getaddrinfo("proxy.example", 1080, socket.AF_INET)) == ["192.0.2.9"]
    assert leads(some, "192.0.2.9", 1080) == leads(some, "proxy.example", 1080) == []
    assert leads(some, "192.0.2.9", 80) == leads(some, "proxy.example", 80) == [PROXY]
    assert some.gethostbyname("proxy.example") == FIRST
    assert asked == ["proxy.example"]
    by_path = made(tmp_path, "socks5h://localhost/run/proxy")
    assert leads(by_path, "192.0.2.3", 1080)
    second = made(tmp_path, f"socks5h://192.0.2.3 {PROXY}")
    assert leads(second, "192.0.2.3", 1080) == []
    assert len(leads(second, "proxy.example", 1080)) == 2


def test_the_environment_is_that_of_the_beginning(tmp_path: Path) -> None:
    environ = {"ALL_PROXY": PROXY}
    some = LookUps(environ, str(tmp_path / "none"))
    environ.clear()
    assert leads(some, "192.0.2.1") == [PROXY]


def test_a_wrong_proxy(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ALL_PROXY"):
        made(tmp_path, "gopher://192.0.2.3").getaddrinfo("www.example", 80)
