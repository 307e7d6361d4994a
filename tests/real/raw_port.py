"""The host's end of the raw port, without anything between the two: what it can do at best."""

import contextlib
import hashlib
import socket
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import guest_port
from qemu import Guest

AMOUNT = 64 << 20  # bytes each way
ROUND_TRIPS = 400
PING = 64  # bytes


class RawSpeed(NamedTuple):
    to_guest: float  # bytes/s
    from_guest: float  # bytes/s
    round_trip: float  # s, of 64 bytes, the median

    def __str__(self) -> str:
        rates = f"{self.to_guest / 1e6:.0f} MB/s in, {self.from_guest / 1e6:.0f} MB/s out"
        return f"{rates}, {self.round_trip * 1e3:.2f} ms a round trip"


@contextlib.contextmanager
def served(guest: Guest) -> Iterator[None]:
    """Have guest_port.py answer at the guest's end."""
    guest.put("/tmp/guest_port.py", Path(guest_port.__file__).read_bytes())
    server = guest.start("python3", "/tmp/guest_port.py")
    server.wait_for(b"ready")
    try:
        yield
    finally:
        server.kill()
        server.wait()


def send(host: socket.socket, size: int, *, looks: bool) -> bytes:
    """Send so many bytes to the guest; the digest that it found."""
    host.sendall(guest_port.REQUEST.pack(b"R", size, looks))
    for piece in guest_port.pieces(size):
        host.sendall(piece)
    return receive(host, guest_port.DIGEST)


def fetch(host: socket.socket, size: int, *, looks: bool) -> tuple[bytes, bytes]:
    """Have the guest send so many bytes; the digests that either found."""
    host.sendall(guest_port.REQUEST.pack(b"S", size, looks))
    digest = hashlib.sha256()
    buffer = bytearray(1 << 18)
    while size > 0:
        read = host.recv_into(buffer, min(size, len(buffer)))
        assert read, "the host's end of the port was closed"
        size -= read
        if looks:
            digest.update(memoryview(buffer)[:read])
    return digest.digest(), receive(host, guest_port.DIGEST)


def ping(host: socket.socket, times: int) -> list[float]:
    """The seconds that each of so many round trips took, one after the other."""
    host.sendall(guest_port.REQUEST.pack(b"E", times * PING, False))
    took = []
    for _ in range(times):
        start = time.perf_counter()
        host.sendall(bytes(PING))
        receive(host, PING)
        took.append(time.perf_counter() - start)
    return took


def receive(host: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = host.recv(size - len(data))
        assert piece, "the host's end of the port was closed"
        data += piece
    return data


def raw_speed(guest: Guest, amount: int = AMOUNT) -> RawSpeed:
    """Measure what the port can do, with nobody connected to it on the host."""
    with served(guest), guest.connect() as host:
        ping(host, 1)  # the first finds the guest's Python cold
        start = time.perf_counter()
        send(host, amount, looks=False)
        middle = time.perf_counter()
        fetch(host, amount, looks=False)
        end = time.perf_counter()
        trips = ping(host, ROUND_TRIPS)
    rates = amount / (middle - start), amount / (end - middle)
    return RawSpeed(*rates, statistics.median(trips))
