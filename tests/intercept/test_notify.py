"""Calls of a child that wait for an answer of the test's."""

import contextlib
import ctypes
import errno
import mmap
import os
import socket
import threading
from collections.abc import Callable

import pytest
from filtered import LIBRARY, child, next_call, result
from real_server import until

from muonsocks.intercept.bpf import NOTIFY, Rule
from muonsocks.intercept.notify import CallGone, Refused, int_of

Say = Callable[[object], None]
CONNECT = {"connect": [Rule(NOTIFY)]}
NAME = {"getsockname": [Rule(NOTIFY)]}
BOTTOM = ctypes.c_void_p(16)  # where nobody has memory


def test_a_call_and_its_answers() -> None:
    def program(say: Say) -> None:
        for _ in range(3):
            say(result(LIBRARY.connect(-7, b"an address", 1 << 31 | 10)))

    with child(CONNECT, program) as (listener, one):
        call = next_call(listener)
        assert (call.name, call.tid, call.fd) == ("connect", one.pid, -7)
        assert int_of(call.arguments[2]) == 10 - (1 << 31)
        assert call.read(call.arguments[1], 10) == b"an address"
        call.succeed(5)
        assert one.says() == "5"
        next_call(listener).fail(errno.EHOSTDOWN)
        assert one.says() == str(-errno.EHOSTDOWN)
        next_call(listener).go_on()
        assert one.says() == str(-errno.EBADF)


def test_who_answers_twice_is_told() -> None:
    with child(CONNECT, lambda say: say(LIBRARY.connect(0, b"", 0))) as (listener, one):
        call = next_call(listener)
        call.succeed()
        one.says()
        for answer in (call.succeed, call.go_on, call.expect_waiting):
            with pytest.raises(CallGone):
                answer()
        assert not call.is_waiting()


def test_a_caller_that_is_gone() -> None:
    with child(CONNECT, lambda _: LIBRARY.connect(0, b"x", 1)) as (listener, one):
        call = next_call(listener)
        assert call.is_waiting()
        one.kill()
        place = call.arguments[1]
        for use in (
            lambda: call.read(place, 1),
            lambda: call.write(place, b"x"),
            lambda: call.descriptor(0),
            lambda: call.fail(errno.EPERM),
        ):
            with pytest.raises(CallGone):
                use()


def test_a_call_that_is_gone_before_it_is_taken() -> None:
    with child(CONNECT, lambda _: LIBRARY.connect(0, b"x", 1)) as (listener, one):
        import select

        assert select.select([listener.fd], [], [], 10)[0]
        one.kill()
        assert listener.receive() is None


