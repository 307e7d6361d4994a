"""One direction of a relay: what one stream sends, another gets.

Driven by epoll events: `pull` moves what the source has to the sink until one of them says stop;
what the sink would not take is `pending`, and `flush` goes on when it will. Little data is copied
through one buffer; a full buffer means bulk, and that is spliced through a pipe and never enters
this process.
"""

from __future__ import annotations

import errno
from os import SPLICE_F_MOVE, SPLICE_F_NONBLOCK, readv, splice, write
from select import EPOLLERR, EPOLLOUT, EPOLLPRI

from muonsocks.net import pipes
from muonsocks.net.direction import AGAIN, Direction
from muonsocks.net.gathering import Gathering
from muonsocks.net.loop import READABLE, WRITABLE, Loop
from muonsocks.net.stream import HANG_UP, MORE, Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.net.relay import Relay

_SIZE = 65536
_BUFFER = bytearray(_SIZE)  # one for all: nothing stays in it between two events
_BUFFERS = [_BUFFER]
_VIEW = memoryview(_BUFFER)

_ROUNDS = 16  # pieces moved for one event, then the others have their turn
_BULK = 32768  # bytes; a burst shorter than this is cheaper to copy than to splice
_FLAGS = SPLICE_F_MOVE | SPLICE_F_NONBLOCK


