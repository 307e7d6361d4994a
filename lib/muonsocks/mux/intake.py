"""Where what comes from a port is put, until it is used. No I/O."""

from __future__ import annotations

_ROOM = 1 << 19  # bytes that can be read at a time, whatever is left from before
_LEFT = 1 << 16  # and more than may be left: half a frame


class Intake:
    """A buffer. What has come and not been used is in `memory` from `start` to `end`."""

    __slots__ = ("end", "memory", "start", "view")

    def __init__(self) -> None:
        self.memory = bytearray(_ROOM + _LEFT)
        self.view = memoryview(self.memory)
        self.start = self.end = 0

    def room(self) -> memoryview:
        """Give room to read into. Views of what was there before are not to be used any more."""
        if self.start:
            rest = self.end - self.start
            if rest:
                self.memory[:rest] = self.view[self.start : self.end]
            self.start, self.end = 0, rest
        return self.view[self.end :]
