"""Calls that block (getaddrinfo, a password hash) in threads, for a loop that must not."""

from __future__ import annotations

import errno
from _thread import allocate_lock, stack_size, start_new_thread
from os import (
    EFD_CLOEXEC,
    EFD_NONBLOCK,
    close,
    eventfd,
    eventfd_read,
    eventfd_write,
    register_at_fork,
    sched_getaffinity,
)

from muonsocks.net.task import Waitable
from muonsocks.net.turns import Turns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from muonsocks.net.loop import Loop

    T = TypeVar("T")

MOST = 128  # calls that wait for something at once: each keeps 24 KiB of memory
# Bytes. What glibc would give a thread (8 MiB) is counted where memory must not be overcommitted,
# and may be one huge page each; getaddrinfo(3) with files and DNS is content with 64 KiB.
_STACK = 256 << 10


class _Job(Waitable):
    """One call in a thread, and what came of it."""

    __slots__ = ("_arguments", "_function", "error", "result", "turns")

    def __init__(
        self, function: Callable[..., object], arguments: tuple[object, ...], turns: Turns
    ) -> None:
        super().__init__()
        self._function = function
        self._arguments = arguments
        self.turns = turns  # has one to be given back when the call is over
        self.result: Any = None
        self.error: BaseException | None = None

    def work(self) -> None:
        """Make the call, in the thread."""
        try:
            self.result = self._function(*self._arguments)
        except BaseException as error:  # raised again in the task that waits
            self.error = error


class _Process:
    """What all loops of this process have in common: `orphans` is how many calls go on after the
    loop that they were for has been closed.
    """

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Have no such calls, as in a child process."""
        self._lock = allocate_lock()
        self._start_lock = allocate_lock()
        self.orphans = 0

    def add_orphans(self, change: int) -> None:
        """Have so many more."""
        with self._lock:
            self.orphans += change

    def start_thread(self, function: Callable[[_Job], None], job: _Job) -> None:
        """Start a thread with a small stack. RuntimeError."""
        with self._start_lock:  # or the usual size would be forgotten, by two of them at once
            usual = stack_size(_STACK)
            try:
                start_new_thread(function, (job,))
            finally:
                stack_size(usual)


_process = _Process()
register_at_fork(after_in_child=_process.renew)


class Threads:
    """Threads that report to the loop through an eventfd when their job is done.

    `waiting` are the turns of calls that wait for somebody else, `computing` of those that keep a
    processor and memory busy: as many as this process may use processors.
    """

    __slots__ = ("_at_work", "_done", "_lock", "_loop", "_signal", "computing", "waiting")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.waiting = Turns(MOST)
        self.computing = Turns(len(sched_getaffinity(0)))
        self._lock = allocate_lock()  # for the next three, which the threads use as well
        self._at_work = 0
        self._done: list[_Job] = []
        self._signal = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        loop.register(self._signal, self._collect)

    async def call(
        self, turns: Turns, function: Callable[..., T], arguments: tuple[object, ...]
    ) -> T:
        """Call a function in a thread when it has its turn; give or raise what it does.

        A task that is interrupted before that leaves the queue; later, the call goes on, and keeps
        its turn until it is over. OSError if too many go on for loops that are closed.
        """
        await turns.take()
        if _process.orphans >= MOST:
            turns.give_back()
            raise OSError(errno.EAGAIN, "too many calls that nobody waits for are not over yet")
        job = _Job(function, arguments, turns)
        with self._lock:
            self._at_work += 1
        try:
            _process.start_thread(self._serve, job)
        except RuntimeError as error:
            with self._lock:
                self._at_work -= 1
            turns.give_back()
            raise OSError(errno.EAGAIN, "no thread can be started") from error
        await job
        if job.error is not None:
            try:
                raise job.error
            finally:
                job.error = None  # or it would keep itself alive, through the frames it came by
        return job.result  # type: ignore[no-any-return]

    def _serve(self, job: _Job) -> None:
        job.work()
        with self._lock:
            if self._signal < 0:  # the loop is closed, and nobody waits any more
                _process.add_orphans(-1)
                return
            self._at_work -= 1
            self._done.append(job)
            eventfd_write(self._signal, 1)

    def _collect(self, _: int) -> None:
        try:
            eventfd_read(self._signal)
        except BlockingIOError:
            return
        with self._lock:
            done, self._done = self._done, []
        for job in done:
            job.wake()
            job.error = None  # of a job that nobody waited for any more
            job.turns.give_back()

    def close(self) -> None:
        """Stop listening to the threads that are still at work."""
        with self._lock:
            signal, self._signal = self._signal, -1
            _process.add_orphans(self._at_work)
        self._loop.unregister(signal)
        close(signal)
