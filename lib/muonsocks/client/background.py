"""Errands for threads that do not wait for them: one more thread runs the loop, for all of them."""

from __future__ import annotations

import errno
import os
from _collections import deque
from _thread import allocate_lock, start_new_thread

from muonsocks.net.loop import Loop
from muonsocks.net.task import Waitable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from muonsocks.client.errand import Granted
    from muonsocks.net.task import Task

    Start = Callable[[Loop], Coroutine[Waitable, None, Granted]]


class Pending:
    """An errand in the background. Once it `is_over`, `take` gives what it has brought."""

    __slots__ = (
        "_error",
        "_is_dropped",
        "_is_over",
        "_on_end",
        "_over",
        "_result",
        "_task",
        "thread",
    )

    def __init__(
        self,
        start: Callable[[Loop], Coroutine[Waitable, None, Granted]],
        on_end: Callable[[bool], None],
    ) -> None:
        """Begin. `on_end` is called in that thread when it is over, with whether it has failed.
        OSError.
        """
        self._on_end = on_end
        self._over = allocate_lock()
        self._over.acquire()
        self._task: Task | None = None
        self._result: Granted | None = None
        self._error: BaseException | None = None
        self._is_dropped = False
        self._is_over = False
        self.thread = thread = Thread.of_this_process()

        def begin() -> None:
            if self._is_dropped:
                return
            loop = thread.loop
            task = loop.spawn(start(loop), self._on_failure, self._on_success)
            if not self._is_over:
                self._task = task

        thread.call(begin)

    def _on_success(self, result: Granted) -> None:
        if self._is_dropped:
            result.close()
        else:
            self._result = result
        self._end(has_failed=False)

    def _on_failure(self, error: BaseException) -> None:
        if not self._is_dropped:
            self._error = error
        self._end(has_failed=True)

    def _end(self, has_failed: bool) -> None:
        self._task = None  # which has this
        self._is_over = True
        self._over.release()
        self._on_end(has_failed)

    @property
    def is_over(self) -> bool:
        """Whether there is something to `take`: in a child process, that nothing will come."""
        return self._is_over or not self.thread.is_here

    @property
    def has_failed(self) -> bool:
        """Whether it is over, and has brought nothing."""
        return self.is_over and self._result is None

    def wait(self, timeout: float | None) -> bool:
        """Wait until it is over, for so many seconds at most; say whether it is."""
        if self.is_over:
            return True
        if not self._over.acquire(timeout=-1 if timeout is None else timeout):
            return False
        self._over.release()
        return True

    def take(self) -> Granted:
        """Give what it has brought, or raise why it has failed. Once, and when it is over."""
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error
        result, self._result = self._result, None
        if result is None:
            raise OSError(errno.ECONNABORTED, "it was under way in another process")
        return result

    def drop(self) -> None:
        """Have nobody wait for it any more. This waits for nobody, as what collects garbage must
        not.
        """
        self._is_dropped = True
        if self.thread.is_here:
            self.thread.call(self._let_go)

    def _let_go(self) -> None:
        result, self._result = self._result, None
        if result is not None:
            result.close()
        elif self._task is not None:
            self._task.interrupt(OSError(errno.ECANCELED, "nobody waits for it any more"))


class Thread:
    """The thread. It lasts as long as the process, and keeps nothing from ending that."""

    __slots__ = ("_calls", "_signal", "loop")

    _only: Thread | None = None
    _making = allocate_lock()

    def __init__(self) -> None:
        """Start it. OSError."""
        self.loop = Loop()
        self._calls: deque[Callable[[], None]] = deque()
        self._signal = -1
        try:
            self._signal = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self.loop.register(self._signal, self._collect)
            start_new_thread(self._run, ())
        except (OSError, RuntimeError) as error:
            if self._signal >= 0:
                os.close(self._signal)
            self.loop.close()
            if isinstance(error, OSError):
                raise
            raise OSError(errno.ENOMEM, "no thread can be started") from error

    @classmethod
    def of_this_process(cls) -> Thread:
        """Give the only one. OSError."""
        with cls._making:
            if cls._only is None:
                cls._only = cls()
            return cls._only

    @property
    def is_here(self) -> bool:
        """Whether it is a thread of this process, and not of one that has forked it."""
        return Thread._only is self

    @classmethod
    def forget(cls) -> None:
        """Have none, in a child process: it has not got the thread."""
        cls._only = None
        cls._making = allocate_lock()

    def call(self, function: Callable[[], None]) -> None:
        """Have a function called in the thread, after those before."""
        self._calls.append(function)  # without a lock: what collects garbage may come in between
        os.eventfd_write(self._signal, 1)

    def _collect(self, _: int) -> None:
        os.eventfd_read(self._signal)
        for _ in range(len(self._calls)):
            self._calls.popleft()()

    def _run(self) -> None:
        self.loop.run(_forever())


async def _forever() -> None:
    await Waitable()


os.register_at_fork(after_in_child=Thread.forget)
