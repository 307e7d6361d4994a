"""The models of the older pair joined with each other or a test, and what goes through them."""

import socket
import socketserver
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from classic import CONNECTIONS
from classic_guest import ClassicGuest
from classic_host import ClassicHost
from classic_port import PATIENCE, frame

GREETING = [frame(0xFFFF, bytes(16 * i + j for j in range(16))) for i in range(5)]
SUCCESS = b"\x05\0\0\x01" + bytes(6)


def port() -> tuple[socket.socket, socket.socket]:
    """The two ends of a serial port: what one write gives, one read takes. What it has no room for
    is lost; a real port keeps that for the next read.
    """
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.settimeout(PATIENCE)
    return ends


@contextmanager
def pair(**settings: Any) -> Iterator[tuple[ClassicHost, ClassicGuest]]:
    """Both halves, joined, and ready for clients."""
    ours, theirs = port()
    with (
        ClassicGuest(ours, **settings) as guest,
        ClassicHost(theirs, greeting=0.1, **settings) as host,
    ):
        host.wait_until(lambda: host.greeted)
        guest.wait_until(lambda: guest.accepting)
        yield host, guest


@contextmanager
def host_half(**settings: Any) -> Iterator[tuple[ClassicHost, socket.socket]]:
    """The host's half after its greeting, and the port's other end."""
    ours, theirs = port()
    with ours, ClassicHost(theirs, greeting=0.0, **settings) as host:
        assert [ours.recv(5000) for _ in GREETING] == GREETING
        host.wait_until(lambda: host.greeted)
        yield host, ours


@contextmanager
def guest_half(**settings: Any) -> Iterator[tuple[ClassicGuest, socket.socket]]:
    """The guest's half when it accepts clients, and the port's other end."""
    ours, theirs = port()
    with ours, ClassicGuest(theirs, **settings) as guest:
        ours.send(b"x")
        guest.wait_until(lambda: guest.accepting)
        yield guest, ours


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(1 << 16):
            self.request.sendall(data)


class EchoServer(socketserver.ThreadingTCPServer):
    request_queue_size = 2 * CONNECTIONS


def accept(listener: socket.socket) -> socket.socket:
    sock, _ = listener.accept()
    sock.settimeout(PATIENCE)
    return sock


def request(address: tuple[str, int], name: bytes = b"") -> bytes:
    """A request as it is on the port and, after three bytes, in SOCKS5."""
    host = b"\x03" + bytes([len(name)]) + name if name else b"\x01" + socket.inet_aton(address[0])
    return host + address[1].to_bytes(2, "big")


def client(guest: ClassicGuest) -> socket.socket:
    return socket.create_connection(guest.address, PATIENCE)


def read(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        assert part, f"the end has come {count - len(data)} bytes too early"
        data += part
    return data


def through(guest: ClassicGuest, wanted: bytes) -> socket.socket:
    """A client with its request, which is told success."""
    sock = client(guest)
    ask(sock, wanted)
    return sock


def ask(sock: socket.socket, wanted: bytes) -> None:
    sock.sendall(b"\x05\x01\0")
    assert read(sock, 2) == b"\x05\0"
    sock.sendall(b"\x05\x01\0" + wanted)
    assert read(sock, 10) == SUCCESS


@contextmanager
def connection_of_host(
    target: socket.socket, **settings: Any
) -> Iterator[tuple[ClassicHost, socket.socket, socket.socket]]:
    with host_half(**settings) as (host, ours):
        ours.send(frame(3, request(target.getsockname())))
        with accept(target) as sock:
            yield host, ours, sock


@contextmanager
def connection_of_guest(
    target: socket.socket, **settings: Any
) -> Iterator[tuple[ClassicGuest, socket.socket, socket.socket]]:
    with guest_half(**settings) as (guest, ours):
        idle = [client(guest) for _ in range(3)]  # have connIds 0 to 2
        guest.wait_until(lambda: len(guest.sockets) == 3)
        with through(guest, request(target.getsockname())) as sock:
            assert ours.recv(5000) == frame(3, request(target.getsockname()))
            yield guest, ours, sock
        for other in idle:
            other.close()
