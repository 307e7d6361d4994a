"""A worker's process and the orders it gets, over a channel that the test holds."""

import errno
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from ends import Lines
from programs import SECONDS

from muonsocks.address import parse_address
from muonsocks.errors import UsageError
from muonsocks.net.entrance import Listener
from muonsocks.net.inherit import Peer
from muonsocks.net.listen import listen_on
from muonsocks.net.loop import Loop
from muonsocks.resident.board import CUT, OPEN, Board
from muonsocks.resident.plan import Capacity, Plan, Service
from muonsocks.resident.process import (
    CUT_NOW,
    DRAIN,
    FINISH,
    GIVEN_UP,
    HAS_SAID_WHY,
    NOTHING_LEFT,
    READY,
    Process,
    take_order,
)

LOOPBACK = parse_address("127.0.0.1") or b""


class Told(Service):
    """A service that tells its clients what it was told, and holds them."""

    def __init__(self) -> None:
        self.configuration: Any = b"nothing"
        self.settling: Callable[[Callable[[], None]], None] = lambda retire: None

    def reread(self) -> Any:
        raise AssertionError("that is for the supervisor")

    def take(self, configuration: Any) -> None:
        self.configuration = configuration

    def settle(self, loop: Loop, retire: Callable[..., None]) -> None:
        self.settling(retire)

    async def serve(self, loop: Loop, sock: socket.socket, peer: Peer) -> int:
        try:
            sock.send(self.configuration[:100])
            await loop.sleep(SECONDS)
        finally:
            sock.close()
        return 0


class Running:
    def __init__(self, pid: int, channel: socket.socket, port: int, board: Board) -> None:
        self.pid = pid
        self.channel = channel
        self.port = port
        self.board = board

    def told(self) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), SECONDS) as client:
            return client.recv(100)

    def status(self) -> int:
        pid, self.pid = self.pid, 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextmanager
def running(
    service: Told, drain: float = SECONDS, kind: type[Listener] = Listener
) -> Iterator[Running]:
    ours, theirs = socket.socketpair()
    ours.settimeout(SECONDS)
    listener, board = listen_on(LOOPBACK, 0), Board(1)
    port = listener.getsockname()[1]
    pid = os.fork()
    if not pid:
        ours.close()
        process = Process(service, [kind(listener)], Plan(1, Capacity(0), drain), board, Lines())
        theirs.setblocking(False)
        process.run(theirs, 0)
    listener.close()
    theirs.close()
    worker = Running(pid, ours, port, board)
    try:
        yield worker
    finally:
        ours.close()
        if worker.pid:
            os.kill(worker.pid, signal.SIGKILL)
            os.waitpid(worker.pid, 0)


