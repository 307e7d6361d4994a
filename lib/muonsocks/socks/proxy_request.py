"""One request to one proxy, whichever protocol that speaks; no I/O, and no clock.

    asking = ProxyRequest(proxy, request)
    while there is no reply:
        send asking.outgoing()
        asking.receive(up to asking.wants bytes, or b"" for the end of the connection)
        reply = asking.next_reply()

For BIND there are two replies; for others what follows the first is carried, or the end. Whoever
reads more than `wants` finds what came behind in `trailing`.
"""

from __future__ import annotations

from muonsocks.errors import (
    LocalProtocolError,
    NotAdmitted,
    RemoteProtocolError,
    RequestImpossible,
)
from muonsocks.socks.machine import Machine, name_bytes
from muonsocks.socks.proxy_address import ProxyAddress
from muonsocks.socks.request import (
    COMMAND_NAMES,
    REPLY_NAMES,
    Command,
    Credentials,
    CredentialsVerdict,
    Event,
    Method,
    MethodChoice,
    MethodOffer,
    Reply,
    ReplyCode,
    Request,
)

# What each can be asked for; SOCKS5 for everything.
_COMMANDS: dict[str, tuple[int, ...]] = {
    "socks4": (Command.CONNECT, Command.BIND),
    "socks4a": (Command.CONNECT, Command.BIND, Command.RESOLVE),  # the last one is Tor's own
    "http": (Command.CONNECT,),
}

_UNAUTHORIZED = (401, 407)  # RFC 9110 section 15.5; the first one is tinyproxy's, and a server's
CLOSED = "it has closed the connection without an answer"
_WANTED, _REFUSED = "it wants a password", "it refuses the password"


class ProxyRequest:
    """What is said to a `proxy` to have it carry out a `request`, and what it says to that."""

    __slots__ = ("_client", "_login", "_out", "proxy", "request")

    def __init__(self, proxy: ProxyAddress, request: Request) -> None:
        """Begin. A name is only for a proxy that `resolves`.

        RequestImpossible if the proxy's protocol has no way to say this.
        """
        self.proxy = proxy
        self.request = request
        has_login = bool(proxy.user or proxy.password)
        self._login = Credentials(proxy.user, proxy.password) if has_login else None
        name = COMMAND_NAMES.get(request.command, f"command {request.command}")
        if request.command not in _COMMANDS.get(proxy.scheme, (request.command,)):
            reason = f"{proxy.scheme} has no way to ask for {name}"
            raise RequestImpossible(ReplyCode.COMMAND_NOT_SUPPORTED, reason)
        self._client: Machine
        try:
            self._out = self._begin()
        except LocalProtocolError:
            reason = f"{proxy.scheme} has no way to say {request.destination}"
            raise RequestImpossible(ReplyCode.ADDRESS_TYPE_NOT_SUPPORTED, reason) from None

    def _begin(self) -> bytes:
        proxy, request = self.proxy, self.request
        if proxy.scheme == "http":
            from muonsocks.socks import http_connect

            self._client = http_connect.Client(self._login)
            return self._client.send(request)
        if proxy.scheme in ("socks4", "socks4a"):
            from muonsocks.socks import socks4

            self._client = socks4.Client()
            return self._client.send(Request(request.command, request.destination, proxy.user))
        from muonsocks.socks import socks5

        if request.destination.packed is None:
            name_bytes(request.destination)  # which would be too late when it is its turn
        self._client = socks5.Client()
        methods = (Method.NONE,) if self._login is None else (Method.NONE, Method.PASSWORD)
        return self._client.send(MethodOffer(bytes(methods)))

    def outgoing(self) -> bytes:
        """Give what is to be sent now, once; b"" if it is not our turn."""
        out, self._out = self._out, b""
        return out

    @property
    def wants(self) -> int:
        """How many bytes more the proxy is sure to send before it carries anything."""
        return self._client.wants

    @property
    def has_asked(self) -> bool:
        """Whether it is the answer to the request itself that is waited for."""
        return self._client.state in ("reply", "answer", "response")

    @property
    def trailing(self) -> bytes:
        """What came behind the reply."""
        return self._client.trailing

    def receive(self, data: bytes) -> None:
        """Take bytes from the proxy; b"" is the end of what it sends. RemoteProtocolError."""
        if not data:
            raise RemoteProtocolError(CLOSED)
        self._client.receive(data)

    def next_reply(self) -> Reply | None:
        """Give the proxy's answer to the request, which may be a refusal; None if bytes are
        missing, or are to be sent before.

        RemoteProtocolError if the proxy broke the protocol, NotAdmitted if it has nothing to do
        with us or our password.
        """
        while (event := self._client.next_event()) is not None:
            if isinstance(event, Reply):
                self._expect_admission()
                return event
            self._out += self._answer(event)
        return None

    def _answer(self, event: Event) -> bytes:
        """Go on with what SOCKS5 asks for before a request."""
        if isinstance(event, MethodChoice) and event.method == Method.NO_ACCEPTABLE:
            raise NotAdmitted("it wants neither a password nor none" if self._login else _WANTED)
        if isinstance(event, MethodChoice) and event.method == Method.PASSWORD:
            assert self._login is not None, "the machine holds that it was offered"
            return self._client.send(self._login)
        if isinstance(event, CredentialsVerdict) and not event.accepted:
            raise NotAdmitted(_REFUSED)
        return self._client.send(self.request)

    def _expect_admission(self) -> None:
        """See that a refusal is not one of who we are, which HTTP says in the same place."""
        if self._status() in _UNAUTHORIZED:
            raise NotAdmitted(_REFUSED if self._login else _WANTED)

    def _status(self) -> int:
        return getattr(self._client, "status", 0)

    def say(self, reply: Reply) -> str:
        """Put a refusal into words, as exactly as the proxy has."""
        if status := self._status():
            return f"status {status}"
        return REPLY_NAMES.get(reply.code, f"reply {reply.code}")
