"""What tests of programs that others run have."""

import os
from collections.abc import Iterator

import pytest
from attended import as_user, directory
from socksified import expect_isolation


@pytest.fixture
def place() -> Iterator[str]:
    """A directory that the programs may write to; they may not come to what is in `tmp_path`."""
    with directory() as place:
        yield place


@pytest.fixture
def path() -> Iterator[str]:
    """Where a unix socket may be."""
    with directory() as place:
        yield f"{place}/socket"


@pytest.fixture
def root() -> Iterator[str]:
    """A directory as those that SKBOX_DIRECTORY_ROOT2 names."""
    with directory() as place:
        for name in ("X0000", "X0004", "X4001", "00001"):
            os.mkdir(f"{place}/{name}")
            os.chown(f"{place}/{name}", os.stat(place).st_uid, -1)
        yield place


@pytest.fixture(params=["user", "root"])
def before(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The words that make one an ordinary user, or root."""
    if request.param == "user":
        expect_isolation()
        return as_user()
    if os.geteuid():
        pytest.skip("needs root")
    return ()
