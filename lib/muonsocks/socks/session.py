"""One connection, first byte to last: negotiate, check, dial, reply, relay.

The same coroutines serve one connection on standard input and output and thousands in a server;
the two halves, `negotiate` (admission.py) and `fulfil`, are also programs of their own.
"""

from __future__ import annotations

import errno
import os
from time import monotonic

from muonsocks.errors import DialError, NameNotResolved, RefusedByRule
from muonsocks.log import DEBUG, INFO, Form, Log
from muonsocks.net.relay import Ended, Relay
from muonsocks.net.stream import PeerGone, Stream
from muonsocks.net.task import Pause
from muonsocks.socks.admission import LINGER, Admission, Finished
from muonsocks.socks.request import Command, Reply, ReplyCode, Request, reply_code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from muonsocks.address import Endpoint
    from muonsocks.net.inherit import Peer
    from muonsocks.net.task import Waitable
    from muonsocks.socks.admission import Answerer
    from muonsocks.socks.policy import Policy

# What this host can run out of; ENOSPC is epoll's limit on what all may watch together
_SHORTAGES = (
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOBUFS,
    errno.EAGAIN,
    errno.ENOSPC,
)

# Log lines, muonsocks(7)
_FACTS = ("client", "user", "target")
_CONNECTED = Form("connected", *_FACTS, "address")
_TRIED = Form("", *_FACTS, "tried")
_WHO = Form("", *_FACTS)
_CLOSED = Form("closed", *_FACTS, "reply", "in", "out", "secs", "end")


