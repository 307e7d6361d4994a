"""The table of journeys, and its bounds; what journeys are is in test_parked and test_journey."""

import resource
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from ends import nothing_left_behind
from places import in_own_network, root_only, sh

from muonsocks.intercept import journeys
from muonsocks.intercept.cookies import cookie_of
from muonsocks.intercept.journeys import Journeys
from muonsocks.intercept.peers import Peers
from muonsocks.net.loop import Loop

IP_BIND_ADDRESS_NO_PORT = 24  # ip(7)


class Journey:
    """What the table knows of one. `stays` says that it has something to be carried at the end."""

    def __init__(self, table: Any, cookie: Any, stays: bool = False, tid: int = 0) -> None:
        self.cookie = cookie
        self._all = table
        self._stays = stays
        self._tid = tid

    def be_left(self) -> None:
        if not self._stays:
            self.drop()

    def drop(self) -> None:
        self._all.forget(self)

    def is_due_for(self, tid: int) -> bool:
        return self._tid == tid


@pytest.fixture
def table() -> Iterator[Any]:
    with nothing_left_behind():
        loop = Loop()
        yield Journeys(loop, 5.0, lambda error: None, Peers())
        loop.close()


def test_each_is_found_by_its_socket(table: Any) -> None:
    with socket.socket() as one, socket.socket() as other:
        assert table.of(one) is None
        journey = Journey(table, cookie_of(one))
        table.add(journey)
        assert len(table) == 1
        assert table.of(one) is journey
        assert table.of(other) is None
        with one.dup() as same:
            assert table.of(same) is journey
        table.forget(journey)
        assert table.of(one) is None


def test_the_next_one_of_a_socket_is_not_forgotten_with_the_last(table: Any) -> None:
    with socket.socket() as sock:
        first, second = (Journey(table, cookie_of(sock)) for _ in range(2))
        table.add(first)
        table.has_failed(first)
        table.add(second)
        table.forget(first)
        assert table.of(sock) is second


def test_a_thread_has_its_own(table: Any) -> None:
    mine, other = Journey(table, 1, tid=7), Journey(table, 2, tid=8)
    table.add(mine)
    table.add(other)
    assert table.due_for(7) == [mine]


def test_there_is_room_for_as_many_as_there_are_descriptors(
    table: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (journeys._FOR_CALLS + 2 * 3, hard))
    try:
        for number in range(3):
            assert not table.is_full
            table.add(Journey(table, number))
        assert table.is_full
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not table.is_full
    monkeypatch.setattr(journeys, "_MOST", 3)
    assert table.is_full


def test_failures_that_nobody_asks_for_are_forgotten(
    table: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest first."""
    monkeypatch.setattr(journeys, "_MOST_FAILURES", 3)
    made = [Journey(table, number) for number in range(5)]
    for journey in made:
        table.add(journey)
    for journey in made[1:]:
        table.has_failed(journey)
    assert list(table._all.values()) == [made[0], *made[2:]]


@pytest.mark.parametrize(("seconds", "is_quick"), [(0.0001, True), (journeys.SOON, False)])
def test_who_is_quick(table: Any, seconds: float, is_quick: bool) -> None:
    assert table.is_quick
    table.is_quick = False
    table.has_arrived(seconds)
    assert table.is_quick == is_quick


# The end


def finish(table: Any) -> None:
    async def run() -> None:
        await table.finish()

    table.loop.run(run())


def test_what_is_to_be_carried_is_waited_for(table: Any) -> None:
    short, long = Journey(table, 1), Journey(table, 2, stays=True)
    failed = Journey(table, 3, stays=True)
    for journey in (short, long, failed):
        table.add(journey)
    table.has_failed(failed)  # which nobody will ask for
    order: list[str] = []

    def end() -> None:
        order.append("the end")
        long.drop()

    table.loop.call_later(0.05, end)
    finish(table)
    assert order == ["the end"]
    assert list(table._all.values()) == [failed]


def test_it_is_not_waited_for_without_end(table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journeys, "_LAST_WORDS", 0.05)
    table.add(Journey(table, 1, stays=True))
    finish(table)
    assert len(table) == 0


# Sockets


def tcp(family: int = socket.AF_INET) -> socket.socket:
    return socket.socket(family, proto=socket.IPPROTO_TCP)


def test_fresh_is_who_is_not_bound(table: Any) -> None:
    with tcp() as sock, tcp(socket.AF_INET6) as sock6:
        assert table.is_fresh(sock) and table.is_fresh(sock6)
        sock.bind(("127.0.0.1", 0))
        assert not table.is_fresh(sock)
        sock6.bind(("::", 0))
        assert not table.is_fresh(sock6)
    with tcp() as sock:
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind(("127.0.0.1", 0))
        assert not sock.getsockname()[1] and not table.is_fresh(sock)
    with socket.socket(proto=socket.IPPROTO_MPTCP) as sock:
        assert not table.is_fresh(sock)


@root_only()
def test_fresh_is_not_who_is_bound_to_an_interface(table: Any) -> None:
    def there() -> None:
        sh("ip link set lo up")
        with tcp() as sock:
            assert table.is_fresh(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
            assert not table.is_fresh(sock)

    in_own_network(there)


def test_a_port_of_ours_does_not_count(table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with tcp() as sock:
        sock.bind(("0.0.0.0", 0))  # the kernel tells the port after AF_UNSPEC, too
        table.is_fresh_again(sock)
        assert table.is_fresh(sock)
        monkeypatch.setattr(journeys, "_MOST_FAILURES", 1)
        with tcp() as other:
            table.is_fresh_again(other)
        assert not table.is_fresh(sock)  # forgotten: the table has an end, too
