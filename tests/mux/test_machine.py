"""How a session begins, ends, and begins anew, whatever is on the port before that."""

import pytest
from played import MEMORY, MOST, NAME, THEIRS, V4, Played, feed, numbers, wire

from muonsocks.mux.events import Opened, Over
from muonsocks.mux.frames import (
    LARGEST,
    MAGIC,
    Answer,
    Credit,
    Eof,
    Goodbye,
    Hello,
    Open,
    Ping,
    Pong,
    Reset,
)
from muonsocks.mux.machine import Mux
from muonsocks.socks.request import UNSPECIFIED

NOBODY = bytes(8)
OURS = b"ours0001"
ANEW = ("over", "the other side has started anew")

each_side = pytest.mark.parametrize("is_host", [True, False], ids=["host", "guest"])


def ours(is_host: bool, echo: bytes, number: bytes = OURS) -> Hello:
    """A HELLO of the side that is tested."""
    return Hello(1, MOST if is_host else 0, number, echo)


def theirs(is_host: bool, echo: bytes, number: bytes = THEIRS) -> Hello:
    """A HELLO for it."""
    return Hello(1, 0 if is_host else MOST, number, echo)


BEGUN = ("began",)


# It begins


@each_side
def test_we_speak_first(is_host: bool) -> None:
    play = Played(is_host)
    play.mux.greet()
    assert play.says() == [ours(is_host, NOBODY)]
    assert play.hears(theirs(is_host, OURS)) == [BEGUN]
    assert play.says() == [ours(is_host, THEIRS)]
    assert play.mux.is_up


@each_side
def test_they_speak_first(is_host: bool) -> None:
    play = Played(is_host)
    assert play.hears(theirs(is_host, NOBODY)) == []
    assert play.says() == [ours(is_host, THEIRS)]
    assert not play.mux.is_up
    assert play.hears(theirs(is_host, OURS)) == [BEGUN]
    assert play.says() == [], "they have heard it already, or will"


@each_side
def test_both_speak_at_once(is_host: bool) -> None:
    play = Played(is_host)
    play.mux.greet()
    assert play.hears(theirs(is_host, NOBODY)) == []
    assert play.says() == [ours(is_host, NOBODY), ours(is_host, THEIRS)]
    assert play.hears(theirs(is_host, OURS)) == [BEGUN]
    assert play.says() == []


@each_side
def test_greetings_are_repeated_until_they_are_heard(is_host: bool) -> None:
    play = Played(is_host)
    for _ in range(3):
        play.mux.greet()
        assert play.says() == [ours(is_host, NOBODY)]
    assert play.hears(*3 * [theirs(is_host, NOBODY)]) == []
    assert play.says() == [ours(is_host, THEIRS)], "what has been said is repeated in time"
    play.mux.greet()
    assert play.says() == [ours(is_host, THEIRS)]
    assert play.hears(*3 * [theirs(is_host, OURS)]) == [BEGUN]
    assert play.says() == [], "nobody answers for ever"


@each_side
def test_two_of_ours_meet_whoever_speaks_first(is_host: bool) -> None:
    for first in (1, 2, 3):
        one, other = Played(is_host), Played(not is_host)
        if first & 1:
            one.mux.greet()
        if first & 2:
            other.mux.greet()
        for _ in range(4):
            other.hears(*one.says())
            one.hears(*other.says())
        assert one.mux.is_up and other.mux.is_up
        assert one.says() == other.says() == []


def test_the_host_says_how_many_connections_there_may_be() -> None:
    guest = Played(False)
    guest.hears(Hello(1, 3, THEIRS, OURS))
    assert guest.mux.limit == 3
    assert [guest.mux.open(V4) is not None for _ in range(4)] == [True, True, True, False]


def test_there_are_numbers_for_half_of_what_a_host_may_say() -> None:
    guest = Played(False)
    assert guest.hears(Hello(1, 0xFFFF, THEIRS, OURS)) == [("began",)]
    assert guest.mux.limit == 0x8000


