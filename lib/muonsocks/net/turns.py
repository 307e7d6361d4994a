"""Turns: at most so many tasks at something at once, and the others in the order they came."""

from __future__ import annotations

from muonsocks.net.task import Waitable


class Turns:
    """So many turns, for tasks to take and to give back.

    A turn that has been given back goes at once to the task that has waited longest. It need not be
    given back by who took it: a turn can be for something that goes on when its task does not.
    """

    __slots__ = ("_free", "_is_handing_out", "_last", "_oldest", "_waiting")

    def __init__(self, most: int) -> None:
        self._free = most
        # By number, so that the oldest is found and any other one forgotten at no cost.
        self._waiting: dict[int, Waitable] = {}
        self._oldest = 0  # none that waits has a lower number
        self._last = 0
        self._is_handing_out = False

    async def take(self) -> None:
        """Wait for a turn. Who is interrupted meanwhile has none, and is in nobody's way."""
        if self._free and not self._waiting:
            self._free -= 1
            return
        number = self._last = self._last + 1
        waiter = self._waiting[number] = Waitable()
        try:
            await waiter
        except BaseException:
            del self._waiting[number]
            raise

    def give_back(self) -> None:
        """Let the next one have a turn."""
        self._free += 1
        if self._is_handing_out:
            return  # called by a task that was just given one; else it would go ever deeper
        self._is_handing_out = True
        try:
            while self._free and self._waiting:
                while self._oldest not in self._waiting:
                    self._oldest += 1
                self._free -= 1
                self._waiting.pop(self._oldest).wake()
        finally:
            self._is_handing_out = False
