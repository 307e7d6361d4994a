"""What connections are made to look like, or taken for."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from ends import tcp_pair

from muonsocks.address import Endpoint
from muonsocks.intercept import disguise
from muonsocks.intercept.disguise import Disguises
from muonsocks.intercept.socket_address import address_of, endpoint_of

V4, V6 = socket.AF_INET, socket.AF_INET6


@contextmanager
def accepted(host: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client of a listener for both families, and the listener's side of it."""
    with (
        socket.create_server(("::", 0), family=V6, dualstack_ipv6=True) as server,
        socket.create_connection((host, server.getsockname()[1])) as client,
        server.accept()[0] as there,
    ):
        yield client, there


def test_ipv4_of_an_ipv6_socket_becomes_ipv4() -> None:
    with accepted("127.0.0.1") as (client, there):
        disguises = Disguises()
        shown = endpoint_of(disguises.peer(there, V4))
        assert shown == Endpoint(*client.getsockname())
        assert there.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == V4
        assert not disguises


def test_ipv6_is_taken_for_ipv4() -> None:
    """Of its address there is nothing to be shown, but of the port."""
    with accepted("::1") as (client, there):
        disguises = Disguises()
        port = client.getsockname()[1]
        assert endpoint_of(disguises.peer(there, V4)) == Endpoint("0.0.0.0", port)
        assert there.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == V6
        assert disguises


@pytest.mark.parametrize("family", [0, V6])
def test_what_is_of_the_listeners_family_is_in_no_disguise(family: int) -> None:
    with accepted("::1") as (client, there):
        disguises = Disguises()
        shown = endpoint_of(disguises.peer(there, family))
        assert shown == Endpoint("::1", client.getsockname()[1])
        assert not disguises


def test_ipv4_is_taken_for_ipv6() -> None:
    client, there = tcp_pair()
    with client, there:
        disguises = Disguises()
        name = disguises.peer(there, V6)
        assert name == address_of(Endpoint(*client.getsockname()), V6)
        assert name[8:20] == bytes(10) + b"\xff\xff" and disguises


@pytest.mark.parametrize(("family", "host"), [(V4, "127.0.0.1"), (V6, "::1")])
def test_a_unix_socket_is_taken_for_one_of_this_host(family: int, host: str) -> None:
    here, there = socket.socketpair()
    with here, there:
        disguises = Disguises()
        assert endpoint_of(disguises.peer(there, family)) == Endpoint(host, 0)
        assert disguises
        assert Disguises().peer(there, 0) == b"\1\0"


def test_who_has_gone_has_no_address() -> None:
    with accepted("127.0.0.1") as (client, there):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
        client.close()
        with pytest.raises(OSError):
            Disguises().peer(there, V4)


def test_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disguise, "_MOST", 2)
    disguises = Disguises()
    socks = [socket.socket() for _ in range(4)]
    for sock in (*socks, socks[-1]):
        disguises.put_on(sock, V4, b"", b"")
    assert len(disguises._by_inode) == 2
    for sock in socks:
        sock.close()
