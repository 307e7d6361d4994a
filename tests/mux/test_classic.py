"""The older pair's protocol, as bytes."""

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from played import NAME, V4, V6, drain, feed, told, wire

from muonsocks.errors import RequestFailed
from muonsocks.mux.classic import CONNECTIONS, Classic, Hailed, greeting, is_spoken, one_frame
from muonsocks.mux.connection import Connection
from muonsocks.mux.events import Data, Opened, Over
from muonsocks.mux.frames import CONTROL, MAGIC, Hello
from muonsocks.socks.request import Event

MEMORY = 1 << 20


class Clock:
    """The time (s), as a test has it."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = Clock()
IN_V4 = "01 c0000207 0050"
IN_V6 = "04 20010db8000000000000000000000007 1f90"
IN_NAME = "03 0c 6578616d706c652e74657374 01bb"
GREETINGS = [greeting(number) for number in range(5)]
HELLO = Hello(1, 0, b"a number", bytes(8)).encode()
ENDS_AS_ONE_BEGINS = Hello(1, 0, b"a number", bytes(7) + b"\xff").encode()
HAILED = ("over", "the other side has started anew")


def of_hex(digits: str) -> bytes:
    return bytes.fromhex(digits)


def said(side: Classic, *pieces: bytes | str) -> list[tuple[object, ...]]:
    """What a side makes of pieces, with Hailed as a tuple, too."""
    events: list[Event] = []
    seen = []
    for piece in pieces:
        for event in feed(side, of_hex(piece) if isinstance(piece, str) else piece):
            events.append(event)
            seen.append(("hailed", event.rest) if isinstance(event, Hailed) else told(event))
    return seen


def hosts() -> Classic:
    return Classic(True, MEMORY, CLOCK)


def guests() -> Classic:
    """A guest that an older host has greeted."""
    guest = Classic(False, MEMORY, CLOCK)
    assert said(guest, *GREETINGS) == [("began",)]
    return guest


def opened(side: Classic, number: int = 0) -> Connection:
    """A connection that a guest has opened."""
    request = one_frame(number, of_hex(IN_V4))
    (event,) = feed(side, request)
    assert isinstance(event, Opened) and event.connection.number == number
    return event.connection


# Greetings


def test_the_greetings() -> None:
    assert GREETINGS[0] == of_hex("ffff 1000 000102030405060708090a0b0c0d0e0f")
    assert GREETINGS[4] == of_hex("ffff 1000 404142434445464748494a4b4c4d4e4f")


def test_a_guest_waits_for_the_last_greeting() -> None:
    guest = Classic(False, MEMORY, CLOCK)
    for number in range(4):
        assert said(guest, GREETINGS[number]) == []
        assert not guest.is_up
        assert guest.open(V4) is None
    assert said(guest, GREETINGS[4]) == [("began",)]
    assert guest.is_up
    assert said(guest, *GREETINGS) == [], "it has begun already"


def test_a_host_is_up_at_once_and_says_nothing() -> None:
    """But when it would ask for a sign of life: then a guest that is new hears that it is there."""
    host = hosts()
    assert host.is_up
    host.greet()
    host.say_goodbye("reasons")
    assert drain(host) == b""
    host.ping(b"12345678")
    assert drain(host) == Hello(1, 64, b"12345678", bytes(8)).encode()


def test_a_guest_says_nothing() -> None:
    guest = guests()
    guest.greet()
    guest.ping(b"12345678")
    guest.say_goodbye("reasons")
    assert drain(guest) == b""


# One connection, from first to last


@pytest.mark.parametrize(("address", "digits"), [(V4, IN_V4), (NAME, IN_NAME)])
def test_a_guest_opens_exchanges_and_is_closed(address: object, digits: str) -> None:
    guest = guests()
    one = guest.open(address)  # type: ignore[arg-type]
    assert one is not None
    request = of_hex(digits)
    assert drain(guest) == of_hex(f"0000 {len(request):02x}00") + request
    assert one.answered
    assert said(guest, "0000 0300 616263") == [("data", 0, b"abc")]
    assert said(guest, "0000 0000") == [("ended", 0), ("reset", 0, 0)]
    assert one.let_go_here and one.let_go_there
    guest.release(one)
    assert drain(guest) == b"", "the host has closed it already"


@pytest.mark.parametrize(("address", "digits"), [(V4, IN_V4), (V6, IN_V6), (NAME, IN_NAME)])
def test_a_host_is_asked_exchanges_and_is_closed(address: object, digits: str) -> None:
    host = hosts()
    request = of_hex(digits)
    assert said(host, of_hex(f"0300 {len(request):02x}00") + request) == [("opened", 3, address)]
    assert said(host, "0300 0300 616263") == [("data", 3, b"abc")]
    assert said(host, "0300 0000") == [("ended", 3), ("reset", 3, 0)]
    assert drain(host) == b""


def test_a_guest_asks_for_no_ipv6_address() -> None:
    """The host would not know the type, and say nothing."""
    guest = guests()
    with pytest.raises(RequestFailed, match="IPv6") as failed:
        guest.open(V6)
    assert failed.value.code == 8
    assert drain(guest) == b""
    assert numbers(guest) == list(range(64)), "it has taken none"


def test_a_success_is_not_answered() -> None:
    host = hosts()
    one = opened(host)
    host.answer(one, 0, V4)
    assert drain(host) == b""
    assert not one.let_go_here


def test_a_failure_is_a_close() -> None:
    host = hosts()
    one = opened(host, 5)
    host.answer(one, 4)
    assert drain(host) == of_hex("0500 0000")
    host.answer(one, 4)
    host.release(one)
    assert drain(host) == b""


def test_a_host_closes_what_has_ended() -> None:
    host = hosts()
    one = opened(host, 63)
    host.end(one)
    assert drain(host) == of_hex("3f00 0000")
    host.end(one)
    host.reset(one, 1)
    assert drain(host) == b""
    assert said(host, "3f00 0300 616263", "3f00 0000") == [], "it was on its way"


def test_a_guest_that_has_ended_still_wants_the_answer() -> None:
    guest = guests()
    one = guest.open(V4)
    assert one is not None
    drain(guest)
    guest.end(one)
    assert drain(guest) == b""
    assert said(guest, "0000 0300 616263") == [("data", 0, b"abc")]
    guest.reset(one, 1)
    assert drain(guest) == of_hex("0000 0000")
    guest.reset(one, 1)
    guest.release(one)
    assert drain(guest) == b""


def test_what_has_been_let_go_may_send_nothing() -> None:
    host = hosts()
    one, other = opened(host, 0), opened(host, 1)
    assert one.credit > 1 << 32
    host.reset(one, 0)
    assert one.credit == 0
    host.lose("enough")
    assert other.credit == 0


# Frames


def test_zero_length_frames() -> None:
    guest, host = guests(), hosts()
    assert said(guest, "0000 0000", "3f00 0000", "ffff 0000") == [], "of what is not open"
    assert said(host, "0000 0000", "3f00 0000", "ffff 0000") == []
    assert said(host, one_frame(0, of_hex(IN_V4)) + of_hex("0000 0000 0000 0000")) == [
        ("opened", 0, V4),
        ("ended", 0),
        ("reset", 0, 0),
    ]


def test_a_number_is_used_again() -> None:
    host = hosts()
    for _ in range(3):
        opened(host, 7)
        assert said(host, "0700 0000") == [("ended", 7), ("reset", 7, 0)]
    assert said(host, "0700 0300 616263") == [], "data, and no request"


def test_data_of_no_connection_is_not_for_a_guest() -> None:
    guest = guests()
    assert said(guest, one_frame(9, of_hex(IN_V4)), one_frame(9, b"abc")) == []


def test_frames_in_any_pieces() -> None:
    whole = one_frame(1, of_hex(IN_NAME)) + one_frame(1, b"x" * 4096) + one_frame(1, b"")
    expected = [("opened", 1, NAME), ("data", 1, b"x" * 4096), ("ended", 1), ("reset", 1, 0)]
    assert said(hosts(), whole) == expected
    assert said(hosts(), *(whole[i : i + 1] for i in range(len(whole)))) == expected
    for cut in range(40):
        assert said(hosts(), whole[:cut], whole[cut:]) == expected


@pytest.mark.parametrize(
    "garbage",
    ["4000 0300 616263", "0000 0110", "feff 0100 61", "ffff ffff", "5353 482d 322e 30"],
)
def test_what_is_out_of_step_is_dropped_with_its_piece(garbage: str) -> None:
    host = hosts()
    request = one_frame(2, of_hex(IN_V4))
    assert said(host, of_hex(garbage) + request) == []
    assert said(host, request) == [("opened", 2, V4)]


def test_a_torn_frame_does_not_hold_for_ever() -> None:
    host = hosts()
    assert said(host, "0000 0a00 0102", "ffff ffff ffff ffff ffff ffff") == []
    assert said(host, one_frame(2, of_hex(IN_V4))) == [("opened", 2, V4)]


def test_a_frame_of_the_largest_size_and_more() -> None:
    host = hosts()
    opened(host)
    assert said(host, one_frame(0, bytes(4096))) == [("data", 0, bytes(4096))]
    assert said(host, one_frame(0, bytes(4097))) == []


# Limits


def numbers(guest: Classic) -> list[int]:
    """Open as many connections as there may be."""
    return [one.number for one in iter(lambda: guest.open(V4), None)]


def test_a_guest_has_64_connections() -> None:
    guest = guests()
    connections = [guest.open(V4) for _ in range(64)]
    assert [one and one.number for one in connections] == list(range(64))
    assert guest.open(V4) is None
    assert said(guest, one_frame(5, b""), one_frame(3, b"")) == [
        ("ended", 5),
        ("reset", 5, 0),
        ("ended", 3),
        ("reset", 3, 0),
    ]
    assert numbers(guest) == [5, 3]


def test_a_guest_uses_the_number_last_that_was_free_last() -> None:
    guest = guests()
    for number in range(64):
        one = guest.open(V4)
        assert one is not None and one.number == number
        said(guest, one_frame(number, b""))
    one = guest.open(V4)
    assert one is not None and one.number == 0


def test_a_number_rests_that_was_closed_here() -> None:
    """What the host has sent before it knew must not reach the next one who has the number."""
    guest = guests()
    connections = [guest.open(V4) for _ in range(64)]
    one, other = connections[5], connections[3]
    assert one is not None and other is not None
    guest.reset(one, 0)
    CLOCK.now += 0.5
    guest.reset(other, 0)
    assert said(guest, one_frame(5, b""), one_frame(3, b"late")) == []
    said(guest, one_frame(7, b""))
    assert numbers(guest) == [7], "the host has closed that: nothing comes behind it"
    CLOCK.now += 0.49
    assert numbers(guest) == [] and 0 < guest.pause() < 0.011
    CLOCK.now += 0.02
    assert guest.pause() == 0.0
    assert numbers(guest) == [5]
    assert 0.4 < guest.pause() < 0.5
    assert said(guest, one_frame(3, b"later")) == []  # it rests again: the host does not know yet
    CLOCK.now += 0.99
    assert numbers(guest) == [] and 0 < guest.pause() < 0.011
    CLOCK.now += 0.02
    assert guest.pause() == 0.0
    assert numbers(guest) == [3]
    assert guest.pause() == 0.0, "none is free"


def test_a_number_is_the_guest_s_to_use_again() -> None:
    """A host takes it at once, whoever has closed it."""
    host = hosts()
    for _ in range(3):
        host.reset(opened(host, 5), 0)
        said(host, "0500 0000")


def test_a_host_has_64_connections() -> None:
    host = hosts()
    for number in range(64):
        opened(host, number)
    assert said(host, one_frame(64, of_hex(IN_V4))) == []
    assert said(host, one_frame(0, b"data")) == [("data", 0, b"data")]


def test_it_is_full_until_data_has_gone_on() -> None:
    host = Classic(True, 1000, CLOCK)
    one, other = opened(host, 0), opened(host, 1)
    one.owner = other.owner = "somebody"
    said(host, one_frame(0, bytes(1000)))
    assert not host.is_full
    said(host, one_frame(1, bytes(1)))
    assert host.is_full
    host.consume(one, 1)
    assert not host.is_full
    said(host, one_frame(1, bytes(4000)))
    assert host.is_full
    host.release(other)
    assert not host.is_full, "its data waits for nobody"
    host.consume(one, 999)
    host.release(one)
    assert host._waits == 0


def test_what_waits_for_one_that_was_closed_counts_until_it_is_released() -> None:
    host = Classic(True, 1000, CLOCK)
    one = opened(host)
    said(host, one_frame(0, bytes(1001)), "0000 0000")
    assert host.is_full
    host.consume(one, 500)
    assert not host.is_full
    host.release(one)
    assert host._waits == 0


# The session


def test_the_loss_of_a_session_tells_all_owners() -> None:
    host = hosts()
    one, other, third = opened(host, 0), opened(host, 1), opened(host, 2)
    one.owner, other.owner = "one", "other"
    host.output.append(b"unsent")
    over = host.lose("it has gone")
    assert (over.reason, over.owners) == ("it has gone", ["one", "other"])
    assert host.output == []
    assert all(gone.let_go_here and gone.let_go_there for gone in (one, other, third))
    host.release(one)
    assert drain(host) == b""


def test_a_guest_that_was_lost_is_greeted_again() -> None:
    guest = guests()
    assert guest.open(V4) is not None
    guest.lose("it has gone")
    assert guest.open(V4) is None
    assert said(guest, *GREETINGS) == [("began",)]
    assert len([one for one in range(70) if guest.open(V4)]) == 64


each_side = pytest.mark.parametrize("side", [hosts, guests], ids=["host", "guest"])


@each_side
@pytest.mark.parametrize("more", [b"", b"what follows"], ids=["alone", "and more"])
@pytest.mark.parametrize("before", [b"", one_frame(9, b"data"), one_frame(CONTROL, b"")])
def test_a_hello_hails(side: Callable[[], Classic], before: bytes, more: bytes) -> None:
    data = before + HELLO + more
    for cut in range(len(before), len(data) + 1):
        one = side()
        seen, come = said(one, data[:cut]), cut
        if HAILED not in seen:
            seen, come = said(one, data[cut:]), len(data)
        assert seen[-2:] == [HAILED, ("hailed", data[len(before) : come])]


@each_side
@pytest.mark.parametrize(
    "before", ["0000 0a00 61", "00", "ffff ffff 616263", "0000 ff0f 616263", "0000 ff0f"]
)
def test_a_hello_behind_garbage_hails_at_the_latest_when_it_is_repeated(
    side: Callable[[], Classic], before: str
) -> None:
    """Which is a quarter of a second later, or more."""
    data = of_hex(before) + HELLO
    for cut in range(len(data) + 1):
        one = side()
        first = said(one, data[:cut], data[cut:])
        CLOCK.now += 0.25
        if not first:
            first = said(one, HELLO)
        assert first[0] == HAILED
        assert first[1][0] == "hailed"


@each_side
@pytest.mark.parametrize("hello", [HELLO, ENDS_AS_ONE_BEGINS], ids=["", "with a message behind"])
def test_a_hello_behind_half_a_frame(side: Callable[[], Classic], hello: bytes) -> None:
    """What is behind it is not half a frame's any more."""
    one = side()
    assert said(one, of_hex("0000 ff0f") + bytes(2000)) == []
    CLOCK.now += 0.25
    assert said(one, hello) == [HAILED, ("hailed", hello)]


