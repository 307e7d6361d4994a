"""The process that stays: it starts the workers, replaces those that die, rereads, and stops all.

It keeps its privileges, which the workers give up, and so it reads nothing that a peer has sent.
"""

from __future__ import annotations

import gc
import os
from _signal import (
    SIG_BLOCK,
    SIG_IGN,
    SIG_UNBLOCK,
    SIGABRT,
    SIGCHLD,
    SIGHUP,
    SIGINT,
    SIGKILL,
    SIGTERM,
    getsignal,
    pthread_sigmask,
)
from _socket import AF_UNIX, SOCK_NONBLOCK, SOCK_STREAM, socket, socketpair
from resource import RLIMIT_NOFILE, getrlimit, setrlimit
from time import monotonic

from muonsocks.errors import UsageError, in_one_line
from muonsocks.net.loop import Loop
from muonsocks.net.signals import Signals
from muonsocks.net.stream import Stream
from muonsocks.net.task import Mailbox
from muonsocks.resident.board import CUT, OPEN, REFUSED, SERVED
from muonsocks.resident.child import Child
from muonsocks.resident.notify import STATUS_PERIOD, Notifier
from muonsocks.resident.process import (
    CUT_NOW,
    DRAIN,
    FINISH,
    GIVEN_UP,
    HAS_SAID_WHY,
    MEANT_FOR_ALL,
    NOTHING_LEFT,
    Process,
    take_order,
)
from muonsocks.resident.programs import adopt_orphans

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from muonsocks.log import Log
    from muonsocks.net.entrance import Entrance
    from muonsocks.resident.plan import Plan, Service

_HANDLED = (*MEANT_FOR_ALL, SIGCHLD)
_SHORT_LIFE = 1.0  # s; a worker that ends younger is replaced with a delay
_LONGEST_DELAY = 30.0  # s
_GRACE = 5.0  # s more than a drain may take, then the worker does not answer and is killed
_LATE = 4  # intervals without a sign of life after which a worker is given up