@each_side
def test_nothing_is_opened_before_there_is_a_session(is_host: bool) -> None:
    play = Played(is_host)
    assert play.mux.open(V4) is None
    play.hears(theirs(is_host, NOBODY))
    assert play.mux.open(V4) is None


def test_a_host_opens_nothing() -> None:
    host = Played.in_session(True)
    assert host.mux.open(V4) is None
    host.hears(Open(0, 1, V4), Reset(0, 0))
    host.says()
    assert host.mux.open(V4) is None


@each_side
def test_a_later_version_is_spoken_with_as_the_first(is_host: bool) -> None:
    play = Played(is_host)
    message = theirs(is_host, OURS)
    message.version = 7
    assert play.hears(message) == [BEGUN]


@each_side
def test_version_0_is_none(is_host: bool) -> None:
    play = Played(is_host)
    message = theirs(is_host, OURS)
    message.version = 0
    assert play.hears(message) == []
    assert play.says() == []


def test_two_hosts_or_two_guests_have_nothing_to_say() -> None:
    for is_host, who in ((True, "host"), (False, "guest")):
        play = Played(is_host)
        for echo in (NOBODY, OURS):
            reason = f"the other side is a {who}, too"
            assert play.hears(theirs(not is_host, echo)) == [("over", reason)]
            assert play.says() == []
        play.begin()  # with one who is what it should be


@each_side
def test_one_who_hears_itself(is_host: bool) -> None:
    play = Played(is_host)
    play.mux.greet()
    (event,) = play.hears(*play.says())
    assert event[0] == "over" and event[1].endswith("too")
    assert play.says() == []


# Stale bytes

STALE = {
    "nothing": b"",
    "a byte": b"\xff",
    "text": b"login: root\r\n",
    "a frame of control": wire(Eof(3)),
    "frames": wire(Open(0, 1 << 18, NAME), (0, bytes(5000)), Eof(0), Reset(1, 0)),
    "zeros": bytes(100_000),
    "a header without its frame": wire((7, bytes(LARGEST)))[:4],
    "a HELLO's header": b"\xff\xff\x34\x00",
    "most of a HELLO's start": wire(Hello(1, 0, b"stale001", NOBODY))[:35],
    "MAGIC but its last byte": MAGIC[:-1],
    "MAGIC": MAGIC,
    "MAGIC twice": MAGIC + MAGIC,
    "GOODBYE": wire(Goodbye("it is over")),
    "PING": wire(Ping(b"12345678")),
    **{f"{left} bytes of a frame": wire((2, bytes(300)))[:left] for left in (1, 3, 4, 5, 64, 303)},
}
each_stale = pytest.mark.parametrize("stale", STALE.values(), ids=STALE)


@each_side
@each_stale
def test_stale_bytes_before_a_hello(is_host: bool, stale: bytes) -> None:
    """They are not heard, however they and the HELLO behind them are cut."""
    data = stale + wire(theirs(is_host, NOBODY))
    for cut in range(len(stale), len(data) + 1):
        play = Played(is_host)
        assert play.hears(data[:cut]) + play.hears(data[cut:]) == []
        assert play.says() == [ours(is_host, THEIRS)]
        assert play.hears(stale, theirs(is_host, OURS), Ping(b"12345678")) == [BEGUN]
        assert play.says() == [Pong(b"12345678")]


@each_side
def test_a_hello_byte_by_byte(is_host: bool) -> None:
    play = Played(is_host)
    data = b"stale" + wire(theirs(is_host, NOBODY), theirs(is_host, OURS))
    events = [event for i in range(len(data)) for event in play.hears(data[i : i + 1])]
    assert events == [BEGUN]
    assert play.says() == [ours(is_host, THEIRS)]


