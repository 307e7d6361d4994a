"""An association with SOCKS5 proxies (RFC 1928 section 7): the socket to the first one's relay, and
the connections that it lasts as long as.
"""

from __future__ import annotations

import errno
from _socket import (
    AF_INET6,
    IPPROTO_IP,
    IPPROTO_IPV6,
    SHUT_RDWR,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    SOL_SOCKET,
    socket,
)
from _thread import allocate_lock
from os import dup
from select import POLLIN

from muonsocks.address import Endpoint
from muonsocks.client.background import Thread
from muonsocks.client.errand import Errand, Granted
from muonsocks.client.errors import ProxyMisbehaved
from muonsocks.net.datagrams import bound_beside
from muonsocks.net.ending import Ending
from muonsocks.net.stream import Stream
from muonsocks.socks import proxy_chain
from muonsocks.socks.datagram import encode_header
from muonsocks.socks.relays import to_relays
from muonsocks.socks.request import UNSPECIFIED, Command, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from muonsocks.net.loop import Loop
    from muonsocks.socks.proxy_request import ProxyRequest
    from muonsocks.socks.request import Reply
    from muonsocks.socks.rules import Chain

_MOST_HEADS = 1024  # destinations that are remembered
_DRAIN = 4096  # bytes that a proxy may say at a time; nobody listens


class Association:
    """What datagrams go and come by. `sock` is connected to the relay, and for those who have the
    association; none of its calls ever waits.
    """

    __slots__ = ("_heads", "_outer", "_owners", "_watch", "bound", "chain", "connections", "sock")

    def __init__(
        self, chain: Chain, sock: socket, relays: list[Endpoint], connections: list[socket]
    ) -> None:
        self.chain = chain
        self.sock = sock
        self.bound = relays[-1]
        self.connections = connections
        self._outer = b"".join(map(encode_header, relays[1:]))
        self._heads: dict[Any, bytes] = {}
        self._owners = 1
        self._watch = _Watch(sock, connections)

    def share(self) -> Association:
        """Have one owner more."""
        self._owners += 1
        return self

    def close(self) -> None:
        """Have one owner less; without any it is over."""
        self._owners -= 1
        if not self._owners:
            self._watch.close()

    def __del__(self) -> None:
        if self._owners > 0:  # whoever had it has forgotten it
            self._watch.close()

    def expect_life(self) -> None:
        """Hold that no proxy has ended its connection. ProxyMisbehaved (ECONNRESET)."""
        for proxy, connection in zip(self.chain, self.connections, strict=True):
            try:
                if connection.recv(_DRAIN):
                    continue
            except BlockingIOError:
                continue
            except OSError:
                pass  # it is over in that way
            self._watch.end()
            raise ProxyMisbehaved(errno.ECONNRESET, f"{proxy}: it has ended the association")

    def endings(self) -> list[tuple[socket, int]]:
        """Give what poll(2) is to look at for the end of it."""
        return [(connection, POLLIN) for connection in self.connections]

    def head_for(self, address: Any) -> bytes | None:
        """Give what goes in front of data for an address that has been led somewhere."""
        return self._heads.get(address)

    def lead(self, address: Any, endpoint: Endpoint) -> bytes:
        """Have what is for an address go to an endpoint, from now on."""
        if len(self._heads) >= _MOST_HEADS:
            self._heads.clear()
        head = self._heads[address] = self._outer + encode_header(endpoint)
        return head


class _Watch:
    """What the background thread has to do with it: it shuts the socket down when a connection
    ends. That wakes whoever waits for the socket, in whichever way.
    """

    __slots__ = ("_connections", "_lock", "_sock", "_streams", "_thread")

    def __init__(self, sock: socket, connections: list[socket]) -> None:
        self._sock = sock
        self._connections = connections
        self._streams: list[Stream] = []
        self._lock = allocate_lock()
        self._thread = Thread.of_this_process()
        self._thread.call(self._begin)

    def _begin(self) -> None:
        if self._sock.fileno() < 0:
            return
        try:
            for connection in self._connections:
                self._streams.append(Stream(self._thread.loop, connection))
        except OSError:  # epoll(7) has a limit for each user: an association nobody watches is over
            self._end()
            return
        for stream in tuple(self._streams):
            if stream in self._streams:  # the end of another one has been its own
                Ending(stream, lambda _: self._end())

    def _end(self) -> None:
        self._leave()
        self.end()

    def end(self) -> None:
        """Wake whoever waits for the socket. It is of no use any more."""
        with self._lock:
            try:
                self._sock.shutdown(SHUT_RDWR)
            except OSError:
                pass  # it has been done, or it is closed

    def _leave(self) -> None:
        streams, self._streams = self._streams, []
        for stream in streams:
            stream.detach()

    def close(self) -> None:
        """Let go of all of it."""
        with self._lock:
            self._sock.close()
        if self._thread.is_here:
            self._thread.call(self._close_connections)
        else:
            self._close_connections()  # of a child process: its parent looks after its own

    def _close_connections(self) -> None:
        if self._thread.is_here:
            self._leave()
        for connection in self._connections:
            connection.close()


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
        options: Sequence[tuple[Any, ...]],
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
        self._options = options
        self._association = association

    async def _run(self, loop: Loop) -> Granted:
        found = await proxy_chain.destinations(loop, self.dialler, self.chain, self.destination)
        suited = [one for one in found if (one.family == AF_INET6) == self._prefers_ipv6]
        there = (suited or found)[0]
        old = self._association
        association = await self._associate(loop) if old is None else old
        try:
            sock = _another(association.sock)
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

        try:
            sock, relays = await to_relays(self.chain, ask, streams, self._socket_beside)
        except BaseException:
            for stream in streams:
                stream.close()
            raise
        return Association(self.chain, sock, relays, [stream.detach() for stream in streams])

    def _socket_beside(self, connection: socket) -> socket:
        level = IPPROTO_IPV6 if connection.family == AF_INET6 else IPPROTO_IP
        options = [one for one in self._options if one[0] in (SOL_SOCKET, level)]
        return bound_beside(connection, self._port, options)


def _another(sock: socket) -> socket:
    """Give another descriptor of a UDP socket."""
    return socket(sock.family, SOCK_DGRAM | SOCK_NONBLOCK, sock.proto, dup(sock.fileno()))
