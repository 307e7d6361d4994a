"""A loop that leaves nothing behind; and the assertions in the modules beside the tests explained
(pyproject.toml has their path).
"""

from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("conformance", "ends", "faults", "nameserver", "places")

from ends import nothing_left_behind  # noqa: E402

from muonsocks.net.loop import Loop  # noqa: E402


@pytest.fixture
def loop() -> Iterator[Loop]:
    with nothing_left_behind():
        loop = Loop()
        yield loop
        assert not loop.handlers
        loop.close()
