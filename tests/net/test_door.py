"""A door: where it listens, who is let in, and what becomes of those who are not."""

import errno
import os
import socket
from collections.abc import Callable
from typing import Any

import pytest
from ends import PATIENCE, no_garbage
from places import descriptor_limit, in_own_network, root_only, sh

from muonsocks.address import Endpoint
from muonsocks.errors import DialError
from muonsocks.net.dial import Dialler
from muonsocks.net.door import Door
from muonsocks.net.loop import Loop
from muonsocks.net.stream import Stream

LOOPBACK = {"IPv4": "127.0.0.1", "IPv6": "::1"}


def connect(door: Door, source: str) -> socket.socket:
    return socket.create_connection((door.endpoint.host, door.endpoint.port), PATIENCE, (source, 0))


def opened(loop: Loop, door: Door, lets_in: Callable[[Endpoint], bool]) -> tuple[Stream, Endpoint]:
    """Wait at a door."""

    async def wait() -> tuple[Stream, Endpoint]:
        with loop.deadline(PATIENCE):
            return await door.open(lets_in)

    return loop.run(wait())


@pytest.mark.parametrize("host", LOOPBACK.values(), ids=LOOPBACK)
def test_one_who_is_let_in(loop: Loop, host: str) -> None:
    door = Door(loop, Dialler(), Endpoint(host, 0))
    assert (door.endpoint.host, door.endpoint.port > 0) == (host, True)
    with connect(door, host) as peer:
        stream, endpoint = opened(loop, door, lambda _: True)
        assert endpoint == Endpoint(host, peer.getsockname()[1])
        assert stream.name == str(endpoint)
        assert stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)
        assert not stream.socket.getblocking()
        door.close()
        stream.close()
        assert peer.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        connect(door, host)


def test_many_who_are_not(loop: Loop) -> None:
    """More than wait in a queue; between any two of them the loop does what else there is to do."""
    door = Door(loop, Dialler(), Endpoint("127.0.0.1", 0))
    strangers: list[socket.socket] = []
    rounds = 0

    def come() -> None:
        nonlocal rounds
        rounds += 1
        if rounds < 50:
            strangers.append(connect(door, "127.0.0.2"))
            loop.call_soon(come)
        else:
            strangers.append(connect(door, "127.0.0.1"))

    loop.call_soon(come)
    stream, endpoint = opened(loop, door, lambda one: one.host == "127.0.0.1")
    assert (endpoint.host, door.turned_away, rounds) == ("127.0.0.1", 49, 50)
    for stranger in strangers[:-1]:
        with stranger, pytest.raises(ConnectionResetError):
            stranger.recv(1)
    strangers[-1].close()
    stream.close()
    door.close()


def test_who_waits_when_it_is_closed(loop: Loop) -> None:
    door = Door(loop, Dialler(), Endpoint("127.0.0.1", 0))
    with connect(door, "127.0.0.1") as peer:
        door.close()
        with pytest.raises(ConnectionResetError):
            peer.recv(1)


def test_time_is_up(loop: Loop) -> None:
    """Nothing of the door is in the loop then, nor is anything garbage."""

    async def wait(door: Door) -> None:
        with loop.deadline(0.01):
            await door.open(lambda _: True)

    with no_garbage():
        door = Door(loop, Dialler(), Endpoint("127.0.0.1", 0))
        with pytest.raises(TimeoutError):
            loop.run(wait(door))
        assert not loop.handlers
        with pytest.raises(ConnectionRefusedError):
            connect(door, "127.0.0.1")
        door.close()
        del door


def test_no_descriptor_is_free(loop: Loop) -> None:
    door = Door(loop, Dialler(), Endpoint("127.0.0.1", 0))
    with connect(door, "127.0.0.1"), descriptor_limit(0), pytest.raises(OSError) as told:
        opened(loop, door, lambda _: True)
    assert told.value.errno == errno.EMFILE
    door.close()


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPERM, errno.EAGAIN])
def test_what_accept_says_in_passing(
    loop: Loop, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = Door(loop, Dialler(), Endpoint("127.0.0.1", 0))
    accept = door._listener.accept
    failures = [OSError(number, os.strerror(number))] * 2

    def accept_later() -> tuple[socket.socket, Any]:
        if failures:
            raise failures.pop()
        return accept()

    monkeypatch.setattr(type(door._listener), "accept", lambda _: accept_later())
    with connect(door, "127.0.0.1"):
        stream, _ = opened(loop, door, lambda _: True)
    assert not failures
    stream.close()
    door.close()


# Where it is


def test_the_dialler_s_way() -> None:
    loop = Loop()
    with pytest.raises(DialError) as told:
        Door(loop, Dialler(6), Endpoint("127.0.0.1", 0))
    assert told.value.errno == errno.EAFNOSUPPORT
    door = Door(loop, Dialler(bind_address=bytes((127, 0, 0, 3))), Endpoint("127.0.0.3", 0))
    assert door.endpoint.host == "127.0.0.3" and door.endpoint.port
    door.close()
    anywhere = Door(loop, Dialler(bind_address=bytes(4)), Endpoint("127.0.0.3", 0))
    assert anywhere.endpoint.host == "127.0.0.3" and anywhere.endpoint.port
    anywhere.close()
    loop.close()


@root_only()
def test_an_address_that_is_not_ours() -> None:
    def check() -> None:
        loop = Loop()
        with pytest.raises(OSError) as told:
            Door(loop, Dialler(), Endpoint("192.0.2.1", 0))
        assert told.value.errno == errno.EADDRNOTAVAIL
        loop.close()

    in_own_network(check)


@root_only()
def test_no_port_is_free() -> None:
    def check() -> None:
        sh("sysctl -qw net.ipv4.ip_local_port_range='40000 40001'")
        loop = Loop()
        doors = [Door(loop, Dialler(), Endpoint("127.0.0.1", 0)) for _ in range(2)]
        with pytest.raises(OSError) as told:
            Door(loop, Dialler(), Endpoint("127.0.0.1", 0))
        assert (told.value.errno, told.value.strerror) == (errno.EADDRNOTAVAIL, "no port is free")
        for door in doors:
            door.close()
        loop.close()

    in_own_network(check)


@root_only()
def test_over_the_interface_and_with_the_mark() -> None:
    def check() -> None:
        loop = Loop()
        door = Door(loop, Dialler(interface="lo", mark=7), Endpoint("127.0.0.1", 0))
        with connect(door, "127.0.0.1"):
            stream, _ = opened(loop, door, lambda _: True)
        name = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)
        assert name.rstrip(b"\0") == b"lo"
        with pytest.raises(OSError):
            Door(loop, Dialler(interface="none"), Endpoint("127.0.0.1", 0))
        stream.close()
        loop.close()

    in_own_network(check)
