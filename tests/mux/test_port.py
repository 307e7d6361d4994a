"""A port that is taken out of the machine; what a port does otherwise is tried through a link."""

import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from muonsocks.mux.port import Port
from muonsocks.net.borrowed import Pair
from muonsocks.net.loop import Loop

GROUPS, PROCESSES = Path("/sys/fs/cgroup"), "cgroup.procs"


@pytest.fixture
def taken_away() -> Iterator[int]:
    """A descriptor of something that is not there any more, as a virtio port's is in the end.

    It is of a file in a control group: for that the kernel says ENODEV, too.
    """
    # in the second of these places where there are hierarchies of version 1, too
    hierarchies = [path for path in (GROUPS, GROUPS / "unified") if (path / PROCESSES).exists()]
    if os.geteuid() != 0 or not hierarchies:
        pytest.skip("to make a control group takes root, and where they are mounted")
    group = hierarchies[0] / f"muonsocks-{uuid.uuid4()}"
    group.mkdir()
    try:
        fd = os.open(group / PROCESSES, os.O_RDWR | os.O_NONBLOCK)
    finally:
        group.rmdir()
    yield fd


def test_it_does_not_return(taken_away: int) -> None:
    loop = Loop()
    port = Port(Pair(loop, taken_away, os.dup(taken_away), ()), "port", can_return=True)
    with pytest.raises(OSError) as caught:
        port.read_into(memoryview(bytearray(100)), 0)
    assert caught.value.errno == errno.ENODEV
    assert not port.can_return
    port.stream.close()
    loop.close()
