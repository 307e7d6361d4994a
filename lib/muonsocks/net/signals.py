"""Signals and a loop: none is missed before a wait, and none cuts a coroutine short anywhere."""

from __future__ import annotations

import os
from _signal import set_wakeup_fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.net.loop import Loop

_loop: Loop | None = None  # the one of this process that signals are for


def wake_for_signals(loop: Loop) -> None:
    """Let every signal end the loop's wait, so that Python gets to run its handler.

    Without this a signal that comes just before epoll_wait(2) is noticed after the next event.
    """
    global _loop
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def drain(_: int) -> None:
        try:
            os.read(reader, 4096)
        except BlockingIOError:
            return

    loop.register(reader, drain)
    set_wakeup_fd(writer, warn_on_full_buffer=False)
    _loop = loop


def deliver(error: BaseException) -> None:
    """Raise what a signal stands for, from its handler.

    While the loop runs, that is where its coroutine waits: elsewhere it could hit the loop itself
    between two lines, and a coroutine would never be told.
    """
    if _loop is None or not _loop.is_running:
        raise error
    _loop.interruption = error