def test_memory_that_is_not_there() -> None:
    """Of what lies at an end there is a part, which is no address."""

    def program(say: Say) -> None:
        pages = mmap.mmap(-1, 2 * mmap.PAGESIZE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
        assert not LIBRARY.mprotect(ctypes.c_void_p(start + mmap.PAGESIZE), mmap.PAGESIZE, 0)
        LIBRARY.connect(0, ctypes.c_void_p(start + mmap.PAGESIZE - 8), 16)
        LIBRARY.mprotect(ctypes.c_void_p(start), mmap.PAGESIZE, mmap.PROT_READ)
        LIBRARY.connect(0, ctypes.c_void_p(start), 16)
        LIBRARY.connect(0, BOTTOM, 16)

    def is_bad(use: Callable[[], object]) -> bool:
        with pytest.raises(Refused) as raised:
            use()
        return raised.value.errno == errno.EFAULT

    with child(CONNECT, program) as (listener, _):
        call = next_call(listener)
        place = call.arguments[1]
        assert is_bad(lambda: call.read(place, 16))
        assert call.read(place, 8) == bytes(8)
        assert is_bad(lambda: call.write(place, bytes(16)))
        call.write(place, b"12345678")
        assert call.read(place, 8) == b"12345678"
        assert call.read(0, 0) == b""
        call.fail(errno.EFAULT)
        call = next_call(listener)
        assert is_bad(lambda: call.write(call.arguments[1], b"x"))
        call.fail(errno.EFAULT)
        call = next_call(listener)
        assert is_bad(lambda: call.read(call.arguments[1], 16))
        call.fail(errno.EFAULT)


@pytest.mark.parametrize("room", [0, 2, 7, 16, 200])
def test_an_address_is_written_as_far_as_there_is_room(room: int) -> None:
    def program(say: Say) -> None:
        buffer, length = ctypes.create_string_buffer(b"x" * 300), ctypes.c_int(room)
        status = result(LIBRARY.getsockname(0, buffer, ctypes.byref(length)))
        say((status, length.value, buffer.raw[:20]))

    name = b"0123456789abcdef"
    with child(NAME, program) as (listener, one):
        call = next_call(listener)
        call.write_address(call.arguments[1], call.arguments[2], name)
        call.succeed()
        assert one.says() == repr((0, 16, (name[:room] + b"x" * 20)[:20]))


def test_a_length_below_zero() -> None:
    def program(_: Say) -> None:
        LIBRARY.getsockname(0, ctypes.create_string_buffer(9), ctypes.byref(ctypes.c_int(-1)))

    with child(NAME, program) as (listener, _):
        call = next_call(listener)
        with pytest.raises(Refused) as raised:
            call.write_address(call.arguments[1], call.arguments[2], b"name")
        assert raised.value.errno == errno.EINVAL


def test_descriptors() -> None:
    """Of a socket there is a duplicate; what is none, or is not there, is said."""

    def program(say: Say) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            say(server.getsockname()[1])
            for fd in (server.fileno(), os.open("/dev/null", os.O_RDONLY), 1 << 20, -1):
                LIBRARY.connect(fd, b"", 0)

    with child(CONNECT, program) as (listener, one):
        port = int(one.says())
        call = next_call(listener)
        with contextlib.closing(call.duplicate()) as sock:
            assert sock.getsockname()[1] == port
            assert not os.get_inheritable(sock.fileno())
        call.succeed()
        for number in (errno.ENOTSOCK, errno.EBADF, errno.EBADF):
            call = next_call(listener)
            with pytest.raises(Refused) as raised:
                call.duplicate()
            assert raised.value.errno == number
            call.fail(number)


def test_a_thread_has_the_descriptors_of_its_process() -> None:
    def program(say: Say) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            say(server.getsockname()[1])
            fd = server.fileno()
            thread = threading.Thread(target=lambda: LIBRARY.connect(fd, b"here", 4))
            thread.start()
            thread.join()

    with child(CONNECT, program) as (listener, one):
        port = int(one.says())
        call = next_call(listener)
        assert call.tid != one.pid
        assert call.read(call.arguments[1], 4) == b"here"
        with contextlib.closing(call.duplicate()) as sock:
            assert sock.getsockname()[1] == port
        call.succeed()


@pytest.mark.parametrize("is_closed", [True, False])
def test_descriptors_that_are_given(is_closed: bool) -> None:
    def program(say: Say) -> None:
        reader, _ = os.pipe()
        LIBRARY.connect(reader, b"", 0)
        say((os.read(reader, 5), os.get_inheritable(reader)))
        given = result(LIBRARY.connect(reader, b"", 0))
        say((os.read(given, 5), os.get_inheritable(given), given != reader))

    with child(CONNECT, program) as (listener, one):
        for what in ("put", "give"):
            ours, theirs = socket.socketpair()
            with ours, theirs:
                ours.send(b"bytes")
                call = next_call(listener)
                if what == "put":
                    call.put(theirs, call.fd, is_closed)
                    call.succeed()
                else:
                    call.give(theirs.fileno(), is_closed)
                assert one.says().startswith(f"(b'bytes', {not is_closed}")


def test_a_listener_that_is_closed_ends_the_calls() -> None:
    """Those that wait, and those to come: nothing is done."""

    def program(say: Say) -> None:
        say([result(LIBRARY.connect(-1, b"", 0)) for _ in range(2)])

    with child(CONNECT, program) as (listener, one):
        next_call(listener)
        listener.close()
        assert one.says() == repr([-errno.ENOSYS] * 2)


def test_the_end_of_all_processes_is_told() -> None:
    import select

    with child(CONNECT, lambda _: None) as (listener, one):
        poll = select.poll()
        poll.register(listener.fd)
        os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT)
        one.kill()
        until("it is told", lambda: any(events & select.POLLHUP for _, events in poll.poll(0)))