def refused(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


def test_it_takes_what_was_read_again_however_it_comes() -> None:
    """In pieces, and several orders in one: the channel is a stream."""
    with running(Told()) as worker:
        assert worker.channel.recv(10) == READY
        assert worker.told() == b"nothing"
        first, second = take_order(os.urandom(3 << 20)), take_order(b"again")
        worker.channel.sendall(first[:3])
        worker.channel.sendall(first[3:] + second[:7])
        assert worker.told() != b"again"
        worker.channel.sendall(second[7:] + take_order(b"and again"))
        while worker.told() != b"and again":
            pass


@pytest.mark.parametrize("how", ["order", "end of file"])
def test_it_drains(how: str) -> None:
    with running(Told(), drain=0.2) as worker:
        worker.channel.recv(10)
        with socket.create_connection(("127.0.0.1", worker.port), SECONDS) as client:
            assert client.recv(100) == b"nothing"
            if how == "order":
                worker.channel.sendall(DRAIN)
            else:
                worker.channel.close()
            while not refused(worker.port):
                pass
            assert client.recv(1) == b""
        assert worker.status() == 0
        # Those that only looked whether anybody listens may have been served, and cut, as well.
        assert worker.board.total(CUT) >= 1 and worker.board.total(OPEN) == 0


def test_it_finishes_in_any_time() -> None:
    """Until it is told that there is a limit."""
    with running(Told(), drain=0.2) as worker:
        worker.channel.recv(10)
        with socket.create_connection(("127.0.0.1", worker.port), SECONDS) as client:
            assert client.recv(100) == b"nothing"
            worker.channel.sendall(FINISH)
            while not refused(worker.port):
                pass
            client.settimeout(0.5)
            with pytest.raises(TimeoutError):
                client.recv(1)
            client.settimeout(SECONDS)
            worker.channel.sendall(DRAIN)
            assert client.recv(1) == b""
        assert worker.status() == NOTHING_LEFT


def test_it_ends_now() -> None:
    with running(Told()) as worker:
        worker.channel.recv(10)
        with socket.create_connection(("127.0.0.1", worker.port), SECONDS) as client:
            assert client.recv(100) == b"nothing"
            worker.channel.sendall(DRAIN + CUT_NOW)
            assert worker.status() == 0
        assert worker.board.total(CUT) == 1


def test_signals_are_for_the_supervisor() -> None:
    with running(Told()) as worker:
        worker.channel.recv(10)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(worker.pid, number)
        assert worker.told() == b"nothing"


def test_a_service_that_retires() -> None:
    service = Told()
    service.settling = lambda retire: retire()
    with running(service) as worker:
        assert worker.channel.recv(10) == READY
        assert worker.status() == 0


@pytest.mark.parametrize(
    ("how", "looks"), [("retires", b""), ("retires for good", b"x"), ("is told", b"x")]
)
def test_who_waits_for_nobody_else(how: str, looks: bytes) -> None:
    """Is taken in at last if all workers end, and left to the others if one of them does."""
    reader, writer = os.pipe()

    class Queue(Listener):
        waits_for_nobody_else = True

        def take(self) -> Any:
            os.write(writer, b"x")
            return super().take()

    service = Told()
    if how != "is told":
        service.settling = lambda retire: retire(for_good=how == "retires for good")  # type: ignore[call-arg]
    with running(service, kind=Queue) as worker:
        assert worker.channel.recv(10) == READY
        if how == "is told":
            worker.channel.sendall(DRAIN)
        worker.status()
    os.close(writer)
    with open(reader, "rb") as seen:
        assert seen.read() == looks


@pytest.mark.parametrize("failed", [False, True])
@pytest.mark.parametrize("drains", [False, True])
def test_a_service_that_retires_for_good(failed: bool, drains: bool) -> None:
    """There is nothing to wait for: connections have a second, also if it drains already."""
    service = Told()
    reader, writer = os.pipe()

    def settle(loop: Loop, retire: Callable[..., None]) -> None:
        def retire_for_good(_: int) -> None:
            loop.unregister(reader)
            retire(for_good=True, failed=failed, cuts=True)

        loop.register(reader, retire_for_good)

    service.settle = settle  # type: ignore[method-assign]
    with running(service) as worker, socket.socket() as client:
        worker.channel.recv(10)
        client.connect(("127.0.0.1", worker.port))
        client.settimeout(SECONDS)
        assert client.recv(100) == b"nothing"
        if drains:
            worker.channel.sendall(DRAIN)
            while not refused(worker.port):
                pass
        began = time.monotonic()
        os.write(writer, b"x")
        assert client.recv(1) == b""
        assert 0.9 < time.monotonic() - began < 3
        assert worker.status() == (GIVEN_UP if failed else NOTHING_LEFT)
        assert worker.board.total(CUT) >= 1
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("error", [UsageError("no good"), OSError(errno.EPERM, "no"), ValueError()])
def test_a_service_that_cannot_settle(error: Exception) -> None:
    service = Told()

    def fail(_: Callable[[], None]) -> None:
        raise error

    service.settling = fail
    with running(service) as worker:
        assert worker.status() == HAS_SAID_WHY
        assert worker.channel.recv(10) == b""
