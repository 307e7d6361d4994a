"""What a worker runs out of, as the log has it: the first of the workers that meets a shortage says
so, and the last one that it is over.
"""

from __future__ import annotations

from muonsocks.resident.board import SERVED, SHORT, Board

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from muonsocks.log import Log
    from muonsocks.net.loop import Loop, Timer

_QUIET = 1.0  # s without another shortage after which it may be over


class Shortage:
    """The shortage of one worker, if there is one. `is_pausing` says whether it leaves connections
    in the queue for now.
    """

    __slots__ = ("_board", "_is_pausing", "_is_there", "_log", "_loop", "_recovery", "_served")

    def __init__(self, loop: Loop, board: Board, log: Log, is_pausing: Callable[[], bool]) -> None:
        self._loop = loop
        self._board = board
        self._log = log
        self._is_pausing = is_pausing
        self._is_there = False
        self._recovery: Timer | None = None
        self._served = 0  # in all workers, when it was met last

    def meet(self, what: str) -> None:
        """Note that there is one, which the log has as `what`, once."""
        self.forget()
        self._served = self._board.total(SERVED)
        self._recovery = self._loop.call_later(_QUIET, self._look_again)
        if not self._is_there:
            if not self._board.total(SHORT):
                self._log.warning(what)
            self._is_there = True
            self._board.set(SHORT, 1)

    def forget(self) -> None:
        """Look no more whether it is over, as no more connections are taken."""
        if self._recovery is not None:
            self._recovery.cancel()
            self._recovery = None

    def _look_again(self) -> None:
        """It is over when a connection has come since, to whichever worker, and all was well with
        it.
        """
        if self._is_pausing() or self._board.total(SERVED) == self._served:
            self._recovery = self._loop.call_later(_QUIET, self._look_again)
            return
        self._recovery = None
        self._is_there = False
        self._board.set(SHORT, 0)
        if not self._board.total(SHORT):
            self._log.warning("the shortage is over")
