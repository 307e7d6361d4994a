"""A socket whose descriptor comes to stand for another one."""

import os
import select
import socket
from typing import Any

import pytest

from muonsocks.client.replaceable import Replaceable

KEEPALIVE = (socket.SOL_SOCKET, socket.SO_KEEPALIVE)
HOPS = (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)
NODELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY)


def taken_over(sock: Replaceable, other: Any, is_watched: bool = False) -> None:
    """Have another socket, which is made for this, in its place."""
    sock._take_over(other, is_watched)


@pytest.mark.parametrize("timeout", [None, 0.0, 5.0])
def test_its_number_and_its_mode_stay(timeout: float | None) -> None:
    near, far = socket.socketpair()
    with Replaceable() as sock, far:
        sock.settimeout(timeout)
        number = sock.fileno()
        taken_over(sock, near)
        assert (sock.fileno(), sock.gettimeout()) == (number, timeout)
        assert os.get_blocking(number) == (timeout is None)
        far.send(b"hello")
        assert sock.recv(9) == b"hello"
        assert near.fileno() == -1


def test_an_epoll_goes_on_with_the_other() -> None:
    near, far = socket.socketpair()
    with Replaceable() as sock, far, select.epoll() as poll:
        poll.register(sock, select.EPOLLIN)
        taken_over(sock, near, True)
        assert poll.poll(0) == []
        far.send(b"x")
        assert poll.poll(0) == [(sock.fileno(), select.EPOLLIN)]


def test_options_are_those_of_the_family_that_the_program_wants() -> None:
    """What the other one does not have is as a fresh socket would have it."""
    with Replaceable(socket.AF_INET6) as sock:
        sock.setsockopt(*HOPS, 9)
        taken_over(sock, socket.socket())
        assert sock.getsockopt(*HOPS) == 9
        sock.setsockopt(*HOPS, 8)
        assert sock.getsockopt(*HOPS) == 8
        with pytest.raises(OSError):
            sock.setsockopt(*HOPS, 1000)
        assert sock.getsockopt(*HOPS) == 8


def test_options_are_set_of_both_where_both_have_them() -> None:
    with Replaceable(socket.AF_INET6) as sock:
        taken_over(sock, socket.socket())
        sock.setsockopt(*NODELAY, 1)
        with socket.socket(fileno=os.dup(sock.fileno())) as same:
            assert same.family == socket.AF_INET and same.getsockopt(*NODELAY) == 1


def test_a_unix_socket_has_what_it_can_have() -> None:
    near, far = socket.socketpair()
    with Replaceable() as sock, far:
        sock.setsockopt(*KEEPALIVE, 1)
        sock.setsockopt(*NODELAY, 1)
        taken_over(sock, near)
        assert sock.getsockopt(*KEEPALIVE) == 1
        assert sock.getsockopt(*NODELAY) == 1
        with socket.socket(fileno=os.dup(sock.fileno())) as same:
            assert same.getsockopt(*KEEPALIVE) == 1


def test_it_may_be_fresh_again_with_its_options() -> None:
    near, far = socket.socketpair()
    with Replaceable() as sock, far:
        sock.setsockopt(*NODELAY, 1)
        taken_over(sock, near)
        sock._become_fresh()
        assert far.recv(1) == b""
        with socket.socket(fileno=os.dup(sock.fileno())) as same:
            assert same.family == socket.AF_INET and same.getsockopt(*NODELAY) == 1
        with socket.create_server(("127.0.0.1", 0)) as server:
            sock.connect(server.getsockname())


def test_nothing_happens_at_one_that_is_retired() -> None:
    with Replaceable() as sock, select.epoll() as poll:
        poll.register(sock, select.EPOLLIN)
        assert poll.poll(0), "it has hung up, as it is not connected"
        sock._retire()
        assert poll.poll(0) == []


def test_one_of_another_kind_is_as_it_is() -> None:
    with Replaceable(socket.AF_UNIX) as sock:
        with pytest.raises(OSError):
            sock.setsockopt(*NODELAY, 1)
        sock.setsockopt(*KEEPALIVE, 1)
        assert sock._options == {}
