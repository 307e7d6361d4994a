"""The headers of the PROXY protocol, byte for byte as HAProxy's proxy-protocol.txt has them."""

import socket
import struct
from collections.abc import Callable, Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playbook import Wire
from strategies import damaged, ipv4_endpoints, ipv6_endpoints, many, pieces, some

from muonsocks.address import Endpoint
from muonsocks.errors import LocalProtocolError, RemoteProtocolError
from muonsocks.socks.proxy_header import (
    NOBODY_ELSE,
    Introduction,
    Reader,
    version_1,
    version_2,
)
from muonsocks.socks.request import Event

V4 = Endpoint("192.0.2.1", 56324), Endpoint("198.51.100.2", 443)
V6 = Endpoint("2001:db8::1", 1), Endpoint("::1", 65535)
SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")


def test_version_1() -> None:
    assert version_1(*V4) == b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"
    assert version_1(*V6) == b"PROXY TCP6 2001:db8::1 ::1 1 65535\r\n"


def test_the_c_program_s_own() -> None:
    """As was seen of it."""
    loopback = Endpoint("::1", 38774), Endpoint("::1", 46445)
    assert version_1(*loopback) == b"PROXY TCP6 ::1 ::1 38774 46445\r\n"


def test_the_longest_line() -> None:
    longest = Endpoint("1111:2222:3333:4444:5555:6666:7777:8888", 65535)
    assert len(version_1(longest, longest)) <= 107


def test_version_2() -> None:
    assert version_2(*V4) == SIGNATURE + bytes.fromhex("2111000c c0000201 c6336402 dc04 01bb")
    addresses = socket.inet_pton(socket.AF_INET6, "2001:db8::1") + bytes(15) + b"\1"
    assert version_2(*V6) == SIGNATURE + b"\x21\x21\0\x24" + addresses + struct.pack(
        "!HH", 1, 65535
    )


@pytest.mark.parametrize(("client", "local"), [(None, None), (None, V4[1]), (V4[0], None)])
def test_an_unknown_client(client: Endpoint | None, local: Endpoint | None) -> None:
    assert version_1(client, local) == b"PROXY UNKNOWN\r\n"
    assert version_2(client, local) == SIGNATURE + bytes.fromhex("21000000")


def test_an_ipv4_client_of_an_ipv6_socket() -> None:
    """Both ends of one are, and both are IPv4."""
    ends = Endpoint.of_socket(("::ffff:192.0.2.1", 1, 0, 0)), Endpoint("::ffff:192.0.2.2", 2)
    assert version_1(*ends) == b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"


def test_ends_of_two_families() -> None:
    ends = V4[0], V6[0]
    line = b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::1 56324 1\r\n"
    assert version_1(*ends) == line
    addresses = socket.inet_pton(socket.AF_INET6, "::ffff:192.0.2.1")
    addresses += socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    header = SIGNATURE + b"\x21\x21\0\x24" + addresses + struct.pack("!HH", 56324, 1)
    assert version_2(*ends) == header
    assert [read(header), read(line)] == [Introduction(V4[0])] * 2


# Reading


def read(header: bytes, behind: bytes = b"\5\1\0") -> Event | None:
    """What a reader makes of a header, however it comes; it takes not a byte more."""
    whole = Reader()
    whole.receive(header + behind)
    said = whole.next_event()
    assert (whole.trailing, whole.wants, whole.state) == (behind, 0, "closed")
    for size in (1, 3, 16):
        assert outcome(Reader(), cut(header + behind, size)) == (said, "", behind)
    exact, wire = Reader(), Wire(header + behind)
    assert outcome(exact, wire.exact_reads(exact)) == (said, "", b"")
    assert wire.unread == behind
    return said


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[place : place + size] for place in range(0, len(data), size))


def outcome(reader: Reader, chunks: Iterable[bytes]) -> tuple[Event | None, str, bytes]:
    """What a reader has said, or what it found wrong, and what it has left."""
    said, problem = None, ""
    for chunk in chunks:
        reader.receive(chunk)
        try:
            event = reader.next_event()
        except RemoteProtocolError as error:
            assert not problem, "a reader that is closed cannot fail again"
            assert (error.reply, error.code, reader.state) == (b"", None, "closed")
            problem = str(error)
        else:
            assert event is None or said is None
            said = said or event
        waits = reader.state != "closed"
        assert (reader.wants > 0) == waits
        assert not waits or len(reader.trailing) + reader.wants <= 16 + 4096
    return said, problem, reader.trailing if said else b""


def v2(family: int, *addresses: str, command: int = 0x21, more: bytes = b"") -> bytes:
    block = b"".join(bytes.fromhex(part) for part in addresses) + more
    return SIGNATURE + struct.pack("!BBH", command, family, len(block)) + block


