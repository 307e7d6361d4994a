"""Connections that a program waits for in connect(2), and what else may want it meanwhile.

While we have a call, signals wait as well, all but those that kill. So whoever is held for longer
is looked at from time to time: if there is a signal to handle, or to stop for, the call ends as
connect(2) does then, and the connection goes on to come up. Who calls once more on the same socket,
as the kernel does by itself after most handlers, gets that one. What nobody comes back for is
dropped.
"""

from __future__ import annotations

import errno
import os
from _signal import SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU
from _socket import IPPROTO_TCP, SO_SNDTIMEO, SOL_SOCKET, socket
from struct import Struct

from muonsocks.intercept.cookies import cookie_of
from muonsocks.intercept.notify import Call, CallGone, Refused
from muonsocks.net.loop import Loop, Timer
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
_EACH = 0.1  # s from a look to the next
_LOOKS_A_SECOND = 1000
_KEPT = 10.0  # s without anybody who waits

# What the kernel makes of a call that a signal ends (signal(7)): EINTR, or it is done once more, if
# the handler says so, or always. Nobody but the kernel ever sees them.
_ERESTARTSYS, _ERESTARTNOINTR = 512, 513
_STOPS = sum(1 << number - 1 for number in (SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU))


class Interrupted(Refused):
    """The wait has ended, by a signal or a time limit of the program's; the connection goes on."""


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


class Held:
    """The connections of all programs that are waited for, by the cookie of the socket."""

    __slots__ = ("_all", "_loop", "_timer")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._all: dict[bytes, _Connection] = {}
        self._timer: Timer | None = None

    def is_under_way(self, sock: socket) -> bool:
        """Say whether there is one for a socket."""
        return bool(self._all) and cookie_of(sock) in self._all

    def abort(self, sock: socket) -> None:
        """Give up the one for a socket, if there is one: the program disconnects that. Another
        thread that waits for it is told so, as connect(2) does.
        """
        if self.is_under_way(sock):
            cookie = cookie_of(sock)
            one = self._all[cookie]
            is_awaited = one.call is not None
            one.abort()
            if not is_awaited:
                del self._all[cookie]

    def may_be_handed_over(self, sock: socket) -> bool:
        """Say whether there is one for a socket, nobody waits for it now, and another socket can be
        as that one was.
        """
        one = self._all.get(cookie_of(sock))
        return one is not None and one.call is None and one.is_plain

    def hand_over(
        self, sock: socket, on_failure: Callable[[BaseException], None], on_up: Up
    ) -> Interruptible | None:
        """Have another one be told what comes of the one for a socket, and have what is connected
        then. Gives what there is to be interrupted, unless it is over.
        """
        one = self._all.pop(cookie_of(sock))
        one.hand_over(on_failure, on_up)
        return None if one.is_over else one.under_way

    async def connect(self, call: Call, sock: socket, begin: Begin) -> Outcome:
        """Wait for the connection of a socket, which is made unless there is one under way.

        Refused or CallGone if the wait ends before.
        """
        cookie = cookie_of(sock)
        one = self._all.get(cookie)
        if one is None:
            one = self._all[cookie] = _Connection(sock)
            one.start(self._loop.now, begin)
        elif one.call is not None:
            raise Refused(errno.EALREADY)
        try:
            if not one.is_over:
                await self._wait(one, call)
        finally:
            one.call = None
            if one.is_over:
                del self._all[cookie]
                one.sock.close()
        if one.failure is not None:
            raise one.failure
        assert one.outcome is not None
        return one.outcome

    async def _wait(self, one: _Connection, call: Call) -> None:
        one.wait_for(call)
        limit = one.limit
        timer = self._loop.call_later(limit, one.time_is_up) if limit else None
        if self._timer is None:
            self._timer = self._loop.call_later(_EACH, self._look)
        try:
            await one
        finally:
            one.since = self._loop.now
            if timer is not None:
                timer.cancel()
        if not one.is_over:
            if one.reason:
                raise Interrupted(one.reason)
            raise CallGone

    def _look(self) -> None:
        """Look at those that have been held for a while."""
        now = self._loop.now
        for cookie, one in list(self._all.items()):
            if now - one.since < _EACH / 2:
                continue
            call = one.call
            if call is None or not call.is_waiting():
                if now - one.since > _KEPT or not one.is_had():
                    one.drop()
                    if call is None:
                        self._all.pop(cookie, None)
                elif call is not None:
                    one.wake()  # and it may come back
            elif is_wanted(call.tid):
                one.interrupt()
        self._timer = None
        if self._all:
            patience = max(_EACH, len(self._all) / _LOOKS_A_SECOND)
            self._timer = self._loop.call_later(patience, self._look)


class _Connection(Waitable):
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
        self.limit = _send_timeout(sock) if self._blocks else 0.0
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

    def time_is_up(self) -> None:
        """Let the call end, as a time limit of the program's own has passed (SO_SNDTIMEO)."""
        self.reason = errno.EINPROGRESS
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


def is_wanted(tid: int) -> bool:
    """Say whether a signal waits for a thread to handle it, or to stop (proc(5)).

    One that is for the whole process is that of its first thread, to whom the kernel gives it if it
    can. For another thread it may as well be somebody else's.
    """
    try:
        with open(f"/proc/{tid}/status") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
    except OSError:
        return False  # it is gone; or we are short of descriptors, and look again soon
    pending, shared, blocked, ignored, caught = (
        int(fields[name], 16) for name in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt")
    )
    if int(fields["Tgid"]) == tid:
        pending |= shared
    return bool(pending & ~blocked & (caught | _STOPS & ~ignored))
