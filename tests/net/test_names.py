"""What getaddrinfo(3) says, as addresses: scopes, mapped ones, a bound; and what it cannot say."""

import errno
import socket
from collections.abc import Callable

import pytest
from ends import nothing_left_behind

from muonsocks.address import parse_address
from muonsocks.errors import NameNotResolved
from muonsocks.net import names
from muonsocks.net.names import MOST_ADDRESSES, addresses_of


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
