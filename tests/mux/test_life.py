"""The life of a connection: what each side says and hears of it, in every order there can be."""

from collections import deque
from typing import Any

import pytest
from played import MEMORY, NAME, V4, V6, Played

from muonsocks.mux.frames import Answer, Credit, Done, Eof, Open, Reset
from muonsocks.mux.windows import FIRST, LEAST
from muonsocks.socks.request import UNSPECIFIED

REFUSED = 5


def host_with_one() -> Played:
    """A host that has answered an OPEN of connection 0."""
    host = Played.in_session(True)
    assert host.hears(Open(0, 1000, V4)) == [("opened", 0, V4)]
    host.mux.answer(host.connections[0], 0, V6)
    assert host.says() == [Answer(0, FIRST, 0, V6)]
    return host


def guest_with_one() -> Played:
    """A guest whose OPEN has been answered."""
    guest = Played.in_session(False)
    guest.opens()
    assert guest.hears(Answer(0, 1000, 0, V6)) == [("answered", 0, 0, V6)]
    return guest


ONE = {"host": host_with_one, "guest": guest_with_one}
each_side = pytest.mark.parametrize("one", ONE.values(), ids=ONE)


# Opening


def test_open_and_answer() -> None:
    guest = Played.in_session(False)
    one = guest.mux.open(NAME)
    assert one is not None
    assert guest.says() == [Open(0, FIRST, NAME)]
    assert (one.answered, one.credit) == (False, 0)
    assert guest.hears(Answer(0, 1000, 0, V6)) == [("answered", 0, 0, V6)]
    assert (one.answered, one.credit) == (True, 1000)


def test_a_host_is_asked_and_answers() -> None:
    host = host_with_one()
    one = host.connections[0]
    assert (one.answered, one.credit, one.window, one.left) == (True, 1000, FIRST, FIRST)


def test_a_refusal() -> None:
    guest, host = Played.in_session(False), Played.in_session(True)
    guest.opens()
    host.hears(Open(0, FIRST, V4))
    host.mux.answer(host.connections[0], REFUSED)
    (answer,) = host.says()
    assert answer == Answer(0, 0, REFUSED, UNSPECIFIED)
    assert host.connections[0].let_go_here and not host.is_free(0)
    assert guest.hears(answer) == [("answered", 0, REFUSED, UNSPECIFIED)]
    assert guest.is_free(0)
    (done,) = guest.says()
    assert done == Done(0)
    assert host.hears(done) == []
    assert host.is_free(0)
    for side in (guest, host):
        side.mux.release(side.connections[0])
        assert side.says() == []


def test_many_at_once_have_numbers_of_their_own() -> None:
    guest = Played.in_session(False)
    assert [guest.opens().number for _ in range(5)] == [0, 1, 2, 3, 4]
    assert guest.hears(*(Answer(n, 1, 0, V4) for n in (3, 1, 4, 0, 2))) == [
        ("answered", n, 0, V4) for n in (3, 1, 4, 0, 2)
    ]


def test_the_number_that_was_free_first_is_used_first() -> None:
    guest = Played.in_session(False, connections=3)
    guest.mux.limit = 3
    for _ in range(3):
        guest.opens()
    assert guest.mux.open(V4) is None
    for number in (1, 0):
        guest.mux.release(guest.connections[number])
        assert guest.mux.open(V4) is None, "the host has not let go of it"
    guest.says()
    guest.hears(Done(1), Done(0))
    assert [guest.opens().number, guest.opens().number] == [1, 0]
    assert guest.mux.open(V4) is None


def test_a_host_counts_as_it_has_said() -> None:
    host = Played.in_session(True, connections=3)
    assert len(host.hears(*(Open(n, 1, V4) for n in range(3)))) == 3
    ((end, reason),) = host.hears(Open(3, 1, V4))
    assert (end, "connection 3, of 3" in reason) == ("over", True)


# Data


@each_side
def test_data_comes_in_the_order_it_was_sent(one: Any) -> None:
    side = one()
    assert side.hears((0, b"one"), (0, b", two"), (0, b""), (0, b", three")) == [
        ("data", 0, b"one, two, three")
    ]
    assert side.connections[0].left == FIRST - 15
    assert side.hears((0, b"")) == []


