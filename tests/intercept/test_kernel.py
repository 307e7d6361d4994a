"""The system calls that Python has no name for, made."""

import ctypes
import errno
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filtered import child
from real_server import children

from muonsocks.intercept import kernel
from muonsocks.intercept.bpf import NOTIFY, Rule

LIB = str(Path(kernel.__file__).resolve().parents[2])


def in_a_process(code: str) -> str:
    """What a process prints that may do with itself what it likes."""
    head = f"import sys, os; sys.path.insert(0, {LIB!r})\nfrom muonsocks.intercept import kernel\n"
    done = subprocess.run(
        [sys.executable, "-c", head + code], stdout=subprocess.PIPE, text=True, timeout=20
    )
    assert done.returncode == 0
    return done.stdout.strip()


def test_memory_is_read_and_written() -> None:
    ours = ctypes.create_string_buffer(b"some bytes", 16)
    place = ctypes.addressof(ours)
    assert kernel.read_memory(os.getpid(), place, 10) == b"some bytes"
    assert kernel.write_memory(os.getpid(), place, b"other") == 5
    assert ours.value == b"otherbytes"
    constant = b"a constant"
    where = kernel.address_of(constant)
    assert kernel.read_memory(os.getpid(), where, len(constant)) == constant
    with pytest.raises(OSError) as raised:
        kernel.read_memory(os.getpid(), 16, 1)
    assert raised.value.errno == errno.EFAULT


def test_a_descriptor_of_another_process() -> None:
    def program(say: Callable[[object], None]) -> None:
        say("up")
        signal.pause()

    with child({"connect": [Rule(NOTIFY)]}, program) as (_, one):
        assert one.says() == "'up'"
        pidfd = os.pidfd_open(one.pid)
        for fd, number in ((0, 0), (1 << 20, errno.EBADF)):
            try:
                got = kernel.descriptor_of(pidfd, fd)
                assert not os.get_inheritable(got)
                os.close(got)
            except OSError as error:
                assert error.errno == number
        os.close(pidfd)


def test_a_socket_is_disconnected() -> None:
    with socket.create_server(("127.0.0.1", 0)) as far, socket.socket() as sock:
        for _ in range(2):
            sock.connect(far.getsockname())
            kernel.disconnect(sock.fileno())
            with pytest.raises(OSError):
                sock.getpeername()
    with pytest.raises(OSError):
        kernel.disconnect(1 << 20)


def test_an_epoll_has_all_the_data() -> None:
    """As epoll_data_t has it, which is more than Python's epoll can say."""
    with select.epoll() as one, socket.create_server(("127.0.0.1", 0)) as sock:
        kernel.watch(one.fileno(), sock.fileno(), select.EPOLLIN | select.EPOLLET, 1 << 40 | 77)
        text = Path(f"/proc/self/fdinfo/{one.fileno()}").read_text()
        assert f"data: {1 << 40 | 77:16x}" in text
        with socket.create_connection(sock.getsockname()):
            assert one.poll(10) == [(77, select.EPOLLIN)]


def test_what_a_process_makes_of_itself() -> None:
    status = "open('/proc/self/status').read()"
    assert in_a_process(
        f"kernel.give_up_privileges_to_come(); print('NoNewPrivs:\\t1' in {status})"
    )
    dumpable = "import ctypes; get = lambda: ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)\n"
    code = "kernel.leave_no_core(); print(get()); kernel.allow_inspection(); print(get())"
    assert in_a_process(dumpable + code).split() == ["0", "1"]


def test_orphans_are_adopted() -> None:
    code = """
kernel.adopt_orphans()
pid = os.fork()
if not pid:
    if not os.fork():
        os.read(0, 1)
    os._exit(0)
os.waitpid(pid, 0)
print(len(open(f"/proc/self/task/{os.getpid()}/children").read().split()))
"""
    assert in_a_process(code) == "1"
    assert children(os.getpid()) is not None


def test_namespaces_of_its_own() -> None:
    if os.geteuid():
        flags = "kernel.CLONE_NEWUSER | kernel.CLONE_NEWNET"
    else:
        flags = "kernel.CLONE_NEWNET"
    code = f"try: kernel.unshare({flags}); print(os.listdir('/proc/self/net') != [] and 'new')\n"
    said = in_a_process(code + "except OSError as error: print(error.strerror)")
    if said != "new":
        pytest.skip(f"no namespace can be had here: {said}")


def test_there_is_one_listener_for_a_process() -> None:
    code = """
from muonsocks.intercept.bpf import NOTIFY, Rule, assemble
kernel.give_up_privileges_to_come()
program = assemble({"connect": [Rule(NOTIFY)]}, kernel.ARCHITECTURES)
for is_killable in (True, False):
    try:
        print(kernel.install_filter(program, is_killable) > 2)
    except OSError as error:
        print(error.errno)
"""
    assert in_a_process(code).split() == ["True", str(errno.EBUSY)]


def test_a_filter_that_the_kernel_does_not_take() -> None:
    code = """
kernel.give_up_privileges_to_come()
try:
    kernel.install_filter(bytes(8), True)
except OSError as error:
    print(error.errno, error.strerror)
"""
    assert in_a_process(code) == f"{errno.EINVAL} seccomp: Invalid argument"
