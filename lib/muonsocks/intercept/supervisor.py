"""Whoever answers the calls: each gets a coroutine of its own in the loop, and an answer.

What goes wrong with us must not let a call through: it fails with ENETUNREACH.
"""

from __future__ import annotations

import errno
from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit
from select import EPOLLHUP

from muonsocks.intercept.bpf import ALLOW, NOTIFY, verdict
from muonsocks.intercept.notify import Call, CallGone, Listener, Refused
from muonsocks.net.task import Waitable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from muonsocks.intercept.bpf import Rules
    from muonsocks.net.loop import Loop

    # Answers a call, or raises Refused; any other error is our own.
    Handler = Callable[[Call], Coroutine[Waitable, None, None]]


_MOST = 1 << 15  # calls that are being answered; one more fails, or all memory could be theirs
_DESCRIPTORS_OF_ONE = 4
# Of socketcall(2): what could get an address while the kernel reads it once more is done by us.
_READ_AGAIN = {"sendto"}


class Supervisor:
    """Takes the calls of a listener, each to the handler of its name."""

    __slots__ = (
        "_handlers",
        "_listener",
        "_loop",
        "_most",
        "_over",
        "_report",
        "_rules",
        "_under_way",
    )

    def __init__(
        self,
        loop: Loop,
        listener: Listener,
        rules: Rules,
        handlers: Mapping[str, Handler],
        report: Callable[[Call, BaseException], None],
    ) -> None:
        """`rules` are those of the filter; `report` is told what was our own fault, or what the
        system does not let us do.
        """
        self._loop = loop
        self._listener = listener
        self._rules = rules
        self._handlers: Mapping[str, Handler] = {"socketcall": self._unwrap, **handlers}
        self._report = report
        self._over = Waitable()
        self._under_way = 0
        hard = getrlimit(RLIMIT_NOFILE)[1]
        most = _MOST if hard == RLIM_INFINITY else min(_MOST, hard // _DESCRIPTORS_OF_ONE)
        self._most = max(most, 1)
        listener.wake_here()
        loop.register_listener(listener.fd, self._on_event)

    async def run(self) -> None:
        """Go on until there is no process left that could call."""
        await self._over

    def _on_event(self, events: int) -> None:
        if events & EPOLLHUP:
            self._loop.unregister(self._listener.fd)
            self._over.wake()
            return
        call = self._listener.receive()
        if call is None:
            return

        def on_failure(error: BaseException) -> None:
            self._under_way -= 1
            self._fail(call, error)

        if self._under_way >= self._most:
            self._fail(call, Refused(errno.ENOBUFS))
            return
        self._under_way += 1
        answer = self._handlers.get(call.name, _refuse_unknown)
        self._loop.spawn(answer(call), on_failure, self._on_return)

    def _on_return(self, _: None) -> None:
        self._under_way -= 1

    async def _unwrap(self, call: Call) -> None:
        """Answer the call that a socketcall(2) stands for."""
        call.unwrap()
        decided = verdict(self._rules[call.name], call.arguments)
        if decided == ALLOW and call.name not in _READ_AGAIN & self._handlers.keys():
            call.go_on()
        elif decided not in (ALLOW, NOTIFY):
            call.fail(decided & 0xFFFF)
        else:
            await self._handlers[call.name](call)

    def _fail(self, call: Call, error: BaseException) -> None:
        if isinstance(error, CallGone):
            return
        number = errno.ENETUNREACH
        if isinstance(error, Refused):
            number = error.errno or number
        else:
            self._report(call, error)
        try:
            call.fail(number)
        except CallGone:
            return


async def _refuse_unknown(call: Call) -> None:
    raise LookupError(f"no handler for {call.name or call.number}")