class Session(Admission):
    """One client's connection and what is known of it.

    After `run`, `refused_by_rule` tells how it went.
    """

    __slots__ = ("_interruption", "_relay", "_short_of", "_started", "refused_by_rule")
    kind_of_relay = Relay

    def __init__(self, client: Stream, peer: Peer, policy: Policy, log: Log) -> None:
        super().__init__(client, peer, policy, log)
        self._started = monotonic()
        self._relay: Relay | None = None
        self._interruption: BaseException | None = None  # of a relay
        self.refused_by_rule = False
        self._short_of = 0

    def run(self) -> Coroutine[Waitable, None, int | Pause]:
        """Serve the client, and write its log lines. The client's stream is closed.

        Gives the errno of what this host ran out of, if that is why it ended, or 0. It is to be a
        task's coroutine, or the end of one: while it relays it pauses.
        """
        return self.logged(self._story)

    async def _story(self) -> Relay | None:
        server, request = await self.negotiate()
        return await self.fulfil(server, request, server.trailing)

    async def logged(self, story: Callable[[], Awaitable[Relay | Ended | None]]) -> int | Pause:
        """Run a part of a session, log how it ended and close the client's stream.

        A story that gives None has not ended: another program goes on with the client. Nor has one
        that gives a relay: it goes on when that is over.
        """
        end, detail = "terminated", ""
        try:
            ended = await story()
            if isinstance(ended, Relay):
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
                self._client.close()
        return self._short_of

    def _resume(self, error: BaseException | None) -> Coroutine[Waitable, None, int | Pause]:
        """Go on after a relay, or with what it was interrupted by."""
        self._interruption = error
        return self.logged(self._wind_up)

    # What the client gets

    async def fulfil(
        self,
        server: Answerer | None,
        request: Request,
        early: bytes = b"",
        reach: Callable[[], Awaitable[Stream]] | None = None,
    ) -> Relay | None:
        """Carry out a request: dial, reply, relay. Finished if that cannot be.

        What it gives is for `logged`, see `relay`.

        `early` is what the client has sent behind its request; `reach` is another way to the far
        end than to dial the destination under the rules. Without a `server` there is nobody to
        reply to.
        """
        if request.command != Command.CONNECT:
            await self.refuse(server, ReplyCode.COMMAND_NOT_SUPPORTED)
            raise Finished("command-not-supported", f"command {request.command}")
        try:
            self._client.watch()
            far = await (reach() if reach is not None else self._dial(request.destination))
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
            if error.errno in _SHORTAGES:
                raise
            if error.errno == errno.EADDRNOTAVAIL:
                self._short_of = error.errno  # of ports, as far as one can tell
            end = "name-not-found" if isinstance(error, NameNotResolved) else "dial-failed"
            raise Finished(end, error.strerror or str(error)) from None
        finally:
            self._client.unwatch()
        try:
            if server is not None:
                self._reply = ReplyCode.SUCCEEDED
                answer = server.send(Reply(ReplyCode.SUCCEEDED, far.local_endpoint()))
                if left := self._client.send_now(answer):
                    await self._finish_reply(left)
            return await self.relay(far, early)
        except BaseException:
            far.close()
            raise

    async def _finish_reply(self, left: bytes) -> None:
        try:
            with self.loop.deadline(self._policy.limits.handshake):
                await self._client.send(left)
        except TimeoutError:
            raise Finished("client-lost", "the reply is not read") from None

    def _dial(self, destination: Endpoint) -> Awaitable[Stream]:
        """Dial a destination under the rules, which may refuse it at once."""
        refusal = self._policy.rules.refusal(destination, destination.packed)
        if refusal:
            raise RefusedByRule(refusal)
        if destination.packed is None:
            return self._dial_name(destination)
        return self._policy.dialler.dial(self._client.loop, destination)

    async def _dial_name(self, destination: Endpoint) -> Stream:
        rules, refusal = self._policy.rules, ""

        def permit(address: bytes) -> bool:
            nonlocal refusal
            refusal = rules.refusal(destination, address)
            return not refusal

        try:
            return await self._policy.dialler.dial(self.loop, destination, permit)
        except RefusedByRule:
            raise RefusedByRule(refusal) from None

    async def relay(self, far: Stream, early: bytes = b"") -> Relay | None:
        """Join the client and the far end until they are done with each other: `logged` sees to
        what comes then, if that is this process's business, and to `far`.

        None if a resident relay does it, and the streams are not this process's any more.
        """
        if self._log.level >= INFO:
            self._log.fill_in(INFO, _CONNECTED, (*self._facts(), far.name))
        if self._policy.resident and await self._is_handed_over(far, early):
            return None
        return self.join(far, early)

    async def _is_handed_over(self, far: Stream, early: bytes) -> bool:
        """Leave the connection to the resident relay, if that is there and takes it."""
        from muonsocks.socks.handover import NotTaken, hand_over
        from muonsocks.socks.offer import Offer

        client, limits = self._client, self._policy.limits
        try:
            offer = Offer(
                self._peer.text,
                self.user,
                self.target,
                far.name,
                self._reply,
                monotonic() - self._started,
                limits.idle,
                limits.half_close,
                early,
            )
            await hand_over(self._policy.resident, offer, client, far)
        except (NotTaken, ValueError) as reason:
            self._log.debug(f"{_WHO.text % self._facts()} not handed over: {reason}")
            return False
        except BaseException:
            for stream in (client, far):
                stream.reset_on_close()  # the client has been told that it is connected
            raise
        client.give_away()
        far.close()
        return True

    def join(self, far: Stream, early: bytes = b"") -> Relay:
        """Begin to relay here. It is for `logged` to go on when that is over."""
        limits = self._policy.limits
        self._relay = relay = self.kind_of_relay(self._client, far, early)
        try:
            relay.start(limits.idle, limits.half_close)
        except BaseException:
            relay.stop()
            for stream in (self._client, far):
                stream.reset_on_close()
            raise
        return relay

    async def _wind_up(self) -> Ended:
        """See after a relay that both sides can read what they were told last; close `far`.

        Or raise what it was interrupted by.
        """
        relay = self._relay
        assert relay is not None
        client, far = relay.up.source, relay.down.source
        error, self._interruption = self._interruption, None
        try:
            ended = relay.stop()
            if error is not None:
                for stream in (client, far):
                    stream.reset_on_close()  # what was carried is not the whole
                raise error
            if ended.reason == "closed":
                return ended
            for stream in ended.owed_resets:
                await stream.abort(LINGER)
            for half in (relay.up, relay.down):
                if half.source not in ended.owed_resets and not half.ended:
                    await half.source.linger(LINGER)  # it still sends, but nobody takes it
            return ended
        finally:
            far.close()
            error = None  # or it would keep itself alive, through this frame

    # Log lines

    def _log_failures(self, error: DialError) -> None:
        if self._log.level < DEBUG:
            return
        for address, number in error.failures:
            why = ("error", os.strerror(number))
            self._log.fill_in(DEBUG, _TRIED, (*self._facts(), address), why)

    def _log_closed(self, end: str, detail: str) -> None:
        relay = self._relay
        if self._log.level < INFO:
            return
        values = (
            *self._facts(),
            "-" if self._reply is None else f"{self._reply}",
            "0" if relay is None else f"{relay.up.count}",
            "0" if relay is None else f"{relay.down.count}",
            f"{monotonic() - self._started:.3f}",
            end,
        )
        self._log.fill_in(INFO, _CLOSED, values, ("detail", detail) if detail else None)
