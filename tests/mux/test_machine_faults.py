"""A peer that breaks the protocol: its session ends with a reason, and the next one works."""

from collections.abc import Callable

import pytest
from played import MEMORY, MOST, THEIRS, V4, V6, Played, Said, wire

from muonsocks.mux.frames import (
    LARGEST,
    Answer,
    Credit,
    Done,
    Eof,
    Goodbye,
    Open,
    Ping,
    Reset,
)
from muonsocks.mux.windows import FIRST

# What a side is in the middle of: connection 0 answered, and 1 not yet.


def hosts() -> Played:
    host = Played.in_session(True)
    host.hears(Open(0, 1000, V4), Open(1, 1000, V6))
    host.mux.answer(host.connections[0], 0)
    host.says()
    return host


def guests() -> Played:
    guest = Played.in_session(False)
    guest.opens()
    guest.opens()
    guest.hears(Answer(0, 1000, 0, V4))
    return guest


EITHER: dict[str, tuple[list[Said | bytes], str]] = {
    "data of a number that is not open": ([(5, b"x")], "data of connection 5, which is not open"),
    "data of a number that cannot be": ([(0x8000, b"x")], "data of connection 32768"),
    "no data of a number that is not open": ([(5, b"")], "data of connection 5"),
    "data of what is not answered": ([(1, b"x")], "data of connection 1, which is not open"),
    "a frame that is too long": ([b"\0\0\xfd\x7f"], "a frame of 32765 bytes"),
    "the longest there can be": ([b"\0\0\xff\xff"], "a frame of 65535 bytes"),
    "a control message that is too long": ([b"\xff\xff\0\x80"], "a frame of 32768 bytes"),
    "more than the window": (
        [(0, bytes(LARGEST))] * 8 + [(0, bytes(33))],
        "connection 0 sends more than its window",
    ),
    "data behind the end": ([Eof(0), (0, b"x")], "connection 0 sends more after its end"),
    "no data behind the end": ([Eof(0), (0, b"")], "connection 0 sends more after its end"),
    "an end behind the end": ([Eof(0), Eof(0)], "an EOF of connection 0 out of turn"),
    "an end of what is not answered": ([Eof(1)], "an EOF of connection 1 out of turn"),
    "an end of what is not open": ([Eof(2)], "about connection 2, which is not open"),
    "a reset of what is not open": ([Reset(2, 0)], "about connection 2, which is not open"),
    "credit for what is not open": ([Credit(2, 1)], "about connection 2, which is not open"),
    "the last word on what is not open": ([Done(2)], "about connection 2, which is not open"),
    "the last word too early": ([Done(0)], "a DONE of connection 0 out of turn"),
    "the last word after one end": ([Eof(0), Done(0)], "a DONE of connection 0 out of turn"),
    "a reset behind a reset": ([Reset(0, 0), Reset(0, 0)], "connection 0, which is not open"),
    "data behind a reset": ([Reset(0, 0), (0, b"x")], "data of connection 0, which is not open"),
    "credit without bound": ([Credit(0, 1 << 30)] * 2, "more credit than there can be"),
    "credit of all at once": ([Credit(0, (1 << 32) - 1)], "more credit than there can be"),
    "credit for what is not answered": ([Credit(1, 1)], "a CREDIT of connection 1 out of turn"),
    "an unknown message": ([(0xFFFF, b"\x0a12")], "a control message of type 10 with 3 bytes"),
    "a message of the wrong size": ([(0xFFFF, b"\x04\0")], "of type 4 with 2 bytes"),
    "an address that is none": (
        [(0xFFFF, b"\1\2\0\0\0\1\0\3\0\0\0")],
        "an OPEN with a name that is none",
    ),
}
TO_A_HOST: dict[str, tuple[list[Said | bytes], str]] = {
    "an OPEN of what is open": ([Open(0, 1, V4)], "an OPEN of connection 0, which is open"),
    "an OPEN of what waits": ([Open(1, 1, V4)], "an OPEN of connection 1, which is open"),
    "an OPEN above the limit": ([Open(MOST, 1, V4)], f"connection {MOST}, of {MOST}"),
    "an OPEN far above": ([Open(0xFFFE, 1, V4)], f"an OPEN of connection 65534, of {MOST}"),
    "an OPEN with too much": ([Open(2, (1 << 31) + 1, V4)], "more credit than there can be"),
    "an ANSWER": ([Answer(0, 1, 0, V4)], "an ANSWER that nobody has asked for"),
    "an ANSWER to what waits here": ([Answer(1, 1, 0, V4)], "an ANSWER that nobody has asked for"),
}
TO_A_GUEST: dict[str, tuple[list[Said | bytes], str]] = {
    "an OPEN": ([Open(7, 1, V4)], "an OPEN from a host"),
    "an ANSWER with too much": ([Answer(1, (1 << 31) + 1, 0, V4)], "more credit than there can be"),
    "a second ANSWER": ([Answer(0, 1, 0, V4)], "an ANSWER that nobody has asked for"),
    "a refusal after success": ([Answer(0, 0, 1, V4)], "an ANSWER that nobody has asked for"),
    "an ANSWER to nothing": ([Answer(2, 1, 0, V4)], "about connection 2, which is not open"),
    "an ANSWER behind a refusal": (
        [Answer(1, 0, 1, V4), Answer(1, 0, 0, V4)],
        "about connection 1, which is not open",
    ),
    "data behind a refusal": ([Answer(1, 0, 1, V4), (1, b"x")], "data of connection 1"),
}
FAULTS = [
    *((f"host: {name}", hosts, *fault) for name, fault in (EITHER | TO_A_HOST).items()),
    *((f"guest: {name}", guests, *fault) for name, fault in (EITHER | TO_A_GUEST).items()),
]
each_fault = pytest.mark.parametrize(
    ("side", "said", "reason"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS]
)


