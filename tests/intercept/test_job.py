"""A program, the one in front of it, and a supervisor that looks only when it is told to: whatever
comes while it does not, all three stop and go on together.
"""

import contextlib
import os
import signal
import socket
import traceback
from collections.abc import Iterator
from pathlib import Path

from programs import SECONDS
from real_server import state, until

from muonsocks.intercept.in_front import Front
from muonsocks.intercept.job import Job
from muonsocks.net.loop import Loop

TO_WAKE = {signal.SIGCONT, signal.SIGIO, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTERM}


class Three:
    """They, of one group."""

    def __init__(self) -> None:
        self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(SECONDS)
        self.front = os.fork()
        if not self.front:
            try:
                self._control.close()
                _be_front(control)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        control.close()
        self.supervisor, self.program = map(int, self._control.recv(99).split())

    def look(self) -> None:
        """Have the supervisor do all that it has to do, and then the one in front."""
        self._control.send(b".")
        assert self._control.recv(1), "the supervisor has failed"
        self.settle()

    def settle(self) -> None:
        """Wait until the one in front has done all that it has to do without the supervisor."""
        until("all has been taken", lambda: state(self.front) in "TZ" or self._sleeps())

    def _sleeps(self) -> bool:
        waiting = 0
        for line in Path(f"/proc/{self.front}/status").read_text().splitlines():
            if line.startswith(("SigPnd:", "ShdPnd:")):
                waiting |= int(line.split()[1], 16)
        come = {number for number in TO_WAKE if waiting >> number - 1 & 1}
        return not come - {signal.SIGTSTP, signal.SIGTTIN} and state(self.front) == "S"

    @property
    def states(self) -> str:
        """Of the one in front, and of the program."""
        return state(self.front) + state(self.program)

    def come_to(self, states: str) -> None:
        """Look until they are in these states, and see whether they stay so."""

        def is_so() -> bool:
            self.look()
            return self.states == states

        until(f"they are {states}", is_so)
        for _ in range(3):
            self.look()
        assert self.states == states

    def send_all(self, number: int) -> None:
        """Send all a signal, and let it have come to those who run."""
        os.killpg(self.front, number)
        self.settle()

    def close(self) -> None:
        for pid in (self.program, self.supervisor, self.front):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.front, 0)
        self._control.close()


def _be_front(control: socket.socket) -> None:
    os.setpgid(0, 0)  # and not one that is orphaned, as ours may be
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    front, behind = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid:
        behind.close()
        control.close()
        Front(front, pid, lambda: None).wait()
    front.close()
    job, loop = Job(behind), Loop()
    program = os.fork()
    if not program:
        behind.close()
        control.close()
        for number in TO_WAKE:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execvp("sleep", ["sleep", "600"])
    job.has_started(program)
    job.attend(loop)

    async def rounds() -> None:
        for _ in range(3):
            await loop.sleep(0)

    control.send(f"{os.getpid()} {program}".encode())
    while control.recv(1):
        loop.run(rounds())
        control.send(b".")


@contextlib.contextmanager
def three() -> Iterator[Three]:
    all_of_them = Three()
    try:
        all_of_them.come_to("SS")
        yield all_of_them
    finally:
        all_of_them.close()


def test_they_stop_and_go_on() -> None:
    with three() as all_of_them:
        for number in (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTSTP):
            all_of_them.send_all(number)
            all_of_them.come_to("TT")
            all_of_them.send_all(signal.SIGCONT)
            all_of_them.come_to("SS")


def test_it_stops_by_the_signal_that_has_stopped_the_program() -> None:
    with three() as all_of_them:
        for number in (signal.SIGTTIN, signal.SIGSTOP, signal.SIGTTOU):
            os.kill(all_of_them.program, number)
            all_of_them.come_to("TT")
            _, status = os.waitpid(all_of_them.front, os.WUNTRACED)
            assert os.WSTOPSIG(status) == number
            os.kill(all_of_them.front, signal.SIGCONT)
            all_of_them.come_to("SS")


