"""A child of the test under a filter, whose calls are the test's to answer.

with child({"connect": [Rule(NOTIFY)]}, program) as (listener, pid):
    call = next_call(listener)
"""

import contextlib
import ctypes
import os
import select
import signal
import socket
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from programs import SECONDS

from muonsocks.intercept import gate, kernel
from muonsocks.intercept.bpf import assemble
from muonsocks.intercept.notify import Call, Listener

LIBRARY = ctypes.CDLL(None, use_errno=True)


def result(value: int) -> int:
    """What a function of the library has given, or minus the errno."""
    return -ctypes.get_errno() if value == -1 else value


@contextlib.contextmanager
def child(
    rules: dict[str, Any], program: Callable[[Callable[[object], None]], None]
) -> Iterator[tuple[Listener, "Child"]]:
    """Fork a child that runs `program`, which is given something to say things with."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if not pid:
        try:
            os.setpgid(0, 0)
            try:
                fd = gate.install(assemble(rules, kernel.ARCHITECTURES))
            except OSError as error:
                os.write(theirs.fileno(), f"!{error.strerror}".encode())
                os._exit(1)
            os.write(theirs.fileno(), str(fd).encode())
            os.read(theirs.fileno(), 1)
            os.close(fd)
            program(lambda what: os.write(theirs.fileno(), repr(what).encode()) and None)
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(0)
    theirs.close()
    ours.settimeout(SECONDS)
    said = ours.recv(400).decode()
    if said.startswith("!"):
        os.waitpid(pid, 0)
        pytest.skip(f"no filter can be had here: {said[1:]}")
    pidfd = os.pidfd_open(pid)
    listener = Listener(kernel.descriptor_of(pidfd, int(said)))
    os.close(pidfd)
    one = Child(pid, ours)
    try:
        ours.send(b"\0")
        yield listener, one
    finally:
        one.kill()
        ours.close()
        with contextlib.suppress(OSError):
            listener.close()


class Child:
    """It, and what it says."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self._channel = channel
        self._is_reaped = False

    def says(self) -> str:
        return self._channel.recv(4096).decode()

    def kill(self) -> None:
        if not self._is_reaped:
            self._is_reaped = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def next_call(listener: Listener) -> Call:
    """The call that comes next."""
    assert select.select([listener.fd], [], [], SECONDS)[0], "no call comes"
    call = listener.receive()
    assert call is not None
    return call
