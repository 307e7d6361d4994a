"""One direction of what joins two ends: what its source sends, its sink gets; and how that ends.

How the bytes are moved is up to its kinds: half.py has the one from a stream to another.
"""

from __future__ import annotations

import errno
from select import EPOLLRDHUP

from muonsocks.net.stream import is_hang_up

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from muonsocks.net.loop import Loop
    from muonsocks.net.relay import Relay

AGAIN = EPOLLRDHUP  # pulled with this, a direction does not take a short read for all there is


class Direction:
    """What `source` sends, `sink` gets. What the sink would not take yet is `pending`.

    Both are streams, or stand for one as a stream would.
    """

    __slots__ = (
        "_relay",
        "count",
        "ended",
        "opposite",
        "over",
        "pending",
        "sink",
        "source",
        "source_error",
        "tainted",
    )

    opposite: Direction
    pending: Any

    def __init__(self, relay: Relay, source: Any, sink: Any) -> None:
        """`relay` is told when it was last `active`, and by `both_over`; it has the `loop`."""
        self._relay = relay
        self.source = source
        self.sink = sink
        self.pending = None
        self.count = 0
        self.ended = False  # the source has nothing more; what is pending may still go out
        self.over = False  # nothing more will be given to the sink
        self.source_error = False  # the source did not end, it failed
        self.tainted = False  # the source failed, and it was a write to it that was told

    # What a kind has of its own

    def attach(self, loop: Loop) -> None:
        """Take over the events of the source, and of a sink that has events of its own."""
        raise NotImplementedError

    def begin(self) -> None:
        """Move what is there already."""
        raise NotImplementedError

    def pull_again(self) -> None:
        """Pull where no event says that there is something, or that there is no more."""
        raise NotImplementedError

    def _drop_pending(self) -> None:
        self.pending = None

    def detach(self) -> None:
        """Drop what was not delivered. The relay holds no cycle then."""
        self.over = True
        if self.pending is not None:
            self._drop_pending()
        del self._relay, self.opposite

    # Ends

    def _source_ended(self, failed: bool) -> None:
        self.ended = True
        self.source_error = failed
        if self.pending is None:
            self._close_sink()

    def _source_failed(self, error: OSError) -> None:
        if is_hang_up(self.source.reader, error):
            self._source_ended(self.tainted)
            return
        # Nothing can be given to a stream that has failed.
        if self.source.writer == self.source.reader:
            self.opposite._abandon()
        self._source_ended(failed=True)

    def _source_gone(self) -> None:
        """Nothing of the source matters any more, and now it is gone: if it is a socket, as a sink
        too.
        """
        if self.source.writer == self.source.reader and not self.opposite.over:
            self.opposite._sink_failed(errno.EPIPE)

    def _close_sink(self) -> None:
        self.over = True
        is_last = self.opposite.over
        # The last one to end need not say so if nobody else has the sink: it is about to be closed.
        if not self.source_error and (not is_last or self.sink.is_shared):
            self.sink.end_output()
        if is_last:
            self._relay.both_over()

    def _sink_failed(self, number: int | None) -> None:
        """The sink takes nothing more. If it is a socket that was reset, only this told so."""
        opposite = self.opposite
        if self.sink.writer == self.sink.reader and number != errno.EPIPE:
            opposite.tainted = True
        if not opposite.over:
            self._relay.loop.call_soon(opposite.pull_again)
        self._abandon()

    def _abandon(self) -> None:
        if not self.over:
            self.over = True
            if self.pending is not None:
                self._drop_pending()
            if self.opposite.over:
                self._relay.both_over()
