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
    SIG_SETMASK,
    SIGCHLD,
    SIGHUP,
    SIGINT,
    SIGIO,
    SIGKILL,
    SIGQUIT,
    SIGSTOP,
    SIGTERM,
    SIGTSTP,
    SIGTTIN,
    SIGTTOU,
    pthread_sigmask,
    signal,
    sigwaitinfo,
    valid_signals,
)
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_SEQPACKET, socket, socketpair
from array import array
from fcntl import F_GETFL, F_SETFL, F_SETOWN, fcntl
from resource import RLIM_INFINITY, RLIMIT_CORE, RLIMIT_NOFILE, getrlimit, setrlimit
from struct import Struct

from muonsocks.intercept import kernel
from muonsocks.intercept.notify import Listener

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    # Becomes the program, or gives an exit status if that cannot be.
    Become = Callable[[], int]

_ASIDE = (SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU)
_OF_THE_KERNEL = 0x80  # si_code of what a terminal sends to all processes of a group
_WORD = Struct("=Bi")
_HAS_ENDED, _HAS_STOPPED, _HAS_FAILED, _SIGNAL = range(4)
_READY, _LONGEST_WORD = b"\0", 400  # and the numbers of descriptors, or else why not
_STATUS_FAILED = 111
_MOST_DESCRIPTORS = 1 << 20


class Supervision:
    """What the supervisor has in hand: the one in front, and the program, once it has started."""

    __slots__ = ("_front", "_gate", "_has_ended", "_mask", "descriptors", "listener", "pid")

    listener: Listener

    def __init__(self, front: socket, mask: set[int]) -> None:
        self._front = front
        self._mask = mask
        self._gate: socket | None = None
        self._has_ended = False
        self.pid = 0
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
        pid = os.fork()
        if not pid:
            gate.close()
            _be_program(far, become, instructions, prepare, is_killable, self._mask)
        far.close()
        try:
            self.listener, self.descriptors = _received(pid, gate)
        except OSError:
            gate.close()  # which ends it
            os.waitpid(pid, 0)
            raise
        self.pid, self._gate = pid, gate

    def go(self) -> None:
        """Let it run: its calls will be answered. What was open here for it is closed here."""
        gate, self._gate = self._gate, None
        assert gate is not None
        _close_inherited()
        _allow_many_descriptors()
        for number in _ASIDE:
            signal(number, SIG_IGN)
        pthread_sigmask(SIG_SETMASK, self._mask)
        gate.send(b"\0")
        gate.close()

    def front_descriptor(self) -> int:
        """Give a descriptor that is readable while the one in front has something for `obey`."""
        return self._front.fileno()

    def obey(self) -> None:
        """Pass on to the program what the one in front has been sent."""
        data = self._front.recv(_WORD.size)
        if data and not self._has_ended:
            os.kill(self.pid, _WORD.unpack(data)[1])

    def wait(self) -> None:
        """Wait for the end of the program, which has no more calls to make."""
        if not self._has_ended:
            self._reap(0)

    def reap(self) -> bool:
        """See to the children that have ended or stopped; say whether the program has ended."""
        return self._reap(os.WNOHANG)

    def _reap(self, how: int) -> bool:
        while True:
            try:
                pid, status = os.waitpid(-1, how | os.WUNTRACED)
            except ChildProcessError:
                return self._has_ended
            if not pid:
                return self._has_ended
            if pid != self.pid:
                continue
            if os.WIFSTOPPED(status):
                self._tell(_HAS_STOPPED, os.WSTOPSIG(status))
            else:
                self._has_ended = True
                self._tell(_HAS_ENDED, status)
                how = os.WNOHANG

    def fail(self) -> None:
        """Let the one in front end, as there is no program to wait for."""
        self._tell(_HAS_FAILED, 0)

    def _tell(self, what: int, value: int) -> None:
        try:
            self._front.send(_WORD.pack(what, value))
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has been killed: nobody waits any more


def step_back() -> Supervision:
    """Become the supervisor. Who has been started is in front from now on, and ends as the program
    does. No signal comes in before `go`. OSError.
    """
    mask = pthread_sigmask(SIG_BLOCK, valid_signals())
    front, behind = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
    kernel.adopt_orphans()
    pid = os.fork()
    if pid:
        behind.close()
        _Front(front, pid).wait()
    front.close()
    kernel.adopt_orphans()
    return Supervision(behind, mask)


