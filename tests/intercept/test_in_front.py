"""The process in front, with the test in the place of its supervisor."""

import contextlib
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator

import pytest
from programs import SECONDS
from real_server import is_alive, state, until

from muonsocks.intercept.in_front import (
    FAILED,
    GOES_ON,
    GONE_ON,
    HAS_ENDED,
    HAS_FAILED,
    HAS_GIVEN_UP,
    HAS_STARTED,
    HAS_STOPPED,
    SIGNAL,
    STOP_ME,
    STOP_NOW,
    WORD,
    Front,
    end_as,
    stop_of,
)


@contextlib.contextmanager
def front() -> Iterator[tuple[int, socket.socket, int]]:
    """One in front, what it is told by and says by, and a pipe for what it complains of."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ready, is_ready = os.pipe()
    pid = os.fork()
    if not pid:
        os.setpgid(0, 0)  # nobody is stopped in a group that is orphaned, as ours may be
        ours.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
        one = Front(theirs, 0, lambda: os.write(is_ready, b"lost") and None)
        os.write(is_ready, b".")
        one.wait()
    theirs.close()
    os.close(is_ready)
    ours.settimeout(SECONDS)
    try:
        assert os.read(ready, 1) == b"."
        yield pid, ours, ready
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        os.close(ready)
        ours.close()


def status_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(("status", "number"), [(0, 0), (7 << 8, 7), (255 << 8, 255), (15, -15)])
def test_it_ends_as_the_program_does(status: int, number: int) -> None:
    with front() as (pid, channel, _):
        channel.send(WORD.pack(HAS_STARTED, 1))
        channel.send(WORD.pack(HAS_ENDED, status))
        assert status_of(pid) == number


def test_where_there_is_no_program_it_has_failed() -> None:
    with front() as (pid, channel, _):
        channel.send(WORD.pack(HAS_FAILED, 0))
        assert status_of(pid) == FAILED


def test_what_it_is_sent_it_passes_on() -> None:
    with front() as (pid, channel, _):
        channel.send(WORD.pack(HAS_STARTED, 1))
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGRTMIN + 1):
            os.kill(pid, number)
            assert WORD.unpack(channel.recv(99)) == (SIGNAL, number)
        assert is_alive(pid)


def test_it_stops_as_the_program_has_if_that_is_so_still() -> None:
    with front() as (pid, channel, _):
        stop = stop_of(1, signal.SIGTSTP)
        channel.send(WORD.pack(HAS_STOPPED, stop))
        assert WORD.unpack(channel.recv(99)) == (STOP_ME, stop)
        until("it waits", lambda: state(pid) == "S")
        channel.send(WORD.pack(STOP_NOW, stop))
        until("it has stopped", lambda: state(pid) == "T")
        os.kill(pid, signal.SIGCONT)
        assert WORD.unpack(channel.recv(99)) == (GONE_ON, stop)
        os.kill(pid, signal.SIGCONT)
        assert WORD.unpack(channel.recv(99)) == (SIGNAL, signal.SIGCONT)


@pytest.mark.parametrize("is_told", [False, True])
def test_who_goes_on_before_it_stops_does_not(is_told: bool) -> None:
    """It has been let go on, or is told that the program has been."""
    with front() as (pid, channel, _):
        stop = stop_of(1, signal.SIGTSTP)
        channel.send(WORD.pack(HAS_STOPPED, stop))
        assert WORD.unpack(channel.recv(99)) == (STOP_ME, stop)
        if is_told:
            channel.send(WORD.pack(GOES_ON, 0))
        else:
            os.kill(pid, signal.SIGCONT)
            assert WORD.unpack(channel.recv(99)) == (GONE_ON, stop)
            channel.send(WORD.pack(STOP_NOW, stop))
        last = signal.SIGRTMIN + 1  # it takes those with lower numbers first
        os.kill(pid, last)
        assert WORD.unpack(channel.recv(99)) == (SIGNAL, last)
        os.kill(pid, signal.SIGTSTP)  # one that is not its own
        assert WORD.unpack(channel.recv(99)) == (SIGNAL, signal.SIGTSTP)


def test_it_stops_if_there_is_nobody_to_be_asked_any_more() -> None:
    with front() as (pid, channel, complaints):
        channel.send(WORD.pack(HAS_STOPPED, stop_of(1, signal.SIGTSTP)))
        channel.recv(99)
        channel.close()
        until("it has stopped", lambda: state(pid) == "T")
        assert os.read(complaints, 9) == b"lost"


def test_who_goes_on_again_before_it_is_looked_at_has_not_stopped() -> None:
    with front() as (pid, channel, _):
        os.kill(pid, signal.SIGSTOP)
        until("it has stopped", lambda: state(pid) == "T")
        channel.send(WORD.pack(HAS_STOPPED, stop_of(1, signal.SIGTSTP)))
        channel.send(WORD.pack(GOES_ON, 0))
        os.kill(pid, signal.SIGCONT)
        assert WORD.unpack(channel.recv(99)) == (SIGNAL, signal.SIGCONT)
        os.kill(pid, signal.SIGTERM)
        assert WORD.unpack(channel.recv(99)) == (SIGNAL, signal.SIGTERM)


def test_without_a_supervisor_and_a_program_it_has_failed() -> None:
    """It says what has been lost, and has no status to end with."""
    with front() as (pid, channel, complaints):
        channel.send(WORD.pack(HAS_STARTED, 1))
        channel.close()
        assert status_of(pid) == FAILED
        assert os.read(complaints, 9) == b"lost"


def test_a_supervisor_that_has_given_up_has_said_so() -> None:
    with front() as (pid, channel, complaints):
        channel.send(WORD.pack(HAS_STARTED, 1))
        channel.send(WORD.pack(HAS_GIVEN_UP, 0))
        channel.close()
        assert status_of(pid) == FAILED
        assert os.read(complaints, 9) == b""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGRTMIN])
def test_an_end_by_a_signal_is_one_again(number: int) -> None:
    pid = os.fork()
    if not pid:
        end_as(number)
    assert status_of(pid) == -number


def test_but_there_is_no_other_core(place: str) -> None:
    def end(how: Callable[[], None]) -> bool:
        """Say whether there is a core of a child that ends in some way."""
        pid = os.fork()
        if not pid:
            os.chdir(place)
            hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
            resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # pytest has a handler
            how()
        _, status = os.waitpid(pid, 0)
        assert os.WTERMSIG(status) == signal.SIGSEGV
        return os.WCOREDUMP(status)

    if not end(lambda: os.kill(os.getpid(), signal.SIGSEGV)):
        pytest.skip("there are no cores here")
    assert not end(lambda: end_as(signal.SIGSEGV | 0x80))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSYS, 34])
def test_it_ends_by_the_signal_of_the_program_and_no_other(number: int) -> None:
    """One that has come from the supervisor meanwhile has a lower number than some."""
    pid = os.fork()
    if not pid:
        try:
            signal.signal(signal.SIGIO, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            os.kill(os.getpid(), signal.SIGIO)
            end_as(number)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -number
