"""How a SocksSocket for UDP comes by its association: the errand."""

from __future__ import annotations

from _socket import (
    AF_INET6,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    socket,
)
from os import dup

from muonsocks.address import Endpoint
from muonsocks.client.association import Association
from muonsocks.client.errand import Errand, Granted
from muonsocks.net.datagrams import bound_beside
from muonsocks.net.dial import set_options
from muonsocks.socks import proxy_chain
from muonsocks.socks.relays import to_relays
from muonsocks.socks.request import UNSPECIFIED, Command, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from muonsocks.net.loop import Loop
    from muonsocks.net.stream import Stream
    from muonsocks.socks.proxy_request import ProxyRequest
    from muonsocks.socks.request import Reply
    from muonsocks.socks.rules import Chain


class Lead(Granted):
    """What an `Associate` brings: where `destination` is, as the last proxy may be told; and the
    association, if that is new.
    """

    __slots__ = ("association", "destination")

    def __init__(self, sock: socket, destination: Endpoint, association: Association | None):
        super().__init__(sock)
        self.association = association
        self.destination = destination

    def close(self) -> None:
        super().close()
        if self.association is not None:
            self.association.close()


class Associate(Errand):
    """See where a destination is, if the last proxy does not; and have an association with the
    proxies, if there is none.
    """

    __slots__ = ("_association", "_options", "_port", "_prefers_ipv6")

    def __init__(
        self,
        destination: Endpoint,
        chain: Chain,
        family: int,
        source: Endpoint | None,
        options: Iterable[tuple[Any, ...]],
        association: Association | None,
    ) -> None:
        """`source` is where datagrams are to come from, with their own port unless that is 0, and
        `options` are for their socket; of several addresses the first one of the family is taken.
        """
        self._port = source.port if source else 0
        if source is not None and source.packed is not None:
            source = Endpoint.at(source.packed, 0, source.scope)
        super().__init__(Command.ASSOCIATE, destination, chain, source)
        self._prefers_ipv6 = family == AF_INET6
        self._options = tuple(options)
        self._association = association

    async def _run(self, loop: Loop) -> Granted:
        found = await proxy_chain.destinations(loop, self.dialler, self.chain, self.destination)
        suited = [one for one in found if (one.family == AF_INET6) == self._prefers_ipv6]
        there = (suited or found)[0]
        old = self._association
        association = await self._associate(loop) if old is None else old
        try:
            sock = another(association.sock)
        except BaseException:
            if old is None:
                association.close()
            raise
        return Lead(sock, there, association if old is None else None)

    async def _associate(self, loop: Loop) -> Association:
        streams: list[Stream] = []

        async def ask(way: Chain) -> tuple[Stream, ProxyRequest, Reply]:
            requests = [Request(Command.ASSOCIATE, UNSPECIFIED)]
            return await proxy_chain.ask(loop, self.dialler, way, requests)

        sock: socket | None = None
        try:
            sock, relays = await to_relays(self.chain, ask, streams, self._socket_beside)
            return Association(self.chain, sock, relays, [stream.detach() for stream in streams])
        except BaseException:
            for one in (*streams, sock):
                if one is not None:
                    one.close()
            raise

    def _socket_beside(self, connection: socket) -> socket:
        return bound_beside(connection, self._port, lambda sock: set_options(sock, self._options))


def another(sock: socket) -> socket:
    """Give another descriptor of a UDP socket."""
    return socket(sock.family, SOCK_DGRAM | SOCK_NONBLOCK, sock.proto, dup(sock.fileno()))
