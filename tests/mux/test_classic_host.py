"""The host's half of the older pair alone, a test behind the port."""

import socket
import time

import pytest
from classic_host import ClassicHost, parse_request
from classic_joined import GREETING, accept, host_half, port, request
from classic_port import frame

pytestmark = [
    pytest.mark.usefixtures("everything_is_closed"),
    pytest.mark.filterwarnings("error"),  # a socket that only the garbage collector has closed
]


def test_the_greeting_swallows_what_is_sent(target: socket.socket) -> None:
    ours, theirs = port()
    start = time.monotonic()
    with ours, ClassicHost(theirs, greeting=2.0) as host:
        for i in range(4):
            assert ours.recv(5000) == GREETING[i]
            ours.send(frame(i, request(target.getsockname())))
        assert ours.recv(5000) == GREETING[4]
        host.wait_until(lambda: host.greeted)
        assert time.monotonic() - start >= 2
        assert len([wire for wire in host.log if not wire.sent]) == 4
        ours.send(frame(9, request(target.getsockname())))
        with accept(target):
            host.wait_until(lambda: list(host.sockets) == [9])


def test_what_cannot_be_reached_is_answered_with_silence(target: socket.socket) -> None:
    good = request(target.getsockname())
    with host_half() as (host, ours), socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        for wrong in (
            request(closed.getsockname()),
            b"\x01\x7f",  # too short
            b"",
            b"\x04" + bytes(18),  # IPv6
            request(closed.getsockname(), b"a" * 64),
        ):
            ours.send(frame(7, wrong))
        ours.send(frame(7, b"data for it"))
        ours.send(frame(64, good))
        ours.send(frame(7, good))  # to which it listens: it has forgotten the other requests
        with accept(target) as sock:
            sock.sendall(b"answer")
            assert ours.recv(5000) == frame(7, b"answer"), "and nothing before"
            assert list(host.sockets) == [7]


@pytest.mark.parametrize(
    ("data", "meaning"),
    [
        (b"\x01\x7f\0\0\x01\x1f\x90", (b"127.0.0.1", 8080)),
        (b"\x01\x7f\0\0\x01\x1f\x90more", (b"127.0.0.1", 8080)),
        (b"\x03\x01a\0\x50", (b"a", 80)),
        (b"\x03\xff" + b"a" * 255 + b"\0\x50", (b"a" * 255, 80)),
        (b"\x03\x03a\0b\0\x50", (b"a", 80)),
        (b"\x03\x02a\0\x50", None),
        (b"\x03", None),
        (b"\x01\x7f\0\0\x01\x1f", None),
        (b"\x02\x7f\0\0\x01\x1f\x90", None),
    ],
)
def test_parse_request(data: bytes, meaning: tuple[bytes, int] | None) -> None:
    assert parse_request(data) == meaning