@each_side
def test_a_stale_hello_begins_nothing(is_host: bool) -> None:
    play = Played(is_host)
    for echo, number in ((NOBODY, b"stale001"), (b"ours0000", b"stale002")):
        stale = theirs(is_host, echo, number)
        assert play.hears(stale, Ping(b"12345678"), (0, b"stale"), Eof(0)) == []
        assert play.says() == [ours(is_host, number)]
    assert play.hears(theirs(is_host, b"ours0000")) == []
    assert play.says() == [ours(is_host, THEIRS)]
    assert play.hears(theirs(is_host, OURS)) == [BEGUN]


@each_side
def test_a_hello_in_a_hello_that_was_torn(is_host: bool) -> None:
    """It is not taken for the rest of that, however it is cut: there may be no other one."""
    gone, hello = wire(theirs(is_host, NOBODY, b"theirs00")), wire(theirs(is_host, NOBODY))
    for torn in range(len(gone)):
        for cut in range(len(hello) + 1):
            play = Played(is_host)
            assert play.hears(gone[:torn] + hello[:cut]) + play.hears(hello[cut:]) == []
            assert play.says() == [ours(is_host, THEIRS)], (torn, cut)
        assert play.hears(gone[:torn], theirs(is_host, OURS)) == [BEGUN]


@each_side
def test_a_hello_in_a_torn_one_in_the_session(is_host: bool) -> None:
    gone, hello = (
        wire(theirs(is_host, NOBODY, b"theirs00")),
        wire(theirs(is_host, NOBODY, b"new one.")),
    )
    for torn in range(5, len(gone)):
        for cut in range(0, len(hello) + 1, 5):
            play = Played.in_session(is_host)
            assert play.hears(gone[:torn] + hello[:cut]) + play.hears(hello[cut:]) == [ANEW]
            assert play.says() == [ours(is_host, b"new one.", b"ours0002")], (torn, cut)


@each_side
def test_a_port_that_is_lost_in_the_middle_of_a_hello(is_host: bool) -> None:
    """What comes over the next one is all there is to begin a session with."""
    play, other = Played(is_host), Played(not is_host)
    other.mux.greet()
    hello = wire(*other.says())
    play.hears(hello, hello[:48])
    assert len(play.says()) == 1  # and it is lost with the port
    play.mux.lose("the port has gone")
    play.mux.greet()
    for _ in range(3):
        other.hears(*play.says())
        play.hears(*other.says())
    assert play.mux.is_up and other.mux.is_up


@each_side
@pytest.mark.parametrize("end", ["ff", "ffff3400", "ffff3400fea39e96"])
def test_a_hello_that_ends_as_one_begins(is_host: bool, end: str) -> None:
    number = bytes.fromhex(end).rjust(8, b"x")
    play = Played(is_host)
    hello = wire(theirs(is_host, number))
    assert len(hello) == 60  # with an empty message behind it
    for cut in range(61):
        play = Played(is_host)
        assert play.hears(hello[:cut]) + play.hears(hello[cut:]) == []
        assert play.says() == [ours(is_host, THEIRS)]


@each_side
def test_what_is_strange(is_host: bool) -> None:
    """Outside of a session, what comes without a HELLO: who says one is of ours."""
    play = Played(is_host)
    assert not play.mux.is_strange
    play.hears(b"stale")
    assert play.mux.is_strange
    play.hears(b"stale", theirs(is_host, NOBODY), b"half a frame of one who is gone")
    assert not play.mux.is_strange
    play.hears(b"of somebody else, it may be")
    assert play.mux.is_strange
    play.begin()
    assert not play.mux.is_strange
    play.hears(Goodbye("so"))
    assert not play.mux.is_strange, "it has been of a session"
    play.hears(b"somebody else")
    assert play.mux.is_strange


# It begins anew


