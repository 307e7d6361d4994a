"""What getaddrinfo(3) says, as addresses: scopes, mapped ones, a bound; and what it cannot say."""

import errno
import socket
from collections.abc import Callable

import pytest
from ends import nothing_left_behind

from muonsocks.address import parse_address
from muonsocks.errors import NameNotResolved
from muonsocks.net import names
from muonsocks.net.names import MOST_ADDRESSES, addresses_of, name_of_address


def answers(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], list[tuple[object, ...]]]
) -> list[tuple[object, ...]]:
    """Let getaddrinfo give what `make` does; give the arguments of its calls."""
    asked: list[tuple[object, ...]] = []

    def getaddrinfo(*arguments: object) -> list[tuple[object, ...]]:
        asked.append(arguments)
        return make()

    monkeypatch.setattr(names, "getaddrinfo", getaddrinfo)
    return asked


def found(*sockaddrs: tuple[object, ...]) -> list[tuple[object, ...]]:
    return [(0, 1, 6, "", sockaddr) for sockaddr in sockaddrs]


def test_order_scope_and_mapped_address(monkeypatch: pytest.MonkeyPatch) -> None:
    four, six = ("192.0.2.1", 0), ("2001:db8::1", 0, 0, 0)
    link, mapped = ("fe80::1%lo", 0, 0, 1), ("::ffff:192.0.2.2", 0, 0, 0)
    asked = answers(monkeypatch, lambda: found(six, four, link, mapped))
    assert addresses_of("Name.example") == [
        (parse_address("2001:db8::1"), 0),
        (bytes((192, 0, 2, 1)), 0),
        (parse_address("fe80::1"), 1),
        (bytes((192, 0, 2, 2)), 0),
    ]
    assert asked == [(b"Name.example", None, 0, socket.SOCK_STREAM, socket.IPPROTO_TCP)]


def test_no_more_than_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, lambda: found(*((f"127.0.1.{number}", 0) for number in range(200))))
    assert [packed[3] for packed, _ in addresses_of("name")] == list(range(MOST_ADDRESSES))


@pytest.mark.parametrize("number", [socket.EAI_NONAME, socket.EAI_AGAIN])
def test_failure(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail() -> list[tuple[object, ...]]:
        raise socket.gaierror(number, "reason")

    answers(monkeypatch, fail)
    with pytest.raises(NameNotResolved) as told:
        addresses_of("name")
    passing = ", for now" if number == socket.EAI_AGAIN else ""
    assert told.value.strerror == f"name: reason{passing}"


@pytest.mark.parametrize("host", ["", "no..name", "a" * 300, "b\u00fccher.example"])
def test_names_that_are_none(host: str) -> None:
    with pytest.raises(NameNotResolved) as told:
        addresses_of(host)
    assert str(told.value.strerror).startswith(host)


def test_real_address_as_a_name() -> None:
    """The C library's own idea of an address: no file and no server is asked."""
    assert addresses_of("127.1") == [(bytes((127, 0, 0, 1)), 0)]


def test_nothing_is_left_open() -> None:
    with nothing_left_behind():
        addresses_of("localhost")


def test_failure_of_the_system_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is no fault of the name's."""

    def fail() -> list[tuple[object, ...]]:
        raise OSError(errno.EMFILE, "no descriptor is free")

    answers(monkeypatch, fail)
    with pytest.raises(OSError) as told:
        addresses_of("name")
    assert (type(told.value), told.value.errno) == (OSError, errno.EMFILE)


# Names of addresses


def test_name_of_an_address() -> None:
    assert name_of_address(bytes((127, 0, 0, 1))) == "localhost"


def named(monkeypatch: pytest.MonkeyPatch, answer: str | Exception) -> list[object]:
    """Let getnameinfo give or raise this; give what it is asked."""
    asked: list[object] = []

    def getnameinfo(*arguments: object) -> tuple[str, str]:
        asked.append(arguments)
        if isinstance(answer, Exception):
            raise answer
        return answer, "0"

    monkeypatch.setattr(names, "getnameinfo", getnameinfo)
    return asked


def test_what_is_asked_for_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = named(monkeypatch, "host.example")
    address = parse_address("2001:db8::1")
    assert address and name_of_address(address) == "host.example"
    assert asked == [(("2001:db8::1", 0), socket.NI_NAMEREQD | socket.NI_NUMERICSERV)]


HOSTILE = ["", "two words", "-rf", "a\\b", "b\u00fccher", "a\n", "x" * 256, "192.0.2.1", "::1"]


@pytest.mark.parametrize("name", HOSTILE)
def test_who_owns_an_address_may_say_anything(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    named(monkeypatch, name)
    with pytest.raises(NameNotResolved) as told:
        name_of_address(bytes((192, 0, 2, 1)))
    assert told.value.strerror == "192.0.2.1: its name is none"


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (socket.gaierror(socket.EAI_NONAME, "reason"), "192.0.2.1: reason"),
        (socket.gaierror(socket.EAI_AGAIN, "reason"), "192.0.2.1: reason, for now"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "reason"), "192.0.2.1: its name is none"),
    ],
)
def test_address_without_a_name(
    monkeypatch: pytest.MonkeyPatch, failure: Exception, reason: str
) -> None:
    named(monkeypatch, failure)
    with pytest.raises(NameNotResolved) as told:
        name_of_address(bytes((192, 0, 2, 1)))
    assert told.value.strerror == reason
