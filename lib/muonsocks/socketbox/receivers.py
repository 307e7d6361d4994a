"""Who connections are passed to: the programs that receive them at unix sockets.

A receiver takes a connection at once, as long as there is room in its queue, which by default is
for ten (net.unix.max_dgram_qlen). When there is none, or nobody is there, the connection waits, in
its turn, until it is taken or its time is up: a receiver may be slow for a moment, or be restarted.
Without all that it costs one call of the kernel.
"""

from __future__ import annotations

import errno
from _collections import deque
from _socket import AF_UNIX, MSG_DONTWAIT, SOCK_DGRAM, SOCK_NONBLOCK, socket

from muonsocks.net.loop import READABLE, WRITABLE
from muonsocks.net.passing import send
from muonsocks.net.stream import unix_address
from muonsocks.net.task import Waitable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from muonsocks.net.loop import Loop, Timer

WORD = b"\0"  # what comes with a descriptor in a datagram: something has to
FRAME = b"\3\0\0\0"  # and what comes with it to a receiver that has registered
_GONE = "it has gone"
_AGAIN = 0.05  # s until it is looked again whether a receiver is there
_MOVED = 1.0  # s until it is looked whether another one has taken the place of one that is full
_SENT, _IS_FULL, _IS_AWAY = range(3)
_FULL = frozenset((errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS))
_AWAY = frozenset((errno.ENOENT, errno.ECONNREFUSED, errno.ENOTCONN, errno.ECONNRESET, errno.EPIPE))


class Refused(Exception):
    """A receiver does not take a connection, for the reason given."""


class Limits:
    """How long (s) a connection may wait for its receiver, and how many may wait for all of them;
    `waiting` is how many do, and `elsewhere()` how many wait in other processes.
    """

    __slots__ = ("elsewhere", "most_waiting", "patience", "waiting")

    def __init__(
        self, patience: float, most_waiting: int, elsewhere: Callable[[], int] = lambda: 0
    ) -> None:
        self.patience = patience
        self.most_waiting = most_waiting
        self.waiting = 0
        self.elsewhere = elsewhere


class _Waiting(Waitable):
    """A connection that waits: a descriptor, and what became of it."""

    __slots__ = ("fd", "is_taken", "reason")

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.fd = fd
        self.is_taken = False
        self.reason = ""  # why it can never be taken


class Receiver:
    """What all have in common: the queue of the connections that wait."""

    __slots__ = ("_limits", "_loop", "_queue")

    def __init__(self, loop: Loop, limits: Limits) -> None:
        self._loop = loop
        self._limits = limits
        self._queue: deque[_Waiting] = deque()

    async def take(self, fd: int, waited: float = 0.0) -> None:
        """Pass a connection on, which has `waited` so long (s) for others already. Refused if its
        time is up, or it cannot be.
        """
        if not self._queue and self._try(fd) == _SENT:
            return
        limits = self._limits
        patience = limits.patience - waited
        if patience <= 0:
            raise Refused("it is full, or not there, and there is no time left to wait")
        waiting = limits.waiting + limits.elsewhere()
        if waiting >= limits.most_waiting:
            raise Refused(f"it is full, or not there, and {waiting} connections wait already")
        one = _Waiting(fd)
        self._queue.append(one)
        limits.waiting += 1
        try:
            if len(self._queue) == 1:
                self._watch()
            with self._loop.deadline(patience) as deadline:
                while not (one.is_taken or one.reason):
                    await one
        except TimeoutError:
            if not deadline.passed:
                raise
            raise Refused(f"it was full, or not there, for {round(patience, 2):g} s") from None
        finally:
            limits.waiting -= 1
            if not (one.is_taken or one.reason):
                self._queue.remove(one)
            if not self._queue:
                self._unwatch()
        if one.reason:
            raise Refused(one.reason)

    def _try(self, fd: int) -> int:
        """Send a connection now, or say what is in the way. Refused if that will stay so."""
        try:
            self._send(fd)
        except OSError as error:
            if error.errno in _FULL:
                return _IS_FULL
            if error.errno in _AWAY:
                return _IS_AWAY
            raise Refused(error.strerror or str(error)) from None
        return _SENT

    def _go_on(self) -> int:
        """Send those that wait, as many as there is room for; say what is in the way of more."""
        queue = self._queue
        while queue:
            one = queue[0]
            try:
                result = self._try(one.fd)
            except Refused as refused:
                one.reason = str(refused)
            else:
                if result != _SENT:
                    return result
                one.is_taken = True
            queue.popleft()
            one.wake()
        return _SENT

    @property
    def is_idle(self) -> bool:
        """Whether no connection waits: then nothing is open for it, and it can be made anew."""
        return not self._queue

    def refuse_all(self, reason: str) -> None:
        """Let nobody wait any more."""
        while self._queue:
            one = self._queue.popleft()
            one.reason = reason
            one.wake()

    # What a kind has of its own

    def _send(self, fd: int) -> None:
        raise NotImplementedError

    def _watch(self) -> None:
        """See that `_go_on` is called when there may be room."""
        raise NotImplementedError

    def _unwatch(self) -> None:
        raise NotImplementedError


