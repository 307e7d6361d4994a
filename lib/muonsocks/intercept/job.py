"""What becomes of the program is told to the one in front, and what that is sent is passed on.

At first all three are of one group: what comes for the group, as what is typed at a terminal does,
comes for each of us, and each sees it in its own time. Signals are blocked here: one that waits is
one that has come for all. But not for ever, signal(7): SIGCONT takes back the stops that wait, and
each of these takes back a SIGCONT.
"""

from __future__ import annotations

import os
from _signal import (
    SIGCHLD,
    SIGCONT,
    SIGKILL,
    SIGSTOP,
    SIGTSTP,
    SIGTTIN,
    SIGTTOU,
    sigpending,
)
from _socket import MSG_DONTWAIT

from muonsocks.intercept import kernel
from muonsocks.intercept.in_front import (
    GOES_ON,
    GONE_ON,
    HAS_ENDED,
    HAS_FAILED,
    HAS_GIVEN_UP,
    HAS_STARTED,
    HAS_STOPPED,
    OF_A_TERMINAL,
    STOP_ME,
    STOP_NOW,
    WORD,
    signal_of,
    stop_of,
    take,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

    from muonsocks.net.loop import Loop

_SIGNAL_SIZE = 128  # struct signalfd_siginfo
_STOPS = {SIGTSTP, SIGTTIN, SIGTTOU}


class Job:
    """The program, for the supervisor: one that has been started by the one in front."""

    __slots__ = ("_children", "_front", "_has_ended", "_pid", "_started_by", "_stop", "_stops")

    def __init__(self, front: socket) -> None:
        """To be made where the one in front is the parent."""
        self._front = front
        self._started_by = os.getppid()
        self._children = -1
        self._pid = 0
        self._has_ended = False
        self._stop = 0  # in which it is
        self._stops = 0  # so far

    def has_started(self, pid: int) -> None:
        """It is this child of ours."""
        self._pid = pid
        self._tell(HAS_STARTED, pid)

    def fail(self) -> None:
        """Let the one in front end, as there is no program to wait for."""
        self._tell(HAS_FAILED, 0)

    def give_up(self) -> None:
        """Let the one in front wait for the program alone: it has been said why."""
        self._tell(HAS_GIVEN_UP, 0)

    def attend(self, loop: Loop) -> None:
        """See to what becomes of the program, and what the one in front is sent, in a loop."""
        self._children = kernel.signal_descriptor(SIGCHLD)
        loop.register(self._children, lambda _: self._on_children())
        loop.register(self._front.fileno(), lambda _: self._obey())

    def wait(self) -> None:
        """Wait for the end of the program, which has no more calls to make."""
        if not self._has_ended:
            self._reap(0)

    # What becomes of the program

    def _on_children(self) -> None:
        try:
            while os.read(self._children, _SIGNAL_SIZE):
                pass
        except BlockingIOError:
            pass  # one for many, as they are not counted
        if self._reap(os.WNOHANG):
            stay_behind()

    def _reap(self, how: int) -> bool:
        while True:
            try:
                pid, status = os.waitpid(-1, how | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                return self._has_ended
            if not pid:
                return self._has_ended
            if pid != self._pid:
                continue
            if os.WIFSTOPPED(status):
                self._stops += 1
                self._stop = stop_of(self._stops, os.WSTOPSIG(status))
                self._tell(HAS_STOPPED, self._stop)
            elif os.WIFCONTINUED(status):
                self._stop = 0
                self._tell(GOES_ON, 0)
                self._send_front(SIGCONT)
            else:
                if self._stop:
                    self._send_front(SIGCONT)  # or it would not read this
                self._has_ended = True
                self._tell(HAS_ENDED, status)
                how = os.WNOHANG

    def _tell(self, what: int, value: int) -> None:
        how = MSG_DONTWAIT if what in (HAS_STOPPED, STOP_NOW, GOES_ON) else 0
        try:
            self._front.send(WORD.pack(what, value), how)
        except BlockingIOError:
            return  # it has been stopped, and has much to read when it goes on
        except (BrokenPipeError, ConnectionResetError):
            return  # it has been killed: nobody waits any more

    def _send_front(self, number: int) -> None:
        if os.getppid() == self._started_by:
            os.kill(self._started_by, number)

    # What the one in front is sent

    def _obey(self) -> None:
        """Do what the one in front says. If that has been killed, the program is: who did it has
        meant that.
        """
        while True:
            try:
                data = self._front.recv(WORD.size, MSG_DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""
            if not data:
                self.send(SIGKILL)
                return
            what, value = WORD.unpack(data)
            if what == STOP_ME:
                self._stop_front(value)
            elif what == GONE_ON:
                self._pass_on(SIGCONT, stop=value)
            else:
                self._pass_on(value, is_of_a_terminal=what == OF_A_TERMINAL)

    def _stop_front(self, stop: int) -> None:
        """Let it stop if the program is in that stop still. Whatever ends that comes behind."""
        self._reap(os.WNOHANG)
        if stop != self._stop:
            return
        if signal_of(stop) == SIGSTOP:
            self._send_front(SIGSTOP)
        else:
            self._tell(STOP_NOW, stop)

    def _pass_on(self, number: int, is_of_a_terminal: bool = False, stop: int = 0) -> None:
        """Pass on what it has got, unless the program has, as one of its group. `stop` is the one
        that it has ended there, if it has.
        """
        if stop:
            self._reap(os.WNOHANG)
        has_come = self._has_come(number, stop)
        is_of_our_group = self._has_ended or os.getpgid(self._pid) == os.getpgrp()
        if number == SIGCONT and not is_of_our_group:
            _give_terminal(os.getpgid(self._pid))
        if not is_of_a_terminal and not (has_come and is_of_our_group):
            self.send(number)

    def _has_come(self, number: int, stop: int) -> bool:
        """Say whether a signal has come for all of the group; and take it."""
        waiting = sigpending()
        has_come = take(number)
        if number in _STOPS:
            return has_come or SIGCONT in waiting  # and that is the later one
        if not stop:
            return has_come
        if stop == self._stop:
            return False  # whatever we have got, the program has not
        return has_come or bool(waiting & _STOPS)

    def send(self, number: int) -> None:
        """Send it a signal."""
        if not self._has_ended:
            try:
                os.kill(self._pid, number)
            except PermissionError:
                return  # it has changed its user, and we may not, as whoever sent it


def _give_terminal(group: int) -> None:
    """Let a group have the terminal that ours has, as a shell has just given it to us."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        return  # there is none
    try:
        if os.tcgetpgrp(terminal) == os.getpgrp():
            os.tcsetpgrp(terminal, group)
    except OSError:
        return  # it has gone, or the group is of another session
    finally:
        os.close(terminal)


def stay_behind() -> None:
    """Let go of what else the supervisor has in common with the program, which has ended: who reads
    its errors is to find the end of them.
    """
    os.dup2(1, 2)  # where there has been nothing since `go`
    os.chdir("/")
