"""A parked socket, in one process with who parks it."""

import resource
import select
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from ends import nothing_left_behind

from muonsocks.intercept.parking import Parking, ParkingLot
from muonsocks.intercept.socket_options import options_of
from muonsocks.net.loop import Loop


def ours(family: int = socket.AF_INET) -> socket.socket:
    sock = socket.socket(family)
    sock.setblocking(False)
    return sock


def events_of(sock: socket.socket, patience: float = 0.0) -> int:
    poll = select.poll()
    poll.register(sock, select.POLLIN | select.POLLOUT)
    return dict(poll.poll(patience * 1000)).get(sock.fileno(), 0)


def in_a_lot(what: Callable[[ParkingLot], Awaitable[Any]]) -> None:
    """Do something with one, and hold that nothing is left of it."""
    with nothing_left_behind():
        loop = Loop()
        lot = ParkingLot(loop)

        async def run() -> None:
            await what(lot)

        try:
            loop.run(run())
        finally:
            lot.close()
            loop.close()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_there_is_no_room_until_there_is(family: int) -> None:
    async def what(lot: ParkingLot) -> None:
        with ours(family) as sock:
            before = options_of(sock)
            parking = await lot.park(sock)
            assert events_of(sock, 0.5) == 0
            with pytest.raises(BlockingIOError):
                sock.send(b"early")
            assert not parking.has_been_written_to()
            parking.give_back(sock)
            assert options_of(sock) == before
            assert parking.make_room()
            assert events_of(sock, 1) == select.POLLOUT
            assert not parking.has_been_written_to()
            sock.send(b"now")
            assert parking.has_been_written_to()
            assert parking.far.recv(100) == b"now"
            parking.far.close()

    in_a_lot(what)


def test_who_is_only_for_ipv6() -> None:
    async def what(lot: ParkingLot) -> None:
        with ours(socket.AF_INET6) as sock:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            (await lot.park(sock)).reset()

    in_a_lot(what)


def test_who_closes_it_is_noticed_at_once() -> None:
    async def what(lot: ParkingLot) -> None:
        sock = ours()
        parking = await lot.park(sock)
        sock.close()
        with pytest.raises(ConnectionResetError):
            parking.make_room()
            parking.far.recv(1)
        parking.far.close()

    in_a_lot(what)


def test_strangers_are_turned_away() -> None:
    """Before and after, from here and from another address."""

    async def what(lot: ParkingLot) -> None:
        with ours() as first:
            parked: list[Parking] = [await lot.park(first)]
            gate = first.getpeername()
            strangers = [socket.create_connection(gate) for _ in range(40)]
            strangers.append(socket.create_connection(gate, source_address=("127.0.0.2", 0)))
            with ours() as second:
                parked.append(await lot.park(second))
                for sock, parking in zip((first, second), parked, strict=True):
                    assert parking.far.getpeername() == sock.getsockname()
                for stranger in strangers:
                    stranger.settimeout(10)
                    assert stranger.recv(1) == b""
                    stranger.close()
                for parking in parked:
                    parking.reset()

    in_a_lot(what)


def test_a_shortage_leaves_it_as_it_was() -> None:
    async def what(lot: ParkingLot) -> None:
        with ours() as sock:
            (await lot.park(sock)).reset()  # the gate is there
        with ours() as sock:
            before = options_of(sock)
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (sock.fileno() + 1, limits[1]))
            try:
                with pytest.raises(OSError, match="Too many open files"):
                    await lot.park(sock)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert options_of(sock) == before
            with pytest.raises(OSError):
                sock.getpeername()
            (await lot.park(sock)).reset()

    in_a_lot(what)
