"""A real proxy, and where it leads to; and that nothing stays open."""

import socket
from collections.abc import Iterator

import pytest

# Those of other directories, too, which come later.
pytest.register_assert_rewrite(
    *("classic_calls", "each_client", "relays", "conformance", "ends", "faults", "nameserver"),
    *("crowd", "places", "programs", "real_server"),
)

from ends import nothing_left_behind  # noqa: E402
from programs import SECONDS  # noqa: E402
from real_server import Server, running  # noqa: E402
from relays import settle  # noqa: E402

from muonsocks.client.background import Thread  # noqa: E402


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running("--bind-any") as server:
        yield server


@pytest.fixture
def far() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as one:
        one.settimeout(SECONDS)
        yield one


@pytest.fixture
def clean() -> Iterator[None]:
    """The background thread is there before a test looks at what is open, and has dealt with all
    that the test has left to it afterwards.
    """
    Thread.of_this_process().call(Thread.of_this_process().loop._all_threads)
    settle()
    with nothing_left_behind():
        yield
        settle()