class Supervisor:
    """Runs a service in workers until it is told to stop."""

    __slots__ = (
        "_board",
        "_checked",
        "_children",
        "_delays",
        "_entrances",
        "_failed",
        "_happened",
        "_is_told",
        "_is_up",
        "_log",
        "_loop",
        "_notifier",
        "_plan",
        "_programs",
        "_reload_waits",
        "_service",
        "_signals",
        "_stops",
        "_went_on",
    )

    def __init__(
        self,
        service: Service,
        entrances: Sequence[Entrance],
        plan: Plan,
        notifier: Notifier,
        log: Log,
    ) -> None:
        service.board = plan.board
        self._service = service
        self._programs = service.programs
        self._entrances = entrances
        self._plan = plan
        self._notifier = notifier
        self._log = log
        self._board = plan.board
        self._children: dict[int, Child] = {}
        self._delays = [0.0] * plan.workers  # until a worker is replaced
        self._failed = False  # a worker could not even start, or has given up
        self._checked = 0.0  # when it was last seen to that workers are alive
        self._went_on = 0.0  # and when that began, or went on after this process was stopped
        self._is_up = False  # all workers have been ready
        self._stops = False  # no worker is replaced
        self._is_told = False  # to stop
        self._reload_waits = False
        self._happened = Mailbox()  # has what is to be called
        self._loop = Loop()
        post = self._happened.post
        actions = {
            SIGTERM: self._stop_soon,
            SIGINT: self._stop_soon,
            SIGHUP: self._reload_soon,
            SIGCHLD: lambda: post(self._bury_children),
        }
        if getsignal(SIGINT) == SIG_IGN:
            del actions[SIGINT]  # as a shell starts what runs in the background of a script
        self._signals = Signals(self._loop, actions)

    def run(self) -> bool:
        """Serve until a signal says stop, or a worker that there is nothing left to serve. False if
        one could not even start, or has given up.
        """
        setrlimit(RLIMIT_NOFILE, (getrlimit(RLIMIT_NOFILE)[1],) * 2)
        if self._programs is not None:
            adopt_orphans()
        # What the workers share with us is not to be written to: nobody looks for cycles there, and
        # those there are stay, as freeing them would leave room that each worker fills.
        gc.freeze()
        return self._loop.run(self._story())

    async def _story(self) -> bool:
        self._start_or_stop(0)  # alone: what keeps one from its work is then said once
        if self._notifier.watchdog:
            self._check_workers()
        while self._children or not self._stops:
            action = await self._happened.take()
            action()
        if self._programs is not None:
            for pid in self._programs:  # of a worker that nobody has replaced
                self._programs.tell_to_end(pid)
        if not self._failed:
            cut = self._board.total(CUT)
            self._log.info(f"stopped, connections that were cut: {cut}")
        return not self._failed

    # What happens

    def _note_ready(self) -> None:
        """Say that clients can come, once all workers are ready for the first time."""
        if self._is_up or self._stops or not all(one.is_ready for one in self._children.values()):
            return
        if len(self._children) < self._plan.workers:
            for number in range(1, self._plan.workers):
                self._start_or_stop(number)
        else:
            self._is_up = True
            self._notifier.ready()
            if self._notifier.to_systemd:
                self._tell_status()

    def _reload_soon(self) -> None:
        """Reload when all signals are known that have come: it may take seconds, so that it is done
        once for all who ask, and not when the program is to stop.
        """
        if not self._reload_waits:
            self._reload_waits = True
            self._loop.call_soon(lambda: self._happened.post(self._reload))

    def _stop_soon(self) -> None:
        self._reload_waits = False
        self._happened.post(self._stop)

    def _reload(self) -> None:
        """Read again what may change, or keep it all as it was."""
        waits, self._reload_waits = self._reload_waits, False
        if self._stops or not waits:
            return
        self._notifier.reloading()
        try:
            configuration = self._service.reread()
        except (UsageError, OSError) as error:
            self._log.error(f"not reloaded, all stays as it was: {in_one_line(error)}")
        except MemoryError:
            self._log.error("not reloaded, all stays as it was: there is no memory for it")
        else:
            self._service.take(configuration)  # for workers to come
            order = take_order(configuration)
            for child in self._children.values():
                child.have_take(order)
            self._log.info("reloaded")
        if self._is_up:
            self._notifier.ready()

    def _stop(self) -> None:
        """Let the workers finish; when asked again, end them now."""
        again, self._is_told = self._is_told, True
        self._end_with(CUT_NOW if again else DRAIN)
        self._loop.call_later((0 if again else self._plan.drain) + _GRACE, self._kill_children)
        if not again:
            self._notifier.stopping(self._plan.drain + 2 * _GRACE)

    def _finish(self) -> None:
        """Let the workers end, which may take as long as their connections do: nobody asks for it,
        there is just nobody to come any more.
        """
        self._end_with(FINISH)

    def _end_with(self, order: bytes) -> None:
        """Take nobody in any more, and start no more workers; those that are left have an order."""
        self._stops = True
        entrances, self._entrances = self._entrances, ()
        for entrance in entrances:
            entrance.shut()  # before the workers are told: then who is in there is the last
        for child in self._children.values():
            child.tell(order)
        for entrance in entrances:
            entrance.close()

    def _kill_children(self) -> None:
        for child in self._children.values():
            self._log.error(f"worker {child.pid} does not end and is killed")
            os.kill(child.pid, SIGKILL)

    def _bury_children(self) -> None:
        """Note which workers have ended, and replace them; but first which of their programs."""
        workers = []
        while pid := _child_that_has_ended():
            if self._programs is not None:
                self._programs.remove(pid)
            _, status = os.waitpid(pid, 0)
            child = self._children.pop(pid, None)
            if child is not None:  # else it was left by a worker, or by a program
                child.bury()
                workers.append((child, os.waitstatus_to_exitcode(status)))
        for worker in workers:
            self._bury(*worker)

    def _bury(self, child: Child, code: int) -> None:
        """Note the end of a worker, with this exit status or minus a signal, and replace it."""
        lost = self._board.clear(child.number)
        if code in (NOTHING_LEFT, GIVEN_UP):
            if not self._stops:
                self._failed = code == GIVEN_UP
                self._finish()
            return
        if code and (child.is_ready or code != HAS_SAID_WHY):
            how = f"ended with status {code}" if code > 0 else f"was killed by signal {-code}"
            programs = len(list(self._programs or ()))
            without = f"; programs that go on without it: {programs}" * bool(programs)
            lost = max(lost - programs, 0)
            self._log.error(f"worker {child.pid} {how}; connections lost with it: {lost}{without}")
        if not self._is_up and not self._stops:
            self._failed = True  # it would not be otherwise the next time
            self._stop()
        elif not self._stops:
            self._replace(child)

    def _replace(self, child: Child) -> None:
        """Start another worker: at once, unless they do not live long."""
        if monotonic() - child.started >= _SHORT_LIFE:
            self._delays[child.number] = 0.0
            self._start_again(child.number)
        else:
            self._start_later(child.number)

    def _start_later(self, number: int) -> None:
        self._delays[number] = min(max(2 * self._delays[number], 0.1), _LONGEST_DELAY)
        post = self._happened.post
        self._loop.call_later(self._delays[number], lambda: post(lambda: self._start_again(number)))

    def _start_again(self, number: int) -> None:
        try:
            self._start(number)
        except OSError as error:
            self._log.error(f"no worker can be started, tried again later: {error.strerror}")
            self._start_later(number)

    # Signs of life

    def _tell_status(self) -> None:
        board, state = self._board, self._service.state()
        self._notifier.status(
            (f"{state}; " if state else "")
            + f"connections: {board.total(OPEN)} open, {board.total(SERVED)} served,"
            f" {board.total(REFUSED)} refused; workers: {len(self._children)}"
        )
        self._loop.call_later(STATUS_PERIOD, self._tell_status)

    def _check_workers(self) -> None:
        """Give a worker up that shows no sign of life, and systemd one of ours."""
        last, self._checked = self._checked, monotonic()
        if self._checked - last > 2 * self._interval:
            self._went_on = self._checked  # it was stopped, and so were they, perhaps
        for child in self._children.values():
            silence = min(self._board.silence(child.number), self._checked - self._went_on)
            if silence > _LATE * self._interval:
                if child.has_hung:
                    os.kill(child.pid, SIGKILL)  # a process that is stopped heeds nothing less
                    continue
                child.has_hung = True
                self._log.error(f"worker {child.pid} has hung for {silence:.0f} s and is killed")
                os.kill(child.pid, SIGABRT)
        self._notifier.alive()
        self._loop.call_later(self._interval, self._check_workers)

    @property
    def _interval(self) -> float:
        """How often (s) there are signs of life, or 0."""
        return self._notifier.watchdog / 4

    # Workers

    def _start_or_stop(self, number: int) -> None:
        """Start one of the first workers, without which there is no beginning."""
        try:
            self._start(number)
        except OSError as error:
            which = f"worker {number + 1} of {self._plan.workers}"
            hint = "allow more, or have fewer workers"
            self._log.error(f"{which} cannot be started: {error.strerror}; {hint}")
            self._failed = True
            self._stop()

    def _start(self, number: int) -> None:
        if self._stops:
            return
        ours, theirs = socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK)
        try:
            channel = Stream(self._loop, ours)  # before the fork: a child must be known
            try:
                pid = self._fork(number, ours, theirs)
            except BaseException:
                channel.close()
                raise
        finally:
            theirs.close()
        post = self._happened.post
        self._children[pid] = Child(number, pid, channel, lambda: post(self._note_ready))

    def _fork(self, number: int, ours: socket, theirs: socket) -> int:
        """Be a worker in the child, and give its number in the parent."""
        self._board.clear(number)
        pthread_sigmask(SIG_BLOCK, _HANDLED)  # or a child could tell us of a signal it got
        try:
            pid = os.fork()
            if pid == 0:
                ours.close()
                self._let_go()
                self._board.take_column(number)
                Process(self._service, self._entrances, self._plan, self._board, self._log).run(
                    theirs, self._interval
                )
        finally:
            pthread_sigmask(SIG_UNBLOCK, _HANDLED)
        return pid

    def _let_go(self) -> None:
        """Close what is the supervisor's, in a worker."""
        self._loop.close()
        self._signals.close()
        self._notifier.close()
        for child in self._children.values():
            child.forget()


def _child_that_has_ended() -> int:
    """Give the process of a child that is to be reaped, or 0."""
    try:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0  # there is no child at all
    return 0 if ended is None else ended.si_pid