@each_side
def test_the_other_side_restarts(is_host: bool) -> None:
    play = Played.in_session(is_host)
    assert play.hears(theirs(is_host, NOBODY, b"theirs02")) == [ANEW]
    assert play.says() == [ours(is_host, b"theirs02", b"ours0002")]
    assert not play.mux.is_up
    assert play.hears(theirs(is_host, b"ours0002", b"theirs02")) == [BEGUN]
    assert play.says() == []


@each_side
def test_the_other_side_restarts_while_they_meet(is_host: bool) -> None:
    play = Played(is_host)
    play.hears(theirs(is_host, NOBODY))
    play.hears(theirs(is_host, NOBODY, b"theirs02"))
    assert play.says() == [ours(is_host, THEIRS), ours(is_host, b"theirs02")]
    assert play.hears(theirs(is_host, OURS, b"theirs02")) == [BEGUN]
    assert play.says() == []


@each_side
def test_the_other_side_restarts_before_it_is_known_that_it_was_there(is_host: bool) -> None:
    play = Played(is_host)
    play.mux.greet()
    assert play.hears(
        theirs(is_host, OURS),
        Ping(b"12345678"),
        theirs(is_host, NOBODY, b"theirs02"),
        Ping(b"87654321"),
    ) == [BEGUN, ANEW]
    assert play.says()[-1] == ours(is_host, b"theirs02", b"ours0002"), "and no PONG"


@each_side
def test_a_restart_ends_all_connections(is_host: bool) -> None:
    play = Played.in_session(is_host)
    if is_host:
        play.hears(Open(0, 1, V4), Open(1, 1, V4), Open(2, 1, V4))
        play.mux.answer(play.connections[0], 0)
    else:
        for _ in range(3):
            play.opens()
        play.hears(Answer(0, 1 << 18, 0, UNSPECIFIED))
    play.says()
    play.mux.release(play.connections[2])
    assert play.hears(theirs(is_host, NOBODY, b"theirs02")) == [ANEW]
    assert play.owners == ["owner 0", "owner 1"], "the third has been released"
    for one in play.connections.values():
        assert one.let_go_here and one.let_go_there
        assert one.credit == 0, "it would be sent in the next session"
    play.says()
    for one in play.connections.values():
        play.mux.answer(one, 0)
        play.mux.end(one)
        play.mux.reset(one, 0)
        play.mux.consume(one, 10)
        play.mux.release(one)
    assert play.says() == [], "the other side knows nothing of it"
    assert play.mux._windows._left == MEMORY
    assert play.hears(theirs(is_host, b"ours0002", b"theirs02")) == [BEGUN]
    if is_host:
        assert play.hears(Open(0, 1, V4)) == [("opened", 0, V4)]
    else:
        assert play.opens().number == 0, "numbers begin anew, too"


@each_side
@pytest.mark.parametrize("left", [0, 1, 3, 4, 5, 36, 37, 55, 56, 57, 150])
def test_a_restart_behind_half_a_frame(is_host: bool, left: int) -> None:
    """What the frame lacks is not taken from the HELLO, however that is cut."""
    torn = wire((0, bytes(200)))[:-left] if left else wire((0, bytes(200)))
    whole = [("data", 0, bytes(200))] if not left else []
    hello = wire(theirs(is_host, NOBODY, b"theirs02"))
    for cut in range(len(hello) + 1):
        play = Played.in_session(is_host)
        if is_host:
            play.hears(Open(0, 1, V4))
            play.mux.answer(play.connections[0], 0)
        else:
            play.opens()
            play.hears(Answer(0, 1 << 18, 0, UNSPECIFIED))
        play.says()
        assert play.hears(torn) == whole
        assert play.hears(hello[:cut]) + play.hears(hello[cut:]) == [ANEW], cut
        assert play.says() == [ours(is_host, b"theirs02", b"ours0002")]
        assert play.hears(theirs(is_host, b"ours0002", b"theirs02")) == [BEGUN]


