"""Connections that a program waits for in connect(2), and what else may want it meanwhile.

While we have a call, signals wait as well, all but those that kill. So whoever is held for longer
is looked at from time to time: if there is a signal to handle, or to stop for, the call ends as
connect(2) does then, and the connection goes on to come up. Who calls once more on the same socket,
as the kernel does by itself after most handlers, gets that one. What nobody comes back for is
dropped.
"""

from __future__ import annotations

import errno
from _signal import SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU
from _socket import socket

from muonsocks.intercept.connecting import Connecting, Outcome
from muonsocks.intercept.cookies import cookie_of
from muonsocks.intercept.direct import DirectWay
from muonsocks.intercept.notify import Call, CallGone, Refused
from muonsocks.intercept.straight import StraightWay
from muonsocks.net.loop import Loop, Timer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from muonsocks.address import Endpoint
    from muonsocks.intercept.connecting import Begin, Interruptible, Up

_EACH = 0.1  # s from a look to the next
_LOOKS_A_SECOND = 1000
_KEPT = 10.0  # s without anybody who waits

_STOPS = sum(1 << number - 1 for number in (SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU))


class Interrupted(Refused):
    """The wait has ended, by a signal or a time limit of the program's; the connection goes on."""


class Held:
    """The connections of all programs that are waited for, by the cookie of the socket."""

    __slots__ = ("_all", "_loop", "_timer")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._all: dict[bytes, Connecting] = {}
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

    def enough_for(self, sock: socket) -> int:
        """Give of how many bytes the program wants to be told on a socket, of which one is under
        way: the socket itself may have 1 as long (SO_RCVLOWAT).
        """
        way = self._all[cookie_of(sock)].under_way
        return way.enough if isinstance(way, StraightWay) else 1

    def hand_over(
        self, sock: socket, on_failure: Callable[[BaseException], None], on_up: Up
    ) -> Interruptible | None:
        """Have another one be told what comes of the one for a socket, and have what is connected
        then. Gives what there is to be interrupted, unless it is over.
        """
        one = self._all.pop(cookie_of(sock))
        one.hand_over(on_failure, on_up)
        return None if one.is_over else one.under_way

    async def connect(self, call: Call, sock: socket, begin: Begin, is_new: bool = True) -> Outcome:
        """Wait for the connection of a socket, which is made unless there is one under way; unless
        it `is_new` the program has been told that already.

        Refused or CallGone if the wait ends before.
        """
        cookie = cookie_of(sock)
        one = self._all.get(cookie)
        if one is None:
            one = self._all[cookie] = Connecting(sock)
            if not is_new:
                one.number_if_late = errno.EALREADY
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

    async def wait_for_kernel(self, call: Call, sock: socket, endpoint: Endpoint) -> int:
        """Wait for a connection without proxies, which is begun unless it has been; give its errno.

        Refused or CallGone if the wait ends before: it goes on by itself. Others may wait, too.
        """
        key = cookie_of(sock) + call.identity.to_bytes(8, "little")

        def begin(
            ours: socket,
            _: bool,
            on_failure: Callable[[BaseException], None],
            on_outcome: Callable[[Outcome], None],
        ) -> DirectWay:
            way = DirectWay(self._loop, ours, on_failure, lambda error: on_outcome(Outcome(error)))
            way.begin(endpoint)
            one.number_if_late = way.number
            return way

        one = self._all[key] = Connecting(sock)
        try:
            one.start(self._loop.now, begin)
            if not one.is_over:
                await self._wait(one, call)
        finally:
            one.call = None
            del self._all[key]
            if one.is_over:
                one.sock.close()
            else:
                one.drop()
        if one.failure is not None:
            raise one.failure
        assert one.outcome is not None
        return (one.outcome.error and one.outcome.error.errno) or 0

    async def _wait(self, one: Connecting, call: Call) -> None:
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
