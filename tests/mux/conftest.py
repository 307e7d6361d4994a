"""What the tests of a mux need: a loop, servers to reach, and nothing left behind."""

import socket
import threading
from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite(
    *("both", "classic_joined", "conformance", "ends", "hand", "model", "places", "played")
)

from classic_joined import Echo, EchoServer  # noqa: E402
from classic_port import PATIENCE  # noqa: E402
from ends import nothing_left_behind  # noqa: E402
from hand import Clock  # noqa: E402

from muonsocks.net.loop import Loop  # noqa: E402


@pytest.fixture
def loop() -> Iterator[Loop]:
    """A loop in which nothing is left when a test is over: no handler, no call that is due."""
    with nothing_left_behind():
        loop = Loop()
        yield loop
        assert not loop.handlers
        assert not [timer.callback for _, _, timer in loop.timers if timer.callback]
        loop.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def everything_is_closed() -> Iterator[None]:
    with nothing_left_behind():
        yield


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    with EchoServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield ("127.0.0.1", server.server_address[1])
        server.shutdown()
        thread.join()


@pytest.fixture
def target() -> Iterator[socket.socket]:
    """A listener on loopback, whose connections a test holds itself."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        yield listener
