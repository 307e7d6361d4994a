"""The journeys of all programs: which there are, and of which socket each is.

Whoever has connected a socket that does not block, and never asks what came of it, is no reason to
keep what there is to be told for ever; nor is a program that ends, but for what it has written.
"""

from __future__ import annotations

from _socket import IPPROTO_TCP, SO_BINDTODEVICE, SOL_SOCKET, socket
from resource import RLIMIT_NOFILE, getrlimit

from muonsocks.intercept.cookies import cookie_of
from muonsocks.net.task import Waitable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from muonsocks.intercept.journey import Journey
    from muonsocks.intercept.peers import Peers
    from muonsocks.net.loop import Loop

    # Told what has gone wrong with us.
    Complain = Callable[[BaseException], None]

_MOST = 8192  # at once; what comes beyond is held
_FOR_CALLS = 64  # descriptors
_MOST_FAILURES = 1024  # that wait to be told; then the first is a plain reset
_LONGEST_INTERFACE = 16  # bytes of its name
_LAST_WORDS = 600.0  # s for what programs have written before they ended to arrive
SOON = 0.002  # s: a connection that is up by then need not be parked


class Journeys:
    """A table of them, by the cookies of the sockets that are parked for them. `loop` is where they
    are made, `timeout` the seconds that one may take; `complain` is told what has gone wrong with
    us, and `peers` where those lead that have come to their place.

    `is_quick` says that the last one was up within `SOON`.
    """

    __slots__ = (
        "_all",
        "_failures",
        "_over",
        "_ports",
        "complain",
        "is_quick",
        "loop",
        "peers",
        "timeout",
    )

    def __init__(self, loop: Loop, timeout: float, complain: Complain, peers: Peers) -> None:
        self.loop = loop
        self.timeout = timeout
        self.complain = complain
        self.peers = peers
        self.is_quick = True
        self._all: dict[bytes, Journey] = {}
        self._failures: dict[bytes, Journey] = {}  # those of them that have failed
        self._ports: dict[bytes, int] = {}  # of sockets that were parked and are not any more
        self._over = Waitable()

    def __len__(self) -> int:
        return len(self._all)

    @property
    def is_full(self) -> bool:
        """Whether there can be no more: each has two descriptors here, and calls want some, too."""
        most = (getrlimit(RLIMIT_NOFILE)[0] - _FOR_CALLS) // 2
        return len(self._all) >= min(_MOST, most)

    def add(self, journey: Journey) -> None:
        """Know of one."""
        self._all[journey.cookie] = journey

    def of(self, sock: socket) -> Journey | None:
        """Give the one of a socket; None if it has none."""
        return self._all.get(cookie_of(sock)) if self._all else None

    def due_for(self, tid: int) -> list[Journey]:
        """Give those that a thread has begun, and can have in their places."""
        return [one for one in self._all.values() if one.is_due_for(tid)]

    def has_arrived(self, seconds: float) -> None:
        """Note how long one has taken: the next may be as fast."""
        if seconds < SOON:
            self.is_quick = True

    def has_failed(self, journey: Journey) -> None:
        """Keep what is to be told; as many of those who never ask as there is room for."""
        self._failures[journey.cookie] = journey
        if len(self._failures) > _MOST_FAILURES:
            self.forget(next(iter(self._failures.values())))

    def forget(self, journey: Journey) -> None:
        """Know nothing of one any more."""
        for table in (self._all, self._failures):
            if table.get(journey.cookie) is journey:  # there may be another one by now
                del table[journey.cookie]
        if len(self._all) == len(self._failures):
            self._over.wake()

    async def finish(self) -> None:
        """Wait for the relays: a program that has ended may have written what has not arrived."""
        for journey in tuple(self._all.values()):
            journey.be_left()
        try:
            with self.loop.deadline(_LAST_WORDS):
                while len(self._all) > len(self._failures):
                    await self._over
        except TimeoutError:
            for journey in tuple(self._all.values()):
                journey.drop()

    # Sockets that have none

    def is_fresh(self, sock: socket) -> bool:
        """Say whether a socket is plain TCP, and nobody has bound it, to an interface either, or
        connected it.
        """
        if sock.proto != IPPROTO_TCP:
            return False
        host, port = sock.getsockname()[:2]
        interface = sock.getsockopt(SOL_SOCKET, SO_BINDTODEVICE, _LONGEST_INTERFACE)
        if host not in ("0.0.0.0", "::") or interface.strip(b"\0"):
            return False
        return not port or self._ports.get(cookie_of(sock)) == port

    def is_fresh_again(self, sock: socket) -> None:
        """Know that one is not bound to the port that it still tells of: that was ours."""
        self._ports[cookie_of(sock)] = sock.getsockname()[1]
        if len(self._ports) > _MOST_FAILURES:
            del self._ports[next(iter(self._ports))]
