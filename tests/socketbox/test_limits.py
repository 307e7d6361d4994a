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


def shared(most: int, turn: int, workers: int = 1) -> SharedLimits:
    return SharedLimits(1, most, Board(workers), turn)


@pytest.mark.parametrize("make", [lambda most, _: Limits(1, most), shared], ids=["one", "shared"])
def test_so_many_and_no_more(make: Callable[[int, int], Limits], turn: int) -> None:
    limits = make(2, turn)
    assert [limits.enter() for _ in range(3)] == [True, True, False]
    assert limits.waiting == 2
    limits.leave()
    assert [limits.enter() for _ in range(2)] == [True, False]
    assert not make(0, turn).enter()


def test_in_all_workers_together(turn: int) -> None:
    board = Board(2)
    limits = SharedLimits(1, 3, board, turn)

    def another_worker() -> None:
        board.take_column(1)
        assert [limits.enter() for _ in range(2)] == [True, True]

    assert limits.enter()
    in_child(another_worker)
    assert board.total(OWN_OPEN) == 3
    assert not limits.enter()
    assert limits.waiting == 1
    board.clear(1)  # it has ended, and so nobody waits there
    assert [limits.enter() for _ in range(3)] == [True, True, False]


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
                os._exit(sum(limits.enter() for _ in range(most)))
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
    assert limits.enter()
