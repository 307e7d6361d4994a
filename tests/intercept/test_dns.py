"""Questions and answers of DNS, and messages that are neither."""

import random
import struct

import pytest
from queries import MX, Read, query, wire

from muonsocks.address import parse_address
from muonsocks.errors import RemoteProtocolError
from muonsocks.intercept import dns
from muonsocks.intercept.dns import AAAA, ANY, PTR, A, Question

OPT = b"\0" + struct.pack("!HHIH", 41, 4096, 0, 0)
V4, V6 = b"\xc6\x12\0\1", bytes.fromhex("fd6d756f6e736f630000000000000001")


def asked(message: bytes) -> Question:
    return dns.read(message)


def error_of(message: bytes) -> bytes:
    with pytest.raises(RemoteProtocolError) as caught:
        dns.read(message)
    return caught.value.reply


# Questions


def test_a_question_is_read() -> None:
    question = asked(query("WwW.Example", AAAA))
    assert (question.name, question.kind, question.limit) == ("www.example", AAAA, 512)
    assert asked(query("")).name == ""
    assert asked(query(of_class=255)).name == "www.example"


def test_what_has_come_after_it_may_be_edns() -> None:
    assert asked(query(more=OPT)).limit == dns.LARGEST
    small = b"\0" + struct.pack("!HHIH", 41, 100, 0, 4) + b"\0\x0a\0\0"  # with an option
    assert asked(query(more=small)).limit == 512
    signature = b"\x01x\xc0\x0c" + struct.pack("!HHIH", 250, 255, 0, 3) + b"abc"
    assert asked(query(more=signature + OPT, counts=(1, 0, 0, 2))).limit == dns.LARGEST


@pytest.mark.parametrize(
    "name",
    [
        "a b.example",
        "b\xfccher.example",
        "a\\.example",
        "-x.example",
        "10.0.0.1",
        "10.1",
        "0x7f01",
        "x.0X7f",
        "2001:db8::1",
    ],
)
def test_a_name_that_no_host_can_have_is_none(name: str) -> None:
    assert asked(query(name)).name is None


def test_a_dot_in_a_label_makes_no_other_name() -> None:
    assert asked(query(b"\x0bwww.example\0")).name is None


def test_names_are_as_long_as_they_may_be() -> None:
    longest = wire(".".join(["a" * 63] * 3 + ["b" * 61]))
    assert len(longest) == 255
    assert asked(query(longest)).name
    assert Read(error_of(query(b"\1x" + longest)), b"").code == 1


# Answers


def test_addresses_are_those_of_the_kind() -> None:
    for kind, records in (
        (A, [(A, V4)]),
        (AAAA, [(AAAA, V6)]),
        (ANY, [(A, V4), (AAAA, V6)]),
        (MX, []),
    ):
        message = query("WwW.example", kind)
        read = Read(asked(message).addresses([V4, V6]), message)
        assert (read.identity, read.flags, read.records) == (0x1234, 0x8180, records)


def test_as_many_as_fit_are_said() -> None:
    for more, limit in ((b"", 512), (OPT, dns.LARGEST)):
        message = query("x" * 60 + ".example", AAAA, more=more)
        answer = asked(message).addresses([V6] * 200)
        assert limit - 28 < len(answer) <= limit
        assert len(Read(answer, message).records) > 10


def test_flags_are_echoed_as_far_as_they_are_to_be() -> None:
    for flags, expected in ((0, 0x8080), (0x110, 0x8190), (0x0720, 0x8180)):
        message = query(flags=flags)
        assert Read(asked(message).no_data(), message).flags == expected


def test_edns_is_answered_by_edns() -> None:
    wants_dnssec = b"\0" + struct.pack("!HHIH", 41, 4096, 0x8000, 0)
    for more, life in ((OPT, 0), (wants_dnssec, 0x8000)):
        message = query(more=more)
        read = Read(asked(message).addresses([V4]), message)
        assert read.options == (dns.LARGEST, life) and read.records
    assert Read(asked(query()).no_data(), query()).options is None


def test_what_there_is_not() -> None:
    message = query()
    question = asked(message)
    for answer, code in (
        (question.no_data(), 0),
        (question.no_such_name(), 3),
        (question.failure(), 2),
    ):
        assert (Read(answer, message).code, Read(answer, message).records) == (code, [])


@pytest.mark.parametrize("address", ["198.18.0.1", "fd6d:756f:6e73:6f63::1", "127.0.0.1", "::"])
def test_the_name_of_an_address(address: str) -> None:
    packed = parse_address(address)
    assert packed is not None
    name = ".".join(str(byte) for byte in reversed(packed)) + ".in-addr.arpa"
    if len(packed) == 16:
        name = ".".join(reversed(packed.hex())).upper() + ".IP6.arpa"
    message = query(name, PTR)
    question = asked(message)
    assert question.address() == packed
    assert Read(question.pointer("www.example."), message).records == [(PTR, wire("www.example"))]


