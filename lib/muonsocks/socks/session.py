"""One connection, first byte to last: negotiate, check, dial, reply, relay.

The same coroutines serve one connection on standard input and output and thousands in a server;
the two halves, `negotiate` and `fulfil`, are also programs of their own.
"""

from __future__ import annotations

import errno
import os
from time import monotonic

from muonsocks.errors import DialError, NameNotResolved, RefusedByRule, RemoteProtocolError
from muonsocks.log import DEBUG, INFO, Form, Log, quoted
from muonsocks.net.relay import Ended, Relay
from muonsocks.net.stream import PeerGone, Stream
from muonsocks.net.task import Pause
from muonsocks.socks.negotiation import (
    FIRST_READ,
    Server,
    choose_method,
    refusal_without_password,
    server_for,
)
from muonsocks.socks.request import (
    Command,
    Credentials,
    CredentialsVerdict,
    Method,
    MethodChoice,
    MethodOffer,
    Reply,
    ReplyCode,
    Request,
    reply_code,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from muonsocks.address import Endpoint
    from muonsocks.net.inherit import Peer
    from muonsocks.net.loop import Loop
    from muonsocks.net.task import Waitable
    from muonsocks.socks.policy import Policy

_READ = 1024  # bytes at a time from a client that negotiates: a whole handshake, as a rule
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN)
_LINGER = 2.0  # s that a client is given to read what it was told last
_REMEMBERING = 2.0  # s that a client waits at most while its address is written down
_IN_NO_NETWORK = "the client is in no trusted network"

_CHOICES = {
    method: MethodChoice(method) for method in (Method.NONE, Method.PASSWORD, Method.NO_ACCEPTABLE)
}

# Log lines, muonsocks(7)
_FACTS = ("client", "user", "target")
_CONNECTED = Form("connected", *_FACTS, "address")
_TRIED = Form("", *_FACTS, "tried")
_WHO = Form("", *_FACTS)
_CLOSED = Form("closed", *_FACTS, "reply", "in", "out", "secs", "end")


class Finished(Exception):
    """The session is over before it could relay. `end` says why, for the log."""

    def __init__(self, end: str, detail: str = "") -> None:
        super().__init__(end)
        self.end = end
        self.detail = detail


