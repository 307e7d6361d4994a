"""Both sides of virtio-mux as processes, and a cable between them that can be pulled.

with cable() as joint, guest(joint.guest) as g, host(joint.host) as h:
    client, conn = g.joined(far)
"""

import contextlib
import os
import selectors
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from programs import ROOT, SECONDS, environment
from real_server import ADDRESS, Server, children, free_port, is_alive, until

from muonsocks.mux.frames import MAGIC, Hello, decode

VIRTIO_MUX = str(ROOT / "bin" / "virtio-mux")

Port = str | tuple[int, int]  # a path, or what is to be standard input and output


class Side(Server):
    """One side, running."""

    def kill(self) -> None:
        """End it as a crash would: the supervisor of a guest, and its worker."""
        pids = [self.pid, *children(self.pid)]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        self.process.wait()
        until("it is dead", lambda: not any(map(is_alive, pids)))


@contextlib.contextmanager
def guest(port: Port, *options: str, status: int | None = 0, **variables: str) -> Iterator[Side]:
    """Run a guest, until the end of the block or its own; `address` is where it listens."""
    number = free_port()
    where = [f"--listen={ADDRESS}", f"--port={number}"]
    if not any(option.startswith("--drain-timeout=") for option in options):
        where.append("--drain-timeout=0.1")
    with _running(port, "guest", *where, *options, status=status, **variables) as side:
        side.address = (ADDRESS, number)
        side.await_log("listening on")
        yield side


@contextlib.contextmanager
def host(port: Port, *options: str, status: int | None = 0, **variables: str) -> Iterator[Side]:
    """Run a host, until the end of the block or its own."""
    with _running(port, "host", "--allow-local", *options, status=status, **variables) as side:
        yield side


@contextlib.contextmanager
def _running(port: Port, *words: str, status: int | None, **variables: str) -> Iterator[Side]:
    stdin, stdout = (None, None) if isinstance(port, str) else port
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [VIRTIO_MUX, *words, port if isinstance(port, str) else "-"],
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=log if stdout is None else stdout,
            stderr=log,
            env=environment(**variables),
        )
        side = Side(process, log.fileno(), ("", 0))
        processes = {process.pid}
        try:
            yield side
            processes.update(children(process.pid))
            if process.poll() is None:
                side.terminate()
            if status is not None:
                assert side.status == status
        finally:
            processes.update(children(process.pid))
            process.kill()
            process.wait()
            until("no worker is left", lambda: not any(map(is_alive, processes)))
            side.log_is_complete()
            print(f"{words[0]}:\n{side.log}")  # pytest shows it with a failure
        assert "Traceback" not in side.log
        assert "this is a bug" not in side.log


@contextlib.contextmanager
def both(*options: str) -> Iterator[tuple[Side, Side]]:
    """A guest and a host that are joined by a socket pair, and have met."""
    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        guest((ours.fileno(), ours.fileno()), *options) as g,
        host((theirs.fileno(), theirs.fileno())) as h,
    ):
        ours.close()
        theirs.close()
        g.await_log("the host is there")
        yield g, h


class Cable:
    """What QEMU is between a guest's port and a host's socket: both connect, in any order.

    When one of them goes, the other one is not told, and what it writes is lost.
    """

    def __init__(self, place: Path) -> None:
        self.guest, self.host = str(place / "guest"), str(place / "host")
        self._wakers = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wakers[0], selectors.EVENT_READ)
        self._ends: dict[str, socket.socket] = {}
        self._listeners = []
        for path in (self.guest, self.host):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(path)
            listener.listen()
            self._listeners.append(listener)
            self._selector.register(listener, selectors.EVENT_READ, path)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._wakers[0]:
                    return
                if key.fileobj in self._listeners:
                    self._accept(key.fileobj, key.data)
                else:
                    self._carry(key.fileobj, key.data)

    def _accept(self, listener: socket.socket, path: str) -> None:
        sock = listener.accept()[0]
        if before := self._ends.pop(path, None):
            self._drop(before)
        self._ends[path] = sock
        self._selector.register(sock, selectors.EVENT_READ, path)

    def _carry(self, sock: socket.socket, path: str) -> None:
        try:
            data = sock.recv(1 << 16)
        except ConnectionResetError:
            data = b""
        if not data:
            if self._ends.get(path) is sock:
                del self._ends[path]
            self._drop(sock)
            return
        other = self._ends.get(self.host if path == self.guest else self.guest)
        if other is not None:
            with contextlib.suppress(OSError):
                other.sendall(data)

    def _drop(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        sock.close()

    def close(self) -> None:
        self._wakers[1].send(b"x")
        for sock in self._ends.values():
            sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._selector.close()
        for sock in (*self._ends.values(), *self._listeners, *self._wakers):
            sock.close()


@contextlib.contextmanager
def cable(place: Path) -> Iterator[Cable]:
    joint = Cable(place)
    try:
        yield joint
    finally:
        joint.close()


class Peer:
    """The other side of a port, by hand."""

    def __init__(self, sock: socket.socket, connections: int) -> None:
        sock.settimeout(SECONDS)
        self.sock = sock
        self._connections = connections
        self._came = b""

    def frame(self) -> tuple[int, bytes]:
        """The next frame, without HELLOs, PINGs and what means nothing."""
        while True:
            number, size = struct.unpack("<HH", self._exactly(4))
            data = self._exactly(size)
            if number != 0xFFFF or (data and not data.startswith((MAGIC, b"\7"))):
                return number, data

    def _exactly(self, size: int) -> bytes:
        while len(self._came) < size:
            data = self.sock.recv(1 << 16)
            assert data, "the other side has gone"
            self._came += data
        taken, self._came = self._came[:size], self._came[size:]
        return taken

    def meet(self) -> None:
        """Begin a session, whatever there was before."""
        ours = os.urandom(8)
        self.sock.sendall(Hello(1, self._connections, ours, bytes(8)).encode())
        theirs = b""
        while not theirs:
            self._came += self.sock.recv(1 << 16)
            at = self._came.find(MAGIC + struct.pack("<H", 1))
            if at >= 0 and len(self._came) >= at + 52:
                hello = decode(self._came[at : at + 52])
                self._came = self._came[at + 52 :]
                theirs = hello.number if hello.echo == ours else b""
        self.sock.sendall(Hello(1, self._connections, ours, theirs).encode())

    def send(self, *messages: Any) -> None:
        self.sock.sendall(b"".join(m if isinstance(m, bytes) else m.encode() for m in messages))


@contextlib.contextmanager
def against_host(*options: str) -> Iterator[tuple[Side, Peer]]:
    ours, theirs = socket.socketpair()
    with ours, host((theirs.fileno(), theirs.fileno()), *options) as h:
        theirs.close()
        yield h, Peer(ours, 0)
        ours.close()
        assert h.status == 0


@contextlib.contextmanager
def against_guest(*options: str) -> Iterator[tuple[Side, Peer]]:
    ours, theirs = socket.socketpair()
    with ours, guest((theirs.fileno(), theirs.fileno()), *options) as g:
        theirs.close()
        yield g, Peer(ours, 1000)
