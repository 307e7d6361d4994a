"""Whether the other side is of the older pair, as it sends something but has not said HELLO."""

from __future__ import annotations

from muonsocks.mux.classic import is_spoken

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from muonsocks.net.loop import Loop, Timer

_LIMIT = 1.0  # s for a HELLO after something that is none
_MOST, _ENOUGH = 1 << 10, 1 << 19  # pieces that are kept; and bytes, but for the last one


class Doubt:
    """Thinks about what comes for a second; or less, if there is more than is kept: one of the
    older pair is not to be taken for that with a part missing.
    """

    __slots__ = ("_is_host", "_loop", "_on_classic", "_pieces", "_size", "_timer")

    def __init__(
        self, loop: Loop, is_host: bool, on_classic: Callable[[list[bytes]], None]
    ) -> None:
        """`on_classic` is given what one of the older pair has sent, a piece for each read."""
        self._loop = loop
        self._is_host = is_host
        self._on_classic = on_classic
        self._pieces: list[bytes] = []
        self._size = 0  # bytes of them
        self._timer: Timer | None = None

    def hear(self, piece: bytes) -> None:
        """Think about what has come in one read, too."""
        self._pieces.append(piece)
        self._size += len(piece)
        if len(self._pieces) >= _MOST or self._size >= _ENOUGH:
            self._decide()
        elif self._timer is None:
            self._timer = self._loop.call_later(_LIMIT, self._decide)

    def reset(self) -> None:
        """Think no more about it: it was of one who says HELLO, or has gone."""
        self._pieces, self._size = [], 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _decide(self) -> None:
        pieces = self._pieces
        self.reset()
        while pieces and not is_spoken(pieces[0], self._is_host):
            del pieces[0]
        if pieces:
            self._on_classic(pieces)
