"""The datagrams of one address and port of a program: on their way, and what comes back."""

from __future__ import annotations

from _socket import SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK, socket

from muonsocks.address import Endpoint
from muonsocks.errors import RemoteProtocolError
from muonsocks.intercept.packets import Datagram
from muonsocks.net.datagrams import VIEW, Port
from muonsocks.net.loop import Loop
from muonsocks.socks.datagram import decode_header, encode_header
from muonsocks.socks.datagram_way import DatagramWay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from muonsocks.intercept.tunnel import Tunnel
    from muonsocks.socks.rules import Chain

_MOST_DESTINATIONS = 1024  # that answers may come from


class Flow:
    """What an address and port of the program sends, and is answered: to all addresses, or to the
    name that one of them stands for. `used` is when the last datagram went either way.
    """

    __slots__ = (
        "_ask",
        "_direct",
        "_has_failed",
        "_last",
        "_loop",
        "_say",
        "_sent_to",
        "_stand_in",
        "_tunnel",
        "_ways",
        "used",
    )

    def __init__(
        self,
        tunnel: Tunnel,
        loop: Loop,
        key: tuple[bytes, int, bytes],
        ask: Callable[[Chain], Any],
        say: Callable[[str], None],
    ) -> None:
        self._tunnel = tunnel
        self._loop = loop
        self._ask = ask
        self._say = say
        self._stand_in = key[2]
        self._ways: dict[Chain, DatagramWay] = {}
        self._direct: dict[int, Port] = {}  # by the family, without proxies
        self._sent_to: set[tuple[bytes, int]] = set()
        self._last: Datagram | None = None
        self._has_failed = False
        self.used = loop.now

    def close(self) -> None:
        """Give up all that it has with proxies. It holds no cycle then."""
        for way in self._ways.values():
            way.close()
        for port in self._direct.values():
            port.close()
        self._ways.clear()
        self._direct.clear()

    def send(self, datagram: Datagram, meant: Endpoint, chain: Chain) -> None:
        """Send one on. OSError if there is no socket for what goes without proxies."""
        data = memoryview(datagram.data)
        last = Datagram(
            datagram.source,
            datagram.source_port,
            datagram.destination,
            datagram.destination_port,
            b"",
        )
        place = (datagram.destination, datagram.destination_port)
        if place not in self._sent_to:
            if len(self._sent_to) >= _MOST_DESTINATIONS:
                self._sent_to.clear()
            self._sent_to.add(place)
            via = f" via={chain[-1]}" if chain else ""
            self._say(f"datagrams target={meant}{via}")
        self._last = last
        if not chain:
            self._directly(meant.family).send([data], meant.sockaddr)
            return
        if not self._way(chain).send([data], (chain, encode_header(meant))) and self._has_failed:
            self._tunnel.write(last.unreachable())

    def _way(self, chain: Chain) -> DatagramWay:
        way = self._ways.get(chain)
        if way is None:
            made = (self._loop, chain, self._ask, self._from_proxies, self._lost)
            way = self._ways[chain] = DatagramWay(*made, self._tunnel.fail)
        return way

    def _directly(self, family: int) -> Port:
        port = self._direct.get(family)
        if port is None:
            sock = socket(family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC)
            port = self._direct[family] = Port(self._loop, sock, self._from_outside)
        return port

    def _lost(self, chain: Chain, _: int, __: int, why: str) -> None:
        self._has_failed = True
        self._say(f"datagrams via={chain[-1]}: {why}")
        if self._last is not None:
            self._tunnel.write(self._last.unreachable())

    # Back

    def _from_outside(self, start: int, count: int, source: tuple[Any, ...]) -> None:
        self._deliver(Endpoint.of_socket(source), start, count)

    def _from_proxies(self, _: Chain, begin: int, start: int, count: int) -> None:
        try:
            source = decode_header(bytes(VIEW[begin:start]))
        except RemoteProtocolError:
            return
        self._has_failed = False
        self._deliver(source, start, count)

    def _deliver(self, source: Endpoint, start: int, count: int) -> None:
        packed = self._stand_in or source.packed
        if packed is None or (packed, source.port) not in self._sent_to or self._last is None:
            return
        self.used = self._loop.now
        there, port = self._last.source, self._last.source_port
        data = VIEW[start : start + count]
        try:
            packet = Datagram(packed, source.port, there, port, data).packet()
        except ValueError:
            return  # with IPv6 it would be too long
        self._tunnel.write(packet)