FORGED = [
    b"<html>" + MAGIC + b"</html>",
    b"<html>" + HELLO + b"</html>",
    HELLO,
    HELLO * 60,
    MAGIC,
    HELLO[4:],
]


@each_side
@pytest.mark.parametrize("data", FORGED, ids=range(len(FORGED)))
@pytest.mark.parametrize("pause", [0.0, 0.1, 10.0])
def test_data_is_no_hello(side: Callable[[], Classic], data: bytes, pause: float) -> None:
    """Whatever is in it, and wherever it is cut: it is anybody's."""
    for cut in range(len(data) + 5):
        one = side()
        if one._is_host:
            opened(one)
        else:
            assert one.open(V4) is not None
        whole = one_frame(0, data) + one_frame(0, b"more")
        seen = said(one, whole[:cut])
        CLOCK.now += pause
        seen += said(one, whole[cut:])
        assert b"".join(event[2] for event in seen) == data + b"more"  # type: ignore[misc]
        assert {event[0] for event in seen} == {"data"}


@each_side
def test_a_frame_s_end_that_looks_like_a_hello(side: Callable[[], Classic]) -> None:
    """It is data, if it comes as soon as the rest: one who is new comes later than that."""
    one = side()
    if one._is_host:
        opened(one)
    else:
        assert one.open(V4) is not None
    assert said(one, one_frame(0, b"data" + HELLO)[:8]) == []
    CLOCK.now += 0.1
    assert said(one, HELLO) == [("data", 0, b"data" + HELLO)]


