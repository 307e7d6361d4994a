"""Copies between two streams, both ways at once, until both directions are over.

While it runs there need be no coroutine: each direction is driven by events.

    a source ends (EOF)      the sink is given the rest, then an end of output (half-close)
    a source fails (reset)   the sink is given the rest, then a reset: it is not the whole
    a sink fails             the other direction goes on: what its source has sent still counts
"""

from __future__ import annotations

from muonsocks.net.half import Half
from muonsocks.net.task import Waitable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.net.direction import Direction
    from muonsocks.net.loop import Loop, Timer
    from muonsocks.net.stream import Stream

_LOOKS = 16  # at a relay, in the shorter of its limits: it may last by as much longer
_NEXT_LOOK = 0.01  # s until it, at least
TIMEOUTS = ("idle-timeout", "half-close-timeout")  # of the reasons


class Ended:
    """How a joint ended: `reason` for the log, and the streams that are owed a reset."""

    __slots__ = ("owed_resets", "reason")

    def __init__(self, reason: str, owed_resets: tuple[Stream, ...]) -> None:
        self.reason = reason
        self.owed_resets = owed_resets


_CLOSED = Ended("closed", ())


class Joint(Waitable):
    """What joins a client to where it wanted to go. There is a `reason` once that is over; then
    the waiting task is woken.
    """

    __slots__ = ("place", "reason")

    place: int  # of it in a watch

    def __init__(self) -> None:
        super().__init__()
        self.reason = ""

    def counts(self) -> dict[str, int]:
        """Count what has passed, under the names that the log has for it."""
        raise NotImplementedError

    def end_if_idle(self) -> None:
        """End it if nothing has moved for too long: a watch looks now and then."""
        raise NotImplementedError

    async def wind_up(self, error: BaseException | None, patience: float) -> Ended:
        """Let go of the client, which is open and the caller's to close, and close all else; or
        raise the error by which it was interrupted. Last words have so many seconds to arrive.
        """
        raise NotImplementedError


class Watch:
    """Looks now and then at all joints of a loop that have the same limit.

    A timer of its own would cost each of them 300 bytes, of 2000 that one that is idle has.
    """

    __slots__ = ("_joints", "_limit", "_loop", "_timer")

    _timer: Timer

    def __init__(self, loop: Loop, limit: float) -> None:
        self._loop = loop
        self._limit = limit
        self._joints: list[Joint] = []  # each knows its place

    @classmethod
    def of(cls, loop: Loop, limit: float) -> Watch:
        """Give the one that looks often enough for so many seconds."""
        watch = loop.watches.get(limit)
        if watch is None:
            watch = loop.watches[limit] = cls(loop, limit)
        return watch

    def add(self, joint: Joint) -> None:
        """Look at one from now on."""
        joint.place = len(self._joints)
        self._joints.append(joint)
        if not joint.place:
            self._look_later()

    def remove(self, joint: Joint) -> None:
        """Look at it no more: the last one takes its place."""
        last = self._joints.pop()
        if last is not joint:
            last.place = joint.place
            self._joints[joint.place] = last
        elif not self._joints:
            self._timer.cancel()
            del self._loop.watches[self._limit]
        joint.place = -1

    def _look_later(self) -> None:
        self._timer = self._loop.call_later(max(self._limit / _LOOKS, _NEXT_LOOK), self._look)

    def _look(self) -> None:
        self._look_later()
        for joint in tuple(self._joints):
            if joint.place >= 0:  # no other one's end has ended it
                joint.end_if_idle()


class Relay(Joint):
    """Two streams being joined. `up.count` and `down.count` are bytes that reached each sink."""

    __slots__ = (
        "_half_close_limit",
        "_idle_limit",
        "_watch",
        "active",
        "down",
        "loop",
        "up",
    )

    def __init__(self, client: Stream, far: Stream, early: bytes = b"") -> None:
        """Join `client` and `far`; `early` is what the client has sent already."""
        super().__init__()
        self.loop = client.loop
        self.active = 0.0
        self.up, self.down = self._directions(client, far)
        self.up.opposite, self.down.opposite = self.down, self.up
        if early:
            self.up.pending = early

    def _directions(self, client: Stream, far: Stream) -> tuple[Direction, Direction]:
        """Make what moves the bytes to `far`, and to `client`."""
        return Half(self, client, far), Half(self, far, client)

    def start(self, idle_timeout: float, half_close_timeout: float) -> None:
        """Begin to copy. Times are in seconds."""
        loop, up, down = self.loop, self.up, self.down
        self.active = loop.now
        self._idle_limit = idle_timeout
        self._half_close_limit = half_close_timeout
        self._watch = Watch.of(loop, min(idle_timeout, half_close_timeout))
        self._watch.add(self)
        up.attach(loop)
        down.attach(loop)
        up.begin()
        down.begin()

    def stop(self) -> Ended:
        """Let go of the streams and say how it ended. They are open, and the caller's to close.

        That must be done at once, and nothing else, where both have "closed".
        """
        up, down = self.up, self.down
        self._watch.remove(self)
        if self.reason != "closed":
            up.source.take_back()
            down.source.take_back()
        up.detach()
        down.detach()
        return _CLOSED if self.reason == "closed" else Ended(self.reason, self._owed_resets())

    def counts(self) -> dict[str, int]:
        """Count the bytes that have reached each side."""
        return {"in": self.up.count, "out": self.down.count}

    async def wind_up(self, error: BaseException | None, patience: float) -> Ended:
        """See that both sides can read what they were told last, and close the far end."""
        client, far = self.up.source, self.down.source
        try:
            ended = self.stop()
            if error is not None:
                for stream in (client, far):
                    stream.reset_on_close()  # what was carried is not the whole
                raise error
            if ended.reason == "closed":
                return ended
            for stream in ended.owed_resets:
                await stream.abort(patience)
            for half in (self.up, self.down):
                if half.source not in ended.owed_resets and not half.ended:
                    await half.source.linger(patience)  # it still sends, but nobody takes it
            return ended
        finally:
            far.close()
            error = None  # or it would keep itself alive, through this frame

    def _owed_resets(self) -> tuple[Stream, ...]:
        halves = (self.up, self.down)
        if self.reason in TIMEOUTS:
            return tuple(half.sink for half in halves)
        return tuple(half.sink for half in halves if half.source_error)

    def both_over(self) -> None:
        """Note that both directions are over, and so the relay.

        That is the last thing a half may do: when this returns, the session may have ended too.
        """
        up, down = self.up, self.down
        if up.source_error or down.source_error:
            self._finish("reset")
        else:
            self._finish("closed" if up.ended and down.ended else "broken-pipe")

    def _finish(self, reason: str) -> None:
        if not self.reason:
            self.reason = reason
            self.up.over = self.down.over = True
            self.wake()

    def end_if_idle(self) -> None:
        """End it if nothing has moved for too long."""
        half_closed = self.up.over or self.down.over
        limit = self._half_close_limit if half_closed else self._idle_limit
        if self.active + limit <= self.loop.now:
            self._finish("half-close-timeout" if half_closed else "idle-timeout")
