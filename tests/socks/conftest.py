"""Nothing that a playbook has opened stays open."""

from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("play")

from play import _opened  # noqa: E402


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    """Or it is closed in the middle of another test, by the collector."""
    yield
    while _opened:
        stream = _opened.pop()
        stream.close()
        if not stream.loop._epoll.closed:
            stream.loop.close()
