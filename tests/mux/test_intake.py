"""A buffer that gives back what was put in, in order, and always has room for more."""

from hypothesis import given, settings
from hypothesis import strategies as st

from muonsocks.mux.intake import Intake

ROOM = 1 << 19  # bytes that can be read at a time
MOST_LEFT = 1 << 16


def put(intake: Intake, data: bytes) -> int:
    """Put in what was read, and count it."""
    intake.room()[: len(data)] = data
    return len(data)


def test_what_is_put_in_is_there() -> None:
    intake = Intake()
    assert len(intake.room()) == ROOM + MOST_LEFT
    assert put(intake, b"hello") == 5
    intake.end += 5
    assert bytes(intake.view[intake.start : intake.end]) == b"hello"


def test_what_is_left_moves_to_the_front() -> None:
    intake = Intake()
    intake.end += put(intake, b"used, left")
    intake.start += 6
    room = intake.room()
    assert (intake.start, intake.end) == (0, 4)
    assert bytes(intake.memory[:4]) == b"left"
    assert len(room) == ROOM + MOST_LEFT - 4
    room[:5] = b" over"
    intake.end += 5
    assert bytes(intake.view[: intake.end]) == b"left over"


def test_more_is_left_than_was_used() -> None:
    intake = Intake()
    data = bytes(range(256)) * 100
    intake.end += put(intake, data)
    intake.start += 3  # what is left overlaps with where it goes
    intake.room()
    assert bytes(intake.view[: intake.end]) == data[3:]


def test_room_asked_for_twice_is_the_same() -> None:
    intake = Intake()
    intake.end += put(intake, b"left")
    intake.start = 1
    intake.room()
    assert len(intake.room()) == ROOM + MOST_LEFT - 3
    assert bytes(intake.view[: intake.end]) == b"eft"


steps = st.lists(st.tuples(st.integers(0, ROOM), st.integers(0, MOST_LEFT)), max_size=12)


@settings(deadline=None, max_examples=60)
@given(steps)
def test_nothing_is_lost_or_made_up(steps: list[tuple[int, int]]) -> None:
    intake = Intake()
    unread = b""
    for count, (size, left) in enumerate(steps):
        data = (b"%d." % count * size)[:size]
        room = intake.room()
        assert len(room) >= ROOM >= size
        room[:size] = data
        intake.end += size
        unread += data
        assert bytes(intake.view[intake.start : intake.end]) == unread
        used = max(len(unread) - left, 0)
        intake.start += used
        unread = unread[used:]
