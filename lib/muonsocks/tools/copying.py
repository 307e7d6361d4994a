"""Copies between standard input and output and a connection, for a program that is its client.

standard input ends       the far end is told so, and may go on
the far end ends          standard output is closed, and standard input goes on; but with a
                          terminal there it is over: nobody there would see that it has ended
standard output fails     it is over, as any program in a pipeline is
standard input fails      it is over, and the far end is told that it has not got the whole
"""

from __future__ import annotations

import errno
import os

from muonsocks.net.half import Half
from muonsocks.net.inherit import Stdio
from muonsocks.net.relay import TIMEOUTS, Relay
from muonsocks.net.stream import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

    from muonsocks.net.direction import Direction
    from muonsocks.net.loop import Loop

INPUT, OUTPUT = "standard input", "standard output"


def copy(
    loop: Loop, sock: socket, far_name: str, idle_timeout: float, half_close_timeout: float
) -> None:
    """Copy both ways until that is over. Times are in seconds. OSError if anything is lost, or may
    be; its `filename` is the end that has failed. The connection is closed, or reset then.
    """
    stdio = Stdio(loop)
    far = Stream(loop, sock)
    try:
        relay = Copy(stdio.stream, far, os.isatty(0))
        loop.run(_run(relay, idle_timeout, half_close_timeout))
        _expect_all_done(relay, far_name, idle_timeout, half_close_timeout)
    except BaseException:
        far.reset_on_close()
        raise
    finally:
        far.close()
        stdio.restore()


class _Half(Half):
    """One direction, which keeps why it has failed."""

    __slots__ = ("failed", "failure")

    _relay: Copy

    def __init__(self, relay: Relay, source: Stream, sink: Stream) -> None:
        super().__init__(relay, source, sink)
        self.failure = 0  # errno
        self.failed: Stream | None = None

    def _source_failed(self, error: OSError) -> None:
        self.failure, self.failed = error.errno or 0, self.source
        super()._source_failed(error)

    def _sink_failed(self, number: int | None) -> None:
        self.failure, self.failed = number or errno.EPIPE, self.sink
        super()._sink_failed(number)


class _Up(_Half):
    """From standard input."""

    __slots__ = ()

    def _source_failed(self, error: OSError) -> None:
        relay = self._relay  # which may let go of this
        super()._source_failed(error)
        if self.source_error:
            relay.give_up()


class _Down(_Half):
    """To standard output."""

    __slots__ = ()

    def _sink_failed(self, number: int | None) -> None:
        relay = self._relay
        super()._sink_failed(number)
        relay.give_up()

    def _close_sink(self) -> None:
        relay = self._relay
        super()._close_sink()
        if relay.is_for_terminal and not self.source_error:
            relay.end()


class Copy(Relay):
    """Standard input and output, joined to a connection."""

    __slots__ = ("far", "is_for_terminal")

    up: _Up
    down: _Down

    def __init__(self, stdio: Stream, far: Stream, is_for_terminal: bool) -> None:
        self.far = far
        self.is_for_terminal = is_for_terminal
        super().__init__(stdio, far)

    def _directions(self, client: Stream, far: Stream) -> tuple[Direction, Direction]:
        return _Up(self, client, far), _Down(self, far, client)

    def give_up(self) -> None:
        """Be over, though one direction is not."""
        self._finish("broken-pipe")

    def end(self) -> None:
        """Be over, and well so."""
        self._finish("closed")


async def _run(relay: Copy, idle_timeout: float, half_close_timeout: float) -> None:
    try:
        relay.start(idle_timeout, half_close_timeout)
        if not relay.reason:
            await relay
    finally:
        relay.stop()


def _expect_all_done(
    relay: Copy, far_name: str, idle_timeout: float, half_close_timeout: float
) -> None:
    """Hold that both directions have come to their end. OSError."""
    if relay.reason == "closed":
        return
    if relay.reason in TIMEOUTS:
        limit = idle_timeout if relay.reason == TIMEOUTS[0] else half_close_timeout
        raise OSError(errno.ETIMEDOUT, f"nothing has moved for {limit:g} s", far_name)
    for half, near in ((relay.down, OUTPUT), (relay.up, INPUT)):
        if half is relay.up and half.failed is relay.far and relay.down.ended and relay.down.count:
            return  # who has said something, and all of it, need not listen to the end
        if half.failed is not None:
            name = far_name if half.failed is relay.far else near
            raise OSError(half.failure, os.strerror(half.failure), name)
    raise OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET), far_name)
