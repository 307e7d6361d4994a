"""One worker of a resident program: it accepts, serves each connection in a task, and knows limits.

When something runs out it leaves new connections in the queue of the entrance, and looks again when
one of its own has ended or a moment has passed; no connection that it has is given up for that.
"""

from __future__ import annotations

import errno
import os
from fcntl import LOCK_EX, LOCK_NB, lockf
from resource import RLIMIT_NOFILE, getrlimit

from muonsocks.errors import RemoteProtocolError
from muonsocks.log import INFO, Form
from muonsocks.net import pipes
from muonsocks.net.entrance import PASSING, NobodyComes
from muonsocks.net.task import Task, Waitable
from muonsocks.resident.board import CUT, ENDED, FULL, OPEN, REFUSED, SERVED, Board
from muonsocks.resident.repeats import Repeats
from muonsocks.resident.shortage import Shortage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from muonsocks.log import Log
    from muonsocks.net.entrance import Entrance
    from muonsocks.net.inherit import Peer
    from muonsocks.net.loop import Loop, Timer
    from muonsocks.net.task import Pause
    from muonsocks.resident.plan import Capacity, Service

# Lines of the log, muonsocks(7)
_REFUSED = Form("refused", "client", "end")
_PATIENCE = 0.2  # s until a limit is looked at again, if no connection of ours ends before
_RESERVE = 16  # descriptors that are left for look-ups and second attempts, or for a doorman
_TURNED_AWAY = 12  # clients at a time
_BUSY = 6  # events in a round: there is more to do than can be done at once, for all workers
_AT_ONCE = 16  # connections accepted in such a round, at most
_LAST = 1024  # connections that are taken in at the end, at most
_MORE = 4  # connections than the average of the workers: then it is the turn of another one


class Cut(BaseException):
    """The session outlived the time it had to end."""


