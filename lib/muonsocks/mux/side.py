"""What host and guest have in common: a link, and a port for it for as long as there is one."""

from __future__ import annotations

import errno
import os

from muonsocks.errors import in_one_line
from muonsocks.log import INFO, WARNING
from muonsocks.mux.events import Began, Over
from muonsocks.mux.link import GONE, Link
from muonsocks.net.task import Mailbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from muonsocks.log import Log
    from muonsocks.mux.link import Bounds
    from muonsocks.mux.places import Place
    from muonsocks.net.loop import Loop
    from muonsocks.socks.request import Event

# s until a port that was lost, or is not there, is tried again
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 1.0

# How the other side leaves a port that leads to it alone.
_LEFT = (GONE, os.strerror(errno.ECONNRESET), os.strerror(errno.EPIPE))
_PERIOD, _MOST_LINES = 10.0, 20  # s, and lines of the log about port and sessions in them


class Side:
    """One side of a mux. `link` is what its connections go over."""

    __slots__ = (
        "_delay",
        "_lines",
        "_log",
        "_losses",
        "_other",
        "_period_ends",
        "_place",
        "_said",
        "deaf_for",
        "has_come_again",
        "is_stopping",
        "link",
        "loop",
        "on_presence",
    )

    def __init__(self, loop: Loop, place: Place, is_host: bool, bounds: Bounds, log: Log) -> None:
        self.loop = loop
        self._place = place
        self._other = "guest" if is_host else "host"
        self._log = log
        self._losses = Mailbox()
        self._delay = 0.0
        self._said = set[str]()  # since the last session began
        self._lines = 0  # in the period that began last
        self._period_ends = 0.0
        self.is_stopping = False
        self.deaf_for = 0.0  # s that a port may be without a byte from the other side; 0: for ever
        self.has_come_again = False  # to a port that was deaf, since the last session
        self.on_presence: Callable[[bool], None] | None = None  # of the other side
        self.link = Link(loop, is_host, bounds, self._on_event, self._losses.post)

    async def run(self) -> None:
        """Keep the link on its port until that is gone for good. OSError if it cannot be had."""
        place = self._place
        while True:
            try:
                port = await place.open(self.loop)
            except OSError as error:
                if not place.may_come(error):
                    raise OSError(error.errno, f"{place.name}: {error.strerror}") from None
                self._say(f"{place.name} is not there yet: {in_one_line(error)}")
            else:
                self.link.attach(port)
                reason = await self._lost()
                if reason:
                    self._say_over(f"{place.name} is lost", reason)
                if not place.again:
                    return
            self._delay = min(max(2 * self._delay, _FIRST_DELAY), _LONGEST_DELAY)
            await self.loop.sleep(self._delay)

    async def _lost(self) -> str:
        """Wait until the port is lost, and say why. If it may be `deaf_for` some time only, and
        nothing has come by then, it is closed, once; that has no reason to be told.
        """
        if self.deaf_for and not self.has_come_again:
            try:
                with self.loop.deadline(self.deaf_for) as deadline:
                    reason: str = await self._losses.take()
                    return reason
            except TimeoutError:
                if not deadline.passed:
                    raise
            if self.link.is_deaf:
                self.has_come_again = True
                await self.hang_up()
                return ""
        reason = await self._losses.take()
        return reason

    def stop(self, reason: str) -> None:
        """End the session and leave the port as it was found, at once."""
        self.is_stopping = True
        self.link.detach(reason)

    async def leave(self, reason: str) -> None:
        """The same; a moment later if something is on its way."""
        self.is_stopping = True
        await self.link.leave(reason)

    async def hang_up(self) -> None:
        """Close a port over which nobody has said anything."""
        self.link.drop()

    def _say_over(self, what: str, reason: str) -> None:
        """Log an end. If there is one port only, it is usual that the other side leaves that."""
        is_usual = reason in _LEFT and not self._place.again and not self.link.has_port
        self._say(f"{what}: {reason}", INFO if is_usual else WARNING)

    def _say(self, what: str, level: int = WARNING) -> None:
        """Log something that may be so again and again, in turns with others, once."""
        if what not in self._said:
            self._said.add(what)
            self._tell(level, what)

    def _tell(self, level: int, what: str) -> None:
        """Log a line, unless there have been many: the other side may come and go as it likes."""
        if level > self._log.level:
            return
        now, left_out = self.loop.now, self._lines - _MOST_LINES
        if now >= self._period_ends:
            self._period_ends, self._lines = now + _PERIOD, 0
            if left_out > 0:
                self._log.write(level, f"lines about the {self._other} left out here: {left_out}")
        self._lines += 1
        if self._lines <= _MOST_LINES:
            self._log.write(level, what)

    def _on_event(self, event: Event) -> None:
        if self.on_presence is not None:
            self.on_presence(self.link.mux.is_up)
        if isinstance(event, Began):
            self._delay = 0.0
            self.has_come_again = False
            self._said.clear()
            self._tell(INFO, f"the {self._other} is there")
            self.begun()
        elif isinstance(event, Over):
            if self.is_stopping:
                return
            self._say_over(f"the {self._other} is not there any more", event.reason)
        else:
            self.hear(event)

    # What one of them has of its own

    def begun(self) -> None:
        """A session has begun."""

    def hear(self, event: Event) -> None:
        """Something has come that is not of a connection."""
