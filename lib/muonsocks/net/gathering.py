"""Lets a fast source gather, so that what it sends is moved in few large pieces.

A relay that is quicker than the sender is woken for every segment, and being woken costs more than
moving 64 KiB. So while a TCP source gives more than a gigabit line could, and nothing goes the
other way, SO_RCVLOWAT of socket(7) holds its events back until _GATHERED bytes are there. An end,
an error, urgent data and a full window are told at once even so; and what is less, the end of a
burst, lies for a millisecond or two: if nothing has moved by then, it is fetched.
"""

from __future__ import annotations

import errno
from _socket import IPPROTO_TCP, SO_RCVLOWAT, SOL_SOCKET, TCP_QUICKACK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.net.half import Half
    from muonsocks.net.loop import Loop, Timer

_FAST = 128e6  # bytes/s
_PROOF = 0.01  # s that a source has to be fast: a short burst comes as if nothing gathered
_GATHERED = 1 << 20  # bytes; what fits into a pipe
_LOOK = 0.0009  # s; epoll waits for whole milliseconds, so that this is one


class Gathering:
    """Whether the source of one half, a TCP socket, is let gather: `is_on` says so."""

    __slots__ = ("_answered", "_count", "_half", "_loop", "_since", "_timer", "is_on")

    def __init__(self, half: Half, loop: Loop) -> None:
        self._half = half
        self._loop = loop
        self._since = loop.now
        self._count = half.count
        self._answered = half.opposite.count
        self._timer: Timer | None = None
        self.is_on = False

    def drained(self) -> None:
        """Note that all has been moved that was there, and let what follows gather if it may."""
        if not self.is_on and self._loop.now - self._since >= _PROOF and self._is_fast():
            self.is_on = True
            self._timer = self._loop.call_later(_LOOK, self._look)
            self._set(SOL_SOCKET, SO_RCVLOWAT, _GATHERED)

    def stop(self) -> None:
        """Let the source be told of at once again, and what has gathered too."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self.is_on = False
            self._set(SOL_SOCKET, SO_RCVLOWAT, 1)

    def _look(self) -> None:
        """Move what has gathered if nothing has moved, and stop once the source is slow."""
        if self._half.count == self._count:
            self._half.pull_again()
            if not self.is_on:
                return  # that was the end of the relay
            self._acknowledge()
        if self._is_fast():
            self._timer = self._loop.call_later(_LOOK, self._look)
        else:
            self.stop()

    def _is_fast(self) -> bool:
        """Say whether the source has been fast since this was last asked, and had no answer.

        Who answers may be waited for, and then what it answers to must not lie.
        """
        now, count, answered = self._loop.now, self._half.count, self._half.opposite.count
        moved, passed = count - self._count, now - self._since
        is_bulk = moved > _FAST * passed and answered == self._answered
        self._since, self._count, self._answered = now, count, answered
        return is_bulk

    def _acknowledge(self) -> None:
        """Have the source told what has come: it may keep its last bytes until then (Nagle's
        algorithm, RFC 9293 section 3.7.4).
        """
        try:
            self._set(IPPROTO_TCP, TCP_QUICKACK, 1)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:  # MPTCP has to wait for its own acknowledgement
                raise

    def _set(self, level: int, option: int, value: int) -> None:
        self._half.source.socket.setsockopt(level, option, value)
