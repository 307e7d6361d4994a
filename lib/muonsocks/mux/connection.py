"""What one side knows of one connection, whatever protocol it is in. No I/O."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class ResetReason:
    """Why a connection was reset, for the log of the other side."""

    UNKNOWN, RESET, TIMEOUT, UNREAD, SHORTAGE, STOPPED = range(6)
    IN_WORDS = (
        "",
        "a reset",
        "a time limit",
        "nobody reads",
        "a shortage",
        "the program ends",
    )


class Connection:
    """What one side knows of one connection. Counts are in bytes; `owner` is the driver's."""

    __slots__ = (
        "answered",
        "credit",
        "ended_here",
        "ended_there",
        "left",
        "let_go_here",
        "let_go_there",
        "number",
        "owner",
        "unreturned",
        "window",
    )

    def __init__(self, number: int, credit: int, window: int) -> None:
        self.number = number
        self.owner: Any = None
        self.credit = credit  # that we may send
        self.window = window  # that the other side may have on its way, or waiting here
        self.left = window  # of it, that has not been sent yet
        self.unreturned = 0  # of it, that has been consumed here, but not yet given again
        self.answered = False
        self.ended_here = self.ended_there = False
        self.let_go_here = self.let_go_there = False

    def let_go(self) -> None:
        """Note that the last word has been said. Nothing may be sent any more: what comes next
        with this number is another connection's.
        """
        self.let_go_here = True
        self.credit = 0
