"""A relay between a stream and a channel. How its directions end is told in net/relay.py.

Outgoing   what the stream has is read into the link's batch, in turns, within the credit
Incoming   what comes is written to the stream; what that would not take is kept, and bounded by
           the credit that the other side has
"""

from __future__ import annotations

import errno
from _collections import deque
from os import readv, write, writev
from select import EPOLLERR, EPOLLOUT, EPOLLPRI

from muonsocks.mux.channel import Channel
from muonsocks.net.direction import AGAIN, Direction
from muonsocks.net.loop import READABLE, WRITABLE, Loop
from muonsocks.net.relay import TIMEOUTS, Ended, Relay
from muonsocks.net.stream import HANG_UP, MORE, Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SMALL = 4096  # bytes; parts that are smaller are kept together
_MOST_PARTS = 1024  # that writev(2) takes


class Carriage(Relay):
    """A relay of which one side is a channel, and the other one a stream."""

    __slots__ = ()

    def _directions(self, client: Any, far: Any) -> tuple[Direction, Direction]:
        if isinstance(client, Channel):
            return Incoming(self, client, far), Outgoing(self, far, client)
        return Outgoing(self, client, far), Incoming(self, far, client)

    def stop(self) -> Ended:
        ended = super().stop()
        if ended.reason in TIMEOUTS:
            for stream in ended.owed_resets:
                if isinstance(stream, Channel):
                    stream.is_timed_out = True
        return ended


class Outgoing(Direction):
    """From a stream to a channel."""

    __slots__ = ("_drains", "_is_bulk", "_is_queued", "_is_starved", "_outlet")

    opposite: Incoming
    pending: bytes | None
    source: Stream
    sink: Channel

    def __init__(self, relay: Relay, source: Stream, sink: Channel) -> None:
        super().__init__(relay, source, sink)
        self._outlet = sink.link.outlet
        self._drains = source.is_tcp
        self._is_bulk = False  # the last read was full: read as much as may be
        self._is_queued = False  # waits for its turn
        self._is_starved = False  # waits for credit

    def attach(self, loop: Loop) -> None:
        self.sink.outgoing = self
        if self.source.reader in loop.handlers:
            loop.handlers[self.source.reader] = self._on_stream

    def begin(self) -> None:
        if self.pending is not None or self.source.ready & READABLE:
            self.pull(self.source.ready)

    def detach(self) -> None:
        self.sink.outgoing = None
        super().detach()

    # Events

    def _on_stream(self, events: int) -> None:
        relay, incoming = self._relay, self.opposite
        if events & WRITABLE and incoming.pending and self.source.writer == self.source.reader:
            incoming.flush()
        if events & READABLE and not relay.reason:
            self.pull(events)

    def pull_again(self) -> None:
        self.pull(AGAIN)

    def take_turn(self) -> None:
        """The port has room."""
        self._is_queued = False
        if not self.over:
            self.pull(AGAIN)

    def may_send(self) -> None:
        """There is credit again."""
        if self._is_starved:
            self._is_starved = False
            self.pull(AGAIN)

    # Moving bytes

    def pull(self, events: int) -> None:
        """Send what the source has, as far as there is room and credit."""
        if events & EPOLLPRI:
            self._drains = False  # a read stops in front of urgent data
        if self.over or self.ended:
            if events & HANG_UP:
                self._source_gone()
            return
        if self._is_queued or self._is_starved:
            return
        outlet, connection = self._outlet, self.sink.connection
        if outlet.is_congested:
            self._wait_for_turn()
            return
        if self.pending is not None and not self._send_pending():
            return
        size = min(connection.credit, outlet.share(self._is_bulk))
        if not size:
            self._is_starved = True
            return
        try:
            count = readv(self.source.reader, outlet.batch.places_for(size))
        except BlockingIOError:
            return
        except OSError as error:
            self._source_failed(error)
            return
        if not count:
            self._source_ended(self.tainted)
            return
        relay = self._relay
        relay.active = relay.loop.now
        self.count += count
        self._is_bulk = count == size
        outlet.send(connection, count)
        if count == size or not self._drains or events & MORE:
            self._wait_for_turn()

    def _wait_for_turn(self) -> None:
        self._is_queued = True
        self._outlet.wait_for_turn(self)

    def _send_pending(self) -> bool:
        """Send what had been read before this began. False if there is not credit for all of it."""
        pending, connection = self.pending, self.sink.connection
        assert pending is not None
        part = pending[: connection.credit]
        self._outlet.send_copy(connection, part)
        self.count += len(part)
        self.pending = pending[len(part) :] or None
        self._is_starved = self.pending is not None
        return not self._is_starved

    def give_up(self) -> None:
        """The channel takes nothing more."""
        self._abandon()