@each_side
def test_a_hello_that_is_repeated_in_the_session_changes_nothing(is_host: bool) -> None:
    play = Played.in_session(is_host)
    assert play.hears(theirs(is_host, OURS), Ping(b"12345678"), theirs(is_host, OURS)) == []
    assert play.says() == [Pong(b"12345678")]
    assert play.hears(theirs(is_host, NOBODY)) == []
    assert play.says() == [ours(is_host, THEIRS)], "they have not heard ours"
    assert play.mux.is_up


@each_side
def test_both_restart_at_once(is_host: bool) -> None:
    one, other = Played.in_session(is_host), Played.in_session(not is_host)
    for play in (one, other):
        play.mux.lose("the port has gone")
        play.mux.greet()
    for _ in range(4):
        for_other, for_one = one.says(), other.says()
        other.hears(*for_other)
        one.hears(*for_one)
    assert one.mux.is_up and other.mux.is_up
    assert one.says() == other.says() == []


# It ends


@each_side
@pytest.mark.parametrize("up", [True, False], ids=["up", "not up"])
def test_a_loss_makes_all_anew(is_host: bool, up: bool) -> None:
    play = Played.in_session(is_host) if up else Played(is_host)
    if not up:
        play.hears(theirs(is_host, NOBODY))
        play.says()
    play.mux.output.append(b"never sent")
    over = play.mux.lose("the port has gone")
    assert over == Over("the port has gone", [])
    assert not play.mux.is_up
    assert play.says() == []
    play.mux.greet()
    assert play.says() == [ours(is_host, NOBODY, b"ours0002")]
    assert play.hears(theirs(is_host, OURS)) == [], "that was before"
    assert play.says() == [ours(is_host, THEIRS, b"ours0002")]
    assert play.hears(theirs(is_host, b"ours0002")) == [BEGUN]
    assert play.says() == []


@each_side
def test_after_a_loss_the_other_side_is_told_the_new_number(is_host: bool) -> None:
    """Also when it has not noticed anything, and has the number that it had."""
    play = Played(is_host)
    play.hears(theirs(is_host, NOBODY))
    assert play.says() == [ours(is_host, THEIRS)]
    play.mux.lose("it says nothing more")
    play.mux.greet()
    assert play.says() == [ours(is_host, NOBODY, b"ours0002")]
    assert play.hears(theirs(is_host, b"ours0002")) == [BEGUN]
    assert play.says() == [ours(is_host, THEIRS, b"ours0002")]


@each_side
def test_goodbye_is_said(is_host: bool) -> None:
    play = Played.in_session(is_host)
    play.mux.ping(b"12345678")
    play.mux.say_goodbye("enough")
    assert play.says() == [Ping(b"12345678"), Goodbye("enough")], "behind what was said before"
    assert not play.mux.is_up
    play.mux.greet()
    play.mux.say_goodbye("enough")
    assert play.says() == [Goodbye("enough")], "what is of no session is not sent"


@each_side
def test_goodbye_is_heard(is_host: bool) -> None:
    play = Played.in_session(is_host)
    if is_host:
        play.hears(Open(0, 1, V4))
    else:
        play.opens()
    events = play.hears(Goodbye("enough"), Ping(b"12345678"), Ping(b"12345678"))
    assert events == [("over", "the other side has ended it: enough")]
    assert play.owners == ["owner 0"]
    assert play.says() == []
    play.mux.greet()
    assert play.says() == [ours(is_host, NOBODY, b"ours0002")]
    assert play.hears(Goodbye("again")) == [], "there is nothing to end"


@each_side
def test_ping_and_pong(is_host: bool) -> None:
    play = Played.in_session(is_host)
    play.mux.ping(b"abcdefgh")
    assert play.says() == [Ping(b"abcdefgh")]
    assert play.hears(Pong(b"abcdefgh"), Pong(b"whatever")) == []
    assert play.hears(Ping(b"12345678"), Ping(b"23456789")) == []
    assert play.says() == [Pong(b"12345678"), Pong(b"23456789")]


