"""Copies between two streams, both ways at once, until both directions are over.

Once it runs, no coroutine is resumed for a byte: each direction is a Half, driven by events.

    a source ends (EOF)      the sink is given the rest, then an end of output (half-close)
    a source fails (reset)   the sink is given the rest, then a reset: it is not the whole
    a sink fails             the other direction goes on: what its source has sent still counts
"""

from __future__ import annotations

from muonsocks.net.half import Half
from muonsocks.net.task import Waitable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.net.stream import Stream


class Ended:
    """How a relay ended: `reason` for the log, and the streams that are owed a reset."""

    __slots__ = ("owed_resets", "reason")

    def __init__(self, reason: str, owed_resets: tuple[Stream, ...]) -> None:
        self.reason = reason
        self.owed_resets = owed_resets


class Relay(Waitable):
    """Two streams being joined. `up.count` and `down.count` are bytes that reached each sink."""

    __slots__ = ("_idle_limit", "_timer", "active", "down", "loop", "reason", "up")

    def __init__(self, client: Stream, far: Stream, early: bytes = b"") -> None:
        """Join `client` and `far`; `early` is what the client has sent already."""
        super().__init__()
        self.loop = client.loop
        self.reason = ""
        self.active = 0.0
        self.up = Half(self, client, far)
        self.down = Half(self, far, client)
        self.up.opposite, self.down.opposite = self.down, self.up
        if early:
            self.up.pending = early

    async def run(self, idle_timeout: float, half_close_timeout: float) -> Ended:
        """Copy until it is over. The streams are left open, and are the caller's to close."""
        loop, up, down = self.loop, self.up, self.down
        self.active = loop.now
        self._idle_limit = (idle_timeout, half_close_timeout)
        self._timer = loop.call_later(min(self._idle_limit), self._check_idle)
        try:
            for half in (up, down):
                half.attach(loop)
            for half in (up, down):
                half.begin()
            if not self.reason:
                await self
            return Ended(self.reason, self._owed_resets())
        finally:
            self._timer.cancel()
            for half in (up, down):
                half.detach()

    def _owed_resets(self) -> tuple[Stream, ...]:
        halves = (self.up, self.down)
        if self.reason in ("idle-timeout", "half-close-timeout"):
            return tuple(half.sink for half in halves)
        return tuple(half.sink for half in halves if half.source_error)

    def half_over(self) -> None:
        """Note that a direction is over; when both are, so is the relay."""
        if self.up.over and self.down.over:
            if self.up.source_error or self.down.source_error:
                self.finish("reset")
            else:
                whole = self.up.ended and self.down.ended
                self.finish("closed" if whole else "broken-pipe")

    def finish(self, reason: str) -> None:
        """End it, for `reason`."""
        if not self.reason:
            self.reason = reason
            self.up.over = self.down.over = True
            self.loop.call_soon(self.wake)  # not from within a half that is at work

    def _check_idle(self) -> None:
        """End a relay in which nothing has moved for too long, or look again when it may be so."""
        half_closed = self.up.over or self.down.over
        limit = self._idle_limit[half_closed]
        left = self.active + limit - self.loop.now
        if left <= 0:
            self.finish("half-close-timeout" if half_closed else "idle-timeout")
        else:
            # The limit may become the shorter one at any time.
            self._timer = self.loop.call_later(min(left, *self._idle_limit), self._check_idle)