def test_a_hello_is_given_on_with_all_that_follows() -> None:
    host = hosts()
    opened(host).owner = "somebody"
    events = feed(host, one_frame(0, b"data") + HELLO + b"what follows")
    over, hailed = events[-2:]
    assert isinstance(over, Over) and over.owners == ["somebody"]
    assert isinstance(hailed, Hailed) and hailed.rest == HELLO + b"what follows"


# Whose protocol it is


def test_what_is_of_the_older_host() -> None:
    assert all(is_spoken(piece, is_host=False) for piece in GREETINGS)
    assert is_spoken(GREETINGS[0] + GREETINGS[1], is_host=False)
    assert not any(is_spoken(piece, is_host=True) for piece in GREETINGS)
    assert not is_spoken(GREETINGS[0][:-1], is_host=False)
    assert not is_spoken(b"\0" + GREETINGS[0], is_host=False)
    assert not is_spoken(one_frame(CONTROL, bytes(16)), is_host=False)
    assert not is_spoken(b"", is_host=False)


@pytest.mark.parametrize("address", [IN_V4, IN_V6, IN_NAME])
@pytest.mark.parametrize("number", [0, 63])
def test_what_is_of_the_older_guest(address: str, number: int) -> None:
    request = one_frame(number, of_hex(address))
    assert is_spoken(request, is_host=True)
    assert is_spoken(request + one_frame(number, b"GET /"), is_host=True)
    assert not is_spoken(request, is_host=False)
    assert not any(is_spoken(request[:size], is_host=True) for size in range(len(request)))
    assert not is_spoken(one_frame(64, of_hex(address)), is_host=True)