class Worker:
    """Takes clients in at entrances that it shares with the other workers."""

    __slots__ = (
        "_board",
        "_callbacks",
        "_capacity",
        "_drained",
        "_draining",
        "_entrances",
        "_fits",
        "_full",
        "_log",
        "_loop",
        "_no_connections",
        "_paused",
        "_retire",
        "_service",
        "_shortage",
        "_tasks",
    )

    def __init__(
        self,
        loop: Loop,
        entrances: Sequence[Entrance],
        service: Service,
        capacity: Capacity,
        board: Board,
        log: Log,
        retire: Callable[..., None] | None = None,
    ) -> None:
        """`retire` is called, `for_good`, when no entrance is left."""
        self._loop = loop
        self._entrances = list(entrances)
        self._retire = retire
        self._service = service
        self._capacity = capacity
        self._board = board
        self._log = log
        self._tasks: dict[Task, bytes] = {}  # each with the source of its connection
        self._callbacks = self._on_failure, self._on_return  # the same ones for all of them
        self._paused: Timer | None = None
        self._shortage = Shortage(loop, board, log, lambda: self._paused is not None)
        self._draining = False
        self._drained = Waitable()
        self._full = False
        self._no_connections = Repeats(loop, self._count_no_connections)
        left = descriptors_left()
        self._fits = max((left - pipes.limit(left // 4)) // capacity.each, 1)

    # Life cycle

    def start(self) -> None:
        """Begin to accept."""
        self._board.set(FULL, 0)
        self._resume()

    def adopt(self, work: Coroutine[Waitable, None, int | Pause]) -> None:
        """Have a connection that another worker had: `work` is what is left to do for it."""
        self._board.add(OPEN, 1)
        task = Task(self._loop, work, *self._callbacks)
        self._tasks[task] = b""
        task.step()

    async def drain(self, seconds: float | None, is_last: bool = True) -> None:
        """Accept no more, and wait for the connections to end; after a time, if there is a limit,
        cut those that are left. If it `is_last`, and no other worker goes on or replaces it, who
        has come is taken in before.
        """
        self._draining = True
        self._shortage.forget()
        self._board.set(FULL, 1)
        self._stop_accepting()
        for entrance in self._entrances:
            if is_last and entrance.waits_for_nobody_else:
                self._take_the_last(entrance)
            entrance.close()
        if self._tasks and seconds is None:
            await self._drained
        elif self._tasks and seconds is not None:
            try:
                with self._loop.deadline(seconds):
                    await self._drained
            except TimeoutError:
                self.cut()
        self._no_connections.close()

    def _take_the_last(self, entrance: Entrance) -> None:
        """Take in who has come, whatever the limits are: it is a queue of a few."""
        for _ in range(_LAST):
            if not self._accept(entrance):
                break

    def cut(self) -> None:
        """End all connections now."""
        left = list(self._tasks)
        self._board.add(CUT, len(left))
        for task in left:
            task.interrupt(Cut())

    # Accepting

    def _resume(self) -> None:
        self._paused = None
        if self._is_full():
            return
        try:
            for entrance in self._entrances:
                self._loop.register_listener(entrance.fileno(), self._acceptor(entrance))
        except OSError as error:
            self._cannot_watch(error)

    def _acceptor(self, entrance: Entrance) -> Callable[[int], None]:
        return lambda _: self._accept_some(entrance)

    def _stop_accepting(self) -> None:
        if self._paused is not None:
            self._paused.cancel()
            self._paused = None
        for entrance in self._entrances:
            self._loop.unregister(entrance.fileno())

    def _is_full(self) -> bool:
        """Pause if no other connection fits, before one comes: the kernel would wake this worker
        alone for it (EPOLLEXCLUSIVE), though another one may have room. If none has, a doorman may
        say so to some at a time.
        """
        count, board = len(self._tasks), self._board
        if self._full != (count >= self._fits):
            self._full = not self._full
            board.set(FULL, self._full)
        if not self._full:
            return False
        number = _limit()
        turns_away = (
            self._capacity.doorman is not None
            and board.total(FULL) == board.workers
            and count < self._fits + _TURNED_AWAY
        )
        what = f"the limit on descriptors, {number}, allows no more connections for now"
        self._run_short(what, pause=not turns_away)
        return not turns_away

    def _pause(self) -> None:
        """Leave new connections in the queue until one of ours has ended, or for a moment."""
        if self._paused is None:
            self._stop_accepting()
            self._paused = self._loop.call_later(_PATIENCE, self._resume)

    def _accept_some(self, entrance: Entrance) -> None:
        """Take one connection, as the other workers may well be idle. If they are not, take what
        there is: few long rounds are cheaper than many short ones.
        """
        count, limit = 1, self._capacity.connections
        if self._loop.busy >= _BUSY:
            count = min(_AT_ONCE, limit - self._board.total(OPEN)) if limit else _AT_ONCE
        while self._accept(entrance) and count > 1:
            count -= 1
        if count == 1 and len(self._tasks) > _MORE and not self._paused and not self._draining:
            self._let_others_come(entrance)

    def _let_others_come(self, entrance: Entrance) -> None:
        """Have another worker woken for the next connection if this one has more than its share:
        those that last would else gather in the one that is woken first.
        """
        board = self._board
        if entrance not in self._entrances:
            return
        if (len(self._tasks) - _MORE) * board.workers > board.total(OPEN):
            try:
                self._loop.queue_up_again(entrance.fileno())
            except OSError as error:
                self._cannot_watch(error)

    def _cannot_watch(self, error: OSError) -> None:
        """Look for connections later: epoll(7) has a limit for all that a user watches."""
        self._run_short(f"cannot watch for connections: {error.strerror}")

    def _accept(self, entrance: Entrance) -> bool:
        """Take a connection. False if there is none, or no other one is to be taken now."""
        if self._full and not self._draining and self._is_full():
            return False  # not all of them are full any more
        board = self._board
        limit = 0 if self._draining else self._capacity.connections
        board.add(OPEN, 1)  # first: two workers may look at the same moment
        if limit and board.total(OPEN) > limit:
            board.add(OPEN, -1)
            self._run_short(f"all {limit} connections of {self._capacity.option} are in use")
            return False
        try:
            sock, peer = entrance.take()
        except OSError as error:
            board.add(OPEN, -1)
            if isinstance(error, BlockingIOError) or error.errno in PASSING:
                return False  # another worker was faster, or the client has gone
            self._run_short(f"cannot accept: {error.strerror}")
            return False
        except RemoteProtocolError as error:
            board.add(OPEN, -1)
            board.add(REFUSED, 1)
            if self._no_connections.may():
                self._note_no_connection(str(error))
            return True
        except NobodyComes as end:
            board.add(OPEN, -1)
            self._close(entrance, end)
            return False
        source = self._capacity.source(peer)
        if source and not self._admit(source, peer):
            board.add(OPEN, -1)
            board.add(REFUSED, 1)
            sock.close()
            return True
        doorman = self._capacity.doorman
        if self._full and doorman is not None:
            board.add(REFUSED, 1)
            work = doorman.turn_away(self._loop, sock)
        else:
            board.add(SERVED, 1)
            work = self._service.serve(self._loop, sock, peer)
        task = Task(self._loop, work, *self._callbacks)
        self._tasks[task] = source
        task.step()
        if (self._full or len(self._tasks) >= self._fits) and not self._draining:
            self._is_full()
        return self._paused is None

    def _note_no_connection(self, detail: str) -> None:
        self._log.fill_in(INFO, _REFUSED, ("-", "no-connection"), ("detail", detail))

    def _count_no_connections(self, more: int) -> None:
        if more:
            self._note_no_connection(f"{more} more in a second")

    def _close(self, entrance: Entrance, end: NobodyComes) -> None:
        """Do without an entrance that nobody comes in at any more."""
        if self._draining:
            return
        try:
            lockf(entrance.fileno(), LOCK_EX | LOCK_NB)  # until it is closed
        except BlockingIOError:
            pass  # another worker finds it out at the same moment, and says so
        else:
            if not self._board.total(ENDED):
                self._board.add(ENDED, 1)
                self._log.warning(str(end))
        self._loop.unregister(entrance.fileno())
        self._entrances.remove(entrance)
        entrance.close()
        if not self._entrances and self._retire is not None:
            self._retire(for_good=True)

    def _admit(self, source: bytes, peer: Peer) -> bool:
        """Count a client's connection, if it may have another one."""
        self._board.count_source(source, 1)
        if self._board.connections_of(source) <= self._capacity.per_source:
            return True
        self._board.count_source(source, -1)
        self._log.fill_in(INFO, _REFUSED, (peer.text, "too-many-of-this-source"))
        return False

    # Serving

    def _on_return(self, number: int) -> None:
        self._close_account()
        if number:
            self._note(number)

    def _on_failure(self, error: BaseException) -> None:
        self._close_account()
        if isinstance(error, OSError):
            self._note(error.errno or errno.EIO)
        elif not isinstance(error, Cut):
            self._log.error(f"this is a bug, please report it: {type(error).__name__}: {error}")

    def _close_account(self) -> None:
        """Forget the connection of the current task, which is over, and use the room it leaves."""
        task = self._loop.current
        assert task is not None
        source = self._tasks.pop(task)
        self._board.add(OPEN, -1)
        if source:
            self._board.count_source(source, -1)
        if self._paused is not None:
            self._paused.cancel()
            self._resume()
        elif self._full and len(self._tasks) < self._fits and not self._draining:
            self._is_full()
        if self._draining and not self._tasks:
            self._drained.wake()

    # Shortages

    def _note(self, number: int) -> None:
        """Note what a session ran out of."""
        # Ports run out for one destination only: no reason to let others wait.
        is_ours = number != errno.EADDRNOTAVAIL
        self._run_short(f"a request could not be carried out: {os.strerror(number)}", is_ours)

    def _run_short(self, what: str, pause: bool = True) -> None:
        self._shortage.meet(what)
        if self._draining:
            self._shortage.forget()
        elif pause:
            self._pause()


def _limit() -> int:
    return getrlimit(RLIMIT_NOFILE)[0]


def descriptors_left() -> int:
    """How many descriptors this process may still open for connections."""
    with os.scandir("/proc/self/fd") as entries:
        used = sum(1 for _ in entries) - 1
    return max(_limit() - used - _RESERVE, 0)
