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

    Where there are several receivers one that is down must not take all there is from the others:
    `most_for_one` may wait for the same, and `most_here` in this process, which has descriptors
    for so many and as many again. None where it is for one receiver alone.
    """

    __slots__ = ("_by_receiver", "most_for_one", "most_here", "most_waiting", "patience", "waiting")

    def __init__(self, patience: float, most_waiting: int, most_here: int | None = None) -> None:
        """`most_here` is None if there is one receiver."""
        self.patience = patience
        self.most_waiting = most_waiting
        self.most_here = most_here
        self.most_for_one = None if most_here is None else (most_waiting + 1) // 2
        self.waiting = 0
        self._by_receiver: dict[bytes, int] = {}

    def enter(self, receiver: bytes) -> str:
        """Count one that is about to wait, or say why it may not."""
        if self.most_here is not None and self.waiting >= self.most_here:
            return "this process has no descriptors for more that wait"
        why = self._enter(receiver)
        if not why:
            self.waiting += 1
        return why

    def leave(self, receiver: bytes) -> None:
        """Count one that does not wait any more."""
        self.waiting -= 1
        self._count(receiver, -1)

    def _enter(self, receiver: bytes) -> str:
        if self._total() >= self.most_waiting:
            return f"{self.most_waiting} connections wait already"
        if self.most_for_one is not None and self._count_of(receiver) >= self.most_for_one:
            return f"{self.most_for_one} connections wait for it already"
        self._count(receiver, 1)
        return ""

    def _total(self) -> int:
        return self.waiting

    def _count_of(self, receiver: bytes) -> int:
        return self._by_receiver.get(receiver, 0)

    def _count(self, receiver: bytes, change: int) -> None:
        count = self._by_receiver[receiver] = self._count_of(receiver) + change
        if not count:
            del self._by_receiver[receiver]


class SharedLimits(Limits):
    """Such limits for all workers together: they are counted on the board, where a receiver is the
    source of those that wait.

    One worker at a time looks and counts. If two did at the same moment, and took each other for
    one that waits, both would be refused the last place.
    """

    __slots__ = ("_board", "_turn")

    def __init__(
        self,
        patience: float,
        most_waiting: int,
        board: Board,
        turn: int,
        most_here: int | None = None,
    ) -> None:
        """`turn` is a descriptor of a file that all workers have open: whoever has locked it, has
        its turn. The kernel takes that lock from a process that dies.
        """
        super().__init__(patience, most_waiting, most_here)
        self._board = board
        self._turn = turn

    def _enter(self, receiver: bytes) -> str:
        lockf(self._turn, LOCK_EX)
        try:
            return super()._enter(receiver)
        finally:
            lockf(self._turn, LOCK_UN)

    def _total(self) -> int:
        return self._board.total(OWN_OPEN)

    def _count_of(self, receiver: bytes) -> int:
        return self._board.connections_of(receiver)

    def _count(self, receiver: bytes, change: int) -> None:
        self._board.add(OWN_OPEN, change)
        self._board.count_source(receiver, change)