def _received(pid: int, gate: socket) -> tuple[Listener, list[int]]:
    """Get the listener, and the other descriptors, from the process that has made them."""
    data = gate.recv(_LONGEST_WORD) or b"the process has been killed"
    if data[:1] != _READY:
        raise OSError(errno.EPERM, data.decode("utf-8", "replace"))
    pidfd = os.pidfd_open(pid)
    got: list[int] = []
    try:
        for number in memoryview(data[1:]).cast("i"):
            got.append(kernel.descriptor_of(pidfd, number))
    except OSError as error:
        for fd in got:
            os.close(fd)
        if error.errno != errno.EPERM:
            raise
        hint = "a container may need the capability SYS_PTRACE, or a seccomp profile that allows it"
        raise OSError(errno.EPERM, f"pidfd_getfd is not permitted here; {hint}") from None
    finally:
        os.close(pidfd)
    return Listener(got[0]), got[1:]


def _be_program(
    gate: socket,
    become: Become,
    instructions: bytes,
    prepare: Callable[[], list[int]] | None,
    is_killable: bool,
    mask: set[int],
) -> NoReturn:
    status = _STATUS_FAILED
    try:
        try:
            others = prepare() if prepare is not None else []
            word = _READY + array("i", [_install(instructions, is_killable), *others]).tobytes()
        except OSError as error:
            word = (error.strerror or str(error)).encode()[:_LONGEST_WORD]
        os.write(gate.fileno(), word)  # which no filter is about
        if os.read(gate.fileno(), 1):
            pthread_sigmask(SIG_SETMASK, mask)
            status = become()
    finally:
        os._exit(status)


def _install(instructions: bytes, is_killable: bool) -> int:
    try:
        return kernel.install_filter(instructions, is_killable)
    except OSError as error:
        if error.errno == errno.EBUSY:
            reason = "another one answers for this process already: it cannot be run in itself"
            raise OSError(error.errno, reason) from None
        if error.errno != errno.EACCES:
            raise
    kernel.give_up_privileges_to_come()  # what only CAP_SYS_ADMIN does without
    return kernel.install_filter(instructions, is_killable)


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


def _allow_many_descriptors() -> None:
    """Have room for the descriptors of many programs, at the numbers that they have there."""
    soft, hard = getrlimit(RLIMIT_NOFILE)
    wanted = _MOST_DESCRIPTORS if hard == RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft != RLIM_INFINITY and soft < wanted:
        setrlimit(RLIMIT_NOFILE, (wanted, hard))


class _Front:
    """The one in front. All signals are blocked: it takes them one after the other."""

    __slots__ = ("_channel", "_supervisor")

    def __init__(self, channel: socket, supervisor: int) -> None:
        self._channel = channel
        self._supervisor = supervisor
        fd = channel.fileno()
        fcntl(fd, F_SETOWN, os.getpid())
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | os.O_NONBLOCK | os.O_ASYNC)

    def wait(self) -> NoReturn:
        """Wait, and end as the program does."""
        try:
            self._listen()  # to what has come before it was to be told
            while True:
                happened = sigwaitinfo(valid_signals())
                number = happened.si_signo
                if number == SIGIO:
                    self._listen()
                elif number != SIGCHLD and happened.si_code != _OF_THE_KERNEL:
                    self._pass_on(number)
        finally:
            os._exit(_STATUS_FAILED)

    def _listen(self) -> None:
        while True:
            try:
                data = self._channel.recv(_WORD.size)
            except BlockingIOError:
                return
            if not data:
                self._wait_alone()
            what, value = _WORD.unpack(data)
            if what == _HAS_ENDED:
                end_as(value)
            elif what == _HAS_STOPPED:
                os.kill(os.getpid(), SIGSTOP)
            else:
                os._exit(_STATUS_FAILED)

    def _pass_on(self, number: int) -> None:
        try:
            self._channel.send(_WORD.pack(_SIGNAL, number))
        except (BrokenPipeError, ConnectionResetError, BlockingIOError):
            return  # the supervisor is gone, which is told by an end

    def _wait_alone(self) -> NoReturn:
        """Wait for what the supervisor has left, which is ours now: it has been killed."""
        os.write(2, b"muonsocks: the supervisor has been killed: nothing can connect any more\n")
        status = 0
        while True:
            try:
                pid, one = os.waitpid(-1, 0)
            except ChildProcessError:
                end_as(status)
            if pid != self._supervisor:
                status = one


def end_as(status: int) -> NoReturn:
    """End as a process has ended whose wait(2) status this is."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        setrlimit(RLIMIT_CORE, (0, getrlimit(RLIMIT_CORE)[1]))  # one core is enough
        if number not in (SIGKILL, SIGSTOP):
            signal(number, SIG_DFL)
        os.kill(os.getpid(), number)
        pthread_sigmask(SIG_SETMASK, ())
        os._exit(128 + number)
    os._exit(os.waitstatus_to_exitcode(status))


def stay_behind() -> None:
    """Let go of what else the supervisor has in common with the program, which has ended: who reads
    its errors is to find the end of them.
    """
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 2)
    os.close(null)
    os.chdir("/")
