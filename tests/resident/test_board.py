"""The board: each worker writes in its own column, and all read the sums."""

import random
from time import monotonic

import pytest
from places import in_child

from muonsocks.resident.board import (
    CUT,
    FIRST_OWN,
    FULL,
    HEARTBEAT,
    OPEN,
    OWN_OPEN,
    REFUSED,
    SECOND_OWN,
    SERVED,
    SHORT,
    Board,
)


def in_column(board: Board, worker: int) -> Board:
    board.take_column(worker)
    return board


def test_sums_over_columns() -> None:
    board = Board(3)
    for worker in range(3):
        board.take_column(worker)
        board.add(OPEN, worker + 1)
        board.add(SERVED, 10)
        board.set(SHORT, 1)
    board.add(OPEN, -2)
    assert [board.total(field) for field in (OPEN, SERVED, REFUSED, CUT, SHORT)] == [4, 30, 0, 0, 3]
    board.set(SHORT, 0)
    assert board.total(SHORT) == 2


def test_what_workers_write_is_seen_by_all() -> None:
    """Made before the workers, it is memory that they share."""
    board = Board(2)

    def work() -> None:
        board.take_column(1)
        board.add(OPEN, 7)
        board.count_source(b"\x0a\0\0\1", 3)

    in_child(work)
    assert board.total(OPEN) == 7
    assert board.connections_of(b"\x0a\0\0\1") == 3
    assert board.clear(1) == 7


def test_what_a_service_counts() -> None:
    """It is nobody else's; a worker that is no more has done it, and has nothing open."""
    board = Board(2)
    for worker in range(2):
        board.take_column(worker)
        board.add(FIRST_OWN, 3)
        board.add(SECOND_OWN, 4)
        board.add(OWN_OPEN, 5)
    fields = (OPEN, SERVED, REFUSED, CUT, SHORT, FULL)
    assert [board.total(field) for field in fields] == [0] * 6
    assert board.connections_of(b"\x0a\0\0\1") == 0
    board.clear(0)
    assert [board.total(field) for field in (FIRST_OWN, SECOND_OWN, OWN_OPEN)] == [6, 8, 5]


def test_a_worker_that_is_no_more() -> None:
    """Its connections are forgotten, what it has done is not; the others stay as they were."""
    board = Board(2)
    for worker in range(2):
        board.take_column(worker)
        board.add(OPEN, 5)
        board.add(SERVED, 50)
        board.add(CUT, 1)
        board.set(SHORT, 1)
        board.count_source(b"\x0a\0\0\1", 2)
    assert board.total(FULL) == 0
    assert board.clear(0) == 5
    assert board.total(FULL) == 1  # it has no room for anybody
    assert [board.total(field) for field in (OPEN, SERVED, CUT, SHORT)] == [5, 100, 2, 1]
    assert board.connections_of(b"\x0a\0\0\1") == 2
    assert board.clear(0) == 0


def test_signs_of_life() -> None:
    board = Board(2)
    started = monotonic()
    for worker in range(2):
        board.clear(worker)  # a new worker is alive
        assert 0 <= board.silence(worker) <= monotonic() - started
    board.take_column(1)
    board.set(HEARTBEAT, board._counters[HEARTBEAT] - 5_000_000_000)
    assert 5 <= board.silence(1) <= 5 + monotonic() - started
    assert board.silence(0) < 5
    board.beat()
    assert board.silence(1) < 5


def test_sources_are_counted_over_all_workers() -> None:
    board = Board(3)
    for worker in range(3):
        in_column(board, worker).count_source(b"\x0a\0\0\1", 1)
        board.count_source(b"\x20\x01\x0d\xb8\0\0\0\1", 2)
    assert board.connections_of(b"\x0a\0\0\1") == 3
    assert board.connections_of(b"\x20\x01\x0d\xb8\0\0\0\1") == 6
    board.count_source(b"\x0a\0\0\1", -1)
    assert board.connections_of(b"\x0a\0\0\1") == 2


@pytest.mark.parametrize("seed", range(3))
def test_a_source_is_never_taken_for_less_than_it_is(seed: int) -> None:
    """And seldom for more, as long as there are fewer sources than cells in a row."""
    rng, board, exact = random.Random(seed), Board(3), dict[bytes, int]()
    sources = [rng.randbytes(rng.choice([4, 8])) for _ in range(800)]
    came: list[tuple[int, bytes]] = []
    for _ in range(3000):
        if came and rng.random() < 0.4:
            worker, source = came.pop(rng.randrange(len(came)))
            change = -1
        else:
            worker, source = rng.randrange(3), rng.choice(sources)
            came.append((worker, source))
            change = 1
        in_column(board, worker).count_source(source, change)
        exact[source] = exact.get(source, 0) + change
    differences = [board.connections_of(source) - count for source, count in exact.items()]
    assert min(differences) >= 0
    assert sum(difference > 0 for difference in differences) < len(exact) / 20
    for worker, source in came:
        in_column(board, worker).count_source(source, -1)
    assert not any(map(board.connections_of, sources))
