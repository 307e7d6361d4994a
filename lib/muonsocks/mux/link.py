"""All that goes over one port: it drives a Mux, and lets those who send do so in turns."""

from __future__ import annotations

from _collections import deque
from os import urandom
from select import EPOLLHUP

from muonsocks.mux.classic import LARGEST as CLASSIC_LARGEST
from muonsocks.mux.classic import Classic, Hailed, is_spoken, one_frame
from muonsocks.mux.frames import LARGEST, NUMBER, Batch, frames_of
from muonsocks.mux.machine import (
    Answered,
    Began,
    Credited,
    Data,
    Ended,
    Mux,
    Opened,
    Over,
    WasReset,
)
from muonsocks.net.loop import READABLE, WRITABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from muonsocks.mux.carriage import Outgoing
    from muonsocks.mux.machine import Connection
    from muonsocks.mux.port import Port
    from muonsocks.net.loop import Loop, Timer
    from muonsocks.socks.request import Event

_BATCH = 16  # whole frames, half a megabyte: what is read from one sender at a time, at most
_ROUNDS = 4  # times that is read for one event, then the others have their turn
_TURNS = 1 << 20  # bytes that are sent in turns, then the others have theirs
_SMALL = 4096  # bytes; several messages up to this go in one write
_TOO_MANY = 1 << 16  # messages that wait because the other side does not read
_DOUBT = 1.0  # s for a HELLO after something that is none
_NOT_READ = 0.001  # s until it is looked again whether a frame has been read
_FIRST_GREETING, _LAST_GREETING = 0.25, 1.0  # s from a HELLO to the next, while none is answered


class Bounds:
    """How many connections there may be, at a host; how much `memory` (bytes) for data that waits
    to be passed on; and how long (s) there may be `silence` before the other side is given up.
    """

    __slots__ = ("connections", "memory", "silence")

    def __init__(self, connections: int, memory: int, silence: float) -> None:
        self.connections = connections
        self.memory = memory
        self.silence = silence


