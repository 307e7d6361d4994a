"""To the relays of a chain: which of them may be gone to."""

import errno
import socket
from collections.abc import Iterator

import pytest
from ends import tcp_pair

from muonsocks.address import Endpoint
from muonsocks.errors import ProxyFailed
from muonsocks.net.datagrams import bound_beside
from muonsocks.net.loop import Loop
from muonsocks.net.stream import Stream
from muonsocks.socks.proxy_address import ProxyAddress
from muonsocks.socks.proxy_request import ProxyRequest
from muonsocks.socks.relays import to_relays
from muonsocks.socks.request import Command, Reply, ReplyCode, Request

CHAIN = tuple(ProxyAddress.parse(f"socks5://{name}") for name in ("one", "192.0.2.8", "three"))


class Story:
    """Has an association granted by each proxy of a chain, with these relays."""

    def __init__(self, *bound: Endpoint) -> None:
        self.loop = Loop()
        self.bound = bound
        self.streams: list[Stream] = []
        self.theirs: list[socket.socket] = []

    async def ask(self, chain: tuple[ProxyAddress, ...]) -> tuple[Stream, ProxyRequest, Reply]:
        ours, theirs = tcp_pair()
        ours.setblocking(False)
        self.theirs.append(theirs)
        bound = self.bound[len(chain) - 1]
        asking = ProxyRequest(chain[-1], Request(Command.ASSOCIATE, bound))
        return Stream(self.loop, ours), asking, Reply(ReplyCode.SUCCEEDED, bound)

    def run(self) -> tuple[str, list[str]]:
        chain = CHAIN[: len(self.bound)]
        sock, relays = self.loop.run(to_relays(chain, self.ask, self.streams))
        with socket.socket(fileno=sock.detach()) as made:
            return str(Endpoint.of_socket(made.getpeername())), list(map(str, relays))

    def close(self) -> None:
        for one in (*self.streams, *self.theirs):
            one.close()
        self.loop.close()


@pytest.fixture
def stories() -> Iterator[list[Story]]:
    made: list[Story] = []
    yield made
    for one in made:
        one.close()


def test_several(stories: list[Story]) -> None:
    """Zeros are the proxy itself: its address, where that is known."""
    zeros = Endpoint("0.0.0.0", 7)
    stories.append(Story(zeros, zeros, Endpoint("name", 9)))
    assert stories[0].run() == ("127.0.0.1:7", ["127.0.0.1:7", "192.0.2.8:7", "name:9"])


@pytest.mark.parametrize("host", ["127.0.0.2", "169.254.1.1", "::1", "2001:db8::1", "name"])
def test_nowhere_for_us(stories: list[Story], host: str) -> None:
    stories.append(Story(Endpoint(host, 7)))
    with pytest.raises(ProxyFailed, match="socks5://one:1080"):
        stories[0].run()
    assert len(stories[0].streams) == 1, "they are there to be closed"


def test_a_port_that_is_claimed() -> None:
    ours, theirs = tcp_pair()
    with ours, theirs, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(OSError) as told:
            bound_beside(ours, port)
        assert told.value.errno == errno.EADDRINUSE
        taken.close()
        seen = []
        made = bound_beside(ours, port, lambda sock: seen.append(sock.getsockname()))
        assert made.getsockname() == ("127.0.0.1", port)
        assert seen == [("0.0.0.0", 0)], "before it is bound"
        made.close()