@each_side
@pytest.mark.parametrize("number", [OURS, b"number\xff\xff"], ids=["", "empty message"])
def test_a_sign_of_life_is_anything_but_a_hello(is_host: bool, number: bytes) -> None:
    """However it is cut: who says that again and again has not heard the answer."""
    play = Played(is_host)
    play.mux._number = number  # which is what such a HELLO ends with
    play.begin()
    assert play.mux.is_sign, "it has answered just now"
    hello = wire(theirs(is_host, number))
    for cut in range(len(hello) + 1):
        play.hears(hello[:cut])
        assert not play.mux.is_sign
        play.hears(hello[cut:])
        assert not play.mux.is_sign
        play.hears(hello)
        assert not play.mux.is_sign
    for sign in (Ping(NOBODY), Pong(NOBODY), theirs(is_host, number)):
        play.hears(hello, sign, hello)
        assert play.mux.is_sign is (not isinstance(sign, Hello))
        play.says()


def test_half_a_frame_is_a_sign_of_life() -> None:
    """It may take its time on a serial port."""
    host = Played.in_session(True)
    host.hears(Open(0, 1000, V4))
    host.mux.answer(host.connections[0], 0)
    host.says()
    for byte in wire((0, bytes(1000))):
        host.hears(bytes([byte]))
        assert host.mux.is_sign
    host.hears(theirs(True, OURS))
    assert not host.mux.is_sign


@each_side
def test_each_session_begins_with_a_sign_of_life(is_host: bool) -> None:
    play = Played.in_session(is_host)
    play.hears(*[theirs(is_host, OURS)] * 100)
    assert not play.mux.is_sign
    play.hears(theirs(is_host, NOBODY, b"another."))
    assert play.mux.is_sign
    play.says()
    play.begin()
    assert play.mux.is_sign
    play.hears(Pong(NOBODY))
    assert play.mux.is_sign


def test_what_was_opened_and_is_over_in_the_same_piece() -> None:
    """Whoever takes the events in turn sees that: it has been let go, and may send nothing."""
    for end in (Reset(0, 0), Goodbye("bye"), Credit(9, 1)):
        host = Played.in_session(True)
        opened = feed(host.mux, wire(Open(0, 1 << 18, V4), end))[0]
        assert isinstance(opened, Opened)
        one = opened.connection
        assert one.let_go_here and one.let_go_there and one.credit == 0
        host.says()
        one.owner = "somebody"
        host.mux.answer(one, 0)
        host.mux.release(one)
        assert host.says() == []
        assert host.mux._windows._left == MEMORY


def test_the_number_of_a_session_is_fresh() -> None:
    fresh = numbers(b"ours")
    mux = Mux(True, MOST, MEMORY, fresh.__next__)
    seen = {mux._number}
    for _ in range(5):
        mux.lose("again")
        seen.add(mux._number)
    assert len(seen) == 6


# What may be the beginning of a HELLO


def test_a_frame_is_not_heard_before_it_is_clear_that_no_hello_follows() -> None:
    for size in range(1, 35):
        end = wire(theirs(True, NOBODY))[:size]
        for more in (wire(Ping(b"12345678")), b"\1", b"\xff\xff\0\0", b"\xff\xff\x34\0\xfe"):
            host = Played.in_session(True)
            host.hears(Open(0, 1, V4))
            host.mux.answer(host.connections[0], 0)
            host.says()
            assert host.hears((0, b"data" + end)) == []
            assert host.hears(more) == [("data", 0, b"data" + end)], (size, more)


def test_an_empty_control_message_means_nothing() -> None:
    host = Played.in_session(True)
    nothing = wire((0xFFFF, b""))
    assert host.hears(nothing, Open(0, 1, V4), nothing * 3) == [("opened", 0, V4)]
    assert host.says() == []
