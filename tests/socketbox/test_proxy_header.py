"""The headers of the PROXY protocol, byte for byte."""

import socket
import struct

import pytest

from muonsocks.address import Endpoint
from muonsocks.socketbox.proxy_header import version_1, version_2

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
