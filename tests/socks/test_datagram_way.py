"""Datagrams through proxies: what is left of a way when its proxies are not what they should be."""

import socket
from collections.abc import Iterator

import pytest
from ends import no_garbage, nothing_left_behind, tcp_pair

from muonsocks.address import Endpoint
from muonsocks.net.loop import Loop
from muonsocks.net.stream import Stream
from muonsocks.socks.asking import Asking
from muonsocks.socks.datagram_way import DatagramWay
from muonsocks.socks.proxy_address import ProxyAddress
from muonsocks.socks.request import UNSPECIFIED, Command, Reply, Request

Chain = tuple[ProxyAddress, ...]
CHAIN: Chain = tuple(ProxyAddress.parse(f"socks5://proxy{number}") for number in (1, 2))


@pytest.fixture(autouse=True)
def leaks_nothing() -> Iterator[None]:
    with nothing_left_behind():
        yield


class Proxies:
    """Grant what a way asks for; the test has their side of the connections, in their order."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.connections: list[socket.socket] = []

    async def ask(self, chain: Chain) -> tuple[Stream, Asking, Reply]:
        ours, theirs = tcp_pair()
        ours.setblocking(False)
        self.connections.append(theirs)
        asking = Asking(chain[-1], Request(Command.ASSOCIATE, UNSPECIFIED))
        return Stream(self._loop, ours), asking, Reply(0, Endpoint("127.0.0.1", 9))

    def close(self) -> None:
        for one in self.connections:
            one.close()


class First(Proxies):
    """The first one leaves when the last has granted."""

    async def ask(self, chain: Chain) -> tuple[Stream, Asking, Reply]:
        granted = await super().ask(chain)
        if chain == CHAIN:
            self.connections[0].close()
        return granted


def test_the_first_of_two_leaves_while_the_last_grants() -> None:
    """All is closed then, and nobody is asked for what has become of it."""
    with no_garbage():
        loop = Loop()
        before = set(loop.handlers)
        proxies = First(loop)
        way = DatagramWay(
            loop, CHAIN, proxies.ask, lambda *_: None, lambda *_: None, lambda _: None
        )
        loop.run(way.open())
        assert set(loop.handlers) == before
        way.close()
        proxies.close()
        loop.close()
        del way, proxies, loop
