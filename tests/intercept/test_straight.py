"""The straight way: what comes of it is what comes of every other one."""

import contextlib
import errno
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from each_client import PATIENCE, agrees
from ends import full_queue, nothing_left_behind
from hostile import CASES, LATE, come
from programs import SECONDS, closed_port
from real_server import until
from upstream import Upstream

from muonsocks.address import Endpoint
from muonsocks.client import ProxyMisbehaved, ProxyTimedOut, ProxyUnreachable, RequestRefused
from muonsocks.intercept.own_socket import number_against
from muonsocks.intercept.straight import StraightWay, is_straight
from muonsocks.net.loop import Loop
from muonsocks.net.task import Waitable
from muonsocks.socks.proxy_address import ProxyAddress

SHORT = 0.25  # s, for what never comes
NOBODY = "socks5://192.0.2.1:1080"


@pytest.fixture(autouse=True)
def leaks_nothing() -> Iterator[None]:
    with nothing_left_behind():
        yield


class Ways:
    """Straight ways of one socket, one at a time, in a loop of their own."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.ended: list[OSError | None] = []
        self.failed: list[BaseException] = []
        self._over = Waitable()

    def __enter__(self) -> "Ways":
        self.loop = Loop()
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.close()

    def go(
        self,
        proxy: ProxyAddress,
        destination: Endpoint,
        seconds: float = SECONDS,
        then: Callable[[StraightWay], None] = lambda way: None,
    ) -> None:
        """Go one, to its end; `then` is called when it has begun."""

        def end(error: OSError | None) -> None:
            self.ended.append(error)
            self._over.wake()

        def fail(error: BaseException) -> None:
            self.failed.append(error)
            self._over.wake()

        async def run() -> None:
            way = StraightWay(self.loop, self.sock, proxy, fail, end)
            way.begin(destination, seconds)
            then(way)
            if not self.ended and not self.failed:
                await self._over

        self.loop.run(run())
        assert all(timer.callback is None for _, _, timer in self.loop.timers)


def straight(to: tuple[str, int], proxy: Any, seconds: float | None) -> socket.socket:
    """A client as those of each_client."""
    sock = socket.socket()
    try:
        with Ways(sock) as ways:
            ways.go(proxy, Endpoint(*to), seconds or SECONDS)
        assert not ways.failed
        assert len(ways.ended) == 1
        assert os.get_blocking(sock.fileno())
        if ways.ended[0] is not None:
            assert not number_against(sock), "it can be connected once more"
            raise ways.ended[0]
    except BaseException:
        sock.close()
        raise
    return sock


@pytest.mark.parametrize("what", CASES)
def test_what_a_program_is_told(what: str) -> None:
    case = CASES[what]
    with Upstream(case.script) as upstream:
        proxy = upstream.url(case.scheme, case.login)
        got = come(straight, proxy, SHORT if case.told is LATE else PATIENCE)
    assert agrees(got, case.told), got
    if got.kind != "connected":
        assert str(proxy) in got.words


@pytest.fixture(scope="module")
def port_of_nobody() -> int:
    return closed_port()


def test_there_is_no_proxy(port_of_nobody: int) -> None:
    port = port_of_nobody
    with socket.socket() as sock, Ways(sock) as ways:
        ways.go(ProxyAddress.parse(f"socks5://127.0.0.1:{port}"), Endpoint("192.0.2.7", 80))
        [error] = ways.ended
        assert isinstance(error, ProxyUnreachable)
        assert error.errno == errno.ECONNREFUSED
        assert f"127.0.0.1:{port}: " in str(error)
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def test_a_proxy_that_is_not_connected_in_time() -> None:
    with full_queue() as (server, _), socket.socket() as sock, Ways(sock) as ways:
        port = server.getsockname()[1]
        ways.go(ProxyAddress.parse(f"socks5://127.0.0.1:{port}"), Endpoint("192.0.2.7", 1), SHORT)
        [error] = ways.ended
        assert isinstance(error, ProxyTimedOut)
        assert error.errno == errno.ETIMEDOUT


def test_a_proxy_that_is_connected_after_a_while() -> None:
    """When there is room in its queue, and the kernel knocks once more."""
    with full_queue() as (server, there), socket.socket() as sock, Ways(sock) as ways:

        def serve() -> None:
            for one in there:
                one.close()
            while True:
                with server.accept()[0] as conn, contextlib.suppress(ConnectionError):
                    if conn.recv(3) == b"\5\1\0":
                        conn.sendall(b"\5\0")
                        conn.recv(100)
                        conn.sendall(b"\5\0\0\1" + bytes(6))
                        return

        threads: list[threading.Thread] = []

        def begun(_: StraightWay) -> None:
            threads.append(threading.Thread(target=serve))
            threads[0].start()

        port = server.getsockname()[1]
        proxy = ProxyAddress.parse(f"socks5://127.0.0.1:{port}")
        ways.go(proxy, Endpoint("192.0.2.7", 1), then=begun)
        assert ways.ended == [None]
        threads[0].join(SECONDS)


def test_a_proxy_that_hangs_up_before_it_is_spoken_to() -> None:
    """It has been there: that is no EPIPE, which connect(2) does not have."""
    with full_queue() as (server, there), socket.socket() as sock, Ways(sock) as ways:

        def hang_up(_: StraightWay) -> None:
            for one in there:
                one.close()
            ours, peer = sock.getsockname(), None
            server.settimeout(SECONDS)
            while peer != ours:
                conn, peer = server.accept()
                conn.shutdown(socket.SHUT_WR)  # and then all of it, by a reset
                conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                conn.close()

        proxy = ProxyAddress.parse(f"socks5://127.0.0.1:{server.getsockname()[1]}")
        ways.go(proxy, Endpoint("192.0.2.7", 1), then=hang_up)
        [error] = ways.ended
        assert isinstance(error, ProxyMisbehaved)
        assert error.errno == errno.ECONNRESET


def test_what_the_protocol_cannot_say() -> None:
    """Of SOCKS4, an IPv6 address: nobody is asked, and nothing stays connected."""
    with (
        socket.create_server(("127.0.0.1", 0)) as far,
        socket.socket() as sock,
        Ways(sock) as ways,
    ):
        proxy = ProxyAddress.parse(f"socks4://127.0.0.1:{far.getsockname()[1]}")
        ways.go(proxy, Endpoint("2001:db8::1", 80))
        [error] = ways.ended
        assert isinstance(error, RequestRefused)
        assert error.side == "here"
        assert not number_against(sock)


def test_what_can_still_be_read_is_left() -> None:
    """Of a connection that is over: connect(2) does not take it for a new one."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as sock:
        sock.connect(server.getsockname())
        with server.accept()[0] as conn:
            conn.sendall(b"the last words")
        sock.shutdown(socket.SHUT_WR)
        until("it is over", lambda: not number_against(sock))
        with Ways(sock) as ways:
            url = f"socks5://127.0.0.1:{server.getsockname()[1]}"
            ways.go(ProxyAddress.parse(url), Endpoint("192.0.2.7", 80))
        [error] = ways.ended
        assert error is not None and error.errno == errno.EISCONN
        assert sock.recv(100) == b"the last words"


