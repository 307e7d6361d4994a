"""A chain as a way for datagrams, step by step; tests/tools has the real programs."""

import errno
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from ends import PATIENCE, no_garbage, tcp_pair

from muonsocks.address import Endpoint
from muonsocks.errors import SHORTAGES, ProxyFailed
from muonsocks.net.loop import Loop
from muonsocks.net.stream import Stream
from muonsocks.socks import datagram_way
from muonsocks.socks.datagram import encode_header
from muonsocks.socks.datagram_way import DatagramWay
from muonsocks.socks.proxy_address import ProxyAddress
from muonsocks.socks.proxy_request import ProxyRequest
from muonsocks.socks.request import Command, Reply, ReplyCode, Request

TWO = (ProxyAddress.parse("socks5://one"), ProxyAddress.parse("socks5://two"))
SECOND = Endpoint("192.0.2.2", 9)  # its relay
HEAD = encode_header(Endpoint("192.0.2.3", 53))


def is_not_there() -> ProxyFailed:
    return ProxyFailed("it is not there")


class Stage:
    """A way through two proxies; the test has their sides, and the first one's relay."""

    def __init__(self, loop: Loop, failure: Callable[[], Exception] | None = None) -> None:
        self.loop = loop
        self.failure = failure
        self.proxies: list[socket.socket] = []
        self.have_gone = False  # before they are waited for
        self.relay = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.relay.bind(("127.0.0.1", 0))
        self.relay.settimeout(PATIENCE)
        self.first = Endpoint(*self.relay.getsockname())
        self.lost: list[tuple[int, int, str]] = []
        self.faults: list[BaseException] = []
        self.way = DatagramWay(
            loop,
            TWO,
            self.ask,
            lambda *_: None,
            lambda _, count, size, why: self.lost.append((count, size, why)),
            self.faults.append,
        )

    async def ask(self, chain: tuple[ProxyAddress, ...]) -> tuple[Stream, ProxyRequest, Reply]:
        await self.loop.sleep(0.001)
        if self.failure is not None:
            raise self.failure()
        ours, theirs = tcp_pair()
        ours.setblocking(False)
        self.proxies.append(theirs)
        if self.have_gone:
            theirs.close()
        bound = self.first if len(chain) == 1 else SECOND
        asking = ProxyRequest(chain[-1], Request(Command.ASSOCIATE, bound))
        return Stream(self.loop, ours), asking, Reply(ReplyCode.SUCCEEDED, bound)

    def send(self, *datagrams: bytes) -> int:
        return sum(self.way.send([memoryview(one)], (TWO, HEAD)) for one in datagrams)

    def close(self) -> None:
        self.way.close()
        self.relay.close()
        for one in self.proxies:
            one.close()


@contextmanager
def staged(loop: Loop, failure: Callable[[], Exception] | None = None) -> Iterator[Stage]:
    stage = Stage(loop, failure)
    try:
        yield stage
    finally:
        stage.close()


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    assert not made.handlers
    made.close()


def rest(loop: Loop) -> None:
    loop.run(loop.sleep(0.05))


def test_what_has_waited_goes_first_and_with_all_headers(loop: Loop) -> None:
    with staged(loop) as stage:
        assert stage.send(b"one", b"two") == 2
        while not stage.proxies[1:]:
            rest(loop)
        rest(loop)
        assert stage.send(b"three") == 1
        for data in (b"one", b"two", b"three"):
            assert stage.relay.recv(99) == encode_header(SECOND) + HEAD + data


def test_proxies_that_go_at_once(loop: Loop) -> None:
    """The end of the first connection closes the second one, which nobody waits for any more."""
    with staged(loop) as stage:
        stage.have_gone = True
        loop.run(stage.way.open())
        assert not loop.handlers
        assert len(stage.proxies) == 2


@pytest.mark.parametrize("number", [0, 1])
def test_a_proxy_that_floods_its_connection_has_ended_it(loop: Loop, number: int) -> None:
    with staged(loop) as stage:
        loop.run(stage.way.open())
        stage.proxies[number].settimeout(0)
        with pytest.raises(ConnectionError):
            for _ in range(20):
                with suppress(BlockingIOError):
                    stage.proxies[number].send(bytes(1 << 16))
                rest(loop)
        assert not loop.handlers


@pytest.mark.parametrize("host", ["name", "192.0.2.1"])
def test_a_relay_that_is_nowhere_for_us(loop: Loop, host: str) -> None:
    """That is the proxy's fault: this host has run out of nothing."""
    with staged(loop) as stage:
        stage.first = Endpoint(host, 9)
        with pytest.raises(ProxyFailed) as told:
            loop.run(stage.way.open())
        assert (told.value.strerror or "").startswith("socks5://one:1080: ")
        assert told.value.errno not in (*SHORTAGES, errno.EADDRNOTAVAIL)


def test_what_waits_has_a_bound(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagram_way, "_MOST_HELD", 3)
    monkeypatch.setattr(datagram_way, "_MOST_BYTES_HELD", 10)
    with staged(loop, is_not_there) as stage:
        assert stage.send(b"1", b"2", b"12345678", b"123456789", b"4") == 3
        rest(loop)
        assert stage.lost == [(3, 10, "it is not there")]
        assert stage.send(b"5") == 0, "it is not asked again so soon"
        monkeypatch.setattr(loop, "now", loop.now + 10)
        assert stage.send(b"6") == 1
        rest(loop)
        assert stage.lost[1:] == [(1, 1, "it is not there")]


def test_a_fault_of_ours_is_no_proxy_s(loop: Loop) -> None:
    with staged(loop, ZeroDivisionError) as stage:
        stage.send(b"1")
        rest(loop)
        assert list(map(type, stage.faults)) == [ZeroDivisionError]
        assert stage.lost == []


def test_names_are_known_by_their_port(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagram_way, "_MOST_PORTS", 2)
    with staged(loop, is_not_there) as stage:
        for port in (1, 2, 3):
            stage.way.send([memoryview(b"x")], (TWO, encode_header(Endpoint("name", port))))
        heads = [encode_header(Endpoint("192.0.2.9", port)) for port in (1, 2, 3, 53)]
        assert [stage.way.may_be_from(head) for head in heads] == [False, False, True, False]


def test_nothing_is_garbage(loop: Loop) -> None:
    with no_garbage():
        for failure in (None, is_not_there, None):
            with staged(loop, failure) as stage:
                stage.send(b"1")
                rest(loop)
        with staged(loop) as stage:
            stage.send(b"1")  # closed before anything is known
        rest(loop)
        del stage, failure