LOOPBACK_6 = "00" * 15 + "01"
TLVS = bytes.fromhex("03 0004 00000000 04 0001 00 30 0003 616263")
HEADERS: dict[str, tuple[bytes, Introduction]] = {
    "version 1, IPv4": (
        b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n",
        Introduction(V4[0]),
    ),
    "version 1, IPv6": (b"PROXY TCP6 2001:DB8::1 ::1 1 65535\r\n", Introduction(V6[0])),
    "version 1, IPv6 and ports of one digit": (
        b"PROXY TCP6 :: :: 0 0\r\n",
        Introduction(Endpoint("::", 0)),
    ),
    "version 1, the longest of IPv6": (
        b"PROXY TCP6" + b" ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff" * 2 + b" 65535 65535\r\n",
        Introduction(Endpoint(":".join(["ffff"] * 8), 65535)),
    ),
    "version 1, unknown": (b"PROXY UNKNOWN\r\n", NOBODY_ELSE),
    "version 1, unknown, with a rest": (b"PROXY UNKNOWN " + b"\xff" * 91 + b"\r\n", NOBODY_ELSE),
    "version 2, IPv4": (v2(0x11, "c0000201", "c6336402", "dc04 01bb"), Introduction(V4[0])),
    "version 2, IPv6": (
        v2(0x21, "20010db8" + "00" * 11 + "01", LOOPBACK_6, "0001 ffff"),
        Introduction(V6[0]),
    ),
    "version 2, more behind the addresses": (
        v2(0x11, "c0000201", "c6336402", "dc04 01bb", more=TLVS),
        Introduction(V4[0]),
    ),
    "version 2, as much behind as may be": (
        v2(0x11, "c0000201", "c6336402", "dc04 01bb", more=bytes(4096 - 12)),
        Introduction(V4[0]),
    ),
    "version 2, IPv4-mapped": (
        v2(0x21, "00" * 10 + "ffff c0000201", "00" * 10 + "ffff c6336402", "dc04 01bb"),
        Introduction(V4[0]),
    ),
    "version 2, unix": (v2(0x31, "2f" * 216), Introduction(None, over_unix=True)),
    "version 2, unspecified": (v2(0), NOBODY_ELSE),
    "version 2, unspecified, with addresses": (v2(0, "ff" * 12), NOBODY_ELSE),
    "version 2, a family without a transport": (v2(0x10, "ff" * 12), NOBODY_ELSE),
    "version 2, a transport without a family": (v2(0x01, "ff" * 12), NOBODY_ELSE),
    "version 2, UDP": (v2(0x12, "c0000201", "c6336402", "dc04 01bb"), NOBODY_ELSE),
    "version 2, UDP over IPv6": (v2(0x22, "00" * 36), NOBODY_ELSE),
    "version 2, datagrams over unix": (v2(0x32, "2f" * 216), NOBODY_ELSE),
    "version 2, local": (v2(0, command=0x20), NOBODY_ELSE),
    "version 2, local, with what is to be skipped": (
        v2(0x11, "c0000201", "c6336402", "dc04 01bb", command=0x20),
        NOBODY_ELSE,
    ),
    "version 2, local, of no family there is": (v2(0xFF, "ff", command=0x20), NOBODY_ELSE),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_is_read(name: str) -> None:
    header, said = HEADERS[name]
    assert read(header) == said
    for place in range(1, len(header)):
        assert outcome(Reader(), (header[:place], header[place:])) == (said, "", b"")
        assert outcome(Reader(), (header[:place],)) == (None, "", b"")


NONE, ALONE = "no PROXY header", "a PROXY header has a CR or LF alone"
ENDLESS = "a PROXY header has no end in 107 bytes"
SENSE = "a PROXY header makes no sense: "
BROKEN: dict[bytes, str] = {
    b"\5\1\0": NONE,
    b"POST / HTTP/1.0\r\n": NONE,
    b"PROXY\tTCP4": NONE,
    b"PROXX ": NONE,
    b"\r\n\r\n\0\r\nQUIT\r": NONE,
    b"\r\n\r\n\r\n": NONE,
    b"PROXY UNKNOWN\n": ALONE,
    b"PROXY UNKNOWN\rx": ALONE,
    b"PROXY UNKNOWN \r\r\n": ALONE,
    b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n": ENDLESS,
    b"PROXY " + b"x" * 500: ENDLESS,
    **{
        b"PROXY %s\r\n" % line: f"{SENSE}{b'PROXY ' + line!r}"
        for line in (
            b"",
            b"unknown",
            b"UNKNOWNX",
            b" UNKNOWN",
            b"TCP4",
            b"TCP5 192.0.2.1 192.0.2.2 1 2",
            b"UDP4 192.0.2.1 192.0.2.2 1 2",
            b"TCP4 192.0.2.1 192.0.2.2 1",
            b"TCP4 192.0.2.1 192.0.2.2 1 2 3",
            b"TCP4 192.0.2.1 192.0.2.2 1 2 ",
            b"TCP4  192.0.2.1 192.0.2.2 1 2",
            b"TCP4 192.0.2.1 192.0.2.2 65536 2",
            b"TCP4 192.0.2.1 192.0.2.2 1 65536",
            b"TCP4 192.0.2.1 192.0.2.2 01 2",
            b"TCP4 192.0.2.1 192.0.2.2 1 00",
            b"TCP4 192.0.2.1 192.0.2.2 +1 2",
            b"TCP4 192.0.2.1 192.0.2.2 -1 2",
            b"TCP4 192.0.2.1 192.0.2.2 1_0 2",
            b"TCP4 192.0.2.1 192.0.2.2  2",
            b"TCP4 192.0.2.01 192.0.2.2 1 2",
            b"TCP4 192.0.2 192.0.2.2 1 2",
            b"TCP4 192.0.2.256 192.0.2.2 1 2",
            b"TCP4 192.0.2.1 host 1 2",
            b"TCP4 192.0.2.1\0 192.0.2.2 1 2",
            b"TCP4 2001:db8::1 ::1 1 2",
            b"TCP6 192.0.2.1 192.0.2.2 1 2",
            b"TCP6 [::1] ::1 1 2",
            b"TCP6 fe80::1%lo ::1 1 2",
            b"TCP6 ::1 1::2::3 1 2",
            b"TCP4 192.0.2.1 192.0.2.2 \xb2 2",
        )
    },
    SIGNATURE + b"\x11\x11\0\x0c": "a PROXY header has version and command 0x11",
    SIGNATURE + b"\x22\x11\0\x0c": "a PROXY header has version and command 0x22",
    SIGNATURE + b"\x31\x11\0\x0c": "a PROXY header has version and command 0x31",
    SIGNATURE + b"\x21\x41\0\x0c": "a PROXY header has addresses of type 0x41",
    SIGNATURE + b"\x21\x13\0\x0c": "a PROXY header has addresses of type 0x13",
    SIGNATURE + b"\x21\x11\x10\x01": "a PROXY header of 4113 bytes is too long",
    SIGNATURE + b"\x20\0\xff\xff": "a PROXY header of 65551 bytes is too long",
    SIGNATURE + b"\x21\x11\0\x0b": "a PROXY header is too short for its addresses",
    SIGNATURE + b"\x21\x21\0\x23": "a PROXY header is too short for its addresses",
    SIGNATURE + b"\x21\x31\0\xd7": "a PROXY header is too short for its addresses",
}


@pytest.mark.parametrize("header", BROKEN)
def test_a_broken_header(header: bytes) -> None:
    for size in (1, 2, 5, 1000):
        assert outcome(Reader(), cut(header + b"what follows", size)) == (
            None,
            BROKEN[header],
            b"",
        )


def test_a_reader_says_nothing() -> None:
    with pytest.raises(LocalProtocolError):
        Reader().send(NOBODY_ELSE)
    with pytest.raises(RemoteProtocolError):
        reader = Reader()
        reader.receive(b"\5")
        reader.next_event()
    assert not Reader.begins(4)
    assert not Reader.begins(5)


ends = st.sampled_from((ipv4_endpoints, ipv6_endpoints)).flatmap(lambda one: st.tuples(one, one))
writers = st.sampled_from((version_1, version_2))


@some
@given(writers, ends, st.binary(max_size=20))
def test_what_is_written_is_read(
    write: Callable[..., bytes], ends: tuple[Endpoint, Endpoint], behind: bytes
) -> None:
    assert read(write(*ends), behind) == Introduction(ends[0])


seeds = st.sampled_from([header for header, _ in HEADERS.values()] + list(BROKEN))


@many
@given(st.data())
def test_a_header_that_is_damaged(data: st.DataObject) -> None:
    """However it is cut, it means the same, and no more is read than it has."""
    header = data.draw(damaged(seeds))
    whole = outcome(Reader(), (header,))
    parts = data.draw(pieces(header))
    assert outcome(Reader(), parts)[:2] == whole[:2]
    exact, wire = Reader(), Wire(header)
    assert outcome(exact, wire.exact_reads(exact))[:2] == whole[:2]
    if whole[0] is not None:
        assert wire.unread == whole[2]
