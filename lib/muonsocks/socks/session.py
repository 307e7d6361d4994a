"""One connection, first byte to last: negotiate, check, dial, reply, relay.

The same coroutines serve one connection on standard input and output and thousands in a server;
the two halves, `negotiate` and `fulfil`, are also programs of their own.
"""

from __future__ import annotations

import errno
import os
from time import monotonic

from muonsocks.errors import DialError, NameNotResolved, RefusedByRule, RemoteProtocolError
from muonsocks.log import INFO, Log, quoted
from muonsocks.net.dial import Dialler
from muonsocks.net.relay import Ended, Relay
from muonsocks.net.stream import PeerGone, Stream
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
from muonsocks.socks.rules import Rules
from muonsocks.socks.users import Users

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from muonsocks.address import Endpoint, Network
    from muonsocks.net.inherit import Peer
    from muonsocks.net.loop import Loop

_READ = 1024  # bytes at a time from a client that negotiates: a whole handshake, as a rule
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN)
_LINGER = 2.0  # s that a client is given to read what it was told last


class Access:
    """Who may come in: everybody if `users` is None, else those, and the `trusted` networks."""

    __slots__ = ("trusted", "users")

    def __init__(self, users: Users | None = None, trusted: tuple[Network, ...] = ()) -> None:
        self.users = users
        self.trusted = trusted

    def needs_password(self, peer: Peer) -> bool:
        """Say whether this peer must show a password."""
        if self.users is None:
            return False
        address = peer.address
        return address is None or not any(address in network for network in self.trusted)


class Limits:
    """How long a session may take over what, in seconds."""

    __slots__ = ("half_close", "handshake", "idle")

    def __init__(self, handshake: float = 30, idle: float = 900, half_close: float = 120) -> None:
        self.handshake = handshake
        self.idle = idle
        self.half_close = half_close


class Policy:
    """All that is decided before a connection comes."""

    __slots__ = ("access", "dialler", "limits", "resident", "rules")

    def __init__(
        self,
        access: Access,
        rules: Rules,
        dialler: Dialler,
        limits: Limits,
        resident: str = "",
    ) -> None:
        """`resident` is the unix socket of a relay that connections are handed over to, if any."""
        self.resident = resident
        self.access = access
        self.rules = rules
        self.dialler = dialler
        self.limits = limits


class Finished(Exception):
    """The session is over before it could relay. `end` says why, for the log."""

    def __init__(self, end: str, detail: str = "") -> None:
        super().__init__(end)
        self.end = end
        self.detail = detail


