"""Network namespaces: sockets are made in the one that was entered."""

import errno
import os
import socket
from pathlib import Path

import pytest
from ends import nothing_left_behind
from places import in_own_network, root_only, sh

from muonsocks.net.namespaces import enter_network


@root_only()
def test_a_network_is_entered() -> None:
    def check() -> None:
        sh("mkdir -p /run/netns", "mount -t tmpfs tmpfs /run/netns", "ip netns add other")
        sh("ip -n other link set lo up", "ip -n other addr add 192.0.2.1/32 dev lo")
        with socket.socket() as sock, pytest.raises(OSError):
            sock.bind(("192.0.2.1", 0))
        before = os.listdir("/proc/thread-self/fd")
        enter_network("/run/netns/other")
        assert len(os.listdir("/proc/thread-self/fd")) == len(before)
        with socket.socket() as sock:
            sock.bind(("192.0.2.1", 0))

    in_own_network(check)


def test_what_is_no_network(tmp_path: Path) -> None:
    with nothing_left_behind():
        with pytest.raises(FileNotFoundError):
            enter_network(str(tmp_path / "none"))
        (tmp_path / "file").touch()
        with pytest.raises(OSError) as caught:
            enter_network(str(tmp_path / "file"))
        assert (caught.value.errno, caught.value.filename) == (
            errno.EINVAL,
            str(tmp_path / "file"),
        )
        if os.geteuid() == 0:
            with pytest.raises(OSError) as caught:
                enter_network("/proc/self/ns/mnt")
            assert caught.value.errno == errno.EINVAL
