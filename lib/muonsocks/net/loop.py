"""Coroutines over one edge-triggered epoll: it waits for descriptors, times and threads.

A coroutine waits by awaiting an object that yields itself (a Stream, a Mailbox, a relay); the loop
notes the waiting task on it, and whoever has what it waits for calls its `wake`. The handler of a
descriptor is called with the epoll events: of input, and of room for output once that is asked for.
"""

from __future__ import annotations

import errno
from _heapq import heapify, heappop, heappush
from os import sched_yield
from select import (
    EPOLLERR,
    EPOLLET,
    EPOLLEXCLUSIVE,
    EPOLLHUP,
    EPOLLIN,
    EPOLLOUT,
    EPOLLPRI,
    EPOLLRDHUP,
    epoll,
)
from time import monotonic

from muonsocks.net.task import Task, Waitable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any, TypeVar

    from muonsocks.net.relay import Watch
    from muonsocks.net.task import Pause
    from muonsocks.net.threads import Threads

    T = TypeVar("T")

_INPUT = EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLET
_INPUT_AND_ROOM = _INPUT | EPOLLOUT
_CONNECTIONS = EPOLLIN | EPOLLEXCLUSIVE
READABLE = EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR
WRITABLE = EPOLLOUT | EPOLLHUP | EPOLLERR


_MANY = 64  # cancelled timers that may wait for their time to come; more would be cold memory
_LONGEST_WAIT = 86400.0  # s; epoll counts milliseconds in an int

# To fall asleep and be woken takes longer, and costs more, than to look for a while for what comes
# soon. That is worth a try after a wait that was short; and only if nobody else wants the processor
# (each look offers it), who might keep it for milliseconds.
_LOOKING = 5e-5  # s, if the loop's owner has not set it
_SHORT_WAIT = 2  # times as long as that
_CROWDED = 5e-4  # s; when looking took longer than this, somebody else was there
_REST = 0.1  # s without a look after that


class Timer:
    """A call that is due at a time. Cancelling it costs nothing; the loop forgets it later."""

    __slots__ = ("callback", "loop")

    def __init__(self, loop: Loop, callback: Callable[[], None]) -> None:
        self.loop = loop
        self.callback: Callable[[], None] | None = callback

    def start(self, seconds: float) -> None:
        """Let the call be due after so many seconds."""
        loop = self.loop
        loop.timer_number += 1
        heappush(loop.timers, (monotonic() + seconds, loop.timer_number, self))

    def cancel(self, *_: object) -> None:
        """Let the call not happen. Harmless when it has happened."""
        if self.callback is not None:
            self.callback = None
            loop = self.loop
            loop.cancelled += 1
            if loop.cancelled > _MANY and loop.cancelled * 2 > len(loop.timers):
                loop.forget_cancelled_timers()


class Deadline(Timer):
    """`with loop.deadline(seconds):` raises TimeoutError where the task waits when time is up."""

    __slots__ = ("_seconds", "_task", "passed")

    def __init__(self, loop: Loop, seconds: float) -> None:
        self.loop = loop
        self.callback = self._expire
        self._seconds = seconds
        self.passed = False

    def __enter__(self) -> Deadline:
        task = self.loop.current
        assert task is not None, "a deadline is for a task"
        self._task = task
        self.start(self._seconds)
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()
        del self._task  # which may be over long before the loop forgets a cancelled timer

    def _expire(self) -> None:
        self.passed = True
        self._task.interrupt(TimeoutError(errno.ETIMEDOUT, "the time limit has passed"))