class Session:
    """One client's connection and what is known of it. After `run`, `refused_by_rule` tells how."""

    __slots__ = (
        "_client",
        "_log",
        "_peer",
        "_policy",
        "_relay",
        "_reply",
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
        self.user = b""
        self.refused_by_rule = False

    @property
    def loop(self) -> Loop:
        """The loop that the client's stream is in."""
        return self._client.loop

    async def run(self) -> None:
        """Serve the client, and write its log lines. The client's stream is closed."""

        async def story() -> Ended | None:
            server, request = await self.negotiate()
            return await self.fulfil(server, request, server.trailing)

        await self.logged(story)

    async def logged(self, story: Callable[[], Awaitable[Ended | None]]) -> None:
        """Run a part of a session, log how it ended and close the client's stream.

        A story that gives None has not ended: another program goes on with the client.
        """
        end, detail = "terminated", ""
        try:
            ended = await story()
            if ended is None:
                end = ""
            else:
                end = ended.reason
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

    # The first half: what the client wants

    async def negotiate(self, exact: bool = False) -> tuple[Server, Request]:
        """Bring the client to its request, within the time limit, or raise Finished.

        With `exact` not one byte behind the request is read, so that another program can go on.
        """
        try:
            with self._client.loop.deadline(self._policy.limits.handshake):
                return await self._negotiate(exact)
        except TimeoutError:
            raise Finished("handshake-timeout") from None
        except RemoteProtocolError as error:
            self._reply = error.code
            await self._say_goodbye(error.reply)
            raise Finished("protocol-error", str(error)) from None

    async def _negotiate(self, exact: bool) -> tuple[Server, Request]:
        client = self._client
        needs_password = self._policy.access.needs_password(self._peer)
        data = await self._receive(FIRST_READ if exact else _READ)
        server = server_for(data)
        server.receive(data)
        while True:
            event = server.next_event()
            if event is None:
                server.receive(await self._receive(server.wants if exact else _READ))
            elif isinstance(event, MethodOffer):
                method = choose_method(event.methods, needs_password)
                answer = server.send(MethodChoice(method))
                if method == Method.NO_ACCEPTABLE:
                    await self._say_goodbye(answer)
                    wanted = "a password" if needs_password else "no authentication"
                    raise Finished("no-acceptable-method", f"{wanted} was not offered")
                await client.send(answer)
            elif isinstance(event, Credentials):
                accepted = await self._accept(event)
                answer = server.send(CredentialsVerdict(accepted))
                if not accepted:
                    await self._say_goodbye(answer)
                    raise Finished("authentication-failed")
                await client.send(answer)
            elif isinstance(event, Request):
                self.target = str(event.destination)
                if server.version != "5":
                    if needs_password or self._policy.access.users is None:
                        self.user = event.user  # where there are users, one is who has shown it
                    if needs_password:
                        await self.refuse(server, refusal_without_password(event.user))
                        raise Finished("authentication-failed", "SOCKS4 has no passwords")
                return server, event

    async def _receive(self, limit: int) -> bytes:
        data = await self._client.receive(limit)
        if not data:
            raise Finished("client-left")
        return data

    async def _accept(self, credentials: Credentials) -> bool:
        users = self._policy.access.users
        assert users is not None, "credentials are asked for only if there are users"
        self.user = credentials.user
        if users.hashed:
            return await self._client.loop.in_thread(users.accept, credentials)
        return users.accept(credentials)

    # The second half: what the client gets

    async def fulfil(
        self,
        server: Server | None,
        request: Request,
        early: bytes = b"",
        reach: Callable[[], Awaitable[Stream]] | None = None,
    ) -> Ended | None:
        """Carry out a request: dial, reply, relay. Finished if that cannot be.

        None if the connection was handed over, see `relay`.

        `early` is what the client has sent behind its request; `reach` is another way to the far
        end than to dial the destination under the rules. Without a `server` there is nobody to
        reply to.
        """
        if request.command != Command.CONNECT:
            await self.refuse(server, ReplyCode.COMMAND_NOT_SUPPORTED)
            raise Finished("command-not-supported", f"command {request.command}")
        try:
            with self._client.watched():
                far = await (reach() if reach is not None else self._dial(request.destination))
        except PeerGone as error:
            raise Finished("client-lost", str(error)) from None
        except RefusedByRule as error:
            self.refused_by_rule = True
            await self.refuse(server, ReplyCode.NOT_ALLOWED)
            raise Finished("refused-by-rule", str(error)) from None
        except OSError as error:
            for address, number in error.failures if isinstance(error, DialError) else ():
                self._log.debug(f'{self._facts()} tried={address} error="{os.strerror(number)}"')
            await self.refuse(server, reply_code(error))
            if error.errno in _SHORTAGES:
                raise
            end = "name-not-found" if isinstance(error, NameNotResolved) else "dial-failed"
            raise Finished(end, error.strerror or str(error)) from None
        try:
            if server is not None:
                await self._reply_success(server, far)
            return await self.relay(far, early)
        finally:
            far.close()

    async def _reply_success(self, server: Server, far: Stream) -> None:
        self._reply = ReplyCode.SUCCEEDED
        success = Reply(ReplyCode.SUCCEEDED, far.local_endpoint())
        try:
            with self.loop.deadline(self._policy.limits.handshake):
                await self._client.send(server.send(success))
        except TimeoutError:
            raise Finished("client-lost", "the reply is not read") from None

    async def _dial(self, destination: Endpoint) -> Stream:
        rules = self._policy.rules
        refusal = rules.refusal(destination, destination.packed)

        def permit(address: bytes) -> bool:
            nonlocal refusal
            refusal = rules.refusal(destination, address)
            return not refusal

        if refusal:
            raise RefusedByRule(refusal)
        try:
            return await self._policy.dialler.dial(self._client.loop, destination, permit)
        except RefusedByRule:
            raise RefusedByRule(refusal) from None

    async def relay(self, far: Stream, early: bytes = b"") -> Ended | None:
        """Join the client and the far end until they are done with each other.

        None if a resident relay does that, and the streams are not this process's any more.
        """
        if self._log.level >= INFO:
            self._log.info(f"connected {self._facts()} address={far.remote_name()}")
        if self._policy.resident and await self._is_handed_over(far, early):
            return None
        return await self.join(far, early)

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
                far.remote_name(),
                self._reply,
                monotonic() - self._started,
                limits.idle,
                limits.half_close,
                early,
            )
            await hand_over(self._policy.resident, offer, client, far)
        except (NotTaken, ValueError) as reason:
            self._log.debug(f"{self._facts()} not handed over: {reason}")
            return False
        except BaseException:
            for stream in (client, far):
                stream.reset_on_close()  # the client has been told that it is connected
            raise
        client.borrowed = ()  # or they would be made blocking, for the relay too
        client.close()
        return True

    async def join(self, far: Stream, early: bytes = b"") -> Ended:
        """Relay here, and see that both sides can read what they were told last."""
        client, limits = self._client, self._policy.limits
        self._relay = relay = Relay(client, far, early)
        try:
            ended = await relay.run(limits.idle, limits.half_close)
        except BaseException:
            for stream in (client, far):
                stream.reset_on_close()  # what was carried is not the whole, and must not seem so
            raise
        for stream in ended.owed_resets:
            await stream.abort(_LINGER)
        for half in (relay.up, relay.down):
            if half.source not in ended.owed_resets and not half.ended:
                await half.source.linger(_LINGER)  # it still sends, but nobody takes it any more
        return ended

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

    # Log lines, muonsocks(7)

    def _facts(self) -> str:
        target = self.target or "-"
        return f"client={self._peer.text} user={quoted(self.user)} target={target}"

    def _log_closed(self, end: str, detail: str) -> None:
        if self._log.level < INFO:
            return
        relay = self._relay
        received, sent = (relay.up.count, relay.down.count) if relay is not None else (0, 0)
        reply = "-" if self._reply is None else self._reply
        line = f"closed {self._facts()} reply={reply} in={received} out={sent}"
        line += f" secs={monotonic() - self._started:.3f} end={end}"
        if detail:
            escaped = detail.replace("\\", "\\\\").replace('"', '\\"')
            line += f' detail="{escaped}"'
        self._log.info(line)
