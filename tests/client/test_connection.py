"""create_connection(): what is its own. What proxies do and what is raised is in other files."""

import errno
import socket
from typing import Any

import pytest
from programs import SECONDS, closed_port
from real_server import Server, works
from relays import Proxy

from muonsocks import client
from muonsocks.client import (
    DestinationRefused,
    ProxyTimedOut,
    ProxyUnreachable,
    UsageError,
    connection,
    create_connection,
)

CLOSED = closed_port()
pytestmark = pytest.mark.usefixtures("clean")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", b"localhost"])
def test_it_is_a_plain_socket(server: Server, far: socket.socket, host: str | bytes) -> None:
    with create_connection((host, far.getsockname()[1]), SECONDS, proxy=server.url) as sock:
        assert type(sock) is socket.socket
        assert (sock.family, sock.type, sock.proto) == (
            socket.AF_INET,
            socket.SOCK_STREAM,
            socket.IPPROTO_TCP,
        )
        assert sock.gettimeout() == SECONDS
        assert not sock.get_inheritable()
        with far.accept()[0] as conn:
            assert works(sock, conn)


def test_without_proxies(far: socket.socket) -> None:
    with create_connection(far.getsockname(), SECONDS, proxy="direct") as sock:
        with far.accept()[0] as conn:
            conn.settimeout(SECONDS)
            assert works(sock, conn)
        assert sock.getpeername() == far.getsockname()


@pytest.mark.parametrize("timeout", [None, 7.5])
def test_time_limits(far: socket.socket, timeout: float | None) -> None:
    before = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(timeout)
        with create_connection(far.getsockname(), proxy="direct") as sock:
            assert sock.gettimeout() == timeout
        with create_connection(far.getsockname(), None, proxy="direct") as sock:
            assert sock.gettimeout() is None
    finally:
        socket.setdefaulttimeout(before)
    with Proxy() as proxy:
        proxy.may_answer.clear()
        with pytest.raises(ProxyTimedOut):
            create_connection(("192.0.2.1", 80), 0.05, proxy=proxy.url)
    with pytest.raises(ValueError, match="Timeout"):
        create_connection(far.getsockname(), -1, proxy="direct")


@pytest.mark.parametrize("host", ["127.0.0.9", "", "here"])
def test_source_address(far: socket.socket, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(name: str, port: int, **_: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.8", port))]

    monkeypatch.setattr(connection.socket, "getaddrinfo", look_up)
    expected = {"": "127.0.0.1", "here": "127.0.0.8"}.get(host, host)
    with socket.socket() as probe:
        probe.bind((expected, 0))
        port = probe.getsockname()[1]
    for _ in range(2):
        options = [(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)]
        with create_connection(
            far.getsockname(), SECONDS, (host, port), proxy="direct", socket_options=options
        ) as sock:
            assert sock.getsockname() == (expected, port)
            with far.accept()[0] as conn:
                assert conn.getpeername() == (expected, port)


def test_a_source_that_is_taken(far: socket.socket) -> None:
    with pytest.raises(OSError) as told:
        create_connection(("127.0.0.1", 9), SECONDS, far.getsockname(), proxy="direct")
    assert told.value.errno == errno.EADDRINUSE


def test_options(far: socket.socket) -> None:
    """Those of the other version of IP mean nothing for this one."""
    options = [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77),
        (socket.IPPROTO_IP, socket.IP_TOS, 0x10),
        (socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 0x10),
    ]
    with create_connection(far.getsockname(), proxy="direct", socket_options=options) as sock:
        found = [sock.getsockopt(level, name) for level, name, _ in options[:3]]
    assert found == [1, 77, 0x10]


def test_what_is_raised(server: Server) -> None:
    with pytest.raises(DestinationRefused):
        create_connection(("127.0.0.1", CLOSED), SECONDS, proxy=server.url)
    with pytest.raises(ConnectionRefusedError):
        create_connection(("127.0.0.1", CLOSED), SECONDS, proxy="direct")
    with pytest.raises(ProxyUnreachable):
        create_connection(("127.0.0.1", 9), SECONDS, proxy=f"socks5://127.0.0.1:{CLOSED}")
    with pytest.raises(UsageError):
        create_connection(("no name", 9), proxy=server.url)
    with pytest.raises(OverflowError):
        create_connection(("name", 99999), proxy=server.url)


@pytest.mark.parametrize("timeout", [-1, 1e300, float("inf"), float("nan"), "5"])
def test_timeouts_that_are_none(timeout: Any) -> None:
    """Of those that a socket would not take, either, nobody is asked for anything."""
    with pytest.raises((ValueError, TypeError), match=r"[Tt]imeout"):
        create_connection(("127.0.0.1", 9), timeout, proxy="direct")


def test_what_the_package_has() -> None:
    names = dir(client)
    assert len(names) == len(set(names))
    assert set(client.__all__) <= set(names)


@pytest.mark.parametrize("way", ["through a proxy", "direct"])
def test_the_socket_is_a_plain_one(server: Server, far: socket.socket, way: str) -> None:
    """What our own relays want is not for programs: delays, and urgent data, are as ever."""
    proxy = "direct" if way == "direct" else server.url
    with (
        create_connection(far.getsockname(), SECONDS, proxy=proxy) as sock,
        socket.create_connection(far.getsockname()) as plain,
    ):
        for option in (
            (socket.IPPROTO_TCP, socket.TCP_NODELAY),
            (socket.SOL_SOCKET, socket.SO_OOBINLINE),
        ):
            assert sock.getsockopt(*option) == plain.getsockopt(*option) == 0
