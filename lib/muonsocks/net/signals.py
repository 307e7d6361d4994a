"""Signals and a loop: none is missed before a wait, and none cuts a coroutine short anywhere."""

from __future__ import annotations

import os
from _signal import set_wakeup_fd, signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from muonsocks.net.loop import Loop

_loop: Loop | None = None  # the one of this process that signals are for


class Signals:
    """Lets every signal end the wait of a loop, so that Python gets to run its handler.

    Without this a signal that comes just before epoll_wait(2) is noticed after the next event.
    """

    __slots__ = ("_actions", "_loop", "_reader", "_writer")

    def __init__(self, loop: Loop, actions: Mapping[int, Callable[[], None]] | None = None) -> None:
        """`actions` are called in the loop, as any handler, when their signals have come."""
        global _loop
        self._loop = loop
        self._actions = actions or {}
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        loop.register(self._reader, self._collect)
        set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        _loop = loop
        for number in self._actions:
            signal(number, _noted)

    def _collect(self, _: int) -> None:
        try:
            while numbers := os.read(self._reader, 4096):
                for number in numbers:
                    action = self._actions.get(number)
                    if action is not None:
                        action()
        except BlockingIOError:
            pass  # those were all
        interruption, self._loop.interruption = self._loop.interruption, None
        if interruption is not None:
            raise interruption

    def close(self) -> None:
        """Have nothing to do with signals any more, as in a child that makes its own."""
        set_wakeup_fd(-1)
        del self._loop.handlers[self._reader]  # and not from the epoll: the parent has that too
        os.close(self._reader)
        os.close(self._writer)


def _noted(*_: object) -> None:
    """Be the handler of a signal: it is told by the wakeup descriptor."""


def deliver(error: BaseException) -> None:
    """Raise what a signal stands for, from its handler.

    While the loop runs, that is where its coroutine waits: elsewhere it could hit the loop itself
    between two lines, and a coroutine would never be told.
    """
    if _loop is None or not _loop.is_running:
        raise error
    _loop.interruption = error
