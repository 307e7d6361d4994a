"""Nothing that a playbook has opened stays open."""

from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("play")

from play import close_all  # noqa: E402


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    """Or it is closed in the middle of another test, by the collector."""
    yield
    close_all()
