"""The process in front of a program that somebody else has started: it waits, ends as the program
ends, stops when that stops, and passes on the signals that it is sent.

A program that has stopped may have been let go on before that is read here: we would stop while it
runs. So it is asked once more, when our own stop waits already, which any SIGCONT takes back:

    HAS_STOPPED ->   it has a stop wait
                     <- STOP_ME: is that so still?
    STOP_NOW ->      it lets the stop come, if nobody has let us go on since
"""

from __future__ import annotations

import os
from _signal import (
    SIG_BLOCK,
    SIG_DFL,
    SIG_UNBLOCK,
    SIGCHLD,
    SIGCONT,
    SIGIO,
    SIGKILL,
    SIGSTOP,
    pthread_sigmask,
    signal,
    sigpending,
    sigtimedwait,
    sigwaitinfo,
    valid_signals,
)
from _socket import socket
from fcntl import F_GETFL, F_SETFL, F_SETOWN, fcntl
from struct import Struct

from muonsocks.intercept import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

# What the supervisor and the one in front tell each other: of these, and a number.
WORD = Struct("=Bi")
# To the one in front:
HAS_STARTED, HAS_ENDED, HAS_STOPPED, STOP_NOW, GOES_ON, HAS_FAILED, HAS_GIVEN_UP = range(7)
# To the supervisor:
SIGNAL, OF_A_TERMINAL, STOP_ME, GONE_ON = range(7, 11)
_STOPS, _SIGNALS = 1 << 24, 1 << 7
FAILED = 111  # the exit status where there is no program to have one

_OF_THE_KERNEL = 0x80  # si_code of what a terminal sends to all processes of a group


class Front:
    """The one in front. All signals are blocked: it takes them one after the other."""

    __slots__ = ("_channel", "_is_alone", "_lost", "_program", "_stop", "_supervisor")

    def __init__(self, channel: socket, supervisor: int, lost: Callable[[], None]) -> None:
        """`lost` is called when the supervisor is gone before the program is."""
        self._channel = channel
        self._supervisor = supervisor
        self._lost = lost
        self._program = 0
        self._stop = 0  # which we have asked about, until a SIGCONT
        self._is_alone = False
        fd = channel.fileno()
        fcntl(fd, F_SETOWN, os.getpid())
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | os.O_NONBLOCK | os.O_ASYNC)

    def wait(self) -> NoReturn:
        """Wait, and end as the program does."""
        try:
            self._listen()  # to what has come before it was to be told
            while True:
                happened = sigwaitinfo(valid_signals() - {signal_of(self._stop)})
                number = happened.si_signo
                if number == SIGIO and not self._is_alone:
                    self._listen()
                elif number == SIGCHLD:
                    if self._is_alone:
                        self._reap()
                else:
                    stop = 0
                    if number == SIGCONT:
                        stop, self._stop = self._stop, 0
                    if happened.si_pid != self._supervisor:
                        self._pass_on(number, happened.si_code == _OF_THE_KERNEL, stop)
        finally:
            os._exit(FAILED)

    def _listen(self) -> None:
        last = (0, 0)
        while not self._is_alone:
            try:
                data = self._channel.recv(WORD.size)
            except BlockingIOError:
                break
            except ConnectionResetError:
                continue  # it has not read all from us; what it has sent before comes now
            if not data:
                self._be_alone()
                return
            what, value = WORD.unpack(data)
            if what == HAS_STARTED:
                self._program = value
            elif what == HAS_ENDED:
                end_as(value)
            elif what == HAS_FAILED:
                os._exit(FAILED)
            elif what == HAS_GIVEN_UP:
                self._lost = lambda: None  # which it has said itself
            else:
                last = what, value
        if last[0] == HAS_STOPPED:
            self._ask_about(last[1])
        elif last == (STOP_NOW, self._stop):
            _let_come(signal_of(self._stop))
            self._forget()
        elif last[0] == GOES_ON:
            self._take_back()
            self._forget()

    def _ask_about(self, stop: int) -> None:
        """Have a stop wait, and ask whether the program is in that one still."""
        self._take_back()
        number = signal_of(stop)
        if number != SIGSTOP:  # which cannot wait; the supervisor sends that one
            _send_self(number)
        self._stop = stop
        self._tell(STOP_ME, stop)

    def _take_back(self) -> None:
        if self._stop:
            take(signal_of(self._stop))

    def _forget(self) -> None:
        if SIGCONT not in sigpending():  # or that is for this stop
            self._stop = 0

    def _pass_on(self, number: int, is_of_a_terminal: bool, stop: int) -> None:
        """`stop` is the one that it has ended, if it has."""
        if self._is_alone:
            if self._program and not is_of_a_terminal:
                try:
                    os.kill(self._program, number)  # which nobody else waits for
                except PermissionError:
                    return  # it has changed its user, and we may not, as whoever sent it
            return
        if is_of_a_terminal:
            self._tell(OF_A_TERMINAL, number)
        elif stop:
            self._tell(GONE_ON, stop)
        else:
            self._tell(SIGNAL, number)

    def _tell(self, what: int, value: int) -> None:
        try:
            self._channel.send(WORD.pack(what, value))
        except (BrokenPipeError, ConnectionResetError, BlockingIOError):
            return  # the supervisor is gone, which is told by an end; or it has been stopped

    def _be_alone(self) -> None:
        """Be the parent of what the supervisor has left: it has been killed."""
        self._is_alone = True
        self._lost()
        if self._stop:
            _stop(signal_of(self._stop))  # nobody says whether it is so still
            self._stop = 0
        self._reap()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            except ChildProcessError:
                os._exit(FAILED)  # its status has gone with the supervisor
            if not pid:
                return
            if pid == self._program:
                if os.WIFSTOPPED(status):
                    _stop(os.WSTOPSIG(status))
                else:
                    end_as(status)


def stop_of(count: int, number: int) -> int:
    """Give what both sides call a stop: the how-many-th, and by which signal."""
    return count * _SIGNALS % _STOPS + number


def signal_of(stop: int) -> int:
    """Give the number of the signal by which the program has stopped; 0 for no stop."""
    return stop % _SIGNALS


def take(number: int) -> bool:
    """Take a signal that is blocked, if it has come; say whether it had."""
    return sigtimedwait((number,), 0) is not None


def _stop(number: int) -> None:
    """Stop as a process has been stopped by a signal, until somebody lets us go on."""
    _send_self(number)
    _let_come(number)


def _send_self(number: int) -> None:
    if number != SIGSTOP:
        signal(number, SIG_DFL)
    os.kill(os.getpid(), number)


def _let_come(number: int) -> None:
    pthread_sigmask(SIG_UNBLOCK, (number,))
    pthread_sigmask(SIG_BLOCK, (number,))


def end_as(status: int) -> NoReturn:
    """End as a process has ended whose wait(2) status this is; but only one leaves a core."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        kernel.leave_no_core()
        if number != SIGKILL:
            signal(number, SIG_DFL)
        os.kill(os.getpid(), number)
        pthread_sigmask(SIG_UNBLOCK, (number,))  # and no other, which may have come as well
        os._exit(128 + number)
    os._exit(os.waitstatus_to_exitcode(status))