class Session:
    """One client's connection and what is known of it.

    After `run`, `refused_by_rule` tells how it went.
    """

    __slots__ = (
        "_client",
        "_interruption",
        "_log",
        "_peer",
        "_policy",
        "_relay",
        "_reply",
        "_short_of",
        "_started",
        "refused_by_rule",
        "target",
        "user",
    )

    def __init__(self, client: Stream, peer: Peer, policy: Policy, log: Log) -> None:
        self._client = client
        self._peer = peer
        self._policy = policy
        self._log = log
        self._started = monotonic()
        self.target = ""
        self._reply: int | None = None
        self._relay: Relay | None = None
        self._interruption: BaseException | None = None  # of a relay
        self.user = b""
        self.refused_by_rule = False
        self._short_of = 0

    @property
    def loop(self) -> Loop:
        """The loop that the client's stream is in."""
        return self._client.loop

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

    # The first half: what the client wants

    async def negotiate(self, exact: bool = False) -> tuple[Server, Request]:
        """Bring the client to its request, within the time limit, or raise Finished.

        With `exact` not one byte behind the request is read, so that another program can go on.
        """
        client = self._client
        server: Server | None = None
        limit = FIRST_READ if exact else _READ
        try:
            with client.loop.deadline(self._policy.limits.handshake):
                while data := await client.receive(limit):
                    if server is None:
                        server = server_for(data)
                    server.receive(data)
                    while (event := server.next_event()) is not None:
                        if isinstance(event, Request):
                            self.target = str(event.destination)
                            if server.version != "5":
                                await self._admit_without_password(server, event.user)
                            return server, event
                        if isinstance(event, MethodOffer):
                            method = self._method(event.methods)
                            answer = server.send(_CHOICES[method])
                            if method == Method.NO_ACCEPTABLE:
                                await self._turn_away(answer)
                        else:
                            assert isinstance(event, Credentials)
                            answer = await self._judge(server, event)
                        if left := client.send_now(answer):
                            await client.send(left)
                    if exact:
                        limit = server.wants
        except TimeoutError:
            raise Finished("handshake-timeout") from None
        except RemoteProtocolError as error:
            self._reply = error.code
            await self._say_goodbye(error.reply)
            raise Finished("protocol-error", str(error)) from None
        raise Finished("client-left")

    def _method(self, offered: bytes) -> int:
        """Choose among the methods that a client offers."""
        access = self._policy.access
        if not access.is_limited:
            return choose_method(offered, False, False)
        if access.bars(self._peer):
            return Method.NO_ACCEPTABLE
        return choose_method(offered, self._needs_password(), access.users is not None)

    async def _turn_away(self, answer: bytes) -> None:
        """Tell a client that none of its methods will do."""
        await self._say_goodbye(answer)
        access = self._policy.access
        if access.bars(self._peer):
            raise Finished("client-refused", _IN_NO_NETWORK)
        wanted = "no authentication" if access.users is None else "a password"
        raise Finished("no-acceptable-method", f"{wanted} was not offered")

    async def _judge(self, server: Server, credentials: Credentials) -> bytes:
        """Give the answer to a user's name and password, if they are right."""
        accepted = await self._accept(credentials)
        if accepted:
            await self._remember()
        answer = server.send(CredentialsVerdict(accepted))
        if not accepted:
            await self._say_goodbye(answer)
            raise Finished("authentication-failed")
        return answer

    async def _admit_without_password(self, server: Server, user: bytes) -> None:
        """Refuse a SOCKS4 client, which claims to be `user`, if it may not just come in."""
        access = self._policy.access
        needs_password = self._needs_password()
        if needs_password or access.users is None:
            self.user = user  # where there are users, one is who has shown it
        if access.bars(self._peer):
            await self.refuse(server, ReplyCode.NOT_ALLOWED)
            raise Finished("client-refused", _IN_NO_NETWORK)
        if needs_password:
            await self.refuse(server, refusal_without_password(user))
            raise Finished("authentication-failed", "SOCKS4 has no passwords")

    def _needs_password(self) -> bool:
        try:
            return self._policy.access.needs_password(self._peer)
        except OSError as error:
            self._complain(error)
            return True

    async def _accept(self, credentials: Credentials) -> bool:
        users = self._policy.access.users
        assert users is not None, "credentials are asked for only if there are users"
        self.user = credentials.user
        if users.hashed:
            return await self._client.loop.compute(users.accept, credentials)
        return users.accept(credentials)

    async def _remember(self) -> None:
        """Let the client's address in without a password from now on, if that is wanted.

        It is no fault of the client if that cannot be.
        """
        known, address = self._policy.access.auth_once, self._peer.address
        if known is None or address is None:
            return
        limit = self.loop.deadline(_REMEMBERING)
        try:
            with limit:
                await self.loop.in_thread(known.remember, address)
        except OSError as error:
            if isinstance(error, TimeoutError) and not limit.passed:
                raise  # it was the handshake's time that has passed
            self._complain(error)

    def _complain(self, error: OSError) -> None:
        access = self._policy.access
        if not access.has_complained:
            access.has_complained = True
            reason = error.strerror or str(error)
            self._log.warning(f"addresses that have authenticated cannot be remembered: {reason}")

    # The second half: what the client gets

    async def fulfil(
        self,
        server: Server | None,
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
        self._relay = relay = Relay(self._client, far, early)
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
                await stream.abort(_LINGER)
            for half in (relay.up, relay.down):
                if half.source not in ended.owed_resets and not half.ended:
                    await half.source.linger(_LINGER)  # it still sends, but nobody takes it
            return ended
        finally:
            far.close()
            error = None  # or it would keep itself alive, through this frame

    async def refuse(self, server: Server | None, code: int) -> None:
        """Answer a request with a failure."""
        answer = b""
        if server is not None:
            self._reply = code
            answer = server.send(Reply(code))
        await self._say_goodbye(answer)

    async def _say_goodbye(self, last_words: bytes) -> None:
        """Tell the client what it has earned, and see that it can read it."""
        try:
            with self.loop.deadline(_LINGER):
                await self._client.send(last_words)
        except OSError:
            return  # it has not waited for an answer, or does not read it
        await self._client.linger(_LINGER)

    # Log lines

    def _facts(self) -> tuple[str, str, str]:
        return self._peer.text, quoted(self.user), self.target or "-"

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
