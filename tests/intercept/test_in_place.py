"""A socket in the place of another one, which a real child has."""

import contextlib
import ctypes
import errno
import fcntl
import os
import resource
import select
import socket
import struct
from collections.abc import Callable

import pytest
from filtered import LIBRARY, child, next_call

from muonsocks.intercept.bpf import NOTIFY, Rule
from muonsocks.intercept.in_place import Places

ASKS = {"getpeername": [Rule(NOTIFY)]}
Say = Callable[[object], None]


def is_watched(poll: select.epoll, sock: socket.socket) -> int:
    """Give the events that an epoll waits for of a socket, 0 if of none."""
    with open(f"/proc/self/fdinfo/{poll.fileno()}") as file:
        for line in file:
            words = line.split()
            if words[0] == "tfd:" and int(words[1]) == sock.fileno():
                return int(words[3], 16)
    return 0


def ask(sock: socket.socket) -> None:
    try:
        sock.getpeername()
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def test_it_is_there_under_all_numbers_and_in_all_epolls() -> None:
    """Those of others are not touched; and each number is closed on exec as it was."""

    def program(say: Say) -> None:
        sock, other = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
        twin = sock.dup()
        os.set_inheritable(twin.fileno(), True)
        polls = [select.epoll() for _ in range(3)]
        polls[0].register(sock, select.EPOLLIN)
        polls[0].register(other, select.EPOLLPRI)
        polls[1].register(twin, select.EPOLLIN | select.EPOLLET)
        before = os.fstat(other.fileno()).st_ino
        ask(sock)
        inodes = [os.fstat(one.fileno()).st_ino for one in (sock, twin)]
        found = [one.poll(0) for one in polls]
        say(
            (
                inodes[0] == inodes[1],
                os.fstat(other.fileno()).st_ino == before,
                [os.get_inheritable(one.fileno()) for one in (sock, twin)],
                found == [[(sock.fileno(), 1)], [(twin.fileno(), 1)], []],
                bool(is_watched(polls[0], other) & select.EPOLLPRI),
                sock.recv(5) + twin.recv(9),
            )
        )

    near, far = socket.socketpair()
    with near, far, child(ASKS, program) as (listener, one):
        call = next_call(listener)
        with contextlib.closing(call.duplicate()) as old:
            before = set(os.listdir("/proc/self/fd"))
            Places(call, old).take(near)
            assert set(os.listdir("/proc/self/fd")) == before
        far.send(b"first, second")
        call.fail(errno.EINVAL)
        said = one.says()
        assert said == "(True, True, [False, True], True, True, b'first, second')"


def test_data_of_an_epoll_stay() -> None:
    """Which need not be a number, as Python has it."""
    datum = 0x1122334455667788

    def program(say: Say) -> None:
        sock, poll = socket.socket(), select.epoll()
        event = struct.pack("=IQ" if os.uname().machine == "x86_64" else "=I4xQ", 1, datum)
        assert not LIBRARY.epoll_ctl(poll.fileno(), 1, sock.fileno(), event)
        ask(sock)
        room = ctypes.create_string_buffer(64)
        count = LIBRARY.epoll_wait(poll.fileno(), room, 4, 0)
        say((count, room.raw[: len(event)] == event))

    near, far = socket.socketpair()
    with near, far, child(ASKS, program) as (listener, one):
        call = next_call(listener)
        with contextlib.closing(call.duplicate()) as old:
            Places(call, old).take(near)
        far.send(b"x")
        call.fail(errno.EINVAL)
        assert one.says() == "(1, True)"


def test_a_number_that_we_cannot_have_is_not_imitated() -> None:
    def program(say: Say) -> None:
        sock, poll = socket.socket(), select.epoll()
        high = fcntl.fcntl(sock, fcntl.F_DUPFD, 500)
        poll.register(high, select.EPOLLIN)
        ask(sock)
        say("on")

    with child(ASKS, program) as (listener, one):
        call = next_call(listener)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.closing(call.duplicate()) as old:
            resource.setrlimit(resource.RLIMIT_NOFILE, (500, hard))
            try:
                with pytest.raises(OSError) as failure:
                    Places(call, old)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert failure.value.errno == errno.EMFILE
        call.fail(errno.EINVAL)
        assert one.says() == "'on'"
