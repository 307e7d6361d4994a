"""Errands for threads that do not wait for them: one more thread runs the loop, for all of them."""

from __future__ import annotations

import os
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

    __slots__ = ("_error", "_is_dropped", "_on_end", "_over", "_result", "_task", "is_over")

    def __init__(
        self,
        start: Callable[[Loop], Coroutine[Waitable, None, Granted]],
        on_end: Callable[[], None],
    ) -> None:
        """Begin. `on_end` is called in that thread when it is over. OSError."""
        self._on_end = on_end
        self._over = allocate_lock()
        self._over.acquire()
        self._task: Task | None = None
        self._result: Granted | None = None
        self._error: BaseException | None = None
        self._is_dropped = False
        self.is_over = False
        thread = _Thread.of_this_process()

        def begin() -> None:
            if self._is_dropped:
                return
            loop = thread.loop
            task = loop.spawn(start(loop), self._on_failure, self._on_success)
            if not self.is_over:
                self._task = task

        thread.call(begin)

    def _on_success(self, result: Granted) -> None:
        if self._is_dropped:
            result.sock.close()
        self._result = result
        self._end()

    def _on_failure(self, error: BaseException) -> None:
        if not self._is_dropped:
            self._error = error
        self._end()

    def _end(self) -> None:
        self._task = None  # which has this
        self.is_over = True
        self._over.release()
        self._on_end()

    def wait(self, timeout: float | None) -> bool:
        """Wait until it is over, for so many seconds at most; say whether it is."""
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
        assert self._result is not None
        result, self._result = self._result, None
        return result

    def drop(self) -> None:
        """Have nobody wait for it any more."""
        self._is_dropped = True
        _Thread.of_this_process().call(self._let_go)

    def _let_go(self) -> None:
        if self._result is not None:
            self._result.sock.close()
        elif self._task is not None:
            self._task.interrupt(OSError("nobody waits for it any more"))


class _Thread:
    """The thread. It lasts as long as the process, and keeps nothing from ending that."""

    __slots__ = ("_calls", "_lock", "_signal", "loop")

    _only: _Thread | None = None
    _making = allocate_lock()

    def __init__(self) -> None:
        self.loop = Loop()
        self._calls: list[Callable[[], None]] = []
        self._lock = allocate_lock()
        self._signal = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.loop.register(self._signal, self._collect)
        start_new_thread(self._run, ())

    @classmethod
    def of_this_process(cls) -> _Thread:
        """Give the only one."""
        with cls._making:
            if cls._only is None:
                cls._only = cls()
            return cls._only

    @classmethod
    def forget(cls) -> None:
        """Have none, in a child process: it has not got the thread."""
        cls._only = None
        cls._making = allocate_lock()

    def call(self, function: Callable[[], None]) -> None:
        """Have a function called in the thread, after those before."""
        with self._lock:
            self._calls.append(function)
        os.eventfd_write(self._signal, 1)

    def _collect(self, _: int) -> None:
        os.eventfd_read(self._signal)
        with self._lock:
            calls, self._calls = self._calls, []
        for function in calls:
            function()

    def _run(self) -> None:
        self.loop.run(_forever())


async def _forever() -> None:
    await Waitable()


os.register_at_fork(after_in_child=_Thread.forget)
