"""Runs a program under a filter: who starts it, who answers for it, and who waits for it.

Three processes. In front is the one that was started: it waits, ends as the program ends, stops
when it stops, and passes signals on. The supervisor answers the calls; it is an ancestor of all
that it answers for, as the kernel may ask (Yama, in the kernel's documentation), and stays until
the last of them is gone, which may be long after the program has ended. The third is the program.

    the one in front -> the supervisor -> the program -> what that starts
"""

from __future__ import annotations

import errno
import os
from _signal import (
    SIG_BLOCK,
    SIG_DFL,
    SIG_IGN,
    SIGCHLD,
    getsignal,
    pthread_sigmask,
    signal,
    sigpending,
    valid_signals,
)
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_SEQPACKET, socket, socketpair
from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit, setrlimit

from muonsocks.errors import in_one_line
from muonsocks.intercept import kernel
from muonsocks.intercept.gate import be_program, failed, received
from muonsocks.intercept.in_front import Front, take
from muonsocks.intercept.job import Job
from muonsocks.intercept.notify import Listener

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from muonsocks.intercept.gate import Become
    from muonsocks.net.loop import Loop
    from muonsocks.net.task import Waitable

_MOST_DESCRIPTORS = 1 << 20


class Supervision:
    """What the supervisor has in hand: the one in front, and the program, once it has started."""

    __slots__ = (
        "_gate",
        "_ignores_children",
        "_job",
        "_mask",
        "_started_by",
        "descriptors",
        "listener",
    )

    listener: Listener

    def __init__(self, front: socket, mask: set[int], ignores_children: bool) -> None:
        """`mask` has the signals that the program is to have blocked."""
        self._job = Job(front)
        self._mask = mask
        self._ignores_children = ignores_children  # or the program does
        self._started_by = os.getppid()
        self._gate: socket | None = None
        self.descriptors: list[int] = []

    def start(
        self,
        become: Become,
        instructions: bytes,
        prepare: Callable[[], list[int]] | None = None,
        is_killable: bool = True,
    ) -> None:
        """Have the program wait for `go`, under a filter. Before it has that, it calls `prepare`;
        duplicates of the descriptors that this gives are in `descriptors` then. A call is ended by
        a signal that kills, or by any if not `is_killable`.

        OSError; it may be tried once more, with less to prepare.
        """
        gate, far = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
        pid = _fork()
        if not pid:
            gate.close()
            if self._ignores_children:
                signal(SIGCHLD, SIG_IGN)
            _take_over(self._started_by)
            be_program(far, become, instructions, prepare, is_killable, self._mask)
        far.close()
        try:
            self.listener, self.descriptors = received(pid, gate)
        except OSError:
            gate.close()  # which ends it
            os.waitpid(pid, 0)
            raise
        self._gate = gate
        self._job.has_started(pid)

    def go(self) -> None:
        """Let it run: its calls will be answered. What was open here for it is closed here.

        No signal may come to us at any time: one that ends an ioctl(2) by which the program gets a
        descriptor would let it have none, and believe that it has number 0.
        """
        gate, self._gate = self._gate, None
        assert gate is not None
        _close_inherited()
        _allow_many_descriptors()
        for number in sigpending() - {SIGCHLD}:
            self._job.send(number)  # which came for all, and it was not there yet
            take(number)
        gate.send(b"\0")
        gate.close()

    def attend(self, loop: Loop) -> None:
        """See to what becomes of the program, and what the one in front is sent, in a loop."""
        self._job.attend(loop)

    def answer(self, loop: Loop, story: Coroutine[Waitable, None, None]) -> None:
        """Run in a loop what answers the calls, to its end. If it fails, all of them fail from then
        on, and whoever is told has to say so: the one in front only waits for the program then.
        """
        try:
            loop.run(story)
        except BaseException as error:
            self._job.give_up()
            if isinstance(error, OSError):
                reason = f"{in_one_line(error)}: nobody answers the program's calls any more"
                raise OSError(error.errno, reason) from None
            raise

    def wait(self) -> None:
        """Wait for the end of the program, which has no more calls to make."""
        self._job.wait()

    def fail(self) -> None:
        """Let the one in front end, as there is no program to wait for."""
        self._job.fail()


def step_back(lost: Callable[[], None] = lambda: None) -> Supervision:
    """Become the supervisor. Who has been started is in front from now on, and ends as the program
    does. No signal comes in before `go`. OSError.

    In front, `lost` is called when the supervisor is gone before the program is: then nothing can
    connect any more.
    """
    _expect_processes()
    _occupy_standard_descriptors()
    mask = pthread_sigmask(SIG_BLOCK, valid_signals())
    ignores_children = getsignal(SIGCHLD) == SIG_IGN
    signal(SIGCHLD, SIG_DFL)  # or there would be no status to wait for
    front, behind = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
    kernel.adopt_orphans()
    pid = _fork()
    if pid:
        behind.close()
        _close_inherited()
        Front(front, pid, lost).wait()
    front.close()
    kernel.adopt_orphans()
    return Supervision(behind, mask, ignores_children)


def _take_over(pid: int) -> None:
    """Have what is meant for a process by its number, in the environment, be meant for this one:
    sockets that systemd passes, sd_listen_fds(3), and its watchdog, sd_watchdog_enabled(3).
    """
    for name in ("LISTEN_PID", "WATCHDOG_PID"):
        if os.environ.get(name) == str(pid):
            os.environ[name] = str(os.getpid())
            os.environ.pop("LISTEN_PIDFDID", None)  # the same process, told in another way


def _close_inherited() -> None:
    """Let go of what was opened for the program, and may be waited for to be closed."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1):
        os.dup2(null, fd)
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            if fd > 2 and os.get_inheritable(fd):
                os.close(fd)
        except OSError:
            continue  # the list was read from it
    os.close(null)


def _expect_processes() -> None:
    """OSError unless /proc has the processes of here, by the numbers that they have here."""
    try:
        number = os.readlink("/proc/self")
    except OSError:
        number = ""
    if number != str(os.getpid()):
        reason = "/proc has not the processes of here; it has to be mounted anew"
        raise OSError(errno.ENOENT, reason)


def _fork() -> int:
    try:
        return os.fork()
    except OSError as error:
        raise failed("fork", error) from None


def _occupy_standard_descriptors() -> None:
    """Have something at 0, 1 and 2, which the program finds closed again if they have been."""
    fd = -1
    while fd <= 2:
        fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    os.close(fd)


def _allow_many_descriptors() -> None:
    """Have room for the descriptors of many programs, at the numbers that they have there."""
    soft, hard = getrlimit(RLIMIT_NOFILE)
    wanted = _MOST_DESCRIPTORS if hard == RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft != RLIM_INFINITY and soft < wanted:
        setrlimit(RLIMIT_NOFILE, (wanted, hard))
