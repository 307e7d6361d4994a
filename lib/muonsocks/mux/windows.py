"""How much may be on its way to whom: the windows of all connections, within one bound. No I/O."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.mux.connection import Connection

FIRST = 1 << 18  # bytes of a connection's window, while there is memory
LEAST = 1 << 14  # and of each, when there is none left
_SHARE = 8  # part of what is left that a new window may take
_GROWTH = 4  # and one that grows, of what is left beyond the half that is kept for new ones


class Windows:
    """All windows together: `memory` bytes at most, and LEAST for each beyond that.

    A window is doubled when the other side has used it up although nothing waits here: then it is
    too small for the way there and back. When memory is short, one that has grown gets smaller
    again with what is sent in it; but credit is not taken back, and one that has grown and idles
    keeps it. So those that grow have no more than half of the memory together.
    """

    __slots__ = ("_kept", "_left")

    def __init__(self, memory: int) -> None:
        self._left = memory
        self._kept = memory // 2

    def take(self) -> int:
        """Give the window of a new connection."""
        window = min(FIRST, max(LEAST, self._left // _SHARE))
        self._left -= window
        return window

    def give_back(self, connection: Connection) -> None:
        """Take back the window of one whose data no longer waits for anybody."""
        self._left += connection.window
        connection.window = 0

    def renew(self, connection: Connection) -> int:
        """Say how much more the other side may send, of what has been consumed."""
        window, left, credit = connection.window, connection.left, connection.unreturned
        waits = window - left - credit
        if self._left <= 0 and window > LEAST:
            less = min(credit // 2, window - LEAST, -self._left)
            credit -= less
            change = -less
        elif 4 * left <= window and 8 * waits <= window:
            change = min(window, max((self._left - self._kept) // _GROWTH, 0))
            credit += change
        else:
            change = 0
        connection.window += change
        connection.left += credit
        connection.unreturned = 0
        self._left -= change
        return credit
