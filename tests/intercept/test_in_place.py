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
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filtered import LIBRARY, child, next_call

from muonsocks.intercept.bpf import NOTIFY, Rule
from muonsocks.intercept.in_place import Places

ASKS = {"getpeername": [Rule(NOTIFY)]}
Say = Callable[[object], None]


def is_watched(poll: select.epoll, sock: socket.socket) -> int:
    """Give the events that an epoll waits for of a socket, 0 if of none."""
    return watched("self", poll.fileno()).get(sock.fileno(), 0)


def watched(pid: object, poll: int) -> dict[int, int]:
    """Give the events that the epoll of a process waits for, by the numbers."""
    lines = Path(f"/proc/{pid}/fdinfo/{poll}").read_text().splitlines()
    entries = [line.split() for line in lines if line.startswith("tfd:")]
    return {int(words[1]): int(words[3], 16) for words in entries}


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


# What cannot be taken leaves an epoll as it was


HIGH = 500


@contextlib.contextmanager
def room_for(count: int) -> Iterator[None]:
    """Have so many descriptors left above HIGH."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    null = os.open("/dev/null", os.O_RDONLY)
    full = [fcntl.fcntl(null, fcntl.F_DUPFD_CLOEXEC, HIGH + 1) for _ in range(20)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (full[-1] + 1 + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in (null, *full):
            os.close(fd)


def test_a_descriptor_too_few_takes_nothing_out() -> None:
    """Which could not be put back."""

    def program(say: Say) -> None:
        poll = select.epoll()
        with socket.socket() as low:
            sock = socket.socket(fileno=fcntl.fcntl(low, fcntl.F_DUPFD, HIGH))
        poll.register(sock, select.EPOLLIN | select.EPOLLET)
        say(poll.fileno())
        ask(sock)
        say([number for number, _ in poll.poll(0)])

    near, far = socket.socketpair()
    with near, far, child(ASKS, program) as (listener, one):
        poll = int(one.says())
        call = next_call(listener)
        before = watched(one.pid, poll)
        assert list(before) == [HIGH]
        with contextlib.closing(call.duplicate()) as old:
            open_here = set(os.listdir("/proc/self/fd"))
            for count in range(4):
                with room_for(count), pytest.raises(OSError) as failure:
                    Places(call, old).take(near)
                assert failure.value.errno == errno.EMFILE
                assert watched(one.pid, poll) == before
            with room_for(4):
                Places(call, old).take(near)
            assert set(os.listdir("/proc/self/fd")) == open_here
        assert watched(one.pid, poll) == before
        far.send(b"x")
        call.fail(errno.EINVAL)
        assert one.says() == f"[{HIGH}]"


def test_a_number_that_the_program_may_not_have_any_more() -> None:
    """What was there is there, and watched."""

    def program(say: Say) -> None:
        poll, (low, end) = select.epoll(), socket.socketpair()
        sock = socket.socket(fileno=fcntl.fcntl(low, fcntl.F_DUPFD, HIGH))
        poll.register(sock, select.EPOLLIN | select.EPOLLET)
        low.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (HIGH // 2, HIGH))
        ask(sock)
        end.send(b"x")
        say([number for number, _ in poll.poll(0)])

    near, far = socket.socketpair()
    with near, far, child(ASKS, program) as (listener, one):
        call = next_call(listener)
        with contextlib.closing(call.duplicate()) as old:
            open_here = set(os.listdir("/proc/self/fd"))
            with pytest.raises(OSError) as failure:
                Places(call, old).take(near)
            assert failure.value.errno == errno.EBADF
            assert set(os.listdir("/proc/self/fd")) == open_here
        call.fail(errno.EINVAL)
        assert one.says() == f"[{HIGH}]"
