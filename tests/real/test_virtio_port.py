"""The virtio port itself, with plain programs at both ends: what whoever uses it has to expect."""

import ast
import contextlib
import fcntl
import hashlib
import select
import socket
import termios
import time
from collections.abc import Callable, Iterator

import guest_port
import pytest
import qemu
import raw_port
from qemu import Guest

pytestmark = [pytest.mark.qemu, pytest.mark.xdist_group("qemu")]

SECONDS = 20  # for what takes milliseconds on a machine that is not busy
AMOUNT = 20_000_000  # bytes
PORT = f"/dev/virtio-ports/{qemu.PORT}"

# Reads and writes as it is told, in lines that it evaluates; says what the port answered.
BY_HAND = f"""
import os, select, sys
EDGES = select.EPOLLIN | select.EPOLLOUT | select.EPOLLET
port = os.open({PORT!r}, os.O_RDWR | os.O_NONBLOCK)
edges = select.epoll()
edges.register(port, EDGES)
def events():
    return [event for _, event in edges.poll({SECONDS})]
def read():
    try:
        return os.read(port, 65536)
    except BlockingIOError:
        return None
print("ready", flush=True)
for line in sys.stdin:
    print(repr(eval(line)), flush=True)
"""


class ByHand:
    """A program in the guest that has the port open, and does one thing at a time."""

    def __init__(self, guest: Guest) -> None:
        self.process = guest.start("python3", "-c", BY_HAND)
        assert self.process.read_line(SECONDS) == "ready"

    def __call__(self, expression: str) -> object:
        self.process.write(expression.encode() + b"\n")
        value: object = ast.literal_eval(self.process.read_line(SECONDS))
        return value


def until(condition: Callable[[], bool]) -> None:
    """Ask until it is so: for what is QEMU's own, and not told to anybody."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline


def has_taken(host: socket.socket) -> bool:
    """Whether QEMU has read all that was sent."""
    return fcntl.ioctl(host, termios.TIOCOUTQ, bytes(4)) == bytes(4)


@contextlib.contextmanager
def listening(guest: Guest) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(SECONDS)
        listener.bind(str(guest.port))
        listener.listen()
        yield listener


def test_bytes_both_ways(guest: Guest) -> None:
    digest = hashlib.sha256()
    for piece in guest_port.pieces(AMOUNT):
        digest.update(piece)
    with raw_port.served(guest), guest.connect() as host:
        assert raw_port.send(host, AMOUNT, looks=True) == digest.digest()
        assert raw_port.fetch(host, AMOUNT, looks=True) == (digest.digest(),) * 2
        assert len(raw_port.ping(host, 10)) == 10


def test_a_port_that_calls(guest: Guest) -> None:
    guest.replug(calls=True)
    with listening(guest) as listener, raw_port.served(guest):
        for _ in range(2):  # it calls again after a second
            host, _ = listener.accept()
            with host:
                host.settimeout(SECONDS)
                raw_port.ping(host, 10)


def test_speed(guest: Guest, capsys: pytest.CaptureFixture[str]) -> None:
    """To be seen where the tests run in one process: tests/run -n0 -m qemu."""
    speed = raw_port.raw_speed(guest)
    with capsys.disabled():
        print(f"\nthe raw port: {speed}")
    assert min(speed) > 0


def test_a_read_has_bytes_of_one_host_only(guest: Guest) -> None:
    """And what the first has sent is there when the second has come."""
    port = ByHand(guest)
    for text in (b"first", b"second"):
        with guest.connect() as host:
            host.sendall(text)
            until(lambda: has_taken(host))
    assert [port("read()"), port("read()")] == [b"first", b"second"]


def test_a_quick_change_of_hosts_is_not_seen(guest: Guest) -> None:
    """Only what a host says first can tell it from another. (Nor is one that went in a pause.)"""
    port = ByHand(guest)
    assert port("events()") == [select.EPOLLIN | select.EPOLLHUP]
    assert port("read()") == b""
    host = guest.connect()
    assert port("events()") == [select.EPOLLOUT]
    assert port("read()") is None
    guest.pause()
    host.close()
    until(lambda: not guest.has_host())
    with guest.connect():
        until(guest.has_host)
        guest.resume()
        assert port("edges.poll(0.1)") in ([], [(port("port"), select.EPOLLOUT)])
        assert port("read()") is None


def test_what_a_host_sent_while_nobody_had_the_port_is_for_the_next(guest: Guest) -> None:
    port = ByHand(guest)
    with guest.connect() as host:
        port.process.kill()
        port.process.wait(SECONDS)
        guest.run("true")  # by now QEMU knows
        host.sendall(b"stale")
        port = ByHand(guest)
        while (data := port("read()")) is None:
            port("events()")
        assert data == b"stale"
