"""What one port of a program sends and is answered: without a tunnel, and without proxies.

With both it is in test_tunnel.
"""

import errno
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from ends import nothing_left_behind
from places import descriptor_limit
from programs import SECONDS

from muonsocks.address import Endpoint
from muonsocks.intercept import flow
from muonsocks.intercept.flow import Flow
from muonsocks.intercept.packets import Datagram, datagram_in
from muonsocks.net.loop import Loop
from muonsocks.net.task import Mailbox
from muonsocks.socks.proxy_address import ProxyAddress

HERE, STANDS_IN = bytes((192, 0, 0, 2)), bytes((198, 18, 0, 7))
PORT = 4321  # of the program
Chain = tuple[ProxyAddress, ...]
CHAIN = (ProxyAddress.parse("socks5h://192.0.2.1:1080"),)


class Written(Mailbox):
    """What a flow writes into a tunnel."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[BaseException] = []

    write = Mailbox.post

    def fail(self, error: BaseException) -> None:
        self.failures.append(error)

    async def read(self, loop: Loop) -> Datagram:
        with loop.deadline(SECONDS):
            found = datagram_in(memoryview(await self.take()))
        assert found is not None
        return found

    @property
    def is_empty(self) -> bool:
        return not self._items


class Flowing:
    """A flow, in a loop of its own; and how proxies are asked, which none is."""

    def __init__(self, stand_in: bytes = b"") -> None:
        self.loop = Loop()
        self.written = Written()
        self.said: list[str] = []
        self.asked = 0
        key = (HERE, PORT, stand_in)
        self.flow = Flow(self.written, self.loop, key, self._ask, self.said.append)

    async def _ask(self, chain: Chain) -> Any:
        self.asked += 1
        raise OSError(errno.ECONNREFUSED, "it is refused")

    def run(self, what: Callable[[], Awaitable[None]]) -> None:
        async def run() -> None:
            await what()

        try:
            self.loop.run(run())
            assert self.written.failures == []
        finally:
            self.flow.close()
            self.loop.close()

    def send(self, data: bytes, there: Endpoint, chain: Chain = (), to: bytes = b"") -> None:
        destination = to or there.packed
        assert destination is not None
        self.flow.send(Datagram(HERE, PORT, destination, there.port, data), there, chain)


@pytest.fixture(autouse=True)
def leaks_nothing() -> Iterator[None]:
    with nothing_left_behind():
        yield


@pytest.fixture
def far() -> Iterator[socket.socket]:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(SECONDS)
        yield sock


def place_of(sock: socket.socket) -> Endpoint:
    return Endpoint.of_socket(sock.getsockname())


@pytest.mark.parametrize("data", [b"", b"x", bytes(60000)], ids=len)
def test_it_goes_and_is_answered(far: socket.socket, data: bytes) -> None:
    flowing, there = Flowing(), place_of(far)

    async def what() -> None:
        for _ in range(2):
            flowing.send(data, there)
            got, source = far.recvfrom(65536)
            assert got == data
            far.sendto(data, source)
            answer = await flowing.written.read(flowing.loop)
            assert (answer.source, answer.source_port) == (there.packed, there.port)
            assert (answer.destination, answer.destination_port) == (HERE, PORT)
            assert bytes(answer.data) == data
        assert flowing.said == [f"datagrams target={there}"]  # once for each destination

    flowing.run(what)


def test_answers_come_from_what_stands_for_a_name(far: socket.socket) -> None:
    flowing, there = Flowing(STANDS_IN), place_of(far)

    async def what() -> None:
        flowing.send(b"?", there, to=STANDS_IN)
        far.sendto(b"!", far.recvfrom(9)[1])
        answer = await flowing.written.read(flowing.loop)
        assert (answer.source, answer.source_port) == (STANDS_IN, there.port)

    flowing.run(what)


def test_strangers_are_not_heard(far: socket.socket) -> None:
    flowing = Flowing()

    async def what() -> None:
        flowing.send(b"?", place_of(far))
        _, source = far.recvfrom(9)
        with socket.socket(type=socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"stranger", source)
        far.sendto(b"!", source)  # behind it
        answer = await flowing.written.read(flowing.loop)
        assert bytes(answer.data) == b"!"
        assert flowing.written.is_empty

    flowing.run(what)


def test_each_family_has_a_socket() -> None:
    flowing = Flowing()

    async def what() -> None:
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.socket(family, socket.SOCK_DGRAM) as far:
                far.bind((host, 0))
                far.settimeout(SECONDS)
                flowing.send(b"?", place_of(far))
                assert Endpoint.of_socket(far.recvfrom(9)[1]).host == host

    flowing.run(what)


def test_a_shortage_is_an_error(far: socket.socket) -> None:
    flowing, there = Flowing(), place_of(far)

    async def what() -> None:
        with descriptor_limit(0), pytest.raises(OSError, match="Too many open files"):
            flowing.send(b"?", there)
        flowing.send(b"!", there)
        assert far.recv(9) == b"!"

    flowing.run(what)


def test_a_proxy_that_fails_is_nobody_there() -> None:
    """Once for what has been held for it, and for each that is sent in the pause after that."""
    flowing, there = Flowing(), Endpoint("203.0.113.1", 7)

    async def what() -> None:
        for _ in range(2):
            flowing.send(b"?", there, CHAIN)
            packet = await flowing.written.take()
            assert (packet[9], packet[20:22]) == (1, b"\x03\x03")  # ICMP: port unreachable
            quoted = datagram_in(memoryview(packet[28:]))
            assert quoted is not None
            assert (quoted.source_port, quoted.destination_port) == (PORT, 7)
        assert flowing.asked == 1
        assert flowing.said == [
            f"datagrams target={there} via={CHAIN[-1]}",
            f"datagrams via={CHAIN[-1]}: it is refused",
        ]

    flowing.run(what)


def test_destinations_are_not_remembered_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "_MOST_DESTINATIONS", 3)
    flowing = Flowing()

    async def what() -> None:
        for port in range(1, 8):
            flowing.send(b"?", Endpoint("127.0.0.9", port))
            assert 0 < len(flowing.flow._sent_to) <= 3

    flowing.run(what)


def test_it_is_used_as_long_as_something_comes(far: socket.socket) -> None:
    flowing = Flowing()
    flowing.flow.used = 0.0

    async def what() -> None:
        flowing.send(b"?", place_of(far))
        far.sendto(b"!", far.recvfrom(9)[1])
        await flowing.written.read(flowing.loop)
        assert flowing.flow.used == flowing.loop.now

    flowing.run(what)
