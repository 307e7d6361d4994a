"""One connection, first byte to last: negotiate, carry out what is asked for, reply, relay.

The same coroutines serve one connection on standard input and output and thousands in a server;
the two halves, `negotiate` (admission.py) and `fulfil`, are also programs of their own.

    CONNECT     here: dial under the rules. Through proxies: ways.py, which asks proxy_chain.py
    BIND        bind.py
    ASSOCIATE   associate.py, of which association.py is what goes on while the client stays
    RESOLVE     and RESOLVE_PTR: resolve.py
"""

from __future__ import annotations

import errno
import os
from time import monotonic

from muonsocks.errors import SHORTAGES, DialError, RefusedByRule
from muonsocks.log import DEBUG, INFO, Form, Log
from muonsocks.net.relay import Ended, Joint, Relay
from muonsocks.net.stream import PeerGone, Stream
from muonsocks.net.task import Pause
from muonsocks.socks.admission import LINGER, Admission, Finished
from muonsocks.socks.request import (
    Command,
    ReplyCode,
    Request,
    end_of,
    reply_code,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import TypeVar

    from muonsocks.address import Endpoint
    from muonsocks.net.inherit import Peer
    from muonsocks.net.task import Waitable
    from muonsocks.socks.admission import Answerer
    from muonsocks.socks.policy import Policy

    T = TypeVar("T")

# Log lines, muonsocks(7)
FACTS = ("client", "user", "target")
_CONNECTED = Form("connected", *FACTS, "address")
_TRIED = Form("", *FACTS, "tried")
_NOTHING = {"in": 0, "out": 0}
# How the connections end by which a proxy in front of us looks whether we are there
_OF_A_LOOK = ("client-left", "client-lost", "no-acceptable-method", "client-refused")
_CLOSED = Form("closed", *FACTS, "reply", *_NOTHING, "secs", "end")


class Session(Admission):
    """One client's connection and what is known of it.

    After `run`, `refused_by_rule` tells how it went.
    """

    __slots__ = ("_interruption", "_lacks", "bound", "joint", "refused_by_rule", "started", "via")
    kind_of_relay = Relay

    def __init__(self, client: Stream, peer: Peer, policy: Policy, log: Log) -> None:
        super().__init__(client, peer, policy, log)
        self.started = monotonic()
        self.joint: Joint | None = None
        self._interruption: BaseException | None = None  # of a joint
        self.refused_by_rule = False
        self._lacks = 0
        self.via: tuple[str, str] | None = None  # the log's field for the proxies gone through
        self.bound: Endpoint | None = None  # for the client, by the last of them

    def run(self) -> Coroutine[Waitable, None, int | Pause]:
        """Serve the client, and write its log lines. The client's stream is closed.

        Gives the errno of what this host ran out of, if that is why it ended, or 0. It is to be a
        task's coroutine, or the end of one: while it relays it pauses.
        """
        return self.logged(self._story)

    async def _story(self) -> Joint | None:
        server, request = await self.negotiate()
        return await self.fulfil(server, request, server.trailing)

    async def logged(self, story: Callable[[], Awaitable[Joint | Ended | None]]) -> int | Pause:
        """Run a part of a session, log how it ended and close the client's stream.

        A story that gives None has not ended: another program goes on with the client. Nor has one
        that gives a joint: it goes on when that is over.
        """
        end, detail = "terminated", ""
        try:
            ended = await story()
            if isinstance(ended, Joint):
                if not ended.reason:
                    end = ""
                    return Pause(ended, self._resume)
                ended = await self._wind_up()
            end = "" if ended is None else ended.reason
        except Finished as finished:
            end, detail = finished.end, finished.detail
        except ConnectionError as error:
            end, detail = "client-lost", error.strerror or ""
        except OSError as error:
            end, detail = "system-error", error.strerror or str(error)
            raise
        except Exception as error:
            end, detail = "system-error", type(error).__name__
            raise
        finally:
            if end:
                self._log_closed(end, detail)
                self.client.close()
        return self._lacks

    def _resume(self, error: BaseException | None) -> Coroutine[Waitable, None, int | Pause]:
        """Go on after a joint, or with what it was interrupted by."""
        self._interruption = error
        return self.logged(self._wind_up)

    # What the client gets

    async def fulfil(
        self,
        server: Answerer | None,
        request: Request,
        early: bytes = b"",
        reach: Callable[[], Awaitable[Stream]] | None = None,
    ) -> Joint | None:
        """Carry out a request, and answer it. Finished if that cannot be, or was all.

        What it gives is for `logged`, see `relay`.

        `early` is what the client has sent behind its request; `reach` is another way to the far
        end than to dial the destination under the rules, and only for CONNECT. Without a `server`
        there is nobody to reply to.
        """
        if request.command != Command.CONNECT:
            if server is None or reach is not None:
                await self.refuse_command(server, request.command)
            return await self._carry_out(server, request, early)
        destination = request.destination
        far = await self.attempt(server, reach or (lambda: self.dial(destination)))
        try:
            if server is not None:
                await self.grant(server, self.bound or far.local_endpoint())
            return await self.relay(far, early)
        except BaseException:
            far.close()
            raise

    async def _carry_out(self, server: Answerer, request: Request, early: bytes) -> Joint | None:
        """Do what is asked for less often than CONNECT; each command is a module of its own."""
        command = request.command
        if command == Command.BIND:
            from muonsocks.socks.bind import bind

            return await bind(self, server, request, early)
        if command in (Command.RESOLVE, Command.RESOLVE_PTR):
            from muonsocks.socks.resolve import resolve

            await resolve(self, server, request)
        if command == Command.ASSOCIATE:
            from muonsocks.socks.associate import associate

            return await associate(self, server, request)
        await self.refuse_command(server, command)

    async def attempt(
        self,
        server: Answerer | None,
        act: Callable[[], Awaitable[T]],
        failure: str = "dial-failed",
    ) -> T:
        """Do a part of what is asked for, while the client is there. If it fails the client is told
        so, and Finished is raised, with `failure` unless there is a better word for it.
        """
        try:
            self.client.watch()
            return await act()
        except PeerGone as error:
            raise Finished("client-lost", str(error)) from None
        except RefusedByRule as error:
            self.refused_by_rule = True
            await self.refuse(server, ReplyCode.NOT_ALLOWED)
            raise Finished("refused-by-rule", str(error)) from None
        except OSError as error:
            if isinstance(error, DialError):
                self._log_failures(error)
            await self.refuse(server, reply_code(error))
            if error.errno in SHORTAGES:
                raise
            if error.errno == errno.EADDRNOTAVAIL:
                self._lacks = error.errno  # of ports, as far as one can tell
            raise Finished(end_of(error, failure), error.strerror or str(error)) from None
        finally:
            self.client.unwatch()

    def dial(self, destination: Endpoint) -> Awaitable[Stream]:
        """Dial a destination under the rules, which may refuse it at once."""
        if self.policy.rules.has_ways:
            from muonsocks.socks import ways

            return ways.reach(self, destination)
        if destination.packed is None:
            return self._dial_name(destination)
        verdict = self.policy.rules.of_address(Command.CONNECT, destination, destination.packed)
        if verdict.refusal:
            raise RefusedByRule(verdict.refusal)
        return self.introduced(self.policy.dialler.dial(self.loop, destination))

    def introduced(self, connecting: Awaitable[Stream]) -> Awaitable[Stream]:
        """Have whoever is connected to told first who the client is, if that is wanted."""
        if not self.policy.sends_proxy_header:
            return connecting
        from muonsocks.socks.introduction import introduce

        return introduce(self, connecting)

    async def _dial_name(self, destination: Endpoint) -> Stream:
        rules = self.policy.rules
        verdict = rules.of_name(Command.CONNECT, destination)
        if verdict is not None and verdict.refusal:
            raise RefusedByRule(verdict.refusal)
        refusal = ""

        def permit(address: bytes) -> bool:
            nonlocal refusal
            refusal = rules.of_address(Command.CONNECT, destination, address).refusal
            return not refusal

        try:
            dialling = self.policy.dialler.dial(self.loop, destination, permit)
            return await self.introduced(dialling)
        except RefusedByRule:
            raise RefusedByRule(refusal) from None

    async def relay(self, far: Stream, early: bytes = b"") -> Relay | None:
        """Join the client and the far end until they are done with each other: `logged` sees to
        what comes then, if that is this process's business, and to `far`.

        None if a resident relay does it, and the streams are not this process's any more.
        """
        if self.log.level >= INFO:
            self.log.fill_in(INFO, _CONNECTED, (*self.facts(), far.name), self.via)
        if self.policy.resident:
            from muonsocks.socks.handover import is_taken_over

            if await is_taken_over(self, far, early):
                return None
        return self.join(far, early)

    def join(self, far: Stream, early: bytes = b"") -> Relay:
        """Begin to relay here. It is for `logged` to go on when that is over."""
        limits = self.policy.limits
        self.joint = relay = self.kind_of_relay(self.client, far, early)
        try:
            relay.start(limits.idle, limits.half_close)
        except BaseException:
            relay.stop()
            for stream in (self.client, far):
                stream.reset_on_close()
            raise
        return relay

    async def _wind_up(self) -> Ended:
        """See a joint to its end; or raise what it was interrupted by."""
        joint, error = self.joint, self._interruption
        assert joint is not None
        self._interruption = None
        try:
            return await joint.wind_up(error, LINGER)
        finally:
            error = None  # or it would keep itself alive, through this frame

    # Log lines

    def _log_failures(self, error: DialError) -> None:
        if self.log.level < DEBUG:
            return
        for address, number in error.failures:
            why = ("error", os.strerror(number))
            self.log.fill_in(DEBUG, _TRIED, (*self.facts(), address), why)

    def _log_closed(self, end: str, detail: str) -> None:
        # but who has shown a password, or asked for something, has not only looked
        is_look = self.for_nobody and not (self.user or self.target) and end in _OF_A_LOOK
        level = DEBUG if is_look else INFO
        if self.log.level < level:
            return
        joint = self.joint
        counts = _NOTHING if joint is None else joint.counts()
        values = (
            *self.facts(),
            "-" if self.reply is None else f"{self.reply}",
            *map(str, counts.values()),
            f"{monotonic() - self.started:.3f}",
            end,
        )
        form = _CLOSED if len(counts) == len(_NOTHING) else _closed_with(counts)
        self.log.fill_in(level, form, values, ("detail", detail) if detail else None)


def _closed_with(counts: dict[str, int]) -> Form:
    return Form("closed", *FACTS, "reply", *counts, "secs", "end")
