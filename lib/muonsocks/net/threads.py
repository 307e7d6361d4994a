"""Calls that block (getaddrinfo, a password hash) in threads, for a loop that must not."""

from __future__ import annotations

import errno
from _thread import start_new_thread
from os import EFD_CLOEXEC, EFD_NONBLOCK, close, eventfd, eventfd_read, eventfd_write

from muonsocks.net.task import Waitable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from muonsocks.net.loop import Loop

    T = TypeVar("T")


class _Job(Waitable):
    """One call in a thread, and what came of it."""

    __slots__ = ("_arguments", "_function", "error", "result")

    def __init__(self, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
        super().__init__()
        self._function = function
        self._arguments = arguments
        self.result: Any = None
        self.error: BaseException | None = None

    def work(self) -> None:
        """Make the call, in the thread."""
        try:
            self.result = self._function(*self._arguments)
        except BaseException as error:  # raised again in the task that waits
            self.error = error


class Threads:
    """Threads that report to the loop through an eventfd when their job is done."""

    __slots__ = ("_done", "_loop", "_signal")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._done: list[_Job] = []
        self._signal = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        loop.register(self._signal, self._collect)

    async def call(self, function: Callable[..., T], arguments: tuple[object, ...]) -> T:
        """Call a function in a thread, and give what it returns or raise what it raises."""
        job = _Job(function, arguments)
        try:
            start_new_thread(self._serve, (job,))
        except RuntimeError as error:
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
        self._done.append(job)
        signal = self._signal
        if signal < 0:
            return
        try:
            eventfd_write(signal, 1)
        except OSError as error:
            # The loop was closed while the job ran: nobody waits for it any more.
            if error.errno != errno.EBADF:
                raise

    def _collect(self, _: int) -> None:
        try:
            eventfd_read(self._signal)
        except BlockingIOError:
            return
        done, self._done = self._done, []
        for job in done:
            job.wake()
            job.error = None  # of a job that nobody waited for any more

    def close(self) -> None:
        """Stop listening to the threads that are still at work."""
        signal, self._signal = self._signal, -1
        self._loop.unregister(signal)
        close(signal)
