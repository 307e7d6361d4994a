"""Connections that wait for a receiver, in their turn, until it takes them or their time is up.

While any wait it is looked again: when the kernel tells that there is room, and by a timer, since
there is more that it does not tell. A unix socket that is connected is said to have room only once
three quarters of its queue are gone; a receiver that comes, or takes another one's place, says
nothing; and a shortage ends without a word.
"""

from __future__ import annotations

import errno
from _collections import deque
from select import EPOLLERR

from muonsocks.net.task import Waitable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.net.loop import Loop, Timer
    from muonsocks.socketbox.waiting_room import WaitingRoom

SOON, LATE = 0.05, 1.0  # s until it is looked again: at first, and at last if nothing changes
_FULL = "it is full"
AWAY = frozenset((errno.ENOENT, errno.ECONNREFUSED, errno.ENOTCONN, errno.ECONNRESET, errno.EPIPE))
# What may be otherwise in a moment, and is said if it is not: shortages, and the mode of a socket
# that is new. The kernel may tell that there is room at each attempt, and is not listened to.
_HINDRANCES = frozenset((errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS, errno.EACCES))


class Refused(Exception):
    """A receiver does not take a connection, for the reason given."""


class ClientGone(Refused):
    """Nor would any other: the client has reset the connection."""

    def __init__(self) -> None:
        super().__init__("the client has gone")


class _Waiting(Waitable):
    """A connection that waits: a descriptor, and what became of it.

    A client that resets it keeps nobody else from waiting, and gives no receiver anything to do.
    """

    __slots__ = ("fd", "is_taken", "refused")

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.fd = fd
        self.is_taken = False
        self.refused: Refused | None = None  # why it can never be taken


class Receiver:
    """Who connections are passed to, and the queue of those that wait."""

    __slots__ = ("_loop", "_name", "_pause", "_queue", "_room", "_timer")

    away = "it is not there"

    def __init__(self, loop: Loop, room: WaitingRoom, name: bytes) -> None:
        """By `name` all workers know whom they mean."""
        self._loop = loop
        self._room = room
        self._name = name
        self._queue: deque[_Waiting] = deque()
        self._pause = SOON
        self._timer: Timer | None = None

    async def take(self, fd: int, waited: float = 0.0) -> None:
        """Pass a connection on, which has `waited` so long (s) for others already. Refused if its
        time is up, or it cannot be.
        """
        obstacle = self._go_on() or self._try(fd)
        if not obstacle:
            return
        room = self._room
        patience = room.patience - waited
        if patience <= 0:
            raise Refused(f"{obstacle}, and there is no time left to wait")
        if why := room.enter(self._name, len(self._queue)):
            raise Refused(f"{obstacle}, and {why}")
        one = _Waiting(fd)
        self._queue.append(one)
        try:
            self._loop.register(fd, lambda events: self._on_client(one, events))
        except OSError:
            pass  # epoll(7) has a limit for each user: it waits all the same
        try:
            if len(self._queue) == 1:
                self._pause = SOON
                self._wait_for(obstacle)
            with self._loop.deadline(patience) as deadline:
                while not (one.is_taken or one.refused):
                    await one
        except TimeoutError:
            if not deadline.passed:
                raise
            obstacle = self._go_on()
            if not (one.is_taken or one.refused):
                raise Refused(f"{obstacle} after {round(patience, 2):g} s") from None
        finally:
            self._loop.unregister(fd)
            room.leave(self._name)
            if not (one.is_taken or one.refused):
                self._queue.remove(one)
            if not self._queue:
                self._rest()
        if one.refused:
            raise one.refused

    def _try(self, fd: int) -> str:
        """Send a connection now, or say what is in the way. Refused if that will stay so."""
        try:
            self._send(fd)
        except BlockingIOError:
            return _FULL
        except OSError as error:
            if error.errno in AWAY:
                return self.away
            text = error.strerror or str(error)
            if error.errno in _HINDRANCES:
                return text
            raise Refused(text) from None
        return ""

    def _go_on(self) -> str:
        """Send those that wait, as many as there is room for; say what is in the way of more."""
        queue = self._queue
        while queue:
            one = queue[0]
            try:
                obstacle = self._try(one.fd)
            except Refused as refused:
                one.refused = refused
            else:
                if obstacle:
                    return obstacle
                one.is_taken = True
                self._pause = SOON
            queue.popleft()
            one.wake()
        return ""

    def _on_client(self, one: _Waiting, events: int) -> None:
        # A unix socket hangs up as soon as its peer has closed, with all that it said unread.
        if events & EPOLLERR:
            one.refused = ClientGone()
            self._queue.remove(one)
            one.wake()

    def _look(self) -> None:
        """See whether something has changed that nobody tells."""
        self._rest()
        obstacle = self._go_on()
        if self._queue:
            self._wait_for(obstacle)

    def _wait_for(self, obstacle: str) -> None:
        """Go on when it is out of the way."""
        if obstacle == _FULL:
            self._watch()
        self._timer = self._loop.call_later(self._pause, self._look)
        self._pause = min(2 * self._pause, LATE)

    def _on_event(self, _: int) -> None:
        if self._go_on() != _FULL:
            self._unwatch()

    def _rest(self) -> None:
        """Look no more."""
        self._unwatch()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def is_idle(self) -> bool:
        """Whether no connection waits: then nothing is open for it, and it can be made anew."""
        return not self._queue

    # What a kind has of its own

    def _send(self, fd: int) -> None:
        raise NotImplementedError

    def _watch(self) -> None:
        """See that `_on_event` is called when there may be room, if that can be."""
        raise NotImplementedError

    def _unwatch(self) -> None:
        """Do that no more. Harmless when it is not done."""
        raise NotImplementedError
