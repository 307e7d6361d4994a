"""A coroutine on its way through the loop, and what it can wait for."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator
    from typing import Any

    from muonsocks.net.loop import Loop


class Waitable:
    """Something that one task at a time can wait for, by `await`; `wake` ends the wait."""

    __slots__ = ("task",)

    def __init__(self) -> None:
        self.task: Task | None = None

    def __await__(self) -> Generator[Waitable, None, None]:
        # All that await asks for; a generator would be twice the memory, and every wait has one.
        return iter((self,))  # type: ignore[return-value]

    def wake(self) -> None:
        """Resume the waiting task, if there is one."""
        task = self.task
        if task is not None:
            self.task = None
            task.step()


class Pause:
    """What a coroutine returns to go on as another one after a wait, with nothing left of itself.

    A wait costs memory, for each of the coroutines that await each other down to it. For one that
    may be long a coroutine can end, and leave its task this: when `until` wakes the task, it goes
    on with `resume(None)`; when the task is interrupted, with `resume(error)`, which raises that.
    """

    __slots__ = ("_resume", "_resumed", "until")

    def __init__(
        self,
        until: Waitable,
        resume: Callable[[BaseException | None], Coroutine[Waitable, None, Any]],
    ) -> None:
        self.until = until
        self._resume = resume
        self._resumed: Coroutine[Waitable, None, Any] | None = None

    def send(self, _: None) -> Waitable:
        """Go on, as a coroutine does."""
        if self._resumed is None:
            self._resumed = self._resume(None)
        return self._resumed.send(None)

    def throw(self, error: BaseException) -> Waitable:
        """Go on with an error, as a coroutine does."""
        try:
            if self._resumed is not None:
                return self._resumed.throw(error)
            self._resumed = self._resume(error)
            return self._resumed.send(None)
        finally:
            del error  # as in Task.step


class Task:
    """One coroutine on its way. `waits_for` is what it has stopped at.

    What it returns or raises is given to one of the callbacks, while it is still the current task.
    """

    __slots__ = ("_coroutine", "_loop", "_on_failure", "_on_return", "is_over", "waits_for")

    def __init__(
        self,
        loop: Loop,
        coroutine: Coroutine[Waitable, None, Any],
        on_failure: Callable[[BaseException], None],
        on_return: Callable[[Any], None] | None = None,
    ) -> None:
        self._loop = loop
        self._coroutine: Coroutine[Waitable, None, Any] | Pause = coroutine
        self._on_failure = on_failure
        self._on_return = on_return
        self.is_over = False
        self.waits_for: Waitable | None = None

    def step(self, error: BaseException | None = None) -> None:
        """Run the coroutine to its next wait, raising `error` in it if there is one."""
        loop = self._loop
        caller, loop.current = loop.current, self
        try:
            if error is None:
                awaited = self._coroutine.send(None)
            else:
                awaited = self._coroutine.throw(error)
        except StopIteration as stop:
            if isinstance(stop.value, Pause):
                self._coroutine = stop.value
                self.waits_for = stop.value.until
                self.waits_for.task = self
            else:
                self.is_over = True
                if self._on_return is not None:
                    self._on_return(stop.value)
        except BaseException as failure:
            self.is_over = True
            self._on_failure(failure)
        else:
            self.waits_for = awaited
            awaited.task = self
        finally:
            loop.current = caller
            error = None  # or it would keep itself alive, through this frame

    def interrupt(self, error: BaseException) -> None:
        """Raise `error` where the task waits."""
        if self.waits_for is not None:
            self.waits_for.task = None
            self.waits_for = None
        try:
            self.step(error)
        finally:
            del error  # as in step


class Mailbox(Waitable):
    """Things that handlers and timers post for one task to take in their order."""

    __slots__ = ("_items",)

    def __init__(self) -> None:
        super().__init__()
        self._items: list[Any] = []

    def post(self, item: object) -> None:
        """Leave something, and wake the task if it waits."""
        self._items.append(item)
        self.wake()

    async def take(self) -> Any:
        """Give the oldest item; wait for one if there is none."""
        while not self._items:
            await self
        return self._items.pop(0)
