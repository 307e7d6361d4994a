"""What goes over one port: it drives a Mux, and keeps up a session whenever there can be one."""

from __future__ import annotations

from os import urandom
from select import EPOLLHUP

from muonsocks.mux.classic import Classic, Hailed
from muonsocks.mux.doubt import Doubt
from muonsocks.mux.events import Answered, Began, Credited, Data, Ended, Opened, Over, WasReset
from muonsocks.mux.frames import NUMBER
from muonsocks.mux.machine import Mux
from muonsocks.mux.outlet import Outlet
from muonsocks.net.loop import READABLE, WRITABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from muonsocks.mux.port import Port
    from muonsocks.mux.speaker import Speaker
    from muonsocks.net.loop import Loop, Timer
    from muonsocks.socks.request import Event

GONE = "it has gone"  # why a port is lost that has come to its end

_ROUNDS = 4  # times that is read for one event, then the others have their turn
_TOO_MANY = 1 << 16  # messages that wait because the other side does not read them
_FED = 1 << 18  # bytes for which each kind of mux has room
_QUIET, _MOST_LOOKS = 0.1, 10  # s without anything that are the end of it; and times that is tried
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
        "_doubt",
        "_greeting",
        "_heard",
        "_is_host",
        "_is_leaving",
        "_is_stalled",
        "_on_event",
        "_on_loss",
        "_pinged",
        "_port",
        "_timer",
        "is_deaf",
        "loop",
        "mux",
        "outlet",
    )

    mux: Speaker
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
        self.outlet = Outlet(loop, self._lose)
        self._speak(self._new_mux())
        self._on_event = on_event
        self._on_loss = on_loss
        self._port: Port | None = None
        self._greeting = _FIRST_GREETING
        self._heard = 0.0  # when there was a sign of life
        self._pinged = 0.0  # when it was asked for one
        self._doubt = Doubt(loop, is_host, self._speak_classic)
        self._is_leaving = False  # what comes is dropped
        self._is_stalled = False  # nothing is read, as what has come must be passed on first
        self.is_deaf = True  # nothing has come from this port yet

    def _new_mux(self) -> Mux:
        return Mux(
            self._is_host, self._bounds.connections, self._bounds.memory, lambda: urandom(NUMBER)
        )

    def _speak(self, mux: Speaker) -> None:
        self.mux = self.outlet.mux = mux

    @property
    def has_port(self) -> bool:
        """Whether there is a port, which the other side may come to."""
        return self._port is not None

    # Life cycle

    def attach(self, port: Port) -> None:
        """Take over a port, and look for the other side there."""
        loop = self.loop
        self._port = self.outlet.port = port
        self.is_deaf = True
        port.stream.watch_room()
        # A regular file, or /dev/null, has no events, and is not to be unregistered.
        if port.writer in loop.handlers:
            loop.handlers[port.writer] = self._on_room
        if port.reader in loop.handlers:
            loop.handlers[port.reader] = self._on_port
        self._greeting = _FIRST_GREETING
        self._greet()
        self.loop.call_soon(self._receive_more)

    def detach(self, reason: str) -> None:
        """End the session, tell the other side why as far as that can be done at once, close the
        port.
        """
        if self._port is None:
            return
        over = self.mux.say_goodbye(reason)
        try:
            self.outlet.write_now()
        except OSError:
            pass  # then it will notice by itself
        self.mux.output.clear()
        self._close()
        self._end(over)

    def drop(self) -> None:
        """Close the port, over which nobody has said anything."""
        if self._port is not None:
            self.mux.output.clear()
            self._close()

    async def leave(self, reason: str) -> None:
        """The same as `detach`, but with a moment for what is on its way: to write all that the
        other side is to hear; and to read, as a host: with each that goes before it has read all,
        QEMU 7.2 loses one of the port's buffers, until the guest can write no more.
        """
        if self._port is None:
            return
        self._is_leaving = True
        over = self.mux.say_goodbye(reason)
        self.outlet.flush()
        self._end(over)
        self._timer.cancel()
        is_quiet = not self._is_host
        for _ in range(_MOST_LOOKS):
            if is_quiet and (self._port is None or self.outlet.is_empty):
                break
            before = self._heard
            await self.loop.sleep(_QUIET)
            is_quiet = self._heard == before or not self._is_host
        self.drop()

    def _close(self) -> None:
        assert self._port is not None
        self._timer.cancel()
        port, self._port = self._port, None
        self.outlet.leave()
        port.close()
        self._forget_classic()

    def _lose(self, reason: str) -> None:
        """The port leads nowhere any more, for now or for good."""
        port = self._port
        if port is None:
            return
        was_up = self.mux.is_up
        over = self.mux.lose(reason)  # a HELLO may be lost with it: none of that counts any more
        port.backlog = b""
        if not port.can_return:
            self._close()
        self._forget_classic()
        if was_up:
            self._end(over)
        if not port.can_return:
            self._on_loss(reason)

    def _end(self, over: Over) -> None:
        for owner in over.owners:
            owner.was_cut_off()
        self._on_event(over)
        if self._port is not None:
            self._timer.cancel()
            self._greeting = _FIRST_GREETING
            self._timer = self.loop.call_later(self._greeting, self._on_time)

    def _give_up(self, reason: str) -> None:
        """End a session with one who is not there, or not willing."""
        self._pinged = 0.0
        over = self.mux.lose(reason)
        if self._port is not None:
            self._port.backlog = b""
        self._forget_classic()
        self._end(over)

    # Time

    def _greet(self) -> None:
        """Say HELLO, unless the last one is still on its way; and again after a while."""
        self._timer = self.loop.call_later(self._greeting, self._on_time)
        self._greeting = min(2 * self._greeting, _LAST_GREETING)
        if not self.outlet.is_congested:
            self.mux.greet()
            self.outlet.flush()

    def _on_time(self) -> None:
        if not self.mux.is_up:
            self._greet()
            return
        # Who was stopped for a while is not to blame the other side: only a ping counts.
        now, limit = self.loop.now, self._bounds.silence
        if self._pinged and now - self._pinged >= limit * 2 / 3:
            self._give_up(f"there was no sign of life for {now - self._heard:.0f} s")
            return
        self._timer = self.loop.call_later(limit / 6, self._on_time)
        if now - self._heard >= limit / 3:
            if not self.mux.is_classic:
                self.ask_for_life()
            elif not self.outlet.is_congested:
                self.mux.ping(urandom(NUMBER))
                self.outlet.flush()

    def is_alive(self, since: float) -> bool:
        """Say whether there was a sign of life since a time; or could not be, as the port has not
        taken all that was said.
        """
        return self._heard > since or not self.outlet.is_empty

    def ask_for_life(self) -> None:
        """Ask for a sign of life now, unless that has been done."""
        if not self._pinged and not self.mux.is_classic:
            self._pinged = self.loop.now
            self.mux.ping(urandom(NUMBER))
            self.outlet.flush()

    # Input

    def _on_port(self, events: int) -> None:
        port = self._port
        if events & WRITABLE and port is not None and (port.backlog or self.mux.output):
            self.outlet.flush()
        if events & READABLE:
            self._receive(events)

    def _on_room(self, events: int) -> None:
        if events & WRITABLE:
            self.outlet.flush()

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
            room = mux.room()
            try:
                count, is_all = port.read_into(room, events)
            except EOFError:
                self._lose(GONE)
                return
            except OSError as error:
                self._lose(error.strerror or str(error))
                return
            if count and self._is_leaving:
                self._heard = self.loop.now
            elif count:
                self.is_deaf = False
                heard = mux.received(count)
                if mux.is_sign:
                    self._heard = self.loop.now
                    self._pinged = 0.0
                for event in heard:
                    self._handle(event, mux)
                if port is not self._port:
                    return
                if mux.is_strange:
                    self._doubt.hear(bytes(room[:count]))
                else:
                    self._doubt.reset()
                if mux.output:
                    self.outlet.flush()
                if len(mux.output) > _TOO_MANY:
                    self._give_up("it does not read what it is told")
            if is_all:
                return
        self.loop.call_soon(self._receive_more)

    def has_passed_on(self) -> None:
        """Go on with reading, if that had to wait for data to be passed on."""
        if self._is_stalled and not self.mux.is_full:
            self._is_stalled = False
            self.loop.call_soon(self._receive_more)

    def _handle(self, event: Event, mux: Speaker) -> None:
        """Do what a mux says, which may be another one than what is spoken by now."""
        if isinstance(event, Data):
            owner = event.connection.owner
            if owner is not None:
                owner.deliver(event.parts, event.size)
        elif isinstance(event, Over):
            self._end(event)
        elif isinstance(event, Hailed):
            self._speak(self._new_mux())
            self._feed([event.rest])
            self.outlet.flush_soon()
        elif isinstance(event, Opened):
            if event.connection.let_go_here:
                mux.release(event.connection)  # ended by what came right behind it
            else:
                self._on_event(event)
        elif isinstance(event, (Answered, Credited, Ended, WasReset)):
            owner = event.connection.owner
            if owner is not None:
                owner.hear(event)
        else:
            self._on_event(event)

    # The older pair

    def _speak_classic(self, pieces: list[bytes]) -> None:
        """Speak the protocol of the older pair, until somebody says HELLO."""
        loop = self.loop
        self._speak(Classic(self._is_host, self._bounds.memory, lambda: loop.now))
        if self.mux.is_up:
            self._on_event(Began())
        self._feed(pieces)

    def _forget_classic(self) -> None:
        """Speak as one of ours again: whoever comes now, an older guest waits for a HELLO."""
        self._doubt.reset()
        if self.mux.is_classic:
            self._speak(self._new_mux())
            self._is_stalled = False
            self.loop.call_soon(self._receive_more)

    def _feed(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            for start in range(0, len(piece), _FED):
                part = piece[start : start + _FED]
                mux = self.mux
                mux.room()[: len(part)] = part
                for event in mux.received(len(part)):
                    self._handle(event, mux)
