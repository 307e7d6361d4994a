"""The guest's side: SOCKS clients come in here, and the host carries out what they ask for."""

from __future__ import annotations

from muonsocks.errors import RequestFailed
from muonsocks.mux.carriage import Carriage
from muonsocks.mux.channel import Channel
from muonsocks.mux.side import Side
from muonsocks.net.task import Waitable
from muonsocks.socks.request import ReplyCode
from muonsocks.socks.session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import TypeVar

    from muonsocks.address import Endpoint
    from muonsocks.log import Log
    from muonsocks.mux.connection import Connection
    from muonsocks.mux.link import Bounds
    from muonsocks.mux.places import Place
    from muonsocks.net.inherit import Peer
    from muonsocks.net.loop import Loop
    from muonsocks.net.relay import Joint
    from muonsocks.net.stream import Stream
    from muonsocks.socks.policy import Policy

    T = TypeVar("T")


class GuestSession(Session):
    """One client of a guest."""

    __slots__ = ("_channel", "_guest")
    kind_of_relay = Carriage

    def __init__(self, client: Stream, peer: Peer, policy: Policy, log: Log, guest: Guest) -> None:
        super().__init__(client, peer, policy, log)
        self._guest = guest
        self._channel: Channel | None = None

    async def _story(self) -> Joint | None:
        server, request = await self.negotiate()
        destination = request.destination
        return await self.fulfil(server, request, server.trailing, lambda: self._reach(destination))

    async def _reach(self, destination: Endpoint) -> Channel:
        self._channel = channel = await self._guest.reach(destination)
        return channel

    def _log_closed(self, end: str, detail: str) -> None:
        why = self._channel.why if self._channel is not None else ""
        super()._log_closed(end, detail or (f"the host says: {why}" if why else ""))


class Guest(Side):
    """The way to a host, for all clients of a guest."""

    __slots__ = ("_line", "_open_timeout", "_waiting")

    def __init__(
        self,
        loop: Loop,
        place: Place,
        bounds: Bounds,
        open_timeout: float | None,
        log: Log,
    ) -> None:
        """While the host is away a client waits for it `open_timeout` seconds, or for as long as
        it takes; and so for a number that an older host knows to be free.
        """
        super().__init__(loop, place, False, bounds, log)
        self._open_timeout = open_timeout
        self._waiting: dict[Waitable, None] = {}  # clients that wait for the host
        self._line: dict[Waitable, None] = {}  # and for one of its numbers, in their order

    async def reach(self, destination: Endpoint) -> Channel:
        """Have the host connect. RequestFailed with the code that the client is to get; at once if
        there will be no host any more.
        """
        patience = self._open_timeout
        until = None if patience is None else self.loop.now + patience
        while True:
            while not self.link.mux.is_up:
                if self.is_stopping:
                    raise RequestFailed(ReplyCode.GENERAL_FAILURE, "the guest has stopped")
                await self._in_time(self._await_host(), until, "the host is not there")
            connection = await self._open(destination, until)
            if connection is None and not self.link.mux.is_up:
                continue  # it has gone meanwhile
            if connection is None:
                reason = f"the host has no more than {self.link.mux.limit} connections"
                raise RequestFailed(ReplyCode.GENERAL_FAILURE, reason)
            channel = Channel(self.link, connection)
            self.link.outlet.flush_soon()
            try:
                await self._await_answer(channel)
            except BaseException as error:
                channel.close()
                if channel.is_cut_off and isinstance(error, RequestFailed):
                    continue  # there may be another host in a moment
                raise
            return channel

    async def _await_answer(self, channel: Channel) -> None:
        """Wait for what the host answers, for as long as it takes; but it is asked for a sign of
        life meanwhile. RequestFailed.
        """
        patience = self._open_timeout
        if patience is None:
            await channel.answer()
            return
        since, is_asked = self.loop.now, False
        while True:
            try:
                with self.loop.deadline(patience / 2) as deadline:
                    await channel.answer()
                    return
            except TimeoutError:
                if not deadline.passed:
                    raise
            if self.link.is_alive(since):
                since, is_asked = self.loop.now, False
            elif is_asked:
                raise RequestFailed(ReplyCode.GENERAL_FAILURE, "the host is not there")
            else:
                self.link.ask_for_life()
                is_asked = True

    async def _open(self, destination: Endpoint, until: float | None) -> Connection | None:
        """Open a connection, if there may be one more. While all numbers rest clients wait in line,
        until a time to come.
        """
        if not self._line:
            mux = self.link.mux
            connection = mux.open(destination)
            if connection is not None or not mux.pause():
                return connection
        return await self._in_time(
            self._open_in_line(destination), until, "none of the host's numbers is free"
        )

    async def _open_in_line(self, destination: Endpoint) -> Connection | None:
        """Open a connection when all who have come before have got theirs, or given up."""
        line, turn = self._line, Waitable()
        line[turn] = None
        try:
            while next(iter(line)) is not turn:
                await turn
            while True:
                mux = self.link.mux
                connection = mux.open(destination)
                if connection is not None or not (pause := mux.pause()):
                    return connection
                await self.loop.sleep(pause)
        finally:
            del line[turn]
            if line:
                self.loop.call_soon(next(iter(line)).wake)  # each in another would be too deep

    async def _await_host(self) -> None:
        """Wait until there is a session."""
        waiter = Waitable()
        self._waiting[waiter] = None
        try:
            await waiter
        finally:
            self._waiting.pop(waiter, None)

    async def _in_time(
        self, coroutine: Coroutine[Waitable, None, T], until: float | None, reason: str
    ) -> T:
        """Do something until a time to come. RequestFailed for this reason if it takes longer."""
        if until is None:
            return await coroutine
        try:
            with self.loop.deadline(max(until - self.loop.now, 0)) as deadline:
                return await coroutine
        except TimeoutError:
            if not deadline.passed:
                raise
            raise RequestFailed(ReplyCode.GENERAL_FAILURE, reason) from None

    def begun(self) -> None:
        self._wake_all()

    async def run(self) -> None:
        """Be there until the port is gone for good: then nobody need wait for the host."""
        try:
            await super().run()
        finally:
            self.stop("the port is gone")

    def stop(self, reason: str) -> None:
        """The same as for each side; clients that wait for the host wait no more."""
        super().stop(reason)
        self._wake_all()

    async def leave(self, reason: str) -> None:
        """The same as for each side; clients that wait for the host wait no more."""
        self.is_stopping = True
        self._wake_all()
        await super().leave(reason)

    def _wake_all(self) -> None:
        for waiter in tuple(self._waiting):
            waiter.wake()
