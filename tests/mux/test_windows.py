"""The windows of all connections, within one bound."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muonsocks.mux.connection import Connection
from muonsocks.mux.windows import FIRST, LEAST, Windows

PLENTY = 1 << 26


def opened(windows: Windows) -> Connection:
    return Connection(0, 0, windows.take())


def used_up(windows: Windows, connection: Connection) -> int:
    """Have the other side send all it may, use all of that here, and give the credit for it."""
    connection.unreturned += connection.left
    connection.left = 0
    return windows.renew(connection)


def test_a_first_window() -> None:
    assert Windows(PLENTY).take() == FIRST == 1 << 18


def test_first_windows_get_smaller_and_then_no_smaller() -> None:
    windows = Windows(1 << 20)
    sizes = [windows.take() for _ in range(200)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == (1 << 20) // 8
    assert sizes[-1] == LEAST == 1 << 14
    assert sum(sizes[:-100]) >= 1 << 20, "they are small before the memory is used"


def test_without_memory_there_is_the_least() -> None:
    assert [Windows(0).take(), Windows(1).take(), Windows(LEAST).take()] == [LEAST] * 3


def test_what_is_given_back_can_be_taken() -> None:
    windows = Windows(FIRST * 8)
    connections = [opened(windows) for _ in range(500)]
    assert windows.take() == LEAST
    for one in connections:
        windows.give_back(one)
        windows.give_back(one)  # harmless
        assert one.window == 0
    windows.give_back(Connection(0, 0, LEAST))  # the one above
    assert windows.take() == FIRST


def test_credit_is_what_was_consumed() -> None:
    windows = Windows(PLENTY)
    one = opened(windows)
    one.left -= 100_000
    one.unreturned += 60_000  # and 40_000 wait
    assert windows.renew(one) == 60_000
    assert (one.window, one.left, one.unreturned) == (FIRST, FIRST - 40_000, 0)


def test_a_window_that_is_the_limit_grows() -> None:
    windows = Windows(PLENTY)
    one = opened(windows)
    assert used_up(windows, one) == 2 * FIRST
    assert one.window == one.left == 2 * FIRST
    assert used_up(windows, one) == 4 * FIRST


def test_a_window_in_which_much_waits_here_does_not_grow() -> None:
    windows = Windows(PLENTY)
    one = opened(windows)
    one.left = 0
    one.unreturned = FIRST * 7 // 8 - 1  # a byte too many waits
    assert windows.renew(one) == FIRST * 7 // 8 - 1
    one.left = 0
    one.unreturned = FIRST * 7 // 8
    assert windows.renew(one) == FIRST * 15 // 8


def test_a_window_that_is_not_used_up_does_not_grow() -> None:
    windows = Windows(PLENTY)
    one = opened(windows)
    one.left = FIRST // 4 + 1
    one.unreturned = FIRST - one.left
    windows.renew(one)
    assert one.window == FIRST
    one.left = FIRST // 4
    one.unreturned = FIRST - one.left
    windows.renew(one)
    assert one.window == 2 * FIRST


def test_one_takes_a_part_of_what_is_left() -> None:
    windows = Windows(16 * FIRST)
    one = opened(windows)
    for _ in range(100):
        before = one.window
        used_up(windows, one)
        left = 8 * FIRST - before
        assert one.window - before <= max(left // 4, 0)
    assert 6 * FIRST < one.window <= 8 * FIRST, "it does not get what nobody else wants"


def test_those_that_have_grown_and_idle_leave_half_to_others() -> None:
    """What they have cannot be taken back, however long they do nothing."""
    windows = Windows(PLENTY)
    for _ in range(20):
        one = opened(windows)
        for _ in range(50):
            used_up(windows, one)
    assert windows._left > PLENTY // 2 - 20 * FIRST
    assert [windows.take() for _ in range(20)] == 20 * [FIRST]


def test_one_that_has_grown_gets_smaller_when_memory_is_short() -> None:
    windows = Windows(1 << 23)
    one = opened(windows)
    while one.window < 1 << 21:
        used_up(windows, one)
    grown = one.window
    others = [opened(windows) for _ in range(1000)]
    total = grown + sum(other.window for other in others)
    credit = used_up(windows, one)
    assert credit == one.window == grown - grown // 2, "half of what is due, at most"
    for _ in range(20):
        assert used_up(windows, one) > 0, "it stands still"
    assert one.window == LEAST
    for other in others:
        windows.give_back(other)
    assert total > 1 << 23
    used_up(windows, one)
    assert one.window == 2 * LEAST


def test_it_gets_no_smaller_than_is_needed() -> None:
    windows = Windows(1 << 23)
    one = opened(windows)
    while one.window < 1 << 21:
        used_up(windows, one)
    windows._left = -100
    before = one.window
    used_up(windows, one)
    assert (one.window, windows._left) == (before - 100, 0)


@pytest.mark.parametrize("memory", [0, 1, LEAST, 3 * FIRST, PLENTY])
@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("ogsscccr"), st.integers(0, 9), st.integers(1, 100))))
def test_the_sum_is_bounded(memory: int, steps: list[tuple[str, int, int]]) -> None:
    windows = Windows(memory)
    connections: list[Connection] = []
    waits: dict[int, int] = {}
    for step, which, percent in steps:
        if step == "o":
            connections.append(opened(windows))
            waits[id(connections[-1])] = 0
        elif connections:
            one = connections[which % len(connections)]
            if step == "g":
                windows.give_back(one)
                connections.remove(one)
            elif step == "s":
                count = one.left * percent // 100
                one.left -= count
                waits[id(one)] += count
            elif step == "c":
                count = waits[id(one)] * percent // 100
                waits[id(one)] -= count
                one.unreturned += count
            else:
                due = one.unreturned
                credit = windows.renew(one)
                assert one.unreturned == 0
                assert credit > 0 or not due, "what has been consumed gives no credit at all"
        for one in connections:
            assert one.window == one.left + one.unreturned + waits[id(one)]
            assert one.window >= LEAST
        total = sum(one.window for one in connections)
        assert total <= memory + LEAST * len(connections)
        assert windows._left == memory - total
