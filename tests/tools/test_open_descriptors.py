"""Which descriptors rules may name, and over which one all can go."""

import os
import socket

import pytest
from places import in_child

from muonsocks.errors import UsageError
from muonsocks.tools.open_descriptors import open_descriptors, receiving_socket


def test_those_that_rules_may_name() -> None:
    """All that are open; standard streams if they are sockets, and never the log."""

    def check() -> None:
        one, _ = socket.socketpair()
        null = os.open("/dev/null", os.O_RDWR)
        for fd, source in ((0, one.fileno()), (1, null), (2, one.fileno()), (250, null)):
            os.dup2(source, fd)
        found = open_descriptors()
        assert {0, 250} <= found
        assert found.isdisjoint({1, 2, 251})
        for fd in found:
            os.fstat(fd)

    in_child(check)


def test_a_connected_unix_socket() -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        assert receiving_socket(str(one.fileno())) == one.fileno()
        other.close()
        assert receiving_socket(str(one.fileno())) == one.fileno()  # it did lead somewhere
        os.fstat(one.fileno())


@pytest.mark.parametrize("kind", ["alone", "listening", "TCP", "a file"])
def test_anything_else(kind: str) -> None:
    with (
        socket.socket(socket.AF_UNIX) as sock,
        socket.socket() as tcp,
        open(os.devnull, "rb") as file,
    ):
        if kind == "listening":
            sock.bind(b"")
            sock.listen()
        fd = {"TCP": tcp, "a file": file}.get(kind, sock).fileno()
        what = "no unix socket" if kind in ("TCP", "a file") else "not connected"
        with pytest.raises(UsageError, match=f"-i: descriptor {fd} is {what}; give one end of"):
            receiving_socket(str(fd))
        os.fstat(fd)
    with pytest.raises(UsageError, match="-i: descriptor 2 is for the log"):
        receiving_socket("2")