@each_fault
def test_a_fault_ends_the_session(
    side: Callable[[], Played], said: list[Said | bytes], reason: str
) -> None:
    play = side()
    before = [event for one in said[:-1] for event in play.hears(one)]
    assert "over" not in {event[0] for event in before}
    play.says()
    ((kind, text),) = play.hears(said[-1], Ping(b"12345678"))
    assert kind == "over"
    assert text.startswith("it has broken the protocol: ") and reason in text
    (goodbye,) = play.says()
    assert isinstance(goodbye, Goodbye)
    assert f"it has broken the protocol: {goodbye.reason}" == text, "the one who did it is told"
    is_told = {one.owner for one in play.connections.values()}
    assert set(play.owners) <= is_told
    assert all(one.let_go_here and not one.credit for one in play.connections.values())
    assert not play.mux.is_up

    # What it says before it has heard that is nobody's.
    assert play.hears(*said, Ping(b"12345678")) == []
    assert play.says() == []

    # The next session
    for one in play.connections.values():
        play.mux.release(one)
    assert play.mux._windows._left == MEMORY, "the fault has cost memory"
    play.begin(b"theirs02")
    if play.is_host:
        assert play.hears(Open(0, 1000, V4)) == [("opened", 0, V4)]
        play.mux.answer(play.connections[0], 0)
    else:
        play.opens()
        assert play.hears(Answer(0, 1000, 0, V4)) == [("answered", 0, 0, V4)]
    play.says()
    assert play.hears((0, b"data"), Eof(0)) == [("data", 0, b"data"), ("ended", 0)]
    assert play.is_free(1)


@each_fault
def test_a_fault_is_found_wherever_it_is_cut(
    side: Callable[[], Played], said: list[Said | bytes], reason: str
) -> None:
    play = side()
    for one in said[:-1]:
        play.hears(one)
    data = wire(said[-1], Ping(b"12345678"))
    events = [event for i in range(len(data)) for event in play.hears(data[i : i + 1])]
    assert [event[0] for event in events if event[0] != "data"] == ["over"]
    assert reason in events[-1][1]


@pytest.mark.parametrize("side", [hosts, guests], ids=["host", "guest"])
def test_all_owners_are_told(side: Callable[[], Played]) -> None:
    play = side()
    play.hears((9, b"x"))
    assert play.owners == ["owner 0", "owner 1"]


@pytest.mark.parametrize("side", [hosts, guests], ids=["host", "guest"])
def test_what_is_on_its_way_to_one_who_has_let_go_counts_too(side: Callable[[], Played]) -> None:
    """Nobody waits for that data, but a window is a window."""
    play = side()
    play.mux.release(play.connections[0])
    play.says()
    assert play.hears(*[(0, bytes(LARGEST))] * 8, (0, bytes(32))) == []
    ((kind, text),) = play.hears((0, b"x"))
    assert kind == "over" and "more than its window" in text


def test_the_window_is_used_up_to_the_last_byte() -> None:
    host = hosts()
    assert FIRST == 8 * LARGEST + 32
    ((_, number, data),) = host.hears(*[(0, bytes(LARGEST))] * 8, (0, bytes(32)), (0, b""))
    assert (number, len(data)) == (0, FIRST)
    assert host.connections[0].left == 0


def test_a_peer_that_always_breaks_it_gets_no_further() -> None:
    host = Played(True)
    for count in range(200):
        host.begin(b"peer%04d" % count)
        host.hears(*(Open(number, 1, V4) for number in range(MOST)))
        opened = list(host.connections.values())
        host.hears((MOST, b"x"))
        for one in opened:
            host.mux.release(one)
        assert len(host.says()) == 1
        assert not host.mux._connections and not host.mux._free
    assert host.mux._windows._left == MEMORY


def test_a_host_does_not_grow_with_what_is_over() -> None:
    host = Played.in_session(True)
    for _ in range(500):
        host.hears(Open(0, 1, V4), Reset(0, 0))
        host.mux.release(host.connections[0])
        host.says()
    assert not host.mux._connections and not host.mux._free
    assert host.mux._windows._left == MEMORY


def test_a_fault_in_a_greeting_is_only_not_heard() -> None:
    host = Played(True)
    assert host.hears((9, b"x"), b"\xff\xff\xff\xff", Credit(9, 1), Open(999, 1, V4)) == []
    assert host.says() == []
    host.begin(THEIRS)
