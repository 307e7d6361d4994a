"""How long connections may wait for their receivers, and how many may in all workers together."""

from __future__ import annotations

from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, lockf
from os import sched_yield

from muonsocks.resident.board import OWN_OPEN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.resident.board import Board

_TRIES = 1000  # of some µs, for a turn that is as short


class WaitingRoom:
    """Places for connections that wait, each for so long (s) at most. `waiting` is how many do in
    this process.

    Where there are several receivers one that is down must not take all there is from the others:
    one more may wait for it as long as fewer do than places are free. So one has half of them, two
    have a third each, and one that nobody waits for finds room. The same goes for the descriptors
    of a process.

    They are counted on the board, where a receiver is the source of those that wait for it. One
    worker at a time looks and counts. If two did at the same moment, and took each other for one
    that waits, both would be refused the last place.
    """

    __slots__ = ("_board", "_places", "_places_here", "_turn", "patience", "waiting")

    def __init__(
        self, patience: float, places: int, board: Board, turn: int, places_here: int | None = None
    ) -> None:
        """`places_here` is for how many this process has descriptors; None if there is one
        receiver, which then may have all. `turn` is a descriptor of a file that all workers have
        open: whoever has locked it, has its turn. The kernel takes that lock from a process that
        dies.
        """
        self.patience = patience
        self.waiting = 0
        self._places = places
        self._board = board
        self._turn = turn
        self._places_here = places_here

    def enter(self, receiver: bytes, here: int) -> str:
        """Count one that is about to wait, as so many do `here` for the same receiver; or say why
        it may not.
        """
        if not self._places:
            return "none may wait"
        most_here = self._places_here
        if most_here is not None and here >= most_here - self.waiting:
            return "this process has no descriptors for more that wait for it"
        board = self._board
        has_turn = self._take_turn()
        try:
            free = self._places - board.total(OWN_OPEN)
            if free <= 0:
                return f"{self._places} connections wait already"
            count = 0 if most_here is None else board.connections_of(receiver)
            if count >= free:
                return f"{count} connections wait for it already, with room for {free} more"
            self._count(receiver, 1)
        finally:
            if has_turn:
                lockf(self._turn, LOCK_UN)
        return ""

    def _take_turn(self) -> bool:
        """Wait until no other worker looks and counts. Who takes long may have been stopped, and is
        not waited for.
        """
        for _ in range(_TRIES):
            try:
                lockf(self._turn, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                sched_yield()
            else:
                return True
        return False

    def leave(self, receiver: bytes) -> None:
        """Count one that does not wait any more."""
        self._count(receiver, -1)

    def _count(self, receiver: bytes, change: int) -> None:
        self.waiting += change
        self._board.add(OWN_OPEN, change)
        self._board.count_source(receiver, change)
