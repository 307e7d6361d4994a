"""The background thread is there before a test looks at what is open, and has dealt with all that
the test has left to it afterwards.
"""

from collections.abc import Iterator

import pytest

# Those of other directories, too, which come later.
pytest.register_assert_rewrite(
    *("classic_calls", "each_client", "relays", "conformance", "ends", "faults", "nameserver"),
    *("crowd", "places", "programs", "real_server"),
)

from ends import nothing_left_behind  # noqa: E402
from relays import settle  # noqa: E402

from muonsocks.client.background import Thread  # noqa: E402


@pytest.fixture
def clean() -> Iterator[None]:
    Thread.of_this_process().call(Thread.of_this_process().loop._all_threads)
    settle()
    with nothing_left_behind():
        yield
        settle()
