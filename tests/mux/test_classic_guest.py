"""The guest's half of the older pair alone, a test behind the port."""

import os
import select
import socket
import tty
from contextlib import ExitStack

import pytest
from classic_guest import ClassicGuest
from classic_joined import (
    client,
    guest_half,
    port,
    read,
    through,
)
from classic_port import HEADER, PATIENCE, frame
from ends import at_once

pytestmark = [
    pytest.mark.usefixtures("everything_is_closed"),
    pytest.mark.filterwarnings("error"),  # a socket that only the garbage collector has closed
]


def test_no_client_is_accepted_before_the_host_has_spoken(target: socket.socket) -> None:
    ours, theirs = port()
    with ours, ClassicGuest(theirs) as guest, client(guest) as sock:
        sock.sendall(b"\x05\x01\0")
        assert not select.select([sock], [], [], 0.3)[0]
        assert not guest.sockets and not guest.log
        ours.send(frame(0, b"discarded") + frame(0, b"likewise"))
        assert read(sock, 2) == b"\x05\0"
        ours.send(frame(0, b"early"))  # before there is a request
        assert read(sock, 5) == b"early"


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"\x04\0", b""),
        (b"\x05\x01\0\x05\x01\0\x04", b"\x05\0\x05\x08\0\x01" + bytes(6)),
        (b"\x05\x01\0\x05\x02\0\x01" + bytes(6), b"\x05\0\x05\x07\0\x01" + bytes(6)),
        (b"\x05\x01\0\x05\x01\0\x01", b"\x05\0"),
    ],
)
def test_who_is_not_served_leaves_no_trace(sent: bytes, answer: bytes) -> None:
    with guest_half() as (guest, _), client(guest) as sock:
        sock.sendall(sent)
        sock.shutdown(socket.SHUT_WR)
        assert read(sock, len(answer)) == answer
        assert sock.recv(1) == b""
        guest.wait_until(lambda: not guest.sockets)
        assert not [wire for wire in guest.log if wire.sent]


def test_frames_do_not_mix_on_a_port_that_takes_little() -> None:
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    ours.settimeout(PATIENCE)
    scripts = [bytes([n]) * 100_000 for n in range(8)]
    with ours, ClassicGuest(theirs) as guest, ExitStack() as stack:
        ours.send(b"x")
        clients = []
        for n in range(8):
            clients.append(stack.enter_context(through(guest, b"\x01" + bytes(6))))
            assert read(ours, 11) == frame(n, b"\x01" + bytes(6))

        def check() -> None:
            got = [b""] * 8
            while list(map(len, got)) != list(map(len, scripts)):
                number, length = HEADER.unpack(read(ours, 4))
                got[number] += read(ours, length)
            assert got == scripts

        at_once(
            check,
            *(
                lambda sock=sock, script=script: sock.sendall(script)
                for sock, script in zip(clients, scripts, strict=True)
            ),
        )


def test_a_device() -> None:
    master, slave = os.openpty()
    tty.setraw(slave)
    with open(master, "r+b", buffering=0) as ours, ClassicGuest(os.ttyname(slave)) as guest:
        os.close(slave)
        ours.write(b"x")
        with through(guest, b"\x03\x01a\0\x50"):
            assert ours.read(9) == frame(0, b"\x03\x01a\0\x50")
        assert ours.read(4) == frame(0, b"")
    assert guest.transcript() == ">> 78\n<< 0000 0500 0301610050\n<< 0000 0000"
