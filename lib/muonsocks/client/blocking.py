"""Errands for a thread that waits for them: it runs the loop."""

from __future__ import annotations

from muonsocks.net.loop import Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any, TypeVar

    T = TypeVar("T")


def run(start: Callable[[Loop], Coroutine[Any, None, T]]) -> T:
    """Run a coroutine that `start` makes for a loop, to its end. Raises what it raises."""
    loop = Loop()
    try:
        return loop.run(start(loop))
    finally:
        loop.close()
        loop.timers.clear()  # those that were cancelled have the loop, which would be a cycle
