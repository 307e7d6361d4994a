"""Lines of the log that somebody else can cause, as often as they like: a few, and then a count."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from muonsocks.net.loop import Loop, Timer

_PERIOD = 1.0  # s
MOST = 10  # lines in it


class Repeats:
    """Says of each thing of a kind whether it may have its line. After the second that begins with
    the first, `report` is told how many had none.
    """

    __slots__ = ("_count", "_loop", "_report", "_timer")

    def __init__(self, loop: Loop, report: Callable[[int], None]) -> None:
        self._loop = loop
        self._report = report
        self._count = 0
        self._timer: Timer | None = None

    def may(self) -> bool:
        """Count one more, and say whether it may be logged."""
        if self._timer is None:
            self._timer = self._loop.call_later(_PERIOD, self._end)
        self._count += 1
        return self._count <= MOST

    def _end(self) -> None:
        more, self._count, self._timer = max(self._count - MOST, 0), 0, None
        self._report(more)

    def close(self) -> None:
        """Say now how many there were."""
        if self._timer is not None:
            self._timer.cancel()
            self._end()
