"""The process of a worker, from the fork to its end, and what its supervisor tells it.

They have a channel, a socketpair:

    to the supervisor   READY, once the worker is about to accept
    to the worker       TAKE, with configuration that was read again
                        DRAIN: accept no more, finish within the time for that, and end; an end
                            of file means the same
                        FINISH: as there is nobody to come any more, finish in any time, and end
                        CUT_NOW: end at once
"""

from __future__ import annotations

import _pickle
import gc
import os
from _signal import (
    SIG_DFL,
    SIG_IGN,
    SIG_UNBLOCK,
    SIGCHLD,
    SIGHUP,
    SIGINT,
    SIGTERM,
    pthread_sigmask,
    signal,
)

from muonsocks.errors import UsageError, in_one_line
from muonsocks.net.loop import Loop
from muonsocks.net.signals import Signals
from muonsocks.net.stream import Stream
from muonsocks.net.task import Mailbox
from muonsocks.resident.worker import Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Sequence
    from typing import NoReturn

    from muonsocks.log import Log
    from muonsocks.net.entrance import Entrance
    from muonsocks.resident.board import Board
    from muonsocks.resident.plan import Plan, Service

READY, TAKE, DRAIN, FINISH, CUT_NOW = b"R", b"T", b"D", b"F", b"C"
MEANT_FOR_ALL = (SIGTERM, SIGINT, SIGHUP)  # the workers get them too, but leave them to it
HAS_SAID_WHY = 111  # exit status of a worker that has logged what went wrong
NOTHING_LEFT = 75  # and of one for which there is nothing to serve any more
GIVEN_UP = 76  # and of one for which that is so because something has failed, which it has logged
_FAREWELL = 1.0  # s for connections then, to give their clients what they have got


def take_order(configuration: object) -> bytes:
    """Write the order to take configuration: its length follows, 4 bytes, and then itself."""
    pickled = _pickle.dumps(configuration)
    return TAKE + len(pickled).to_bytes(4, "big") + pickled


class Process:
    """What a worker process does, and with what."""

    __slots__ = (
        "_board",
        "_drain",
        "_entrances",
        "_log",
        "_loop",
        "_plan",
        "_service",
        "_status",
        "_worker",
    )

    _loop: Loop
    _worker: Worker

    def __init__(
        self, service: Service, entrances: Sequence[Entrance], plan: Plan, board: Board, log: Log
    ) -> None:
        self._service = service
        self._entrances = entrances
        self._plan = plan
        self._board = board
        self._log = log
        self._drain = Mailbox()  # once it is time to: whether all workers do, and for how long (s)
        self._status = 0

    def run(self, channel: socket, beat: float) -> NoReturn:
        """Serve, showing a sign of life every `beat` seconds (0: none); then end the process."""
        status = HAS_SAID_WHY
        try:
            self._log.after_fork()
            for ignored in MEANT_FOR_ALL:
                signal(ignored, SIG_IGN)
            signal(SIGCHLD, SIG_DFL)
            pthread_sigmask(SIG_UNBLOCK, (*MEANT_FOR_ALL, SIGCHLD))
            self._loop = loop = Loop()
            Signals(loop)
            capacity = self._plan.capacity
            service, retire = self._service, self._retire
            self._worker = worker = Worker(
                loop, self._entrances, service, capacity, self._board, self._log, retire
            )
            service.settle(loop, retire)
            gc.disable()  # sessions leave no cycles, and looking for them costs more than they do
            stream = Stream(loop, channel)
            loop.run(self._work(stream, worker, beat))
            service.finish()
            status = self._status
        except ConnectionError:
            pass  # the supervisor is gone already, and has said why
        except (UsageError, OSError) as error:
            self._log.error(in_one_line(error))
        except BaseException as error:
            self._log.error(f"this is a bug, please report it: {type(error).__name__}: {error}")
        os._exit(status)

    def _retire(self, for_good: bool = False, failed: bool = False, cuts: bool = False) -> None:
        if for_good:
            self._status = GIVEN_UP if failed else NOTHING_LEFT
        if cuts:
            self._loop.call_later(_FAREWELL, self._worker.cut)
        self._drain.post((for_good, None if for_good else self._plan.drain))

    async def _work(self, channel: Stream, worker: Worker, beat: float) -> None:
        """Accept until told to stop, then drain."""
        loop = channel.loop

        def show_life() -> None:
            self._board.beat()
            loop.call_later(beat, show_life)

        if beat:
            show_life()
        await channel.send(READY)
        for pid in self._service.programs or ():
            worker.adopt(self._service.go_on_with(loop, pid))
        worker.start()
        loop.spawn(self._obey(channel, worker), self._on_failure)
        is_last, seconds = await self._drain.take()
        await worker.drain(seconds, is_last)

    async def _obey(self, channel: Stream, worker: Worker) -> None:
        """Follow the supervisor's orders."""
        try:
            while order := await channel.receive(1):
                if order == TAKE:
                    length = int.from_bytes(await _exactly(channel, 4), "big")
                    self._service.take(_pickle.loads(await _exactly(channel, length)))
                elif order == DRAIN:
                    self._stop(worker)
                elif order == FINISH:
                    self._retire(for_good=True)
                else:
                    worker.cut()
        finally:
            self._stop(worker)  # the supervisor is gone, and a new one may want to listen

    def _stop(self, worker: Worker) -> None:
        """Limit the time that is left, whether or not it is the end already."""
        if self._status:
            self._loop.call_later(self._plan.drain, worker.cut)
        self._drain.post((True, self._plan.drain))

    def _on_failure(self, error: BaseException) -> None:
        if not isinstance(error, ConnectionError):  # then the supervisor is gone, too
            raise error


async def _exactly(stream: Stream, size: int) -> bytes:
    parts = []
    while size:
        part = await stream.receive(size)
        if not part:
            raise ConnectionResetError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
