"""Socket addresses, against those that the system itself writes."""

import ctypes
import os
import socket

import pytest

from muonsocks.address import Endpoint
from muonsocks.intercept.socket_address import (
    LONGEST,
    SHORTEST,
    address_of,
    endpoint_of,
    family_of,
)

LIBRARY = ctypes.CDLL(None, use_errno=True)


def name_of(sock: socket.socket) -> bytes:
    """getsockname(2) as it is."""
    buffer, length = ctypes.create_string_buffer(LONGEST), ctypes.c_uint(LONGEST)
    assert not LIBRARY.getsockname(sock.fileno(), buffer, ctypes.byref(length))
    return buffer.raw[: length.value]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "0.0.0.0", "::1", "::"])
def test_addresses_are_those_of_the_system(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock:
        sock.bind((host, 0))
        raw, name = name_of(sock), sock.getsockname()
    assert family_of(raw) == family
    endpoint = endpoint_of(raw)
    assert endpoint is not None and (endpoint.host, endpoint.port) == name[:2]
    assert address_of(endpoint, family) == raw


def test_ipv4_in_ipv6() -> None:
    raw = address_of(Endpoint("192.0.2.1", 80), socket.AF_INET6)
    assert raw[8:24] == socket.inet_pton(socket.AF_INET6, "::ffff:192.0.2.1")
    endpoint = endpoint_of(raw)
    assert endpoint is not None and (endpoint.host, endpoint.port) == ("192.0.2.1", 80)


def test_ipv6_is_zeros_for_ipv4() -> None:
    raw = address_of(Endpoint("2001:db8::1", 80), socket.AF_INET)
    assert raw == b"\2\0\0\x50" + bytes(12)


def test_a_zone_is_kept() -> None:
    endpoint = Endpoint.at(socket.inet_pton(socket.AF_INET6, "fe80::1"), 7, 3)
    again = endpoint_of(address_of(endpoint, socket.AF_INET6))
    assert again is not None and again.scope == 3


@pytest.mark.parametrize("family", SHORTEST)
def test_the_shortest_addresses_are_those_of_the_kernel(family: int) -> None:
    """A byte less is EINVAL there, and none here."""
    raw = address_of(Endpoint("127.0.0.1" if family == 2 else "::1", 9), family)
    for length in range(len(raw) + 1):
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            result = LIBRARY.connect(sock.fileno(), raw, length)
        is_long_enough = not result or ctypes.get_errno() != 22
        if is_long_enough or length >= 2:
            assert (endpoint_of(raw[:length]) is not None) == is_long_enough, length


def test_other_families_have_none() -> None:
    assert endpoint_of(b"") is None
    assert endpoint_of(bytes(LONGEST)) is None
    assert endpoint_of(b"\1\0/run/x" + bytes(100)) is None
    assert endpoint_of(b"\xff\xff" + os.urandom(126)) is None
