"""How many may wait: exactly so many, whoever else looks at the same moment."""

import os
import socket
from collections.abc import Callable, Iterator

import pytest
from places import in_child

from muonsocks.resident.board import OWN_OPEN, Board
from muonsocks.socketbox.limits import Limits, SharedLimits


@pytest.fixture
def turn() -> Iterator[int]:
    fd = os.memfd_create("turn")
    yield fd
    os.close(fd)


def entered(limits: Limits, times: int, receiver: bytes = b"r") -> list[str]:
    """Who is let in, "", or why not."""
    return [limits.enter(receiver) for _ in range(times)]


def shared(most: int, turn: int, workers: int = 1) -> SharedLimits:
    return SharedLimits(1, most, Board(workers), turn)


@pytest.mark.parametrize("make", [lambda most, _: Limits(1, most), shared], ids=["one", "shared"])
def test_so_many_and_no_more(make: Callable[[int, int], Limits], turn: int) -> None:
    limits = make(2, turn)
    assert entered(limits, 3) == ["", "", "2 connections wait already"]
    assert limits.waiting == 2
    limits.leave(b"r")
    assert entered(limits, 2) == ["", "2 connections wait already"]
    assert entered(make(0, turn), 1) == ["0 connections wait already"]


def alone(most: int, most_here: int, _: int) -> Limits:
    return Limits(1, most, most_here)


def with_others(most: int, most_here: int, turn: int) -> Limits:
    return SharedLimits(1, most, Board(2), turn, most_here)


@pytest.mark.parametrize("make", [alone, with_others])
def test_one_leaves_something_to_others(make: Callable[[int, int, int], Limits], turn: int) -> None:
    limits = make(5, 100, turn)
    assert entered(limits, 4) == ["", "", "", "3 connections wait for it already"]
    assert entered(limits, 3, b"s") == ["", "", "5 connections wait already"]
    limits.leave(b"r")
    assert entered(limits, 2) == ["", "5 connections wait already"]
    assert entered(make(1, 100, turn), 1) == [""]


@pytest.mark.parametrize("make", [alone, with_others])
def test_some_descriptors_are_left(make: Callable[[int, int, int], Limits], turn: int) -> None:
    limits = make(100, 2, turn)
    assert entered(limits, 3) == ["", "", "this process has no descriptors for more that wait"]
    limits.leave(b"r")
    assert entered(limits, 1, b"s") == [""]


def test_one_is_counted_in_all_workers(turn: int) -> None:
    limits = SharedLimits(1, 5, Board(2), turn, 100)

    def another_worker() -> None:
        limits._board.take_column(1)
        assert entered(limits, 2) == ["", ""]

    in_child(another_worker)
    assert entered(limits, 2) == ["", "3 connections wait for it already"]


def test_in_all_workers_together(turn: int) -> None:
    board = Board(2)
    limits = SharedLimits(1, 3, board, turn)

    def another_worker() -> None:
        board.take_column(1)
        assert entered(limits, 2) == ["", ""]

    assert entered(limits, 1) == [""]
    in_child(another_worker)
    assert board.total(OWN_OPEN) == 3
    assert entered(limits, 1) == ["3 connections wait already"]
    assert limits.waiting == 1
    board.clear(1)  # it has ended, and so nobody waits there
    assert entered(limits, 3) == ["", "", "3 connections wait already"]


def test_all_places_are_had(turn: int) -> None:
    """Workers who want the last ones at the same moment do not keep each other from them."""
    board, crowd, most = Board(4), 4, 3
    limits = SharedLimits(1, most, board, turn)
    for _ in range(50):
        ours, theirs = socket.socketpair()
        children = []
        for number in range(crowd):
            pid = os.fork()
            if pid == 0:
                board.take_column(number)
                theirs.recv(1)  # they all go at the same moment
                os._exit(entered(limits, most).count(""))
            children.append(pid)
        ours.send(bytes(crowd))
        got = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        assert sum(got) == most == board.total(OWN_OPEN)
        for number in range(crowd):
            board.clear(number)
        ours.close()
        theirs.close()


def test_a_turn_is_nobodys_once_its_owner_has_died(turn: int) -> None:
    limits = shared(1, turn)

    def dies() -> None:
        os.lockf(turn, os.F_LOCK, 0)

    in_child(dies)
    assert entered(limits, 1) == [""]
