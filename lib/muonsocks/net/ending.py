"""A connection of which only its end is of interest."""

from __future__ import annotations

from os import readv

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from muonsocks.net.stream import Stream

_ROUNDS = 16  # reads, then the others have their turn
_BUFFERS = [bytearray(4096)]  # nobody looks at what is in there


class Ending:
    """Drops what comes from a stream, and tells how it ends: "closed" or "reset". Up to then, or to
    `stop`, nobody else may read from it.
    """

    __slots__ = ("_left", "_on_end", "_stream")

    def __init__(
        self, stream: Stream, on_end: Callable[[str], None], most: int | None = None
    ) -> None:
        """When more than `most` bytes have come, this is told as an end, too: "flooded"."""
        self._stream = stream
        self._left = most
        self._on_end: Callable[[str], None] | None = on_end
        stream.loop.handlers[stream.reader] = self._on_event
        self._on_event(0)

    def _on_event(self, _: int) -> None:
        self._read()

    def _read(self) -> None:
        if self._on_end is None:
            return
        try:
            for _ in range(_ROUNDS):
                count = readv(self._stream.reader, _BUFFERS)
                if not count:
                    self._end("closed")
                    return
                if self._left is not None:
                    self._left -= count
                    if self._left < 0:
                        self._end("flooded")
                        return
        except BlockingIOError:
            return
        except OSError:
            self._end("reset")
            return
        self._stream.loop.call_soon(self._read)

    def _end(self, how: str) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(how)

    def stop(self) -> None:
        """Leave the stream to somebody else, who finds out by trying what is there."""
        self._on_end = None
        self._stream.take_back()
