"""The host's side: it carries out what the guest asks for, under the rules."""

from __future__ import annotations

import errno
import os

from muonsocks.mux.carriage import Carriage
from muonsocks.mux.channel import Channel
from muonsocks.mux.events import Opened
from muonsocks.mux.side import Side
from muonsocks.net.inherit import Peer
from muonsocks.net.task import Task, Waitable
from muonsocks.socks.admission import LINGER
from muonsocks.socks.request import Command, Reply, ReplyCode, Request
from muonsocks.socks.session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.address import Endpoint
    from muonsocks.log import Log
    from muonsocks.mux.link import Bounds
    from muonsocks.mux.places import Place
    from muonsocks.net.loop import Loop
    from muonsocks.net.relay import Joint
    from muonsocks.socks.policy import Policy
    from muonsocks.socks.request import Event

_WINDING_UP = 2 * LINGER  # s that sessions have to end
_SILENCE = 10.0  # s after a complaint


class Stopped(BaseException):
    """The program is told to end."""


class HostSession(Session):
    """One connection that a guest has asked for."""

    __slots__ = ("_channel", "_destination")
    kind_of_relay = Carriage

    def __init__(self, channel: Channel, destination: Endpoint, policy: Policy, log: Log) -> None:
        super().__init__(channel, Peer(channel.name), policy, log)
        self._channel = channel
        self._destination = destination
        self.target = str(destination)

    async def _story(self) -> Joint | None:
        request = Request(Command.CONNECT, self._destination)
        return await self.fulfil(_Answers(self._channel), request)

    async def _say_goodbye(self, last_words: bytes) -> None:
        """The ANSWER was the last word."""

    def _log_closed(self, end: str, detail: str) -> None:
        why = self._channel.why
        super()._log_closed(end, f"the guest says: {why}" if why else detail)


class _Answers:
    """Stands where the machine of a SOCKS server does: a reply goes as ANSWER, not as bytes."""

    __slots__ = ("_channel",)
    version = "5"  # what that can tell, ANSWER can

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def send(self, event: Event) -> bytes:
        """Answer, and give no bytes to be sent."""
        assert isinstance(event, Reply)
        channel = self._channel
        channel.mux.answer(channel.connection, event.code, event.bound)
        channel.link.outlet.flush_soon()
        return b""


class Host(Side):
    """Serves the guest at a port, one after the other if they change."""

    __slots__ = ("_complains_from", "_emptied", "_most", "_policy", "served", "tasks")

    def __init__(
        self,
        loop: Loop,
        place: Place,
        policy: Policy,
        bounds: Bounds,
        log: Log,
    ) -> None:
        super().__init__(loop, place, True, bounds, log)
        self._policy = policy
        self.tasks: set[Task] = set()
        # A number is free before its session has ended: it may look a name up, or the far end may
        # have to be told. A guest that opens and resets is not to pile these up.
        self._most = 2 * bounds.connections
        self.served = 0
        self._emptied = Waitable()
        # When a host goes while both sides have much to say, QEMU 7.2 may let nothing more out of
        # the guest, until the next host has gone, too.
        self.deaf_for = place.deaf_for
        self.has_come_again = place.has_come_again
        self._complains_from = 0.0

    async def run(self) -> None:
        """Serve until the port is gone for good, and see that the far ends are told."""
        await super().run()
        try:
            with self.loop.deadline(_WINDING_UP):
                while self.tasks:
                    await self._emptied
        except TimeoutError:
            return  # the tool cuts those that are left

    def hear(self, event: Event) -> None:
        assert isinstance(event, Opened)
        if len(self.tasks) >= self._most:
            self.link.mux.answer(event.connection, ReplyCode.GENERAL_FAILURE)
            self.link.mux.release(event.connection)
            self.link.outlet.flush_soon()
            return
        channel = Channel(self.link, event.connection)
        session = HostSession(channel, event.destination, self._policy, self._log)
        self.served += 1
        task = Task(self.loop, session.run(), self._on_failure, self._on_return)
        self.tasks.add(task)
        task.step()

    async def leave(self, reason: str) -> None:
        """End all at once, and see that nothing is left on its way."""
        self.is_stopping = True
        for task in list(self.tasks):
            task.interrupt(Stopped())
        await super().leave(reason)

    async def hang_up(self) -> None:
        await super().hang_up()
        if not self._place.again:
            self._log.info("nothing has come from the guest: its port is to be connected once more")
        await self._place.hang_up(self.loop)

    def _on_return(self, number: int) -> None:
        self._is_over()
        if number:
            self._complain(number)

    def _on_failure(self, error: BaseException) -> None:
        self._is_over()
        if isinstance(error, OSError):
            self._complain(error.errno or errno.EIO)
        elif not isinstance(error, Stopped):
            self._log.error(f"this is a bug, please report it: {type(error).__name__}: {error}")

    def _is_over(self) -> None:
        task = self.loop.current
        assert task is not None
        self.tasks.remove(task)
        if not self.tasks:
            self._emptied.wake()

    def _complain(self, number: int) -> None:
        """Say what this host ran out of, now and then."""
        now = self.loop.now
        if now >= self._complains_from:
            self._complains_from = now + _SILENCE
            self._log.warning(f"a request could not be carried out: {os.strerror(number)}")