def test_data_of_several_connections() -> None:
    host = host_with_one()
    host.hears(Open(1, 1, V4))
    host.mux.answer(host.connections[1], 0)
    assert host.hears((0, b"a"), (1, b"b"), (1, b"c"), (0, b"d"), Eof(0), (1, b"e")) == [
        ("data", 0, b"a"),
        ("data", 1, b"bc"),
        ("data", 0, b"d"),
        ("ended", 0),
        ("data", 1, b"e"),
    ]


def test_data_of_a_number_that_is_used_again_in_one_piece() -> None:
    host = host_with_one()
    host.hears(Eof(0))
    host.mux.end(host.connections[0])
    assert host.says() == [Eof(0), Done(0)]
    events = host.hears(Done(0), Open(0, 7, NAME))
    assert events == [("opened", 0, NAME)]
    assert host.connections[0].credit == 7


@each_side
def test_an_end_between_data_is_in_its_place(one: Any) -> None:
    side = one()
    assert side.hears((0, b"a"), Credit(0, 5), (0, b"b"), Eof(0), Reset(0, 3)) == [
        ("data", 0, b"a"),
        ("data", 0, b"b"),
        ("ended", 0),
        ("reset", 0, 3),
    ]
    assert side.says() == [Done(0)]


# Credit


