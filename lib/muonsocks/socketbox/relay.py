"""Relays connections that were accepted here or are passed on, each to where it is to go."""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, socket

from muonsocks.address import Endpoint
from muonsocks.log import quoted
from muonsocks.net.dial import dial_unix
from muonsocks.net.stream import Stream
from muonsocks.resident.plan import Service
from muonsocks.socks.admission import Finished
from muonsocks.socks.request import Command, Request
from muonsocks.socks.session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from muonsocks.log import Log
    from muonsocks.net.inherit import Peer
    from muonsocks.net.loop import Loop
    from muonsocks.net.relay import Joint
    from muonsocks.net.task import Pause
    from muonsocks.socketbox.destination import ToAddress, ToUnixSocket
    from muonsocks.socks.policy import Policy

    Header = Callable[[Endpoint | None, Endpoint | None], bytes]

_NOWHERE = Endpoint("0.0.0.0", 0)


class Forwarding:
    """Where connections are relayed to, and what is said there first: the `header` of a client's
    endpoint and the one that it has come to.
    """

    __slots__ = ("destination", "header")

    def __init__(self, destination: ToAddress | ToUnixSocket, header: Header | None) -> None:
        self.destination = destination
        self.header = header


class ForwardSession(Session):
    """One connection on its way. Its client says nothing about where it goes, and gets no reply."""

    __slots__ = ("_forwarding",)

    def __init__(
        self, client: Stream, peer: Peer, forwarding: Forwarding, policy: Policy, log: Log
    ):
        super().__init__(client, peer, policy, log)
        self._forwarding = forwarding

    async def _story(self) -> Joint | None:
        return await self.fulfil(None, Request(Command.CONNECT, _NOWHERE), reach=self._reach)

    async def _reach(self) -> Stream:
        """Connect, and say who comes."""
        forwarding, sock = self._forwarding, self.client.socket
        local = _endpoint(sock, sock.getsockname)
        destination = forwarding.destination.of(local)
        if isinstance(destination, str):
            self.target = f"unix:{quoted(destination)}"
            far = await dial_unix(self.loop, destination, self.policy.dialler.connect_timeout)
        else:
            self.target = str(destination)
            far = await self.dial(destination)
        if forwarding.header is not None:
            try:
                await far.send(forwarding.header(_peer_endpoint(sock), local))
            except BaseException:
                far.close()
                raise
        return far


def _peer_endpoint(sock: socket) -> Endpoint | None:
    try:
        return _endpoint(sock, sock.getpeername)
    except OSError:  # ENOTCONN
        raise Finished("client-lost", "it has gone before it was known who it is") from None


def _endpoint(sock: socket, name: Callable[[], tuple[str, int]]) -> Endpoint | None:
    return Endpoint.of_socket(name()) if sock.family in (AF_INET, AF_INET6) else None


class Relayer(Service):
    """Relays all connections that come."""

    __slots__ = ("_forwarding", "_log", "_policy")

    def __init__(self, forwarding: Forwarding, policy: Policy, log: Log) -> None:
        self._forwarding = forwarding
        self._policy = policy
        self._log = log

    async def serve(self, loop: Loop, sock: socket, peer: Peer) -> int | Pause:
        """Relay one connection."""
        client = Stream.of_client(loop, sock, peer)
        return await ForwardSession(client, peer, self._forwarding, self._policy, self._log).run()