@pytest.mark.parametrize(
    "piece",
    [
        b"",
        HELLO,
        MAGIC,
        wire((0, b"GET / HTTP/1.1")),
        of_hex("0000 0700 02 c0000207 0050"),
        of_hex("0000 0800 01 c0000207 0050 00"),
        of_hex("0000 0400 03 00 0050"),
        of_hex("0000 0600 03 02 6120 0050"),
        of_hex("0000 0000"),
        of_hex("0000 0100 01"),
        of_hex("0000 0900") + of_hex(IN_V4),  # two bytes are missing
        of_hex("0000 0600") + of_hex(IN_V4),
    ],
)
def test_what_is_of_neither(piece: bytes) -> None:
    assert not is_spoken(piece, is_host=True)
    assert not is_spoken(piece, is_host=False)


# Anything at all

frames = st.one_of(
    st.builds(one_frame, st.integers(0, 66), st.binary(max_size=30)),
    st.builds(one_frame, st.integers(0, 3), st.sampled_from((of_hex(IN_V4), of_hex(IN_NAME), b""))),
    st.sampled_from((*GREETINGS, HELLO, HELLO[:20], MAGIC)),
    st.binary(max_size=30),
)


@settings(deadline=None, max_examples=150)
@given(st.booleans(), st.lists(frames, max_size=12), st.lists(st.integers(0, 300), max_size=8))
def test_it_survives_anything(is_host: bool, parts: list[bytes], cuts: list[int]) -> None:
    side = Classic(is_host, 100, CLOCK)
    data = b"".join(parts)
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    waits = 0
    for start, end in pairwise(places):
        for event in feed(side, data[start:end]):
            if isinstance(event, Data):
                waits += event.size
            elif isinstance(event, Hailed):
                return
        assert side._waits == waits
        assert len(side.room()) >= 1 << 19
        assert len(side._connections) + len(side._free) == CONNECTIONS
    assert drain(side) == b""
