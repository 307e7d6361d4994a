"""Who comes in over loopback: those who are expected, each to who expects it, and nobody else."""

import _socket
import errno
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing

import pytest
from ends import nothing_left_behind
from places import descriptor_limit

from muonsocks.intercept import arrivals
from muonsocks.intercept.arrivals import Arrivals
from muonsocks.net.loop import Loop

LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


@pytest.fixture(autouse=True)
def leaks_nothing() -> Iterator[None]:
    with nothing_left_behind():
        yield


def where_some_arrive(
    what: Callable[[Loop, Arrivals], Awaitable[None]], family: int = socket.AF_INET
) -> None:
    loop = Loop()
    there = Arrivals(loop, family, LOOPBACK[family])

    async def run() -> None:
        await what(loop, there)

    try:
        loop.run(run())
        assert not there._expected
    finally:
        there.close()
        loop.close()


def comes(there: Arrivals, family: int = socket.AF_INET) -> socket.socket:
    sock = socket.socket(family)
    sock.connect(there.address_for(sock))
    return sock


@pytest.mark.parametrize(
    ("there_family", "family"),
    [
        (socket.AF_INET, socket.AF_INET),
        (socket.AF_INET6, socket.AF_INET6),
        (socket.AF_INET, socket.AF_INET6),  # a socket of both, where there is no IPv6
    ],
)
def test_who_is_expected_comes_in(there_family: int, family: int) -> None:
    async def what(loop: Loop, there: Arrivals) -> None:
        with comes(there, family) as near, closing(await there.arrival_of(near)) as far:
            assert far.family == there_family
            assert not far.getblocking()
            assert far.getpeername()[1] == near.getsockname()[1]
            near.sendall(b"x")
            assert far.recv(9) == b"x"

    where_some_arrive(what, there_family)


def test_each_gets_its_own() -> None:
    async def what(loop: Loop, there: Arrivals) -> None:
        nears = [socket.socket() for _ in range(20)]
        fars: list[_socket.socket] = []

        async def take(near: socket.socket) -> None:
            near.connect(there.address_for(near))
            fars.append(await there.arrival_of(near))

        for near in nears:
            loop.spawn(take(near), lambda error: pytest.fail(repr(error)))
        for near, far in zip(nears, fars, strict=True):
            with near, closing(far):
                assert far.getpeername() == near.getsockname()

    where_some_arrive(what)


def test_strangers_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many of them, so that who is expected comes behind in a later turn."""
    monkeypatch.setattr(arrivals, "_STRANGERS", 4)

    async def what(loop: Loop, there: Arrivals) -> None:
        strangers = [comes(there) for _ in range(11)]
        with comes(there) as near, closing(await there.arrival_of(near)) as far:
            assert far.getpeername() == near.getsockname()
        for stranger in strangers:
            with stranger:
                stranger.settimeout(5)
                assert stranger.recv(9) == b""

    where_some_arrive(what)


def test_who_does_not_come_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "_PATIENCE", 0.05)

    async def what(loop: Loop, there: Arrivals) -> None:
        with socket.socket() as elsewhere:
            elsewhere.bind(("127.0.0.1", 0))
            with pytest.raises(TimeoutError):
                await there.arrival_of(elsewhere)
        # and the next one can
        with comes(there) as near, closing(await there.arrival_of(near)) as far:
            assert far.getpeername() == near.getsockname()

    where_some_arrive(what)


def test_a_shortage_is_told_to_who_waits() -> None:
    async def what(loop: Loop, there: Arrivals) -> None:
        with comes(there) as near:
            with descriptor_limit(0), pytest.raises(OSError) as failure:
                await there.arrival_of(near)
            assert failure.value.errno == errno.EMFILE
            # It has been in the queue all the time.
            with closing(await there.arrival_of(near)) as far:
                assert far.getpeername() == near.getsockname()

    where_some_arrive(what)


def test_who_gives_up_leaves_nothing() -> None:
    """Interrupted while it waits, as when the program has closed its socket."""

    async def what(loop: Loop, there: Arrivals) -> None:
        ended: list[BaseException] = []
        with socket.socket() as elsewhere:
            elsewhere.bind(("127.0.0.1", 0))
            task = loop.spawn(there.arrival_of(elsewhere), ended.append)
            task.interrupt(InterruptedError())
        assert [type(error) for error in ended] == [InterruptedError]

    where_some_arrive(what)


def test_there_may_be_no_such_loopback() -> None:
    loop = Loop()
    try:
        with pytest.raises(OSError, match="Cannot assign"):
            Arrivals(loop, socket.AF_INET, "192.0.2.1")
        assert not loop.handlers
    finally:
        loop.close()
