"""Headers of datagrams: what is written is read again, and what is not one is told so."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import endpoints, many, some

from muonsocks.address import Endpoint
from muonsocks.errors import LocalProtocolError, RemoteProtocolError
from muonsocks.socks.datagram import decode_header, encode_header, header_length, last_header

HEADERS = {
    "IPv4": ("000000 01 c0000201 0035", Endpoint("192.0.2.1", 53)),
    "IPv6": ("000000 04 20010db8 00000000 00000000 00000001 01bb", Endpoint("2001:db8::1", 443)),
    "a name": ("000000 03 04 686f7374 0050", Endpoint("host", 80)),
    "an address as a name": ("000000 03 09 3139322e302e322e31 0050", Endpoint("192.0.2.1", 80)),
    "IPv4 in IPv6": (
        "000000 04 00000000 00000000 0000ffff c0000201 0035",
        Endpoint("192.0.2.1", 53),
    ),
    "RSV is not looked at": ("beef00 01 c0000201 0035", Endpoint("192.0.2.1", 53)),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers(name: str) -> None:
    text, endpoint = HEADERS[name]
    header = bytes.fromhex(text)
    assert header_length(header, len(header)) == len(header)
    assert header_length(header + b"more", len(header) + 4) == len(header)
    assert decode_header(header) == endpoint


WRONG = {
    "nothing": "",
    "a fragment": "000001 01 c0000201 0035",
    "the last fragment": "000081 01 c0000201 0035",
    "type 0": "000000 00 c0000201 0035",
    "type 2": "000000 02 c0000201 0035",
    "type 255": "000000 ff c0000201 0035",
    "cut short": "000000 01 c0000201 00",
    "IPv6 cut short": "000000 04 c0000201 0035",
    "an empty name": "000000 03 00 0050",
    "a name that is none": "000000 03 02 2061 0050",
    "a name with a NUL": "000000 03 02 6100 0050",
    "a name longer than all": "000000 03 ff 61 0050",
    "too long": "000000 01 c0000201 0035 00",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_header_for_us(name: str) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_header(bytes.fromhex(WRONG[name]))


@some
@given(endpoints, st.binary(max_size=40))
def test_round_trip(endpoint: Endpoint, data: bytes) -> None:
    header = encode_header(endpoint)
    assert decode_header(header) == endpoint
    datagram = header + data
    assert header_length(datagram, len(datagram)) == len(header)
    assert header_length(bytearray(datagram) + bytes(99), len(datagram)) == len(header)


def test_a_name_that_cannot_be_written() -> None:
    with pytest.raises(LocalProtocolError):
        encode_header(Endpoint("a b", 1))


beginnings = st.sampled_from([b"", b"\0\0\0\1", b"\0\0\0\3", b"\0\0\0\4"])


@many
@given(beginnings, st.binary(max_size=300), st.integers(0, 300))
def test_anything(beginning: bytes, rest: bytes, behind: int) -> None:
    """What a client may send: it has a header that fits into it, or none; what is behind it in a
    buffer, from an earlier one, does not matter.
    """
    data = beginning + rest
    length = header_length(data + bytes(behind), len(data))
    assert length == header_length(data + b"\xff" * behind, len(data))
    assert 0 <= length <= len(data)
    try:
        endpoint = decode_header(data[:length])
    except RemoteProtocolError:
        return
    assert length >= 8
    again = encode_header(endpoint)
    assert decode_header(again) == endpoint


ONE, TWO = encode_header(Endpoint("192.0.2.1", 53)), encode_header(Endpoint("host", 80))


def test_the_last_of_several_headers() -> None:
    datagram = b"xx" + ONE + TWO + ONE + b"data"
    end = len(datagram)
    assert last_header(datagram, 2, end, 1) == (2, 2 + len(ONE))
    assert last_header(datagram, 2, end, 2) == (2 + len(ONE), 2 + len(ONE + TWO))
    assert last_header(memoryview(datagram), 2, end, 3) == (2 + len(ONE + TWO), end - 4)
    assert last_header(datagram, 2, end, 4) == (0, 0)
    assert last_header(datagram, 2, end - 5, 3) == (0, 0), "it is cut short"
    assert last_header(datagram, 2, end - 5, 2) != (0, 0)
    for broken in range(3):
        headers = [ONE, TWO, ONE]
        headers[broken] = b"\0\0\1" + headers[broken][3:]
        whole = b"".join(headers)
        assert last_header(whole, 0, len(whole), 3) == (0, 0), "one of them is a fragment"
