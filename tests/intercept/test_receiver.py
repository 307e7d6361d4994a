"""What stands in the place of listeners, and the list of that."""

import errno
import os
import socket
from collections.abc import Iterator

import pytest
from ends import nothing_left_behind

from muonsocks.intercept.notify import Refused
from muonsocks.intercept.receiver import Receiver
from muonsocks.intercept.receivers import Receivers, is_receiver
from muonsocks.net.loop import Loop

NAME, OTHER = b"an address", b"another one"
REUSE = (socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


@pytest.fixture
def loop() -> Iterator[Loop]:
    with nothing_left_behind():
        loop = Loop()
        yield loop
        loop.close()


def datagrams() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)


def one_of(loop: Loop, sock: socket.socket, meant: socket.socket | None = None) -> Receiver:
    return Receiver(loop, sock, meant, NAME)


def test_what_accepted_sockets_are_to_have_is_what_has_been_set(loop: Loop) -> None:
    with datagrams() as sock, socket.socket(socket.AF_INET6) as meant:
        one = one_of(loop, sock, meant)
        assert (one.family, one.inherited) == (socket.AF_INET6, [])
        meant.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        meant.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 50)
        one.note_inherited()
        assert {*one.inherited} == {
            (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 50),
        }
        one.close()


def test_an_address_is_one_listeners_unless_both_share_it(loop: Loop) -> None:
    with datagrams() as sock, socket.socket() as meant, socket.socket() as second:
        one = one_of(loop, sock, meant)
        assert one.may_be_shared(second, OTHER)
        assert not one.may_be_shared(second, NAME)
        second.setsockopt(*REUSE)
        assert not one.may_be_shared(second, NAME)
        meant.setsockopt(*REUSE)
        assert one.may_be_shared(second, NAME)
        assert not one_of(loop, sock).may_be_shared(second, OTHER)
        one.close()


def test_they_are_found_by_inode_and_by_path(loop: Loop) -> None:
    receivers = Receivers()
    with datagrams() as sock, datagrams() as later:
        one, two = one_of(loop, sock), one_of(loop, later)
        one.path = two.path = "a path"
        receivers.add(one)
        assert receivers.of(os.fstat(sock.fileno()).st_ino) is one
        assert receivers.at("a path") is one
        receivers.add(two)
        assert receivers.at("a path") is two
        receivers.remove(one)
        assert receivers.at("a path") is two and receivers.of(one.inode) is None
        receivers.remove(two)
        assert receivers.at("a path") is None


def test_those_that_nobody_has_any_more_are_forgotten(loop: Loop) -> None:
    receivers = Receivers()
    with datagrams() as sock:
        sock.bind("")  # the list of the kernel has those with inodes, bound or not
        with datagrams() as short_lived:
            meant = socket.socket()
            gone = one_of(loop, short_lived, meant)
            receivers.add(gone)
        stays = one_of(loop, sock)
        receivers.add(stays)
        receivers.sweep()
        assert receivers.of(gone.inode) is None and receivers.of(stays.inode) is stays
        assert meant.fileno() == -1
        receivers.close()
        assert receivers.of(stays.inode) is None


def test_there_are_not_more_than_so_many(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muonsocks.intercept.receivers._MOST", 2)
    receivers = Receivers()
    socks = [datagrams() for _ in range(3)]
    for sock in socks[:2]:
        receivers.add(one_of(loop, sock))
    with pytest.raises(Refused) as failure:
        receivers.add(one_of(loop, socks[2]))
    assert failure.value.errno == errno.ENOBUFS
    receivers.close()
    for sock in socks:
        sock.close()


def test_which_sockets_connections_are_passed_to() -> None:
    near, far = socket.socketpair()
    with near, far, datagrams() as sock, socket.socket(socket.AF_UNIX) as lone:
        with socket.socket() as tcp:
            assert not is_receiver(tcp, True)
        assert is_receiver(sock, False)
        assert is_receiver(near, True) and not is_receiver(near, False)
        assert not is_receiver(lone, True)
