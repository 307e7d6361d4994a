"""Who may come in: a client from its first byte to its request, or to a refusal."""

from __future__ import annotations

from muonsocks.errors import RemoteProtocolError
from muonsocks.log import quoted
from muonsocks.socks.negotiation import (
    FIRST_READ,
    Server,
    choose_method,
    refusal_without_password,
    server_for,
)
from muonsocks.socks.request import (
    COMMAND_NAMES,
    Credentials,
    CredentialsVerdict,
    Method,
    MethodChoice,
    MethodOffer,
    Reply,
    ReplyCode,
    Request,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn, Protocol

    from muonsocks.address import Endpoint
    from muonsocks.log import Log
    from muonsocks.net.inherit import Peer
    from muonsocks.net.loop import Loop
    from muonsocks.net.stream import Stream
    from muonsocks.socks.policy import Policy
    from muonsocks.socks.request import Event

    class Answerer(Protocol):
        """What a reply is given to: a server's machine, or what stands for one."""

        @property
        def version(self) -> str:
            """Which SOCKS version the client speaks: 4, 4a or 5."""

        def send(self, event: Event) -> bytes:
            """Give the bytes that say `event` to the client."""


READ = 1024  # bytes at a time from a client that negotiates: a whole handshake, as a rule
LINGER = 2.0  # s that a client is given to read what it was told last
_REMEMBERING = 2.0  # s that a client waits at most while its address is written down
_IN_NO_NETWORK = "the client is in no trusted network"

_CHOICES = {
    method: MethodChoice(method) for method in (Method.NONE, Method.PASSWORD, Method.NO_ACCEPTABLE)
}


class Finished(Exception):
    """The session is over before it could relay. `end` says why, for the log."""

    def __init__(self, end: str, detail: str = "") -> None:
        super().__init__(end)
        self.end = end
        self.detail = detail


class Admission:
    """A client that negotiates. `user` and `target` are what it has said, as far as it has."""

    __slots__ = ("client", "for_nobody", "log", "peer", "policy", "reply", "target", "user")

    def __init__(self, client: Stream, peer: Peer, policy: Policy, log: Log) -> None:
        self.client = client
        self.peer = peer
        self.policy = policy
        self.log = log
        self.for_nobody = False  # a proxy in front of us has come on its own account, to look
        self.reply: int | None = None  # that it has got to its request
        self.target = ""
        self.user = b""

    @property
    def loop(self) -> Loop:
        """The loop that the client's stream is in."""
        return self.client.loop

    async def negotiate(self, exact: bool = False) -> tuple[Server, Request]:
        """Bring the client to its request, within the time limit, or raise Finished.

        With `exact` not one byte behind the request is read, so that another program can go on.
        """
        client = self.client
        server: Server | None = None
        limit = FIRST_READ if exact else READ
        try:
            with client.loop.deadline(self.policy.limits.handshake):
                known = b"" if self.policy.front is None else await self._meet_front(exact)
                while data := known or await client.receive(limit):
                    known = b""
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
            self.reply = error.code
            await self._say_goodbye(error.reply)
            raise Finished("protocol-error", str(error)) from None
        raise Finished("client-left")

    async def _meet_front(self, exact: bool) -> bytes:
        """Have the proxy in front of us say who the client is; give what was read behind that."""
        from muonsocks.socks.introduction import hear

        return await hear(self, exact)

    def _method(self, offered: bytes) -> int:
        """Choose among the methods that a client offers."""
        access = self.policy.access
        if not access.is_limited:
            return choose_method(offered, False, False)
        if access.bars(self.peer):
            return Method.NO_ACCEPTABLE
        return choose_method(offered, self._needs_password(), access.users is not None)

    async def _turn_away(self, answer: bytes) -> None:
        """Tell a client that none of its methods will do."""
        await self._say_goodbye(answer)
        access = self.policy.access
        if access.bars(self.peer):
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
        access = self.policy.access
        needs_password = self._needs_password()
        if needs_password or access.users is None:
            self.user = user  # where there are users, one is who has shown it
        if access.bars(self.peer):
            await self.refuse(server, ReplyCode.NOT_ALLOWED)
            raise Finished("client-refused", _IN_NO_NETWORK)
        if needs_password:
            await self.refuse(server, refusal_without_password(user))
            raise Finished("authentication-failed", "SOCKS4 has no passwords")

    def _needs_password(self) -> bool:
        try:
            return self.policy.access.needs_password(self.peer)
        except OSError as error:
            self._complain(error)
            return True

    async def _accept(self, credentials: Credentials) -> bool:
        users = self.policy.access.users
        assert users is not None, "credentials are asked for only if there are users"
        self.user = credentials.user
        if users.hashed:
            return await self.client.loop.compute(users.accept, credentials)
        return users.accept(credentials)

    async def _remember(self) -> None:
        """Let the client's address in without a password from now on, if that is wanted, and it is
        the client's: others of whom a proxy in front of us says nothing have the same.

        It is no fault of the client if that cannot be.
        """
        known, address = self.policy.access.auth_once, self.peer.address
        if known is None or address is None or self.for_nobody:
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
        access = self.policy.access
        if not access.has_complained:
            access.has_complained = True
            reason = error.strerror or str(error)
            self.log.warning(f"addresses that have authenticated cannot be remembered: {reason}")

    # Telling the client

    async def refuse(self, server: Answerer | None, code: int) -> None:
        """Answer a request with a failure."""
        answer = b""
        if server is not None:
            self.reply = code
            answer = server.send(Reply(code))
        await self._say_goodbye(answer)

    async def refuse_command(
        self, server: Answerer | None, command: int, why: str = ""
    ) -> NoReturn:
        """Say that this cannot be asked for, or not in this way. Raises Finished."""
        await self.refuse(server, ReplyCode.COMMAND_NOT_SUPPORTED)
        name = COMMAND_NAMES.get(command, f"command {command}")
        raise Finished("command-not-supported", f"{name}{': ' if why else ''}{why}")

    async def grant(self, server: Answerer, bound: Endpoint) -> None:
        """Tell the client that it has what it asked for, and the address that is bound for it.
        Finished if it does not read that.
        """
        self.reply = ReplyCode.SUCCEEDED
        left = self.client.send_now(server.send(Reply(ReplyCode.SUCCEEDED, bound)))
        if left:
            try:
                with self.loop.deadline(self.policy.limits.handshake):
                    await self.client.send(left)
            except TimeoutError:
                raise Finished("client-lost", "the reply is not read") from None

    async def _say_goodbye(self, last_words: bytes) -> None:
        """Tell the client what it has earned, and see that it can read it."""
        try:
            with self.loop.deadline(LINGER):
                await self.client.send(last_words)
        except OSError:
            return  # it has not waited for an answer, or does not read it
        await self.client.linger(LINGER)

    def facts(self) -> tuple[str, str, str]:
        """Say who it is and where it wants to go, for the log."""
        return self.peer.text, quoted(self.user), self.target or "-"
