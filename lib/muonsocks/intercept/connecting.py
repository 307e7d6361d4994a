"""One connection that a program waits for in connect(2), or has waited for."""

from __future__ import annotations

import errno
import os
from _socket import IPPROTO_TCP, SO_SNDTIMEO, SOL_SOCKET, socket
from struct import Struct

from muonsocks.intercept.notify import Call, CallGone
from muonsocks.net.task import Waitable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Interruptible(Protocol):
        """A task, or what is done in place of one."""

        def interrupt(self, error: BaseException) -> None:
            """Give up."""

    Up = Callable[[socket], None]
    # Begins to connect a socket, which blocks or not; tells the one what nobody has expected, or
    # the other what has come of it.
    Begin = Callable[
        [socket, bool, Callable[[BaseException], None], Callable[["Outcome"], None]],
        "Interruptible",
    ]

_TIME = Struct("=qq")  # struct timeval
_NEVER = bytes(_TIME.size)

# What the kernel makes of a call that a signal ends (signal(7)): EINTR, or it is done once more, if
# the handler says so, or always. Nobody but the kernel ever sees them.
_ERESTARTSYS, _ERESTARTNOINTR = 512, 513


class Outcome:
    """What came of a connection: an `error`, or a socket to be put in the place of the program's,
    or neither where that is connected itself.
    """

    __slots__ = ("error", "stand_in")

    def __init__(self, error: OSError | None = None, stand_in: socket | None = None) -> None:
        self.error = error
        self.stand_in = stand_in

    def close(self) -> None:
        """Give it back: nobody has come for it."""
        if self.stand_in is not None:
            self.stand_in.close()


class Connecting(Waitable):
    """A connection on its way. `call` is the one that waits for it, if there is one."""

    __slots__ = (
        "_blocks",
        "_fd",
        "_heir",
        "_tid",
        "call",
        "failure",
        "is_over",
        "is_plain",
        "limit",
        "number_if_late",
        "outcome",
        "reason",
        "since",
        "sock",
        "under_way",
    )

    def __init__(self, sock: socket) -> None:
        super().__init__()
        self._blocks = os.get_blocking(sock.fileno())
        # It blocks, and nobody has bound it.
        self.is_plain = self._blocks and sock.proto == IPPROTO_TCP and not sock.getsockname()[1]
        self.limit = 0.0  # s that the call may wait, 0 for as long as it takes
        self.number_if_late = errno.EINPROGRESS  # that it is told then
        self.sock = socket(sock.family, sock.type, sock.proto, os.dup(sock.fileno()))
        self.call: Call | None = None
        self.is_over = False
        self.outcome: Outcome | None = None
        self.failure: BaseException | None = None
        self.reason = 0
        self.since = 0.0
        self.under_way: Interruptible | None = None
        self._heir: tuple[Callable[[BaseException], None], Up] | None = None
        self._tid = self._fd = 0

    def start(self, now: float, begin: Begin) -> None:
        """Begin."""
        self.since = now
        self.under_way = begin(self.sock, self._blocks, self._on_failure, self._on_outcome)

    def _on_outcome(self, outcome: Outcome) -> None:
        self.is_over = True
        self.outcome = outcome
        self._tell_heir()
        self.wake()

    def _on_failure(self, error: BaseException) -> None:
        self.is_over = True
        self.failure = error
        self._tell_heir()
        self.wake()

    def hand_over(self, on_failure: Callable[[BaseException], None], on_up: Up) -> None:
        """Have another one be told what comes of it."""
        self._heir = on_failure, on_up
        if self.is_over:
            self._tell_heir()

    def _tell_heir(self) -> None:
        if self._heir is None:
            return
        on_failure, on_up = self._heir
        error = self.failure
        sock = self.sock
        if self.outcome is not None:
            error = self.outcome.error
            if self.outcome.stand_in is not None:
                sock = self.outcome.stand_in
        if sock is not self.sock or error is not None:
            self.sock.close()
        if error is not None:
            on_failure(error)
        else:
            on_up(sock)

    def wait_for(self, call: Call) -> None:
        """Be what a call waits for."""
        self.call = call
        self._tid, self._fd = call.tid, call.fd
        self.reason = 0
        if self._blocks:
            self.limit = _send_timeout(self.sock)

    def time_is_up(self) -> None:
        """Let the call end, as a time limit of the program's own has passed (SO_SNDTIMEO)."""
        self.reason = self.number_if_late
        self.number_if_late = errno.EALREADY  # for whoever calls once more
        self.wake()

    def interrupt(self) -> None:
        """Let the call end, as a signal has come."""
        if not self._blocks:
            self.reason = _ERESTARTNOINTR  # it would not have waited
        else:
            self.reason = errno.EINTR if self.limit else _ERESTARTSYS
        self.wake()

    def is_had(self) -> bool:
        """Say whether who has called still has the socket."""
        try:
            inode = os.stat(f"/proc/{self._tid}/fd/{self._fd}").st_ino
        except OSError:
            return False  # it has closed it, or is gone itself
        return inode == os.fstat(self.sock.fileno()).st_ino

    def abort(self) -> None:
        """Give up: the program disconnects the socket."""
        error = OSError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED))
        self._give_up(error)

    def drop(self) -> None:
        """Give up: nobody wants it any more."""
        self._give_up(CallGone())

    def _give_up(self, error: BaseException) -> None:
        if self.outcome is not None:
            self.outcome.close()
        elif not self.is_over and self.under_way is not None:
            self.under_way.interrupt(error)
        if self.call is None:
            self.sock.close()


def _send_timeout(sock: socket) -> float:
    """Give how many seconds a connect(2) may take, 0 for no limit."""
    value = sock.getsockopt(SOL_SOCKET, SO_SNDTIMEO, _TIME.size)
    if value == _NEVER:
        return 0.0
    seconds, microseconds = _TIME.unpack(value)
    return float(seconds + microseconds / 1e6)
