"""Nobody but us connects a program's TCP sockets, says the kernel: landlock(7)."""

import errno
import os
import socket
from collections.abc import Iterator

import pytest
from places import in_child
from socksified import run

from muonsocks.intercept import kernel

MOST_LAYERS = 16


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A listener; without Landlock here the test is skipped."""
    if kernel._landlock_create_ruleset(None, 0, 1) < kernel._LANDLOCK_KNOWS_TCP:
        pytest.skip("this kernel has no Landlock that knows TCP (Linux 6.7)")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def test_tcp_is_connected_by_others_only(listener: socket.socket) -> None:
    with socket.socket() as sock, socket.socket(socket.AF_UNIX) as local:
        local.bind(f"\0{os.getpid()} landlock")
        local.listen()

        def act() -> None:
            kernel.give_up_privileges_to_come()
            assert kernel.forbid_tcp_connections()
            assert sock.connect_ex(listener.getsockname()) == errno.EACCES
            with socket.socket(socket.AF_UNIX) as other:
                other.connect(local.getsockname())
            with socket.socket(type=socket.SOCK_DGRAM) as other:
                other.connect(listener.getsockname())
            with socket.create_server(("127.0.0.1", 0)):
                pass

        in_child(act)
        sock.connect(listener.getsockname())  # by us, and it is the same socket


def test_what_cannot_be_forbidden_is_an_error(listener: socket.socket) -> None:
    def act() -> None:
        kernel.give_up_privileges_to_come()
        for _ in range(MOST_LAYERS):
            kernel.forbid_tcp_connections()
        done = run("true", mode="hold", before=())
        assert done.status == 111
        assert done.log.endswith("landlock_restrict_self: Argument list too long\n")
        assert done.log.count("\n") == 1

    in_child(act)
