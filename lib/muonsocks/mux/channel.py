"""One connection over a link, which stands where a stream would: as a session's client or far end.

A Carriage joins it with a stream; until then it keeps what comes.
"""

from __future__ import annotations

from muonsocks.address import Endpoint
from muonsocks.errors import RequestFailed
from muonsocks.mux.connection import Connection, ResetReason
from muonsocks.mux.events import Answered, Credited, Ended, WasReset
from muonsocks.net.stream import HANG_UP, Stream
from muonsocks.socks.request import UNSPECIFIED, ReplyCode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.mux.carriage import Incoming, Outgoing
    from muonsocks.mux.link import Link
    from muonsocks.net.loop import Timer
    from muonsocks.socks.request import Event

_SILENCE = 2.0  # s


class Channel(Stream):
    """A connection. `early`, `has_ended` and `was_lost` are what has come before a Carriage.

    It has no `socket`.
    """

    __slots__ = (
        "_bound",
        "_code",
        "_silence",
        "connection",
        "early",
        "has_ended",
        "incoming",
        "is_cut_off",
        "is_timed_out",
        "link",
        "mux",
        "outgoing",
        "was_lost",
        "why",
    )

    def __init__(self, link: Link, connection: Connection) -> None:
        self.task = self._watcher = None
        self.loop = link.loop
        self.reader = self.writer = -1  # no descriptor, and both directions are of the same
        self.name = f"mux:{connection.number}"
        self.is_tcp = False
        self.is_shared = True  # the other side is to be told of every end
        self._wanted = self.ready = 0
        self._tells_room = True  # a Carriage is told of it by the outlet
        self.link = link
        self.mux = link.mux  # the link may speak another protocol by the time this is closed
        self.connection = connection
        connection.owner = self
        self.early: bytes | bytearray = b""
        self.has_ended = self.was_lost = self.is_cut_off = False
        self.why = ""  # the other side has reset it, if it has said
        self.is_timed_out = False  # and so it is to be reset
        self.incoming: Incoming | None = None
        self.outgoing: Outgoing | None = None
        self._code = ReplyCode.SUCCEEDED if connection.answered else None
        self._bound = UNSPECIFIED
        self._silence: Timer | None = None  # of a host of the older pair

    # What the link tells it

    def deliver(self, parts: list[memoryview], size: int) -> None:
        """Take data from the other side; the parts are to be used at once."""
        if self.incoming is not None:
            self.incoming.deliver(parts, size)
        else:
            self.early = self.early or bytearray()  # which takes each part without a copy of all
            self.early += b"".join(parts)

    def hear(self, event: Event) -> None:
        """Take anything else from the other side."""
        if isinstance(event, Credited):
            if self.outgoing is not None:
                self.outgoing.may_send()
        elif isinstance(event, Ended):
            self.has_ended = True
            if self.incoming is not None:
                self.incoming.was_ended()
        elif isinstance(event, WasReset):
            reasons = ResetReason.IN_WORDS
            self.why = reasons[event.reason] if event.reason < len(reasons) else ""
            self.was_reset()
        elif isinstance(event, Answered):
            self._code, self._bound = event.code, event.bound
            self.wake()

    def was_cut_off(self) -> None:
        """The session is over."""
        self.is_cut_off = True
        self.was_reset()

    def was_reset(self) -> None:
        """The other side has let go."""
        self.was_lost = True
        if self.incoming is not None:
            self.incoming.was_reset()
        else:
            self.wake()
            self._on_event(HANG_UP)

    # A guest's

    async def answer(self) -> None:
        """Wait for what the host says to the OPEN. RequestFailed unless that is success."""
        while self._code is None and not self.was_lost:
            await self
        if self._code is None:
            reason = f"the host has reset it: {self.why}" if self.why else "the host has gone"
            raise RequestFailed(ReplyCode.GENERAL_FAILURE, reason)
        if self._code != ReplyCode.SUCCEEDED:
            raise RequestFailed(self._code, f"the host has answered {self._code}")

    def local_endpoint(self) -> Endpoint:
        """Say which address the host has connected from."""
        return self._bound

    # As a stream

    def send_now(self, data: bytes) -> bytes:
        """Give back what cannot be written: nothing is written to it but by a Carriage."""
        return data

    def end_output(self) -> None:
        """Say that nothing more will be sent."""
        self.mux.end(self.connection)
        self.link.outlet.flush_soon()
        if self.mux.is_classic:
            self._end_classic(-1)

    def _end_classic(self, count: int) -> None:
        """The older protocol closes both directions at once: when nothing more comes from the one
        that is left, after `count` bytes, that is the end of it too.
        """
        incoming = self.incoming
        if incoming is None or self.has_ended or self.was_lost:
            return
        if incoming.count == count and incoming.pending is None:
            self.mux.reset(self.connection, 0)
            self.link.outlet.flush_soon()
        if self.connection.let_go_there:
            self.hear(Ended(self.connection))
        else:
            count = incoming.count
            self._silence = self.loop.call_later(_SILENCE, lambda: self._end_classic(count))

    def take_back(self) -> None:
        """Be without a Carriage again."""
        self.incoming = self.outgoing = None

    def reset_on_close(self) -> None:
        """Tell the other side that what it got is not the whole."""
        self._reset(ResetReason.STOPPED)

    async def abort(self, seconds: float) -> None:
        """The same; what has been sent arrives before that."""
        self._reset(ResetReason.TIMEOUT if self.is_timed_out else ResetReason.RESET)

    async def linger(self, seconds: float) -> None:
        """Tell the other side that nobody takes what it sends."""
        self._reset(ResetReason.UNREAD)

    def _reset(self, reason: int) -> None:
        self.mux.reset(self.connection, reason)
        self.link.outlet.flush_soon()

    def close(self) -> None:
        """Let go of it. Harmless when it has been done."""
        if self._silence is not None:
            self._silence.cancel()
        if self.connection.owner is self:
            self.mux.release(self.connection)
            self.link.outlet.flush_soon()
            self.link.has_passed_on()