class Link:
    """What goes over a port. `on_event` hears of sessions, and of what a guest wants opened.

    It is given a port by `attach`; when that is lost for good `on_loss` is called.
    """

    __slots__ = (
        "_bounds",
        "_collects",
        "_doubts",
        "_flush_is_due",
        "_greeting",
        "_heard",
        "_is_host",
        "_is_stalled",
        "_on_event",
        "_on_loss",
        "_pinged",
        "_port",
        "_senders",
        "_sent",
        "_timer",
        "batch",
        "loop",
        "mux",
    )

    _timer: Timer

    def __init__(
        self,
        loop: Loop,
        is_host: bool,
        bounds: Bounds,
        on_event: Callable[[Event], None],
        on_loss: Callable[[str], None],
    ) -> None:
        self.loop = loop
        self._is_host = is_host
        self._bounds = bounds
        self.mux: Mux | Classic = self._new_mux()
        self.batch = Batch(_BATCH)
        self._on_event = on_event
        self._on_loss = on_loss
        self._port: Port | None = None
        self._senders: deque[Outgoing] = deque()  # those that wait for their turn
        self._flush_is_due = False
        self._collects = False  # small messages are going to be written together
        self._sent = 0  # bytes of data
        self._greeting = _FIRST_GREETING
        self._heard = 0.0  # when there was a sign of life
        self._pinged = False
        self._doubts: Timer | None = None  # whether the other side is of the older pair
        self._is_stalled = False  # nothing is read, as what has come must be passed on first

    def _new_mux(self) -> Mux:
        return Mux(
            self._is_host, self._bounds.connections, self._bounds.memory, lambda: urandom(NUMBER)
        )

    # Life cycle

    def attach(self, port: Port) -> None:
        """Take over a port, and look for the other side there."""
        loop = self.loop
        self._port = port
        port.stream.watch_room()
        if port.writer != port.reader:
            loop.handlers[port.writer] = self._on_room
        loop.handlers[port.reader] = self._on_port
        self._greeting = _FIRST_GREETING
        self._greet()
        self.loop.call_soon(self._receive_more)

    def detach(self, reason: str) -> None:
        """End the session, tell the other side why if that can be done at once, close the port."""
        port = self._port
        if port is None:
            return
        owners = self.mux.lose(reason)
        self.mux.say_goodbye(reason)
        if not port.backlog:
            try:
                port.write(b"".join(self.mux.output))
            except OSError:
                pass  # then it will notice by itself
        self.mux.output.clear()
        self._close()
        self._end(owners)

    def _close(self) -> None:
        assert self._port is not None
        self._timer.cancel()
        if self._doubts is not None:
            self._doubts.cancel()
            self._doubts = None
        port, self._port = self._port, None
        port.stream.close()

    def _lose(self, reason: str) -> None:
        """The port leads nowhere any more, for now or for good."""
        port = self._port
        assert port is not None
        was_up = self.mux.is_up
        over = self.mux.lose(reason)  # a HELLO may be lost with it: none of that counts any more
        port.backlog = b""
        if not port.can_return:
            self._close()
        if was_up:
            self._end(over)
        if not port.can_return:
            self._on_loss(reason)

    def _end(self, over: Over) -> None:
        for owner in over.owners:
            owner.was_reset()
        self._on_event(over)

    # Time

    def _greet(self) -> None:
        """Say HELLO, unless the last one is still on its way; and again after a while."""
        self._timer = self.loop.call_later(self._greeting, self._on_time)
        self._greeting = min(2 * self._greeting, _LAST_GREETING)
        if not self.is_congested:
            self.mux.greet()
            self.flush()

    def _on_time(self) -> None:
        if not self.mux.is_up:
            self._greet()
            return
        self._greeting = _FIRST_GREETING
        silence = self.loop.now - self._heard
        if self.mux.is_classic:
            self._timer = self.loop.call_later(_LAST_GREETING, self._on_time)
            return
        if silence >= self._bounds.silence:
            assert self._port is not None
            over = self.mux.lose(f"there was no sign of life for {silence:.0f} s")
            self._port.backlog = b""
            self._end(over)
            self._greet()
            return
        self._timer = self.loop.call_later(self._bounds.silence / 6, self._on_time)
        if silence >= self._bounds.silence / 3 and not self._pinged:
            self._pinged = True
            self.mux.ping(urandom(NUMBER))
            self.flush()

    # Input

    def _on_port(self, events: int) -> None:
        if events & WRITABLE:
            self._on_room(events)
        if events & READABLE:
            self._receive(events)

    def _receive_more(self) -> None:
        self._receive(EPOLLHUP)

    def _receive(self, events: int) -> None:
        """Take in what the port has, and do what it says."""
        port = self._port
        for _ in range(_ROUNDS):
            if port is None or port is not self._port:
                return
            mux = self.mux
            if mux.is_full:
                self._is_stalled = True
                return
            try:
                count, is_all = port.read_into(mux.room(), events)
            except EOFError:
                self._lose("it has gone")
                return
            except OSError as error:
                self._lose(error.strerror or str(error))
                return
            if count:
                self._heard = self.loop.now
                self._pinged = False
                for event in mux.received(count):
                    self._handle(event)
                if not mux.is_up and not mux.is_classic:
                    self._doubt()
                if mux.output:
                    self.flush()
            if is_all:
                return
        self.loop.call_soon(self._receive_more)

    def _handle(self, event: Event) -> None:
        mux = self.mux
        if isinstance(event, Data):
            owner = event.connection.owner
            if owner is not None:
                owner.deliver(event.parts, event.size)
        elif isinstance(event, Over):
            self._end(event)
        elif isinstance(event, Opened) and isinstance(mux, Mux) and event.connection.let_go_here:
            mux.release(event.connection)  # it is over already, or the session is
        elif isinstance(event, Hailed):
            self.mux = self._new_mux()
            self._feed([event.rest])
            self.flush_soon()
        elif isinstance(event, (Answered, Credited, Ended, WasReset)):
            owner = event.connection.owner
            if owner is not None:
                owner.hear(event)
        else:
            self._on_event(event)

    # The older pair

    def _doubt(self) -> None:
        """Think about one who has sent something that is no HELLO, for a second."""
        if self._doubts is None:
            self._doubts = self.loop.call_later(_DOUBT, self._decide)

    def _decide(self) -> None:
        """Go on as the other side does, if it has not said HELLO but what the older pair says."""
        self._doubts = None
        mux = self.mux
        if mux.is_up or not isinstance(mux, Mux) or self._port is None:
            return
        pieces = mux.take_strange()
        while pieces and not is_spoken(pieces[0], self._is_host):
            del pieces[0]
        if pieces:
            self.speak_classic()
            self._feed(pieces)

    def speak_classic(self) -> None:
        """Speak the protocol of the older pair, until somebody says HELLO."""
        self.mux = Classic(self._is_host, self._bounds.memory)
        if self.mux.is_up:
            self._on_event(Began(self.mux.limit))

    def _feed(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self.mux.room()[: len(piece)] = piece
            for event in self.mux.received(len(piece)):
                self._handle(event)

    # Output

    @property
    def is_congested(self) -> bool:
        """Whether the port takes no more for now: then nobody may send, and `batch` is in use."""
        if self._port is None or self._port.backlog:
            return True
        return self.mux.is_classic and bool(self.mux.output)

    def _on_room(self, events: int) -> None:
        if events & WRITABLE:
            self.flush()

    def flush_soon(self) -> None:
        """Write what is due after the events that are there now, all at once."""
        if not self._flush_is_due:
            self._flush_is_due = True
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what is due, and then what those have that wait for their turn."""
        self._flush_is_due = False
        port = self._port
        if port is None:
            return
        if self._is_stalled and not self.mux.is_full:
            self._is_stalled = False
            self.loop.call_soon(self._receive_more)
        try:
            if port.backlog and not port.write_backlog():
                self._bound_output()
            elif self._has_written_output() and self._senders:
                self._give_turns(port)
        except OSError as error:
            self._lose(error.strerror or str(error))

    def _give_turns(self, port: Port) -> None:
        senders, enough = self._senders, self._sent + _TURNS
        self._collects = True
        try:
            for _ in range(len(senders)):
                senders.popleft().take_turn()
                if port.backlog or self._sent > enough:
                    break
        finally:
            self._collects = False
        if port is self._port and not port.backlog and self._has_written_output() and senders:
            self.flush_soon()

    def _has_written_output(self) -> bool:
        """Write the output of the mux. False if that did not go all the way."""
        port, output = self._port, self.mux.output
        assert port is not None
        if not output:
            return True
        if self.mux.is_classic:
            return self._has_written_one_by_one(port, output)
        data = output[0] if len(output) == 1 else b"".join(output)
        output.clear()
        return port.write(data)

    def _has_written_one_by_one(self, port: Port, output: list[bytes | memoryview]) -> bool:
        """The same for the older pair, which looks at the first frame of a read only."""
        while output:
            if not port.is_read():
                # That it has been read is told by nothing.
                self._flush_is_due = True
                self.loop.call_later(_NOT_READ, self.flush)
                return False
            if not port.write(output.pop(0)):
                return False
        return True

    def _bound_output(self) -> None:
        """End the session of one who makes us answer but does not read the answers."""
        if len(self.mux.output) > _TOO_MANY:
            over = self.mux.lose("it does not read what it is told")
            self._end(over)

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
        output, port = self.mux.output, self._port
        assert port is not None
        if self.mux.is_classic:
            output.append(one_frame(connection.number, bytes(self.batch.places[0][:count])))
            self.flush()
            return
        frames = self.batch.frames(connection.number, count)
        if count <= _SMALL and (self._collects or output or self.loop.busy > 1):
            output.append(bytes(frames))
            self.flush_soon()
            return
        try:
            if self._has_written_output():
                port.write(frames)
            else:
                output.append(bytes(frames))
        except OSError as error:
            self._lose(error.strerror or str(error))

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