def test_a_stop_in_the_background_is_not_undone_by_what_has_let_them_go_on() -> None:
    """Stop, `bg`, and a read of the terminal: before the supervisor sees any of the last two."""
    with three() as all_of_them:
        all_of_them.send_all(signal.SIGTSTP)
        all_of_them.come_to("TT")
        all_of_them.send_all(signal.SIGCONT)
        all_of_them.send_all(signal.SIGTTIN)
        all_of_them.come_to("TT")


def test_nor_if_the_supervisor_reads_first_what_has_come_first() -> None:
    with three() as all_of_them:
        os.kill(all_of_them.program, signal.SIGSTOP)
        all_of_them.come_to("TT")
        os.kill(all_of_them.front, signal.SIGCONT)
        all_of_them.settle()
        os.kill(all_of_them.program, signal.SIGCONT)
        until("it goes on", lambda: state(all_of_them.program) == "S")
        all_of_them.send_all(signal.SIGTSTP)
        all_of_them.come_to("TT")


def test_what_lets_all_go_on_is_not_undone_by_the_stop_before() -> None:
    """A program that stops its group, as vim does, and is let go on at once."""
    with three() as all_of_them:
        all_of_them.send_all(signal.SIGTSTP)
        all_of_them.send_all(signal.SIGCONT)
        all_of_them.come_to("SS")


def test_a_stop_that_is_over_when_it_is_read_stops_nobody() -> None:
    for number in (signal.SIGTSTP, signal.SIGSTOP):
        with three() as all_of_them:
            os.kill(all_of_them.front, signal.SIGSTOP)
            os.kill(all_of_them.program, number)
            until("all have stopped", lambda a=all_of_them: a.states == "TT")
            all_of_them.look()
            os.waitpid(all_of_them.front, os.WUNTRACED)
            all_of_them.send_all(signal.SIGCONT)
            assert state(all_of_them.front) == "S"
            all_of_them.come_to("SS")
            assert not os.waitpid(all_of_them.front, os.WUNTRACED | os.WNOHANG)[0]


def test_a_stop_that_is_over_when_it_is_confirmed_stops_nobody() -> None:
    """Nobody else is let go on than the program, which the supervisor tells by a SIGCONT."""
    for number in (signal.SIGTSTP, signal.SIGSTOP):
        with three() as all_of_them:
            os.kill(all_of_them.program, number)
            until("it has stopped", lambda a=all_of_them: a.states == "ST")
            all_of_them.look()
            os.kill(all_of_them.program, signal.SIGCONT)
            all_of_them.come_to("SS")


def test_who_lets_the_one_in_front_go_on_lets_the_program() -> None:
    """Even if the supervisor has got that, too, some time before."""
    with three() as all_of_them:
        os.kill(all_of_them.supervisor, signal.SIGCONT)
        os.kill(all_of_them.program, signal.SIGSTOP)
        all_of_them.come_to("TT")
        os.kill(all_of_them.front, signal.SIGCONT)
        all_of_them.come_to("SS")


def test_and_whatever_has_become_of_the_program_meanwhile() -> None:
    with three() as all_of_them:
        os.kill(all_of_them.program, signal.SIGSTOP)
        all_of_them.come_to("TT")
        os.kill(all_of_them.program, signal.SIGCONT)
        os.kill(all_of_them.program, signal.SIGSTOP)
        until("it has stopped again", lambda: state(all_of_them.program) == "T")
        os.kill(all_of_them.front, signal.SIGCONT)
        all_of_them.come_to("SS")


def test_the_one_in_front_is_sent_a_stop_and_goes_on_at_once() -> None:
    with three() as all_of_them:
        for number in (signal.SIGTSTP, signal.SIGCONT):
            os.kill(all_of_them.front, number)
            all_of_them.settle()
        all_of_them.come_to("SS")


def test_the_end_of_a_program_that_has_stopped() -> None:
    for number in (signal.SIGTSTP, signal.SIGSTOP):
        with three() as all_of_them:
            os.kill(all_of_them.program, number)
            all_of_them.come_to("TT")
            os.kill(all_of_them.program, signal.SIGKILL)
            until("it is gone", lambda a=all_of_them: state(a.program) == "Z")
            all_of_them.look()
            until("so is the one in front", lambda a=all_of_them: state(a.front) == "Z")
            _, status = os.waitpid(all_of_them.front, 0)
            assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
