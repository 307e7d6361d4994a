"""An offer as text: what it looks like, what comes back, and that nothing else is one."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import many, octets, some

from muonsocks.errors import RemoteProtocolError
from muonsocks.socks.offer import LARGEST, LONGEST_WORD, Offer

FACTS: dict[str, Any] = {
    "client": "192.0.2.5:49152",
    "user": b"alice",
    "target": "www.example.com:80",
    "address": "198.51.100.7:80",
    "reply": 0,
    "age": 0.103,
    "idle": 900,
    "half_close": 120,
    "early": b"GET /\n\n\0\xff",
}
TEXT = b"""\
OFFER 1
client 192.0.2.5:49152
user 616c696365
target www.example.com:80
address 198.51.100.7:80
reply 0
age 0.103000
idle 900.000000
half-close 120.000000

GET /

\0\xff"""


def facts(offer: Offer) -> dict[str, Any]:
    return {name: getattr(offer, name) for name in Offer.__slots__}


def test_as_it_is_documented() -> None:
    assert Offer(**FACTS).encode() == TEXT
    assert facts(Offer.decode(TEXT)) == FACTS


def test_without_what_may_be_missing() -> None:
    bare = Offer(**FACTS | {"user": b"", "reply": None, "early": b""}).encode()
    assert b"\nuser -\n" in bare and b"\nreply -\n" in bare and bare.endswith(b"\n\n")
    offer = Offer.decode(bare)
    assert (offer.user, offer.reply, offer.early) == (b"", None, b"")


@pytest.mark.parametrize("time", ["900", "900.", "900.0", "0900.000000", "900.00000000000000000"])
def test_times_by_other_writers(time: str) -> None:
    assert Offer.decode(TEXT.replace(b"idle 900.000000", b"idle " + time.encode())).idle == 900


graphic = st.characters(min_codepoint=0x21, max_codepoint=0x7E)
words = st.text(graphic, min_size=1, max_size=512)
times = st.integers(1, 10**15).map(lambda number: number / 10**6)
offers = st.builds(
    Offer,
    words,
    st.binary(max_size=255),
    words,
    words,
    st.none() | octets,
    st.just(0.0) | times,
    times,
    times,
    st.binary(max_size=2000),
)


@some
@given(offers)
def test_what_is_written_is_read(offer: Offer) -> None:
    again = facts(Offer.decode(offer.encode()))
    for name in ("age", "idle", "half_close"):
        assert again.pop(name) == pytest.approx(getattr(offer, name), abs=1e-6)
    assert again == {name: getattr(offer, name) for name in again}


def test_what_the_user_sends_early_has_room() -> None:
    offer = Offer(**FACTS | {"early": bytes(60_000)})
    assert facts(Offer.decode(offer.encode()))["early"] == bytes(60_000)
    with pytest.raises(ValueError, match="too large"):
        Offer(**FACTS | {"early": bytes(LARGEST)}).encode()


def changed(old: str, new: str) -> bytes:
    assert TEXT.count(old.encode()) == 1
    return TEXT.replace(old.encode(), new.encode("utf-8", "surrogateescape"))


UNFIT = {
    "empty": b"",
    "something else": b"GO",
    "another version": changed("OFFER 1", "OFFER 2"),
    "a version of more digits": changed("OFFER 1", "OFFER 10"),
    "lines of DOS": TEXT.replace(b"\n", b"\r\n"),
    "no empty line": TEXT.partition(b"\n\n")[0],
    "a line too few": changed("age 0.103000\n", ""),
    "a line too many": changed("age 0.103000\n", "age 0.103000\nage 0.103000\n"),
    "another order": changed("reply 0\nage 0.103000\n", "age 0.103000\nreply 0\n"),
    "a name that is unknown": changed("age", "ages"),
    "a name without a value": changed("reply 0", "reply"),
    "an empty value": changed("reply 0", "reply "),
    "an empty client": changed("192.0.2.5:49152", ""),
    "a space": changed("www.example.com:80", "www.example.com:80 end=closed"),
    "a tab": changed("www.example.com:80", "www.\t.com:80"),
    "a carriage return": changed("192.0.2.5:49152", "1\rclosed"),
    "a NUL": changed("192.0.2.5:49152", "1\0"),
    "an escape": changed("192.0.2.5:49152", "\x1b[2J"),
    "no ASCII": changed("www", "wẇw"),
    "no UTF-8": changed("www", "w\udcffw"),
    "a long client": changed("192.0.2.5:49152", "1" * 513),
    "a long target": changed("www.example.com:80", "w" * 513),
    "a long address": changed("198.51.100.7:80", "1" * 513),
    "a user in the clear": changed("616c696365", "alice"),
    "a user in capitals": changed("616c696365", "616C696365"),
    "a user with spaces": changed("616c696365", "61 6c"),
    "no user": changed("616c696365", ""),
    "something amid a user": changed("616c696365", "61\t\t6c"),
    "half a byte of a user": changed("616c696365", "616"),
    "a long user": changed("616c696365", "61" * 256),
    "a negative reply": changed("reply 0", "reply -1"),
    "a large reply": changed("reply 0", "reply 256"),
    "a very large reply": changed("reply 0", "reply " + "9" * 5000),
    "a reply of other digits": changed("reply 0", "reply ٣"),
    "a negative age": changed("age 0.103000", "age -1"),
    "an age that is none": changed("age 0.103000", "age nan"),
    "an age without an end": changed("age 0.103000", "age inf"),
    "an age in powers": changed("age 0.103000", "age 1e3"),
    "an age with an underscore": changed("age 0.103000", "age 1_0"),
    "an age with two points": changed("age 0.103000", "age 1.0.0"),
    "an age that is a point": changed("age 0.103000", "age ."),
    "a large age": changed("age 0.103000", "age 1000000001"),
    "a very long age": changed("age 0.103000", "age " + "0" * 5000),
    "no time to idle": changed("idle 900.000000", "idle 0"),
    "ever to idle": changed("idle 900.000000", "idle 1000000001"),
    "no time half closed": changed("half-close 120.000000", "half-close 0.0000001"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_what_is_no_offer(what: str) -> None:
    """What is said of it is for the log: one short line of our own words."""
    with pytest.raises(RemoteProtocolError) as raised:
        Offer.decode(UNFIT[what])
    said = str(raised.value)
    assert re.fullmatch(r"[\w :?,-]+", said, re.ASCII) and len(said) < 80, said


@many
@given(st.binary(max_size=300), st.integers(0, len(TEXT)), st.integers(0, 30))
def test_a_damaged_offer(noise: bytes, place: int, gone: int) -> None:
    """Is refused, or still an offer that can be said."""
    try:
        offer = Offer.decode(TEXT[:place] + noise + TEXT[place + gone :])
    except RemoteProtocolError:
        return
    assert facts(Offer.decode(offer.encode())).keys() == FACTS.keys()


@pytest.mark.parametrize(
    "fact",
    [
        {"client": "a b"},
        {"target": ""},
        {"address": "x" * 513},
        {"user": bytes(256)},
        {"reply": 256},
        {"age": -1},
        {"age": float("nan")},
        {"idle": 0},
        {"idle": float("inf")},
        {"half_close": 1e-9},
    ],
    ids=str,
)
def test_what_cannot_be_said(fact: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"its|limit"):
        Offer(**FACTS | fact)


def test_words_fit_what_is_read_of_them() -> None:
    from muonsocks.socks import offer

    assert max(map(len, (offer.TAKEN, offer.FULL, offer.GO))) <= LONGEST_WORD
