"""A SOCKS5 proxy that takes its time, and is the destination, too: it gives back what it gets."""

import contextlib
import os
import select
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import pytest
from programs import PYTHON, ROOT, SECONDS, environment, read_all

SOCKSIFY = str(ROOT / "bin" / "socksify")
AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


class SlowProxy:
    """Answers each request with `code` after `delay` seconds, or once `may_answer`; and says
    `greeting` then.

    `left` counts who has gone before there was an answer, `received` is what has come up to an end.
    """

    def __init__(self, delay: float = 0.0, code: int = 0, greeting: bytes = b"") -> None:
        self.delay = delay
        self.code = code
        self.greeting = greeting
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.echoes = True
        self.asked = 0
        self.left = 0
        self.received: list[bytes] = []
        self.changed = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1000)
        self.url = f"socks5h://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads: list[threading.Thread] = []
        self._is_over = False

    def __enter__(self) -> "SlowProxy":
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: object, trace: TracebackType | None
    ) -> None:
        self._is_over = True
        self.may_answer.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(SECONDS)

    def wait_until(self, **counts: int) -> None:
        """Wait until something that is counted is so many."""
        with self.changed:
            for name, number in counts.items():
                done = self.changed.wait_for(
                    lambda n=name, k=number: getattr(self, n) >= k, SECONDS
                )
                assert done, f"{name} is {getattr(self, name)}"

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._start(self._serve, self._listener.accept()[0])

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            sock.settimeout(SECONDS)
            try:
                read_all(sock, read_all(sock, 2)[1])
                sock.sendall(b"\5\0")
                kind = read_all(sock, 4)[3]
                length = {1: 4, 4: 16}.get(kind) or read_all(sock, 1)[0]
                read_all(sock, length + 2)
            except (OSError, IndexError):
                self._count("left")
                return
            self._count("asked")
            end = time.monotonic() + self.delay
            while not (self.may_answer.is_set() and time.monotonic() >= end):
                if select.select([sock], [], [], 0.01)[0]:
                    self._count("left")
                    return
            sock.sendall(bytes([5, self.code, 0, 1]) + bytes(6) + self.greeting)
            data = b""
            while not self.code and (piece := sock.recv(1 << 16)):
                data += piece
                if self.echoes:
                    sock.sendall(piece)
            with self.changed:
                self.received.append(data)
                self.changed.notify_all()

    def _count(self, name: str) -> None:
        with self.changed:
            setattr(self, name, getattr(self, name) + 1)
            self.changed.notify_all()


class Run:
    """A program under socksify: its `status`, `output` and `log` when it is over."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self.status = -1
        self.output = ""
        self.log = ""

    @property
    def supervisor(self) -> int:
        """Give the process that answers the calls: the child of the one in front."""
        children = f"/proc/{self.process.pid}/task/{self.process.pid}/children"
        return int(Path(children).read_text().split()[0])


@contextlib.contextmanager
def socksified(
    proxy: SlowProxy, *words: str, options: tuple[str, ...] = (), before: tuple[str, ...] = ()
) -> Iterator[Run]:
    """Run a program as an ordinary user, with a pipe to its input, up to its end; in mode async,
    unless the options say another one.
    """
    if not any(option.startswith("--mode") for option in options):
        options = ("--mode=async", *options)
    if not os.geteuid():
        before += AS_NOBODY
        if subprocess.run([*AS_NOBODY, "test", "-x", SOCKSIFY]).returncode:
            pytest.skip("an ordinary user cannot read this checkout")
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [*before, SOCKSIFY, f"--proxy={proxy.url}", *options, *words],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=errors,
            env=environment(HOME="/"),
        )
        run = Run(process)
        assert process.stdin is not None
        try:
            yield run
            process.stdin.close()
            run.status = process.wait(SECONDS)
        finally:
            process.kill()
            process.wait()
            said = [os.pread(file.fileno(), 1 << 24, 0).decode() for file in (output, errors)]
            run.output, run.log = said
            print(run.log)  # pytest shows it with a failure
    assert "this is a bug" not in run.log
    assert "Error(" not in run.log


def run(proxy: SlowProxy, *words: str, options: tuple[str, ...] = ()) -> Run:
    """Run a program to its end, which is to be a good one."""
    with socksified(proxy, *words, options=options) as done:
        pass
    assert done.status == 0, (done.status, done.output, done.log)
    return done


def python(program: str, *arguments: str) -> tuple[str, ...]:
    """Give the words that run a program of Python's; what `PREAMBLE` has is there."""
    return (PYTHON, "-IS", "-c", PREAMBLE + program, *arguments)


RESET = struct.pack("ii", 1, 0)
PREAMBLE = f"""
import errno, os, select, socket, struct, sys, threading, time
SECONDS = {SECONDS}
TARGET = ("192.0.2.1", 80)

def begin(family=socket.AF_INET, target=TARGET):
    sock = socket.socket(family)
    sock.setblocking(False)
    number = sock.connect_ex(target)
    assert number == errno.EINPROGRESS, errno.errorcode.get(number, number)
    return sock

def wait(sock, events=select.POLLOUT, patience=SECONDS):
    poll = select.poll()
    poll.register(sock, events)
    return dict(poll.poll(patience * 1000)).get(sock.fileno(), 0)

def error_of(sock):
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

def is_through(sock, data=b"hello"):
    '''Hold that what is sent comes back, and the connection ends as it should.'''
    sock.setblocking(True)
    sock.settimeout(SECONDS)
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
    got = b""
    while piece := sock.recv(1 << 16):
        got += piece
    assert got == data, (len(got), len(data), got[:40])
"""
