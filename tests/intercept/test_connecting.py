"""One connection, from who begins it to who gets it; from a program's side it is in test_held."""

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from types import SimpleNamespace

import pytest
from ends import nothing_left_behind

from muonsocks.intercept.connecting import Connecting, Outcome
from muonsocks.intercept.notify import Call, CallGone

_ERESTARTSYS, _ERESTARTNOINTR = 512, 513  # include/linux/errno.h
REFUSED = OSError(errno.ECONNREFUSED, "refused")


class Way:
    """What is done to connect it: nothing, until somebody says how it has ended."""

    def __init__(self) -> None:
        self.interrupted: list[BaseException] = []

    def begin(
        self,
        sock: socket.socket,
        blocks: bool,
        on_failure: Callable[[BaseException], None],
        on_outcome: Callable[[Outcome], None],
    ) -> "Way":
        self.sock, self.blocks = sock, blocks
        self.fail, self.end = on_failure, on_outcome
        return self

    def interrupt(self, error: BaseException) -> None:
        self.interrupted.append(error)
        self.fail(error)


def call(tid: int = 0, fd: int = 0) -> Call:
    return SimpleNamespace(tid=tid, fd=fd)


class Heir:
    """Who has the connection in the end."""

    def __init__(self) -> None:
        self.failures: list[BaseException] = []
        self.socks: list[socket.socket] = []

    def take(self, one: Connecting) -> None:
        one.hand_over(self.failures.append, self.socks.append)


@pytest.fixture(autouse=True)
def leaks_nothing() -> Iterator[None]:
    with nothing_left_behind():
        yield


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.socket() as sock:
        yield sock


@pytest.fixture
def way() -> Way:
    return Way()


@pytest.fixture
def one(sock: socket.socket, way: Way) -> Iterator[Connecting]:
    made = begun(sock, way)
    with closing(made.sock):
        yield made


def begun(sock: socket.socket, way: Way) -> Connecting:
    made = Connecting(sock)
    made.start(5.0, way.begin)
    return made


# What it is begun with


@pytest.mark.parametrize("blocks", [True, False])
def test_it_has_a_duplicate_of_the_socket(sock: socket.socket, way: Way, blocks: bool) -> None:
    sock.setblocking(blocks)
    one = begun(sock, way)
    with closing(one.sock):
        assert way.sock is one.sock and way.blocks == blocks
        assert one.sock.fileno() != sock.fileno()
        assert os.fstat(one.sock.fileno()).st_ino == os.fstat(sock.fileno()).st_ino
        assert (one.since, one.under_way, one.is_over) == (5.0, way, False)


@pytest.mark.parametrize(
    ("blocks", "is_bound", "protocol", "is_plain"),
    [
        (True, False, socket.IPPROTO_TCP, True),
        (False, False, socket.IPPROTO_TCP, False),
        (True, True, socket.IPPROTO_TCP, False),
        (True, False, socket.IPPROTO_MPTCP, False),
    ],
)
def test_what_another_socket_can_be_as(
    way: Way, blocks: bool, is_bound: bool, protocol: int, is_plain: bool
) -> None:
    with socket.socket(proto=protocol) as sock:
        sock.setblocking(blocks)
        if is_bound:
            sock.bind(("127.0.0.1", 0))
        one = begun(sock, way)
        one.sock.close()
        assert one.is_plain == is_plain


@pytest.mark.parametrize(
    ("seconds", "microseconds", "limit"), [(0, 0, 0.0), (3, 0, 3.0), (2, 500000, 2.5)]
)
def test_the_time_limit_is_that_of_the_program(
    sock: socket.socket, way: Way, seconds: int, microseconds: int, limit: float
) -> None:
    time = struct.pack("@ll", seconds, microseconds)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, time)
    one = begun(sock, way)
    one.wait_for(call())
    assert one.limit == pytest.approx(limit, abs=0.01)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 9, 0))
    one.wait_for(call())  # as it is then
    assert one.limit == pytest.approx(9, abs=0.01)
    one.sock.close()
    sock.setblocking(False)  # then it does not wait
    one = begun(sock, way)
    one.wait_for(call())
    one.sock.close()
    assert one.limit == 0.0


