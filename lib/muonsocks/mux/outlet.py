"""What is written to a port: messages, and what those have who send, each in its turn."""

from __future__ import annotations

from _collections import deque

from muonsocks.mux.classic import LARGEST as CLASSIC_LARGEST
from muonsocks.mux.classic import one_frame
from muonsocks.mux.frames import LARGEST, Batch, frames_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from muonsocks.mux.carriage import Outgoing
    from muonsocks.mux.connection import Connection
    from muonsocks.mux.port import Port
    from muonsocks.mux.speaker import Speaker
    from muonsocks.net.loop import Loop, Timer

_BATCH = 16  # whole frames, half a megabyte: what is read from one sender at a time, at most
_TURNS = 1 << 20  # bytes that are sent in turns, then the others have theirs
_SMALL = 4096  # bytes; several messages up to this go in one write
_NOT_READ = 0.001  # s until it is looked again whether a frame has been read


class Outlet:
    """The way out. While it `is_congested` nobody may send, and `batch` is in use.

    It is told which `port` there is, and which `mux` has messages to be written.
    """

    __slots__ = (
        "_collects",
        "_flush_is_due",
        "_look",
        "_loop",
        "_on_failure",
        "_senders",
        "_sent",
        "batch",
        "mux",
        "port",
    )

    mux: Speaker

    def __init__(self, loop: Loop, on_failure: Callable[[str], None]) -> None:
        """`on_failure` is told why the port cannot be written to."""
        self._loop = loop
        self._on_failure = on_failure
        self.port: Port | None = None
        self.batch = Batch(_BATCH)
        self._senders: deque[Outgoing] = deque()  # those that wait for their turn
        self._flush_is_due = False
        self._look: Timer | None = None  # at whether an older peer has read a frame
        self._collects = False  # small messages are going to be written together
        self._sent = 0  # bytes of data

    @property
    def is_congested(self) -> bool:
        """Whether the port takes no more for now."""
        if self.port is None or self.port.backlog:
            return True
        return self.mux.is_classic and bool(self.mux.output)

    @property
    def is_empty(self) -> bool:
        """Whether the port has all there was."""
        return not (self.port is not None and self.port.backlog) and not self.mux.output

    def flush_soon(self) -> None:
        """Write what is due after the events that are there now, all at once."""
        if not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what is due, and then what those have that wait for their turn."""
        self._flush_is_due = False
        port = self.port
        if port is None:
            return
        try:
            if self.write_now() and self._senders:
                self._give_turns(port)
        except OSError as error:
            self._on_failure(error.strerror or str(error))

    def write_now(self) -> bool:
        """Write what is due, as far as the port takes it. False if that is not all. OSError."""
        port = self.port
        assert port is not None
        return (not port.backlog or port.write_backlog()) and self._has_written_messages()

    def _give_turns(self, port: Port) -> None:
        senders, enough = self._senders, self._sent + _TURNS
        self._collects = True
        try:
            for _ in range(len(senders)):
                senders.popleft().take_turn()
                if self.is_congested or self._sent > enough:
                    break
        finally:
            self._collects = False
        if port is self.port and not port.backlog and self._has_written_messages() and senders:
            self.flush_soon()

    def _has_written_messages(self) -> bool:
        """Write the output of the mux. False if that did not go all the way."""
        port, output = self.port, self.mux.output
        assert port is not None
        if not output:
            return True
        if self.mux.is_classic:
            return self._has_written_one_by_one(port, output)
        data = output[0] if len(output) == 1 else b"".join(output)
        output.clear()
        return port.write(data)

    def _has_written_one_by_one(self, port: Port, output: list[bytes]) -> bool:
        """The same for the older pair, which looks at the first frame of a read only."""
        while output:
            if not port.is_read():
                # That it has been read is told by nothing.
                if self._look is None:
                    self._look = self._loop.call_later(_NOT_READ, self._look_again)
                return False
            if not port.write(output.pop(0)):
                return False
        return True

    def _look_again(self) -> None:
        self._look = None
        self.flush()

    def leave(self) -> None:
        """Have no port any more."""
        self.port = None
        if self._look is not None:
            self._look.cancel()
            self._look = None

    # For those who send

    def wait_for_turn(self, sender: Outgoing) -> None:
        """Have a sender's `take_turn` called when the port has room for it."""
        self._senders.append(sender)
        if not self.is_congested:
            self.flush_soon()

    def share(self, wants_much: bool) -> int:
        """Say how many bytes one who sends may read into the batch now."""
        if self.mux.is_classic:
            return CLASSIC_LARGEST
        return max(self.batch.size // (1 + len(self._senders)), LARGEST) if wants_much else LARGEST

    def send(self, connection: Connection, count: int) -> None:
        """Send what is in the first places of the batch."""
        connection.credit -= count
        self._sent += count
        output, port = self.mux.output, self.port
        assert port is not None
        if self.mux.is_classic:
            output.append(one_frame(connection.number, bytes(self.batch.places[0][:count])))
            self.flush_soon()
            return
        frames = self.batch.frames(connection.number, count)
        if count <= _SMALL and (self._collects or output or self._loop.busy > 1):
            output.append(bytes(frames))
            self.flush_soon()
            return
        try:
            if self._has_written_messages():
                port.write(frames)
            else:
                output.append(bytes(frames))
        except OSError as error:
            self._on_failure(error.strerror or str(error))

    def send_copy(self, connection: Connection, data: bytes) -> None:
        """Send data that is in memory already."""
        connection.credit -= len(data)
        output, number = self.mux.output, connection.number
        if self.mux.is_classic:
            for start in range(0, len(data), CLASSIC_LARGEST):
                output.append(one_frame(number, data[start : start + CLASSIC_LARGEST]))
        else:
            output.append(frames_of(number, data))
        self.flush_soon()
