"""How long connections may wait for their receivers, and how many may in all workers together."""

from __future__ import annotations

from fcntl import LOCK_EX, LOCK_UN, lockf

from muonsocks.resident.board import OWN_OPEN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.resident.board import Board


class Limits:
    """How long (s) a connection may wait, and how many may for all receivers; `waiting` is how many
    do in this process.
    """

    __slots__ = ("most_waiting", "patience", "waiting")

    def __init__(self, patience: float, most_waiting: int) -> None:
        self.patience = patience
        self.most_waiting = most_waiting
        self.waiting = 0

    def enter(self) -> bool:
        """Count one that is about to wait. False if it may not, as so many do already."""
        if self.waiting >= self.most_waiting:
            return False
        self.waiting += 1
        return True

    def leave(self) -> None:
        """Count one that does not wait any more."""
        self.waiting -= 1


class SharedLimits(Limits):
    """Such limits for all workers together: they are counted on the board.

    One worker at a time looks and counts. If two did at the same moment, and took each other for
    one that waits, both would be refused the last place.
    """

    __slots__ = ("_board", "_turn")

    def __init__(self, patience: float, most_waiting: int, board: Board, turn: int) -> None:
        """`turn` is a descriptor of a file that all workers have open: whoever has locked it, has
        its turn. The kernel takes that lock from a process that dies.
        """
        super().__init__(patience, most_waiting)
        self._board = board
        self._turn = turn

    def enter(self) -> bool:
        """Count one that is about to wait. False if it may not, as so many do already."""
        lockf(self._turn, LOCK_EX)
        try:
            if self._board.total(OWN_OPEN) >= self.most_waiting:
                return False
            self._board.add(OWN_OPEN, 1)
        finally:
            lockf(self._turn, LOCK_UN)
        self.waiting += 1
        return True

    def leave(self) -> None:
        """Count one that does not wait any more."""
        super().leave()
        self._board.add(OWN_OPEN, -1)
