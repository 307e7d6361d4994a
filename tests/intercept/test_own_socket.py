"""Dialling with the one socket that there is, or with another one where it must be."""

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from ends import nothing_left_behind
from programs import SECONDS, closed_port

from muonsocks.address import Endpoint
from muonsocks.errors import DialError, NameNotResolved, RefusedByRule
from muonsocks.intercept.own_socket import OwnSocket, number_against
from muonsocks.net.loop import Loop

V4, V6 = socket.AF_INET, socket.AF_INET6


def finding(*hosts: str) -> Callable[[str], Coroutine[Any, Any, list[tuple[bytes, int]]]]:
    """A look-up that finds these addresses for every name."""

    async def look_up(_: str) -> list[tuple[bytes, int]]:
        return [(Endpoint(host, 0).packed or b"", 0) for host in hosts]

    return look_up


@contextlib.contextmanager
def dialling(
    family: int = V4, timeout: float = SECONDS, hosts: tuple[str, ...] = ()
) -> Iterator[tuple[socket.socket, Callable[..., Any]]]:
    """A socket, and what dials with it and gives the stream's socket."""
    with nothing_left_behind():
        loop = Loop()
        with socket.socket(family) as sock:
            sock.setblocking(False)
            dialler = OwnSocket(sock, timeout, finding(*hosts) if hosts else None)

            def dial(endpoint: Endpoint, *more: Any) -> socket.socket:
                async def run() -> Any:
                    return await dialler.dial(loop, endpoint, *more)

                stream = loop.run(run())
                got = stream.detach()
                fd = os.dup(got.fileno()) if got is sock else got.detach()
                return socket.socket(got.family, got.type, got.proto, fd)

            try:
                yield sock, dial
            finally:
                loop.close()


def is_same(one: socket.socket, other: socket.socket) -> bool:
    return os.path.sameopenfile(one.fileno(), other.fileno())


@pytest.mark.parametrize(("family", "host"), [(V4, "127.0.0.1"), (V6, "::1"), (V6, "127.0.0.1")])
def test_the_socket_itself_is_connected(family: int, host: str) -> None:
    with (
        dialling(family) as (sock, dial),
        socket.create_server((host, 0), family=V6 if ":" in host else V4) as far,
    ):
        port = far.getsockname()[1]
        with dial(Endpoint(host, port)) as got:
            assert is_same(got, sock)
            assert sock.getpeername()[1] == port
            assert number_against(sock) == errno.EISCONN


def test_addresses_are_tried_in_turn_on_one_socket() -> None:
    """Some of them refuse; the first that does not is what the socket is connected to."""
    hosts = ("127.0.0.2", "127.0.0.3", "127.0.0.1", "127.0.0.4")
    with (
        socket.create_server(("127.0.0.1", 0)) as far,
        dialling(hosts=hosts) as (sock, dial),
        dial(Endpoint("a.name", far.getsockname()[1])) as got,
    ):
        assert is_same(got, sock)
        assert sock.getpeername()[0] == "127.0.0.1"


def test_an_address_that_does_not_answer_is_left_in_time() -> None:
    """The queue of one is full: its part of the time passes, and the next is tried."""
    with (
        socket.create_server(("127.0.0.2", 0), backlog=0) as full,
        socket.create_server(("127.0.0.1", full.getsockname()[1])) as far,
        contextlib.ExitStack() as others,
    ):
        for _ in range(3):
            other = others.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(full.getsockname())
        with (
            dialling(timeout=1, hosts=("127.0.0.2", "127.0.0.1")) as (sock, dial),
            dial(Endpoint("a.name", far.getsockname()[1])),
        ):
            assert sock.getpeername()[0] == "127.0.0.1"


def test_all_that_fails_is_told_and_the_socket_is_as_before() -> None:
    port = closed_port()
    with dialling(hosts=("127.0.0.1", "127.0.0.2")) as (sock, dial):
        with pytest.raises(DialError) as raised:
            dial(Endpoint("a.name", port))
        failures = raised.value.failures
        assert failures == [("127.0.0.1", errno.ECONNREFUSED), ("127.0.0.2", errno.ECONNREFUSED)]
        assert number_against(sock) == 0
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def test_what_is_not_permitted_or_not_found() -> None:
    with dialling(hosts=("127.0.0.1",)) as (_, dial), pytest.raises(RefusedByRule):
        dial(Endpoint("a.name", 1), lambda _: False)
    with dialling() as (_, dial), pytest.raises(NameNotResolved):
        dial(Endpoint("name.invalid", 1))


def test_another_socket_where_it_cannot_go() -> None:
    with (
        socket.create_server(("::1", 0), family=V6) as far,
        dialling(V4) as (sock, dial),
        dial(Endpoint("::1", far.getsockname()[1])) as got,
    ):
        assert not is_same(got, sock) and got.family == V6
        assert number_against(sock) == 0
    with socket.create_server(("127.0.0.1", 0)) as far, dialling(V6) as (sock, dial):
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        with dial(Endpoint("127.0.0.1", far.getsockname()[1])) as got:
            assert not is_same(got, sock) and got.family == V4


def test_after_its_own_failure_another_one() -> None:
    """A name has an address of each family, and only the other one answers."""
    with (
        socket.create_server(("::1", 0), family=V6) as far,
        dialling(V4, hosts=("127.0.0.1", "::1")) as (sock, dial),
        dial(Endpoint("a.name", far.getsockname()[1])) as got,
    ):
        assert got.family == V6
        assert number_against(sock) == 0


def test_what_others_do_with_a_socket_is_seen() -> None:
    with socket.socket() as sock, socket.create_server(("127.0.0.1", 0)) as far:
        assert number_against(sock) == 0
        assert number_against(far) == errno.EISCONN
        sock.connect(far.getsockname())
        assert number_against(sock) == errno.EISCONN