class Incoming(Direction):
    """From a channel to a stream."""

    __slots__ = ("_link",)

    opposite: Outgoing
    pending: deque[memoryview] | None
    source: Channel
    sink: Stream

    def __init__(self, relay: Relay, source: Channel, sink: Stream) -> None:
        super().__init__(relay, source, sink)
        self._link = source.link

    def attach(self, loop: Loop) -> None:
        self.source.incoming = self
        writer = self.sink.writer
        if writer != self.sink.reader and writer in loop.handlers:
            loop.handlers[writer] = self._on_sink

    def begin(self) -> None:
        channel = self.source
        early, channel.early = channel.early, b""
        if early:
            self.deliver([memoryview(early)], len(early))
            self._link.outlet.flush_soon()  # the credit of it
            self._link.has_passed_on()
        if channel.has_ended:
            self.was_ended()
        if channel.was_lost:
            self.was_reset()

    def detach(self) -> None:
        self.source.incoming = None
        super().detach()

    def pull_again(self) -> None:
        """Do nothing: a channel tells what comes, and of its ends."""

    # Moving bytes

    def deliver(self, parts: list[memoryview], size: int) -> None:
        """Give the sink what has come, and keep what it does not take."""
        if self.over:
            # The other side, which may wait for credit, is to get to the end of its source.
            self.source.mux.consume(self.source.connection, size)
            return
        relay = self._relay
        relay.active = relay.loop.now
        pending = self.pending
        if pending is not None:
            if size < _SMALL and len(pending[-1]) < _SMALL:
                parts.insert(0, pending.pop())  # each has its price, 300 bytes
            pending.append(memoryview(b"".join(parts)))
            return
        try:
            if len(parts) == 1:
                count = write(self.sink.writer, parts[0])
            elif len(parts) <= _MOST_PARTS:
                count = writev(self.sink.writer, parts)
            else:
                count = write(self.sink.writer, b"".join(parts))
        except BlockingIOError:
            count = 0
        except OSError as error:
            self.source.mux.consume(self.source.connection, size)
            self._sink_failed(error.errno)
            return
        if count:
            self.count += count
            self.source.mux.consume(self.source.connection, count)
        if count < size:
            self.pending = deque((memoryview(b"".join(parts))[count:],))
            self._flush_when_ready()

    def flush(self) -> None:
        """Give the sink what it would not take before."""
        pending = self.pending
        if pending is None or self.over:
            return
        relay, link, channel = self._relay, self._link, self.source
        relay.active = relay.loop.now
        while pending:
            part = pending[0]
            try:
                count = write(self.sink.writer, part)
            except BlockingIOError:
                count = 0
            except OSError as error:
                self._sink_failed(error.errno)
                return
            self.count += count
            channel.mux.consume(channel.connection, count)
            if count < len(part):
                pending[0] = part[count:]
                self._flush_when_ready()
                break
            pending.popleft()
        if link.mux.output:
            link.outlet.flush_soon()
        link.has_passed_on()
        if not pending:
            self.pending = None
            if self.ended:
                self._close_sink()

    def _drop_pending(self) -> None:
        assert self.pending is not None
        self.source.mux.consume(self.source.connection, sum(map(len, self.pending)))
        super()._drop_pending()
        self._link.outlet.flush_soon()
        self._link.has_passed_on()

    def _flush_when_ready(self) -> None:
        """See that `flush` is called: an event will do that, but for a regular file."""
        sink = self.sink
        if sink.always_ready & EPOLLOUT:
            self._relay.loop.call_soon(self.flush)
        else:
            sink.watch_room()

    def _on_sink(self, events: int) -> None:
        if self.pending is not None:
            self.flush()
        elif events & EPOLLERR and not self.over:
            self._sink_failed(errno.EPIPE)  # nobody reads from the pipe any more

    # Ends

    def was_ended(self) -> None:
        """The other side sends no more."""
        if not self.ended and not self.over:
            self._source_ended(failed=False)

    def was_reset(self) -> None:
        """The other side has let go of it: the sink gets what there is, and then a reset, unless
        that was all.
        """
        self.opposite.give_up()
        if not self.ended and not self.over:
            self._source_ended(failed=True)
