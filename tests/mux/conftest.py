"""What the older pair's tests need beside the models: servers to reach, and nothing left behind."""

import socket
import threading
from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("ends", "classic_joined")

from classic_joined import Echo, EchoServer  # noqa: E402
from classic_port import PATIENCE  # noqa: E402
from ends import nothing_left_behind  # noqa: E402


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