class AtPath(Receiver):
    """A receiver of datagrams at a path; with @ in front it is an abstract name.

    All of a process are sent to by one socket, `sender`. While connections wait for one there is
    another socket, connected to it: the kernel tells that when there is room.
    """

    __slots__ = ("_connected", "_path", "_sender", "_timer")

    def __init__(self, loop: Loop, limits: Limits, sender: socket, path: str) -> None:
        super().__init__(loop, limits)
        self._sender = sender
        self._path = path
        self._connected: socket | None = None
        self._timer: Timer | None = None

    def _send(self, fd: int) -> None:
        if self._connected is None:
            send(self._sender, WORD, (fd,), self._path)
        else:
            send(self._connected, WORD, (fd,))

    def _watch(self) -> None:
        sock = None
        try:
            sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK)
            sock.connect(unix_address(self._path))
            self._loop.register(sock.fileno(), self._on_event, room=True)
        except OSError:  # nobody is there, or there is no descriptor for it now
            if sock is not None:
                sock.close()
            self._go_on()  # or this is no receiver, and they need not wait
            if self._queue and self._connected is None and self._timer is None:
                self._timer = self._loop.call_later(_AGAIN, self._watch_again)
        else:
            self._connected = sock
            self._timer = self._loop.call_later(_MOVED, self._watch_again)

    def _unwatch(self) -> None:
        sock, self._connected = self._connected, None
        if sock is not None:
            self._loop.unregister(sock.fileno())
            sock.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch_again(self) -> None:
        self._unwatch()
        self._watch()

    def _on_event(self, events: int) -> None:
        if events & WRITABLE and self._go_on() == _IS_AWAY:
            self._unwatch()
            self._timer = self._loop.call_later(_AGAIN, self._watch_again)


class OverSocket(Receiver):
    """A receiver at the other end of a connected unix socket; each connection comes with `word`.

    When it `has_gone` nothing more can be sent, and those that wait are refused.
    """

    __slots__ = ("_sock", "_word", "has_gone")

    def __init__(self, loop: Loop, limits: Limits, sock: socket, word: bytes = WORD) -> None:
        super().__init__(loop, limits)
        self._sock = sock
        self._word = word
        self.has_gone = False

    def _send(self, fd: int) -> None:
        if self.has_gone:
            raise Refused(_GONE)
        send(self._sock, self._word, (fd,))

    def _watch(self) -> None:
        self._loop.register(self._sock.fileno(), self._on_event, room=True)

    def _unwatch(self) -> None:
        self._loop.unregister(self._sock.fileno())

    def _on_event(self, events: int) -> None:
        if events & WRITABLE and self._go_on() == _IS_AWAY:
            self._leave()

    def _leave(self) -> None:
        """Note that it has gone."""
        self.has_gone = True
        self.refuse_all(_GONE)


class Registered(OverSocket):
    """A receiver that has registered, over the connection by which it did; who has registered
    says no more, and when it closes that, `on_end` is called.

    The connection stays in the loop, which tells both that it ends and that there is room.
    """

    __slots__ = ("_on_end",)

    def __init__(
        self,
        loop: Loop,
        limits: Limits,
        sock: socket,
        on_end: Callable[[Registered], None],
    ) -> None:
        super().__init__(loop, limits, sock, FRAME)
        self._on_end = on_end
        loop.register(sock.fileno(), self._on_event, room=True)

    def _watch(self) -> None:
        """The loop has it."""

    def _unwatch(self) -> None:
        """It stays there."""

    def _on_event(self, events: int) -> None:
        if self.has_gone:
            return
        if events & READABLE and self._has_ended():
            self.leave()
            return
        super()._on_event(events)
        if self.has_gone:
            self.leave()

    def _has_ended(self) -> bool:
        """Say whether it has closed, or says what it has no business to."""
        try:
            self._sock.recv(1, MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True  # a reset
        return True

    def leave(self) -> None:
        """Send it no more, and let go of it."""
        self._leave()
        self._loop.unregister(self._sock.fileno())
        self._sock.close()
        self._on_end(self)