class Half(Direction):
    """One direction between two streams."""

    __slots__ = ("_bulk", "_drains", "_gathering", "_splices", "_write_fd", "read_fd")

    opposite: Half
    pending: bytes | pipes.Pipe | None

    def __init__(self, relay: Relay, source: Stream, sink: Stream) -> None:
        super().__init__(relay, source, sink)
        self.read_fd = source.reader
        self._write_fd = sink.writer
        self._bulk = False  # the last burst was large: splice at once
        self._splices = True
        self._drains = source.is_tcp
        self._gathering: Gathering | None = None

    def attach(self, loop: Loop) -> None:
        handlers, read_fd, write_fd = loop.handlers, self.read_fd, self._write_fd
        if read_fd in handlers:
            handlers[read_fd] = self.pull
        if write_fd != self.sink.reader and write_fd in handlers:
            handlers[write_fd] = self._on_sink

    def begin(self) -> None:
        if self.pending is not None:
            self.flush()
        elif self.source.ready & READABLE:
            self.pull(self.source.ready)

    def detach(self) -> None:
        if self._gathering is not None:
            self._gathering.stop()
            self._gathering = None
        super().detach()

    # Events

    def _on_source_and_room(self, events: int) -> None:
        """The source is a socket that had no room for what the opposite half wanted to give it."""
        relay = self._relay
        if self.opposite.pending is not None and events & WRITABLE:
            self.opposite.flush()
        if events & READABLE and not relay.reason:
            self.pull(events)

    def _on_sink(self, events: int) -> None:
        if self.pending is not None:
            self.flush()
        elif events & EPOLLERR:
            self._sink_failed(errno.EPIPE)  # nobody reads from the pipe any more

    def pull_again(self) -> None:
        self.pull(AGAIN)

    # Moving bytes

    def pull(self, events: int) -> None:
        """Move what the source has, until it is drained or the sink is full."""
        drains = self._drains
        if events & MORE:
            drains = False
            if events & EPOLLPRI:
                # Splice stops for good in front of urgent data; a read in line goes past it.
                self._splices = self._drains = False
        if self.ended or self.over or self.pending is not None:
            if events & HANG_UP and (self.ended or self.over):
                self._source_gone()
            return
        relay = self._relay
        relay.active = relay.loop.now
        if self._bulk and self._splices:
            self._pump()
            return
        for _ in range(_ROUNDS):
            try:
                count = readv(self.read_fd, _BUFFERS)
            except BlockingIOError:
                return
            except OSError as error:
                self._source_failed(error)
                return
            if not count:
                self._source_ended(self.tainted)
                return
            try:
                written = write(self._write_fd, _VIEW[:count])
            except BlockingIOError:
                written = 0
            except OSError as error:
                self._sink_failed(error.errno)
                return
            self.count += written
            if written < count:
                self.pending = bytes(_VIEW[written:count])
                self._flush_when_ready()
                return
            if count < _SIZE:
                if drains:
                    return
            elif self._splices:
                self._pump()
                return
        relay.loop.call_soon(self.pull_again)

    def _pump(self) -> None:
        """Splice what the source has into a pipe and from there to the sink."""
        pipe = pipes.take()
        if pipe is None:
            self._bulk = False
            self._relay.loop.call_soon(self.pull_again)
            return
        read_fd, write_fd, total = self.read_fd, self._write_fd, 0
        for _ in range(_ROUNDS):
            try:
                pipe.left = count = splice(read_fd, pipe.writer, pipes.SIZE, flags=_FLAGS)
            except BlockingIOError:
                pipe.release()
                self._bulk = total >= _BULK
                self._drained()
                return
            except OSError as error:
                pipe.release()
                if error.errno == errno.EINVAL:
                    self._copy_from_now_on()
                else:
                    self._source_failed(error)
                return
            if not count:
                pipe.release()
                self._confirm_end()
                return
            total += count
            if not self._empty(pipe, write_fd):
                return
        pipe.release()
        self._bulk = True
        self._relay.loop.call_soon(self.pull_again)

    def _drained(self) -> None:
        """Let a source that gives much gather, once it is known how fast."""
        if self._gathering is not None:
            self._gathering.drained()
            self._bulk = self._bulk or self._gathering.is_on
        elif self._bulk and self.source.is_tcp:
            self._gathering = Gathering(self, self._relay.loop)

    def _confirm_end(self) -> None:
        """Read once more where splice gave 0: in front of urgent data, too, it may."""
        if self.source.is_tcp:
            self._splices = self._drains = self._bulk = False
            self.pull(AGAIN)
        else:
            self._source_ended(failed=self.tainted)

    def _empty(self, pipe: pipes.Pipe, write_fd: int) -> bool:
        """Splice a pipe to the sink. False if that did not go all the way; then all is noted."""
        try:
            while pipe.left:
                moved = splice(pipe.reader, write_fd, pipe.left, flags=_FLAGS)
                pipe.left -= moved
                self.count += moved
        except BlockingIOError:
            self.pending = pipe
            self._bulk = True
            self._flush_when_ready()
            return False
        except OSError as error:
            if error.errno == errno.EINVAL:
                self.pending = pipe.contents()
                pipe.release()
                self._copy_from_now_on()
            else:
                self.pending = pipe
                self._sink_failed(error.errno)
            return False
        return True

    def _copy_from_now_on(self) -> None:
        """One of the descriptors cannot be spliced, which only trying tells."""
        self._bulk = self._splices = False
        self._relay.loop.call_soon(self.flush if self.pending is not None else self.pull_again)

    def flush(self) -> None:
        """Give the sink what it would not take before; then go on pulling."""
        pending = self.pending
        if pending is None or self.over:
            return
        relay = self._relay
        relay.active = relay.loop.now
        if isinstance(pending, pipes.Pipe):
            self.pending = None
            if not self._empty(pending, self._write_fd):
                return
            pending.release()
        else:
            try:
                written = write(self._write_fd, pending)
            except BlockingIOError:
                self._flush_when_ready()
                return
            except OSError as error:
                self._sink_failed(error.errno)
                return
            self.count += written
            self.pending = pending = pending[written:] or None
            if pending is not None:
                self._flush_when_ready()
                return
        if self.ended:
            self._close_sink()
        else:
            self.pull(AGAIN)

    def _flush_when_ready(self) -> None:
        """See that `flush` is called: an event will do that, but for a regular file."""
        loop, sink = self._relay.loop, self.sink
        if sink.always_ready & EPOLLOUT:
            loop.call_soon(self.flush)
            return
        sink.watch_room()
        if sink.writer == sink.reader:
            loop.handlers[sink.writer] = self.opposite._on_source_and_room

    def _drop_pending(self) -> None:
        if isinstance(self.pending, pipes.Pipe):
            self.pending.release()
        self.pending = None
