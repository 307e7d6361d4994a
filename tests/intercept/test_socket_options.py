"""What has been set of a socket, and of another one in its place then."""

import socket
import struct

import pytest

from muonsocks.intercept.socket_options import buffer_locks, options_of, set_options

SET = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 9)),
    (socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 3, 500000)),
    (socket.SOL_SOCKET, socket.SO_SNDBUF, 30000),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77),
    (socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno"),
    (socket.IPPROTO_IP, socket.IP_TOS, 32),
    (socket.IPPROTO_IP, socket.IP_TTL, 9),
]
OF_IPV6 = (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 5)
FAMILIES = [socket.AF_INET, socket.AF_INET6]


@pytest.mark.parametrize("family", FAMILIES)
def test_of_a_fresh_one_there_are_none(family: int) -> None:
    with socket.socket(family) as sock:
        assert options_of(sock) == {}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("option", SET, ids=lambda one: f"{one[0]:d}-{one[1]:d}")
def test_each_is_had_by_the_other(family: int, option: tuple[int, int, int | bytes]) -> None:
    with socket.socket(family) as one, socket.socket(family) as other:
        one.setsockopt(*option)
        assert option[:2] in options_of(one)
        set_options(other, options_of(one))
        assert options_of(other) == options_of(one)
        for sock in (one, other):
            assert sock.getsockopt(*option[:2], 16) == one.getsockopt(*option[:2], 16)


def test_one_of_another_family_has_what_it_can_have() -> None:
    with socket.socket(socket.AF_INET6) as one, socket.socket() as other:
        one.setsockopt(*OF_IPV6)
        one.setsockopt(*SET[0])
        found = options_of(one)
        assert OF_IPV6[:2] in found
        set_options(other, found)
        assert list(options_of(other)) == [SET[0][:2]]


def test_of_a_unix_socket_only_what_it_has() -> None:
    with socket.socket() as one, socket.socket(socket.AF_UNIX) as other:
        for option in SET:
            one.setsockopt(*option)
        set_options(other, options_of(one))
        assert other.getsockopt(*SET[0][:2]) == 1
        assert other.getsockopt(*SET[2][:2], 16) == SET[2][2]


def test_buffers_that_grow_are_none_that_have_been_set() -> None:
    with socket.socket() as sock:
        if (socket.SOL_SOCKET, socket.SO_SNDBUF) in options_of(sock):
            pytest.skip("this kernel does not tell which buffers have been set (Linux 5.14)")
        assert buffer_locks(sock) == 0
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 40000)
        assert buffer_locks(sock) == 2
        found = options_of(sock)
        assert found == {(socket.SOL_SOCKET, socket.SO_RCVBUF): struct.pack("=I", 40000)}
