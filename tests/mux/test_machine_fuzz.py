"""Anything at all from the port: the process lives on, and then a peer that is none of that is met.

What comes are bytes, frames, messages in every order, and whole conversations with bytes changed,
cut out and put in; in any pieces, to a side in any state.
"""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from played import MOST, V4, Played, wire
from strategies import endpoints, octets

from muonsocks.mux.frames import (
    HEADER,
    HELLO_SIZE,
    HELLO_START,
    LARGEST,
    MAGIC,
    Answer,
    Credit,
    Done,
    Eof,
    Goodbye,
    Hello,
    Open,
    Ping,
    Pong,
    Reset,
)
from muonsocks.mux.windows import LEAST

MEMORY = 1 << 18  # so little that it is soon used up
OURS = b"ours0001"

numbers = st.integers(0, 3) | st.sampled_from((MOST - 1, MOST, 0x7FFF, 0xFFFE, 0xFFFF))
counts = st.sampled_from((0, 1, 1 << 14, 1 << 31, (1 << 32) - 1)) | st.integers(0, 1 << 18)
session_numbers = st.sampled_from((b"theirs01", b"theirs02", OURS, b"ours0002", bytes(8)))
messages = st.one_of(
    st.builds(
        Hello, st.integers(0, 2), st.sampled_from((0, MOST)), session_numbers, session_numbers
    ),
    st.builds(Open, numbers, counts, endpoints),
    st.builds(Answer, numbers, counts, st.sampled_from((0, 0, 5)) | octets, endpoints),
    st.builds(Credit, numbers, counts),
    st.builds(Eof, numbers),
    st.builds(Reset, numbers, octets),
    st.builds(Done, numbers),
    st.builds(Ping, st.binary(min_size=8, max_size=8)),
    st.builds(Pong, st.binary(min_size=8, max_size=8)),
    st.builds(Goodbye, st.text(max_size=10)),
).map(wire)
bodies = st.binary(max_size=40) | st.sampled_from((bytes(LARGEST), MAGIC, HELLO_START, bytes(9000)))
data = st.tuples(numbers, bodies).map(wire)
headers = st.builds(HEADER.pack, st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
anything = st.one_of(messages, messages, data, headers, st.binary(max_size=60))


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Parts, one behind the other, and a few places where they are not what they were."""
    whole = bytearray(b"".join(draw(st.lists(anything, max_size=25))))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(whole)))
        kind = draw(st.sampled_from(("change", "cut", "put in", "twice")))
        if kind == "change":
            whole[place : place + 1] = bytes((draw(octets),))
        elif kind == "cut":
            del whole[place : place + draw(st.integers(1, 60))]
        elif kind == "put in":
            whole[place:place] = draw(anything)
        else:
            whole[place:place] = whole[max(place - 60, 0) : place]
    return bytes(whole)


def state_of(kind: str, is_host: bool) -> Played:
    """A side that is new, is being greeted, or has connections in all their states."""
    play = Played(is_host, MEMORY)
    if kind == "greeted":
        play.hears(play.hello(b"theirs01"))
    elif kind == "up":
        play.begin()
        if is_host:
            play.hears(*(Open(number, 1000, V4) for number in range(4)))
            for number in range(3):
                play.mux.answer(play.connections[number], 0)
        else:
            for _ in range(4):
                play.opens()
            play.hears(*(Answer(number, 1000, 0, V4) for number in range(3)))
        play.mux.end(play.connections[1])
        play.mux.reset(play.connections[2], 0)
    play.says()
    return play


def check(play: Played, whole: bytes, cuts: list[int]) -> None:
    """Give a side all of that in pieces, and see that it stands it."""
    mux = play.mux
    sent = 0
    places = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    for start, end in pairwise(places):
        was_up = mux.is_up
        events = play.hears(whole[start:end])
        check_events(events, was_up, mux.is_up)
        assert len(mux.room()) >= 1 << 19
        assert len(mux._connections) <= MOST and len(mux._free) <= MOST
        windows = MEMORY - mux._windows._left
        assert windows == sum(one.window for one in play.everyone), "a window is nobody's"
        assert windows <= MEMORY + LEAST * len(play.everyone)
        sent += sum(len(part) for part in mux.output)
        play.says()  # each of it can be read
    assert sent <= 5 * (len(whole) + HELLO_SIZE), "it says much more than it has heard"


def check_events(events: list[tuple[Any, ...]], was_up: bool, is_up: bool) -> None:
    """Sessions begin and end in turn, and what is heard is heard in one."""
    up = was_up
    for event in events:
        if event[0] == "began":
            assert not up
            up = True
        elif event[0] == "over":
            assert up or event[1].endswith("too")
            up = False
        else:
            assert up, "it is heard in no session"
    assert up == is_up


each_state = pytest.mark.parametrize("state", ["new", "greeted", "up"])
each_side = pytest.mark.parametrize("is_host", [True, False], ids=["host", "guest"])
often = settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@each_side
@each_state
@often
@given(whole=damaged(), cuts=st.lists(st.integers(0, 2000), max_size=8))
def test_it_lives_on(state: str, is_host: bool, whole: bytes, cuts: list[int]) -> None:
    play = state_of(state, is_host)
    check(play, whole, cuts)
    meets_a_peer(play)


def meets_a_peer(play: Played) -> None:
    """One who keeps to the protocol gets a session, though half a frame may be in its way."""
    for _ in range(2):  # the first HELLO may be lost in half a one
        play.hears(play.hello(b"somebody"))
    hello = play.says()[-1]
    assert isinstance(hello, Hello) and hello.echo == b"somebody"
    assert play.hears(play.hello(b"somebody", hello.number)) == [("began",)]
    for one in play.everyone:
        play.mux.release(one)
    assert play.mux._windows._left == MEMORY
    assert play.says() == []
    if play.is_host:
        assert play.hears(Open(3, 1000, V4)) == [("opened", 3, V4)]
        play.mux.answer(play.connections[3], 0)
        number = 3
    else:
        number = play.opens().number
        assert number == 0
        assert play.hears(Answer(0, 1000, 0, V4)) == [("answered", 0, 0, V4)]
    play.says()
    assert play.hears((number, b"data"), Eof(number)) == [
        ("data", number, b"data"),
        ("ended", number),
    ]
    play.mux.end(play.connections[number])
    assert play.says() == [Eof(number), Done(number)]


@each_side
@often
@given(st.lists(st.binary(max_size=200), max_size=20))
def test_noise_begins_nothing(is_host: bool, pieces: list[bytes]) -> None:
    play = Played(is_host)
    for piece in pieces:
        assert play.hears(piece) == []
        assert play.mux.is_strange
    assert play.says() == []


@each_side
def test_much_noise_between_greetings(is_host: bool) -> None:
    """A megabyte of each kind, a HELLO in the middle of it, in full reads."""
    for noise in (bytes(1 << 20), b"\xff" * (1 << 20), MAGIC * (1 << 15), HELLO_START * (1 << 15)):
        play = Played(is_host)
        stream = noise + wire(play.hello(b"theirs01", OURS)) * 2
        for start in range(0, len(stream), 1 << 19):
            play.hears(stream[start : start + (1 << 19)])
        assert play.mux.is_up