def test_what_goes_wrong_at_the_end_is_no_end_of_the_loop() -> None:
    """It would be that of all programs' connections."""
    with Upstream([]) as upstream, socket.socket() as sock, Ways(sock) as ways:
        sock.setblocking(False)

        def spoil(way: StraightWay) -> None:
            ways.loop.unregister(sock.fileno())
            sock.close()
            way.interrupt(KeyError())

        ways.go(upstream.url("socks5"), Endpoint("192.0.2.7", 80), then=spoil)
        [error] = ways.failed
        assert isinstance(error, OSError) and error.errno == errno.EBADF


@pytest.mark.parametrize("blocks", [True, False])
def test_given_up(blocks: bool) -> None:
    """The error is passed on, and the socket is as it was."""
    given = KeyError("nobody wants it any more")
    with Upstream([]) as upstream, socket.socket() as sock, Ways(sock) as ways:
        sock.setblocking(blocks)
        ways.go(
            upstream.url("socks5"),
            Endpoint("192.0.2.7", 80),
            SECONDS,
            lambda way: way.interrupt(given),
        )
        assert (ways.failed, ways.ended) == ([given], [])
        assert os.get_blocking(sock.fileno()) == blocks
        assert not number_against(sock)


def test_a_fault_of_ours_is_told_as_one() -> None:
    with Upstream([3, b"\5\0"]) as upstream, socket.socket() as sock, Ways(sock) as ways:

        def spoil(way: StraightWay) -> None:
            way._asking = None  # type: ignore[assignment]

        ways.go(upstream.url("socks5"), Endpoint("192.0.2.7", 80), then=spoil)
        [error] = ways.failed
        assert isinstance(error, AttributeError)
        assert not ways.ended
        assert not number_against(sock)


@pytest.mark.parametrize(
    ("family", "destination", "urls", "is_one"),
    [
        (socket.AF_INET, "192.0.2.7", [NOBODY], True),
        (socket.AF_INET6, "192.0.2.7", ["http://[2001:db8::1]:80"], True),
        (socket.AF_INET, "a.name", ["socks5h://192.0.2.1:1080"], True),
        (socket.AF_INET, "a.name", [NOBODY], False),
        (socket.AF_INET6, "192.0.2.7", [NOBODY], False),
        (socket.AF_INET, "192.0.2.7", ["socks5://a.proxy:1080"], False),
        (socket.AF_INET, "192.0.2.7", ["socks5://unix:/run/proxy"], False),
        (socket.AF_INET, "192.0.2.7", [NOBODY, NOBODY], False),
        (socket.AF_INET, "192.0.2.7", [], False),
    ],
)
def test_which_ways_are_straight(
    family: int, destination: str, urls: list[str], is_one: bool
) -> None:
    chain = tuple(map(ProxyAddress.parse, urls))
    with socket.socket(family) as sock:
        assert is_straight(sock, Endpoint(destination, 80), chain) == is_one
