"""What tests of programs that others run have."""

from collections.abc import Iterator

import pytest
from attended import directory


@pytest.fixture
def place() -> Iterator[str]:
    """A directory that the programs may write to; they may not come to what is in `tmp_path`."""
    with directory() as place:
        yield place