@each_side
def test_credit_is_given_when_half_a_window_has_been_consumed(one: Any) -> None:
    side = one()
    connection = side.connections[0]
    for _ in range(4):
        side.hears(*8 * [(0, bytes(FIRST // 32))])
    assert connection.left == 0
    side.mux.consume(connection, FIRST // 2 - 1)
    assert side.says() == []
    side.mux.consume(connection, 1)
    assert side.says() == [Credit(0, FIRST // 2)]
    assert connection.left == FIRST // 2
    side.mux.consume(connection, FIRST // 2)
    (credit,) = side.says()
    assert credit.count >= FIRST // 2


@each_side
def test_credit_is_taken(one: Any) -> None:
    side = one()
    connection = side.connections[0]
    assert side.hears(Credit(0, 500)) == []
    assert connection.credit == 1500
    connection.credit = 0  # all of it has been used
    assert side.hears(Credit(0, 0)) == []
    assert side.hears(Credit(0, 1), Credit(0, 6)) == [("credited", 0)]
    assert connection.credit == 7


@each_side
def test_no_credit_is_given_when_no_more_is_to_come(one: Any) -> None:
    whole = 16 * [(0, bytes(FIRST // 16))]
    for end in (Eof(0), Reset(0, 0)):
        side = one()
        connection = side.connections[0]
        assert len(side.hears(*whole, end)) == 2
        side.says()
        side.mux.consume(connection, FIRST)
        assert side.says() == []
    side = one()
    assert len(side.hears(*whole)) == 1
    side.mux.reset(side.connections[0], 0)
    side.says()
    side.mux.consume(side.connections[0], FIRST)
    assert side.says() == []


@each_side
def test_the_window_of_one_that_is_released_is_anothers(one: Any) -> None:
    side = one()
    connection = side.connections[0]
    assert side.mux._windows._left == MEMORY - FIRST
    side.mux.release(connection)
    side.mux.release(connection)
    assert side.mux._windows._left == MEMORY
    assert side.says() == [Reset(0, 0)]


def test_a_thousand_connections_without_memory_for_them() -> None:
    host = Played.in_session(True, memory=1 << 20, connections=1000)
    host.hears(*(Open(n, 1, V4) for n in range(1000)))
    assert {host.connections[n].window for n in range(900, 1000)} == {LEAST}
    assert sum(one.window for one in host.connections.values()) <= (1 << 20) + 1000 * LEAST


# Ends


@each_side
def test_they_end_first(one: Any) -> None:
    side = one()
    assert side.hears((0, b"last"), Eof(0)) == [("data", 0, b"last"), ("ended", 0)]
    assert side.says() == []
    side.mux.end(side.connections[0])
    assert side.says() == [Eof(0), Done(0)]
    assert not side.is_free(0)
    assert side.hears(Done(0)) == []
    assert side.is_free(0)


@each_side
def test_we_end_first(one: Any) -> None:
    side = one()
    side.mux.end(side.connections[0])
    side.mux.end(side.connections[0])
    assert side.says() == [Eof(0)]
    assert side.hears((0, b"still")) == [("data", 0, b"still")]
    assert side.hears(Eof(0), Done(0)) == [("ended", 0)]
    assert side.says() == [Done(0)]
    assert side.is_free(0)
    side.mux.release(side.connections[0])
    assert side.says() == []


@each_side
def test_they_reset(one: Any) -> None:
    side = one()
    assert side.hears((0, b"last"), Reset(0, 4)) == [("data", 0, b"last"), ("reset", 0, 4)]
    assert side.says() == [Done(0)]
    assert side.is_free(0)
    side.mux.reset(side.connections[0], 1)
    side.mux.end(side.connections[0])
    side.mux.release(side.connections[0])
    assert side.says() == []


@each_side
def test_we_reset(one: Any) -> None:
    side = one()
    side.mux.reset(side.connections[0], 2)
    side.mux.reset(side.connections[0], 1)
    side.mux.end(side.connections[0])
    assert side.says() == [Reset(0, 2)]
    assert side.connections[0].credit == 0
    assert side.hears((0, b"on its way"), Credit(0, 9), Eof(0)) == [], "nobody wants that"
    assert side.connections[0].credit == 0
    assert not side.is_free(0)
    assert side.hears(Done(0)) == []
    assert side.is_free(0)
    assert side.says() == []


@each_side
def test_both_reset(one: Any) -> None:
    side = one()
    side.mux.reset(side.connections[0], 2)
    assert side.hears((0, b"on its way"), Reset(0, 3)) == []
    assert side.says() == [Reset(0, 2)]
    assert side.is_free(0)


@each_side
def test_a_reset_that_meets_the_last_word(one: Any) -> None:
    side = one()
    side.mux.end(side.connections[0])
    assert side.hears(Eof(0)) == [("ended", 0)]
    assert side.says() == [Eof(0), Done(0)]
    assert side.hears(Reset(0, 1)) == [], "it was said before they heard that"
    assert side.is_free(0)
    assert side.says() == []


def test_a_guest_resets_what_was_not_answered() -> None:
    for answer in (None, Answer(0, 1000, 0, V6), Answer(0, 0, REFUSED, V6)):
        guest = Played.in_session(False)
        one = guest.opens()
        guest.mux.release(one)
        assert guest.says() == [Reset(0, 0)]
        last = [Done(0)] if answer is None or not answer.code else []
        if answer is not None:
            assert guest.hears(answer) == []
            assert one.credit == 0
            assert guest.is_free(0) == (not last)
        assert guest.hears(*last) == []
        assert guest.is_free(0)
        assert guest.says() == []
        assert guest.mux._windows._left == MEMORY


def test_a_host_hears_that_an_answer_is_not_wanted() -> None:
    host = Played.in_session(True)
    assert host.hears(Open(0, 1, V4)) == [("opened", 0, V4)]
    assert host.hears(Reset(0, 1)) == [("reset", 0, 1)]
    assert host.says() == [Done(0)]
    assert host.is_free(0)
    host.mux.answer(host.connections[0], 0)
    host.mux.answer(host.connections[0], REFUSED)
    host.mux.release(host.connections[0])
    assert host.says() == []


def test_a_host_resets_instead_of_an_answer() -> None:
    host, guest = Played.in_session(True), Played.in_session(False)
    host.hears(Open(0, 1, V4))
    guest.opens()
    host.mux.release(host.connections[0])
    (reset,) = host.says()
    assert guest.hears(reset) == [("reset", 0, 0)]
    (done,) = guest.says()
    assert done == Done(0)
    host.hears(done)
    assert host.is_free(0) and guest.is_free(0)


def test_a_refusal_that_meets_a_reset() -> None:
    host = Played.in_session(True)
    host.hears(Open(0, 1, V4))
    host.mux.answer(host.connections[0], REFUSED)
    host.says()
    assert host.hears(Reset(0, 1)) == []
    assert host.is_free(0)
    assert host.says() == []


# Every order

ACTIONS = ("open", "refuse", "accept", "end", "reset")
MOST_OPENED = 2  # of the only number there is: it is used again
LEGAL = {  # what may follow what a side has heard of a connection
    "guest": {"": {"ok", "no", "reset"}, "ok": {"ended", "reset"}, "ended": {"reset"}},
    "host": {"": {"ended", "reset"}, "ended": {"reset"}},
}


class Pair:
    """A host and a guest with one number, and the messages between them, each on its own way.

    They are followed through every sequence of what they may do and of when a message arrives.
    """

    def __init__(self) -> None:
        self.sides = {"guest": Played(False), "host": Played(True, connections=1)}
        guest, host = self.sides.values()
        guest.mux.greet()
        while not (guest.mux.is_up and host.mux.is_up):
            host.hears(*guest.says())
            guest.hears(*host.says())
        assert guest.says() == host.says() == []
        self.ways: dict[str, deque[Any]] = {"guest": deque(), "host": deque()}  # from it
        self.opened = 0
        self.heard: dict[str, list[str]] = {"guest": [], "host": []}
        self.wants = {"guest": False, "host": False}  # whether its connection is still its owner's

    def choices(self) -> list[tuple[str, str]]:
        """What may be done next: who, and what."""
        found = [(who, "hear") for who in self.sides if self.ways[self._other(who)]]
        guest = self.sides["guest"]
        if self.opened < MOST_OPENED and guest.is_free(0):
            found.append(("guest", "open"))
        for who, side in self.sides.items():
            if not self.wants[who]:
                continue
            one = side.connections[0]
            if one.let_go_here:
                continue
            found.append((who, "reset"))
            if one.answered and not one.ended_here:
                found.append((who, "end"))
            if who == "host" and not one.answered:
                found += [("host", "accept"), ("host", "refuse")]
        return found

    def do(self, who: str, what: str) -> None:
        side = self.sides[who]
        if what == "hear":
            for event in side.hears(self.ways[self._other(who)].popleft()):
                self._note(who, event)
        elif what == "open":
            assert side.mux.open(V4) is not None, "the number is free"
            side.connections[0] = side.mux._connections[0]
            self.opened += 1
            self.heard[who], self.wants[who] = [""], True
        else:
            one = side.connections[0]
            if what == "accept":
                side.mux.answer(one, 0)
            elif what == "refuse":
                side.mux.answer(one, REFUSED)
            elif what == "end":
                side.mux.end(one)
            else:
                side.mux.reset(one, 1)
        self.ways[who] += side.says()
        if side.connections and side.connections[0].let_go_here:
            self.wants[who] = False
            assert side.connections[0].credit == 0

    def _note(self, who: str, event: tuple[Any, ...]) -> None:
        kind, number = event[0], event[1]
        assert kind != "over", event
        assert number == 0
        if kind == "opened":
            assert not self.wants[who], "it is open"
            self.heard[who], self.wants[who] = [""], True
            return
        assert self.wants[who], f"{who} hears of what it has let go"
        if kind == "answered":
            kind = "no" if event[2] else "ok"
        assert kind in LEGAL[who].get(self.heard[who][-1], ()), (self.heard[who], kind)
        self.heard[who].append(kind)

    def _other(self, who: str) -> str:
        return "host" if who == "guest" else "guest"

    def state(self) -> tuple[Any, ...]:
        """All that decides on what can happen next."""
        sides = []
        for who, side in self.sides.items():
            one = side.connections.get(0)
            flags = one and (
                one.answered,
                one.ended_here,
                one.ended_there,
                one.let_go_here,
                one.let_go_there,
            )
            sides.append((flags, side.is_free(0), self.wants[who], tuple(self.heard[who])))
        return *sides, self.opened, *(tuple(map(repr, way)) for way in self.ways.values())


def test_every_order() -> None:
    """No order of opens, answers, ends and resets, and of when they arrive, breaks the protocol,
    and none leaves a number behind that one side has let go and the other one has not.
    """
    start: tuple[tuple[str, str], ...] = ()
    waiting, seen, quiet = deque([start]), {Pair().state()}, 0
    while waiting:
        story = waiting.popleft()
        for choice in replayed(story).choices():
            pair = replayed(story)
            try:
                pair.do(*choice)
            except AssertionError as error:
                raise AssertionError(f"after {story}: {choice}") from error
            if pair.state() not in seen:
                seen.add(pair.state())
                waiting.append((*story, choice))
                if not any(pair.ways.values()):
                    quiet += 1
                    check_quiet(pair, story)
    assert len(seen) > 300 and quiet > 50, "it has not gone far"


def replayed(story: tuple[tuple[str, str], ...]) -> Pair:
    pair = Pair()
    for step in story:
        pair.do(*step)
    return pair


def check_quiet(pair: Pair, story: object) -> None:
    """Nothing is on its way: then both see the same."""
    guest, host = pair.sides["guest"], pair.sides["host"]
    assert guest.is_free(0) == host.is_free(0), story
    if not guest.is_free(0):
        one, other = guest.connections[0], host.connections[0]
        assert (one.ended_here, one.ended_there) == (other.ended_there, other.ended_here), story
        assert not (one.let_go_here or one.let_go_there or other.let_go_here), story