@pytest.mark.parametrize(
    "name",
    [
        "www.example",
        "1.0.0.in-addr.arpa",
        "256.0.0.1.in-addr.arpa",
        "in-addr.arpa",
        "ip6.arpa",
        "g" + ".0" * 31 + ".ip6.arpa",
        "0." * 31 + "ip6.arpa",
        "00" + ".0" * 31 + ".ip6.arpa",
        "1.2.3.4.5.in-addr.arpa",
        "\xb2" + ".0" * 31 + ".ip6.arpa",
    ],
)
def test_what_is_the_name_of_no_address(name: str) -> None:
    assert asked(query(name, PTR)).address() is None


@pytest.mark.parametrize("name", ["a..b", "x" * 64, ".".join(["x" * 63] * 4)])
def test_a_name_that_cannot_be_written_is_not(name: str) -> None:
    message = query("1.0.18.198.in-addr.arpa", PTR)
    assert Read(asked(message).pointer(name), message).code == 3


# What is no question


def test_an_answer_is_not_answered() -> None:
    assert error_of(query(flags=0x8180)) == b""
    assert error_of(query(flags=0xFFFF, more=OPT)) == b""


def test_less_than_a_header_is_not_answered() -> None:
    for length in range(12):
        assert error_of(query()[:length]) == b""


@pytest.mark.parametrize("opcode", range(1, 16))
def test_other_requests_than_questions_are_not_implemented(opcode: int) -> None:
    read = Read(error_of(query(flags=opcode << 11)), b"")
    assert (read.identity, read.code, read.flags >> 11 & 15) == (0x1234, 4, opcode)


def test_other_classes_are_not_implemented() -> None:
    message = query("version.bind", 16, of_class=3, more=OPT)
    read = Read(error_of(message), message)
    assert read.code == 4 and read.options


def test_a_version_of_edns_that_is_to_come_is_told_so() -> None:
    message = query(more=b"\0" + struct.pack("!HHIH", 41, 4096, 1 << 16, 0))
    read = Read(error_of(message), message)
    assert read.code == 0 and read.options == (dns.LARGEST, 1 << 24)  # BADVERS


@pytest.mark.parametrize(
    "message",
    [
        query(counts=(0, 0, 0, 0)),
        query(counts=(2, 0, 0, 0)),
        query(counts=(1, 1, 0, 0)),
        query(counts=(1, 0, 1, 0)),
        query(counts=(1, 0, 0, 1)),  # which is not there
        query(b"\xc0\x0c"),  # leads to itself
        query(b"\xc0\x0e\xc0\x0c"),
        query(b"\3www\xc0\x0c"),
        query(b"\x40" + bytes(64) + b"\0"),
        query(b"\x80\0"),
        query()[:-1],
        query()[:14],
        query(more=OPT + OPT, counts=(1, 0, 0, 2)),
        query(more=b"\1x" + OPT),
        query(more=b"\xc0\x0c" + OPT[1:]),
        query(more=OPT[:-1]),
        query(more=OPT[:-1] + b"\1"),
        query(more=OPT + b"\0"),
        query(more=b"\xc0", counts=(1, 0, 0, 1)),
        query(more=OPT, counts=(1, 0, 0, 65535)),
    ],
)
def test_what_is_malformed_is_told_so(message: bytes) -> None:
    reply = error_of(message)
    read = Read(reply, b"")
    assert len(reply) == 12 and (read.identity, read.code) == (0x1234, 1)


def test_nothing_that_comes_does_any_harm() -> None:
    """Whatever is done to messages that make sense: there is a question or an error, and what is
    answered can be read, is an answer and is no longer than it may be.
    """
    dice = random.Random(8)
    sources = [query(), query("a.b.c.d.e", AAAA, more=OPT), query("1.0.18.198.in-addr.arpa", PTR)]
    for _ in range(20000):
        message = bytearray(dice.choice(sources))
        for _ in range(dice.randrange(4)):
            message[dice.randrange(len(message))] = dice.choice((0, 1, 0xC0, dice.randrange(256)))
        raw = bytes(message[: dice.randrange(len(message) + 1)] if dice.randrange(3) else message)
        try:
            question = dns.read(raw)
        except RemoteProtocolError as error:
            if error.reply:
                assert error.reply[:2] == raw[:2]
                Read(error.reply, raw)
            continue
        question.address()
        for answer in (
            question.addresses([V4, V6] * 40),
            question.pointer("www.example"),
            question.no_such_name(),
        ):
            assert len(answer) <= 1232
            Read(answer, raw)


def test_any_bytes_at_all() -> None:
    dice = random.Random(9)
    for _ in range(5000):
        raw = dice.randbytes(dice.randrange(60))
        try:
            dns.read(raw)
        except RemoteProtocolError:
            pass
