"""The gate that a program waits at, from both sides; who cannot get through is in test_launch."""

import os
import signal
import socket
import subprocess
from array import array
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from ends import nothing_left_behind

from muonsocks.intercept import gate

NO_DESCRIPTOR = 1 << 20


@contextmanager
def told(*numbers: int, word: bytes = b"\0") -> Iterator[socket.socket]:
    """Our side, after somebody has told of descriptors on the other one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            if word:
                theirs.send(word + array("i", numbers).tobytes())
        yield ours


@pytest.mark.parametrize(
    ("word", "why"), [(b"", "the process has been killed"), (b"it cannot be", "it cannot be")]
)
def test_who_has_nothing_says_why(word: bytes, why: str) -> None:
    with nothing_left_behind(), told(word=word) as ours, pytest.raises(OSError, match=why):
        gate.received(os.getpid(), ours)


def test_all_that_is_told_of_is_got() -> None:
    with (
        nothing_left_behind(),
        open("/dev/null") as one,
        open("/dev/zero") as other,
        told(one.fileno(), other.fileno()) as ours,
    ):
        listener, others = gate.received(os.getpid(), ours)
        got = [listener.fd, *others]
        assert [os.readlink(f"/proc/self/fd/{fd}") for fd in got] == ["/dev/null", "/dev/zero"]
        assert not any(map(os.get_inheritable, got))
        listener.close()
        os.close(*others)


def test_nothing_is_kept_if_one_cannot_be_got() -> None:
    refused = pytest.raises(OSError, match="pidfd_getfd: Bad file descriptor")
    with nothing_left_behind(), told(0, NO_DESCRIPTOR) as ours, refused:
        gate.received(os.getpid(), ours)


def test_nothing_is_kept_if_memory_cannot_be_read() -> None:
    """Another program has none at the same place."""
    with nothing_left_behind(), subprocess.Popen(["sleep", "60"]) as process:
        with told(0) as ours, pytest.raises(OSError, match="process_vm_readv or process_vm_wri"):
            gate.received(process.pid, ours)
        process.kill()


@pytest.mark.parametrize("is_let_through", [True, False])
def test_the_program_has_no_handler_of_ours(is_let_through: bool) -> None:
    """Nor is it anything if nobody is there to answer it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if not pid:
        ours.close()
        signal.signal(signal.SIGUSR1, lambda *_: os._exit(1))

        def become() -> int:
            os.kill(os.getpid(), signal.SIGUSR1)
            return 2

        gate.be_program(theirs, become, b"", None, True, set())
    theirs.close()
    with ours:
        assert ours.recv(100)  # without instructions there can be no filter, which it says
        if is_let_through:
            ours.send(b"\0")
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == (-signal.SIGUSR1 if is_let_through else gate.FAILED)