# How it ends


def test_an_outcome_is_kept_for_who_comes(one: Connecting, way: Way) -> None:
    outcome = Outcome(REFUSED)
    way.end(outcome)
    assert (one.is_over, one.outcome, one.failure) == (True, outcome, None)


def test_a_failure_is_kept_for_who_comes(one: Connecting, way: Way) -> None:
    error = KeyError("a bug")
    way.fail(error)
    assert (one.is_over, one.outcome, one.failure) == (True, None, error)


@pytest.mark.parametrize("is_over", [True, False])
def test_who_gets_it_gets_the_socket(one: Connecting, way: Way, is_over: bool) -> None:
    heir = Heir()
    if is_over:
        way.end(Outcome())
    heir.take(one)
    if not is_over:
        assert heir.socks == []
        way.end(Outcome())
    assert (heir.socks, heir.failures) == ([one.sock], [])


def test_who_gets_it_gets_what_stands_in_its_place(one: Connecting, way: Way) -> None:
    heir = Heir()
    heir.take(one)
    with socket.socket() as other:
        way.end(Outcome(stand_in=other))
        assert heir.socks == [other]
        assert one.sock.fileno() < 0  # which nobody needs any more


@pytest.mark.parametrize("is_ours", [True, False])
def test_who_gets_it_is_told_what_has_failed(one: Connecting, way: Way, is_ours: bool) -> None:
    heir = Heir()
    heir.take(one)
    error = KeyError("a bug") if is_ours else REFUSED
    if is_ours:
        way.fail(error)
    else:
        way.end(Outcome(REFUSED))
    assert (heir.socks, heir.failures) == ([], [error])
    assert one.sock.fileno() < 0


# Who waits


def test_a_time_limit_ends_a_wait_as_the_kernel_says_it(one: Connecting) -> None:
    one.wait_for(call())
    one.time_is_up()
    assert one.reason == errno.EINPROGRESS
    one.wait_for(call())  # the next one begins anew
    assert one.reason == 0
    one.time_is_up()
    assert one.reason == errno.EALREADY


@pytest.mark.parametrize(
    ("blocks", "limit", "reason"),
    [
        (True, 0, _ERESTARTSYS),
        (True, 9, errno.EINTR),  # signal(7): never again, with a time limit
        (False, 0, _ERESTARTNOINTR),
    ],
)
def test_a_signal_ends_a_wait_as_the_kernel_says_it(
    sock: socket.socket, way: Way, blocks: bool, limit: int, reason: int
) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", limit, 0))
    sock.setblocking(blocks)
    one = begun(sock, way)
    one.wait_for(call())
    one.sock.close()
    one.interrupt()
    assert one.reason == reason


def test_who_has_the_socket_still(sock: socket.socket, one: Connecting) -> None:
    one.wait_for(call(os.getpid(), sock.fileno()))
    assert one.is_had()
    with socket.socket() as other:
        one.wait_for(call(os.getpid(), other.fileno()))
        assert not one.is_had()
        number = other.fileno()
    one.wait_for(call(os.getpid(), number))
    assert not one.is_had()


# Nobody wants it


@pytest.mark.parametrize("is_awaited", [True, False])
@pytest.mark.parametrize("is_aborted", [True, False])
def test_it_is_given_up(one: Connecting, way: Way, is_awaited: bool, is_aborted: bool) -> None:
    if is_awaited:
        one.wait_for(call())
    if is_aborted:
        one.abort()
    else:
        one.drop()
    [error] = way.interrupted
    assert one.failure is error
    if is_aborted:
        assert isinstance(error, OSError) and error.errno == errno.ECONNABORTED
    else:
        assert isinstance(error, CallGone)
    assert (one.sock.fileno() >= 0) == is_awaited  # who waits closes it


def test_what_stands_in_its_place_is_given_back(one: Connecting, way: Way) -> None:
    other = socket.socket()
    way.end(Outcome(stand_in=other))
    one.drop()
    assert other.fileno() < 0
    assert way.interrupted == []
