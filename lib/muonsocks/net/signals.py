"""Signals and a loop that waits: none may come between the last look and the wait."""

from __future__ import annotations

import os
from _signal import set_wakeup_fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.net.loop import Loop


def wake_for_signals(loop: Loop) -> None:
    """Let every signal end the loop's wait, so that Python gets to run its handler.

    Without this a signal that comes just before epoll_wait(2) is noticed after the next event.
    """
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def drain(_: int) -> None:
        try:
            os.read(reader, 4096)
        except BlockingIOError:
            return

    loop.register(reader, drain)
    set_wakeup_fd(writer, warn_on_full_buffer=False)
