"""What has a descriptor's number meanwhile, and how epolls go on with the number."""

import os
import resource
import select
import socket
from _socket import AF_UNIX, SOCK_STREAM, socketpair
from _socket import socket as c_socket
from pathlib import Path

import pytest

from muonsocks.client import parking
from muonsocks.client.parking import Parking, replace

pytestmark = pytest.mark.usefixtures("clean")
BOTH = select.EPOLLIN | select.EPOLLOUT


def pair() -> tuple[c_socket, c_socket]:
    return socketpair(AF_UNIX, SOCK_STREAM)


def events_of(sock: c_socket) -> int:
    looking = select.poll()
    looking.register(sock.fileno(), BOTH | select.POLLRDHUP)
    return sum(events for _, events in looking.poll(0))


@pytest.mark.parametrize("tells_input", [False, True])
def test_nothing_happens_up_to_the_end(tells_input: bool) -> None:
    one = Parking(tells_input)
    assert events_of(one.sock) == 0
    one.end()
    assert events_of(one.sock) == (BOTH if tells_input else select.EPOLLOUT)
    one.close()
    one.sock.close()


def test_a_failure_is_an_end_too() -> None:
    """As a connection that cannot be is to poll(2)."""
    one = Parking()
    one.end(True)
    assert events_of(one.sock) == BOTH | select.POLLERR | select.POLLHUP | select.POLLRDHUP
    one.close()
    one.sock.close()


def test_it_is_small() -> None:
    """Hundreds may wait at once."""
    one = Parking()
    assert one.sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < 1 << 13
    one.close()
    one.sock.close()


@pytest.mark.parametrize("first", ["sock", "rest"])
def test_the_end_after_it_was_left(first: str) -> None:
    one = Parking(True)
    if first == "sock":
        one.sock.close()
        one.end()
    one.close()
    one.end()
    one.close()
    one.sock.close()


def test_left_in_the_middle_of_the_end() -> None:
    """What collects garbage may come at any point, in the same thread, and must not wait."""
    one = Parking()
    one._lock.acquire()
    one.close()
    one._lock.release()
    one.end()
    assert one._far.fileno() < 0
    one.sock.close()


@pytest.mark.parametrize("is_watched", [False, True])
@pytest.mark.parametrize("inheritable", [False, True])
def test_replaced(is_watched: bool, inheritable: bool) -> None:
    old, new = pair(), pair()
    number = old[0].fileno()
    os.set_inheritable(number, inheritable)
    replace(number, new[0], is_watched)
    assert new[0].fileno() < 0, "it is closed elsewhere"
    assert os.get_inheritable(number) == inheritable
    new[1].send(b"new")
    assert old[0].recv(9) == b"new"
    for one in (*old, *new):
        one.close()


@pytest.mark.parametrize("extra", [0, select.EPOLLET, select.EPOLLONESHOT, select.EPOLLEXCLUSIVE])
@pytest.mark.parametrize("high", [False, True])
def test_epolls_go_on(extra: int, high: bool) -> None:
    old, new = pair(), pair()
    number = old[0].fileno()
    if high:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        if limits[1] < 2000:
            pytest.skip("no descriptor above 1024 can be had here")
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], 2000), limits[1]))
        number = os.dup2(number, 1500)
    first, second = select.epoll(), select.epoll()
    third = os.dup(second.fileno())
    first.register(number, select.EPOLLIN | extra)
    second.register(number, select.EPOLLIN)
    replace(number, new[0], True)
    new[1].send(b"new")
    assert first.poll(0) == second.poll(0) == [(number, select.EPOLLIN)]
    assert first.poll(0) == ([(number, select.EPOLLIN)] if extra in (0, 1 << 28) else [])
    second.modify(number, select.EPOLLOUT)
    assert second.poll(0) == [(number, select.EPOLLOUT)]
    for one in (*old, *new, first, second):
        one.close()
    os.close(third)
    if high:
        os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_the_same_number_of_another_file() -> None:
    """An epoll may still have a file that had this number, and is open elsewhere."""
    old, new, other = pair(), pair(), pair()
    number = old[0].fileno()
    epoll = select.epoll()
    epoll.register(number, select.EPOLLIN)
    kept = os.dup(number)
    os.dup2(other[0].fileno(), number)
    replace(number, new[0], True)
    new[1].send(b"new")
    assert epoll.poll(0) == []
    for one in (*old, *new, *other, epoll):
        one.close()
    os.close(kept)


def test_no_descriptor_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever cannot be done, the number stands for what it stood for, and nothing is open."""
    old, new = pair(), pair()

    def fail(_: int) -> int:
        raise OSError(24, "too many")

    with select.epoll() as one:
        one.register(old[0].fileno(), select.EPOLLIN)
        monkeypatch.setattr(parking.os, "dup", fail)
        with pytest.raises(OSError, match="too many"):
            replace(old[0].fileno(), new[0], True)
        assert new[0].fileno() < 0
        old[1].send(b"old")
        assert one.poll(0) == [(old[0].fileno(), select.EPOLLIN)]
    for sock in (*old, *new):
        sock.close()


def test_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is said what is missing. Who waits needs no /proc."""
    monkeypatch.setattr(parking, "PROC", str(tmp_path))
    old, new, more = pair(), pair(), pair()
    replace(old[0].fileno(), new[0], True)
    with pytest.raises(OSError, match="/proc"):
        replace(old[0].fileno(), more[0], True, must_be=True)
    for sock in (*old, *new, *more):
        sock.close()