class Loop:
    """One epoll, its handlers, timers and tasks.

    `now` is this round's monotonic time in s, `busy` the number of its events. `looking` is for how
    long, in s, it looks for what comes soon before it falls asleep; it is to be set before `run`.
    """

    __slots__ = (
        "_epoll",
        "_looks_from",
        "_new",
        "_threads",
        "busy",
        "cancelled",
        "current",
        "handlers",
        "interruption",
        "is_running",
        "looking",
        "now",
        "timer_number",
        "timers",
        "watches",
    )

    def __init__(self) -> None:
        self._epoll = epoll()
        self.looking = _LOOKING
        self.handlers: dict[int, Callable[[int], None]] = {}
        self._new: set[int] = set()  # descriptors registered in this round
        self.timers: list[tuple[float, int, Timer]] = []
        self.timer_number = 0  # of two that are due at the same time, the first started comes first
        self.cancelled = 0
        self.watches: dict[float, Watch] = {}  # of joints, by the limit
        self._threads: Threads | None = None
        self.current: Task | None = None
        self.interruption: BaseException | None = None  # what a signal handler wants raised
        self.is_running = False
        self._looks_from = 0.0  # monotonic time
        self.busy = 0
        self.now = monotonic()

    def close(self) -> None:
        """Close what the loop itself has opened, and forget the timers, which refer to it."""
        if self._threads is not None:
            self._threads.close()
        self._epoll.close()
        self.timers.clear()

    # Descriptors

    def fileno(self) -> int:
        """Give the epoll's descriptor: it is readable while there is something to be dealt with."""
        return self._epoll.fileno()

    def register(self, fd: int, handler: Callable[[int], None], room: bool = False) -> bool:
        """Call `handler` with the events of `fd` from now on: input, ends and errors; with `room`,
        that there is room for output too.

        False, and nothing is registered, if the descriptor is always ready (a regular file).
        """
        try:
            self._epoll.register(fd, _INPUT_AND_ROOM if room else _INPUT)
        except PermissionError:
            return False
        self.handlers[fd] = handler
        self._new.add(fd)
        return True

    def watch_room(self, fd: int, is_wanted: bool = True) -> None:
        """Tell its handler when a registered `fd` has room for output, from now on, or no more."""
        self._epoll.modify(fd, _INPUT_AND_ROOM if is_wanted else _INPUT)

    def register_listener(self, fd: int, handler: Callable[[int], None]) -> None:
        """Call `handler` while connections wait at `fd`; of several processes, one is woken each.

        Not edge-triggered: who accepts one at a time leaves the others to whoever has time.
        """
        self._epoll.register(fd, _CONNECTIONS)
        self.handlers[fd] = handler

    def queue_up_again(self, fd: int) -> None:
        """Be the last of the processes at a listener that is woken: the kernel takes the first of
        those that sleep, in the order in which they came.
        """
        handler = self.handlers[fd]
        self.unregister(fd)
        self.register_listener(fd, handler)

    def unregister(self, fd: int) -> None:
        """Forget `fd`, just before it is closed or handed on."""
        if self.handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    # Time

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` once after so many seconds, unless the timer is cancelled."""
        timer = Timer(self, callback)
        timer.start(seconds)
        return timer

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call `callback` in the next round, after the events that are there by then."""
        self.timer_number += 1
        heappush(self.timers, (self.now, self.timer_number, Timer(self, callback)))

    def deadline(self, seconds: float) -> Deadline:
        """Limit the time of what the current task does in a `with` block."""
        return Deadline(self, seconds)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        alarm = Waitable()
        timer = self.call_later(seconds, alarm.wake)
        try:
            await alarm
        finally:
            timer.cancel()

    def forget_cancelled_timers(self) -> None:
        """Drop cancelled timers once they are many, and most of all: they must not pile up."""
        self.timers[:] = [item for item in self.timers if item[2].callback is not None]
        heapify(self.timers)
        self.cancelled = 0

    # Tasks and threads

    def spawn(
        self,
        coroutine: Coroutine[Waitable, None, Any],
        on_failure: Callable[[BaseException], None],
        on_return: Callable[[Any], None] | None = None,
    ) -> Task:
        """Start a coroutine at once, up to its first wait."""
        task = Task(self, coroutine, on_failure, on_return)
        task.step()
        return task

    async def in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function that waits for somebody in a thread, and wait for what it returns."""
        threads = self._all_threads()
        return await threads.call(threads.waiting, function, arguments)

    async def compute(self, function: Callable[..., T], *arguments: Any) -> T:
        """The same for one that keeps a processor busy: no more at once than there are."""
        threads = self._all_threads()
        return await threads.call(threads.computing, function, arguments)

    def _all_threads(self) -> Threads:
        if self._threads is None:
            from muonsocks.net.threads import Threads

            self._threads = Threads(self)
        return self._threads

    # Running

    def run(self, coroutine: Coroutine[Waitable, None, T | Pause]) -> T:
        """Run until `coroutine` is over and give what it returns.

        What is raised in the loop itself is raised in the coroutine.
        """
        results: list[T] = []
        failures: list[BaseException] = []

        self.is_running = True
        self.now = monotonic()
        try:
            task = self.spawn(coroutine, failures.append, results.append)
            while not task.is_over:
                try:
                    self._go_on(task)
                except BaseException as error:
                    if not task.is_over:
                        task.interrupt(error)
        finally:
            self.is_running = False
        if self.interruption is not None:
            raise self.interruption
        if failures:
            raise failures.pop()
        return results[0]

    def _look(self, since: float) -> list[tuple[int, int]]:
        """Give the events that come within a short time, beginning `since`, if any do."""
        events: list[tuple[int, int]] = []
        if since >= self._looks_from:
            poll, passed = self._epoll.poll, 0.0
            while not events and passed < self.looking:
                sched_yield()
                events = poll(0)
                passed = monotonic() - since
            if passed > _CROWDED:
                self._looks_from = since + passed + _REST
        return events

    def _go_on(self, task: Task) -> None:
        """Wait for events or the next timer and call what is due, again and again, until `task`
        is over.
        """
        poll, handlers, new, timers = self._epoll.poll, self.handlers, self._new, self.timers
        short_wait = _SHORT_WAIT * self.looking
        waited_long = True
        while not task.is_over:
            patience = -1.0
            if timers:
                # As of the beginning of this round: a timer may be late by as much as that took.
                # If it has been cancelled, there will be a round for nothing.
                patience = timers[0][0] - self.now
                if not 0.0 <= patience <= _LONGEST_WAIT:
                    patience = 0.0 if patience < 0.0 else _LONGEST_WAIT
            since = monotonic()
            if waited_long or not patience or not (events := self._look(since)):
                events = poll(patience)
            self.now = now = monotonic()
            waited_long = now - since > short_wait
            self.busy = len(events)
            if new:
                new.clear()
            for fd, happened in events:
                # An event for what was registered since is one of an earlier owner of the number.
                if fd in handlers and fd not in new:
                    handlers[fd](happened)
            # What is to be called soon is due now or, if it was called for in this round, in the
            # next one: the times of those are equal to `now`.
            while timers and timers[0][0] < now:
                timer = heappop(timers)[2]
                due, timer.callback = timer.callback, None
                if due is None:
                    self.cancelled -= 1
                else:
                    due()
