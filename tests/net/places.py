"""Other places to run a part of a test in: a child process, a network of its own."""

import ctypes
import os
import resource
import subprocess
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
from ends import descriptors

_CLONE_NEWNS, _CLONE_NEWNET = 0x20000, 0x40000000
_Result = TypeVar("_Result")
_CHILD_LIMIT = 60  # s


def in_child(function: Callable[[], object], **descriptors: int) -> None:
    """Call a function in a child process; what it raises there fails the test here.

    `fd0=N` makes N the child's descriptor 0 first, and so on; -1 closes it.
    """
    report_reader, report_writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            report_writer = os.dup2(report_writer, 100)
            moved = {int(name[2:]): fd for name, fd in descriptors.items()}
            saved = {number: os.dup(fd) for number, fd in moved.items() if fd >= 0}
            for number, fd in moved.items():
                if fd >= 0:
                    os.dup2(saved[number], number)
                else:
                    os.close(number)
            for fd in saved.values():
                os.close(fd)
            import signal

            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_CHILD_LIMIT)
            function()
            status = 0
        except BaseException:
            os.write(report_writer, traceback.format_exc().encode()[:60000])
        finally:
            os._exit(status)
    os.close(report_writer)
    with open(report_reader, "rb") as report:
        said = report.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, f"the child ended with {status}: {said}"


def in_thread(function: Callable[[], object]) -> None:
    """Call a function in a thread, and raise here what it raises there."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def in_own_network(function: Callable[[], object]) -> None:
    """Call a function in a thread that has a network (loopback is up) and mounts of its own."""

    def run() -> None:
        library = ctypes.CDLL(None, use_errno=True)
        if library.unshare(_CLONE_NEWNET | _CLONE_NEWNS):
            pytest.skip(f"no namespaces for us: {os.strerror(ctypes.get_errno())}")
        sh("mount --make-rprivate /", "ip link set lo up")
        function()

    in_thread(run)


def in_network_of(pid: int, function: Callable[[], _Result]) -> _Result:
    """Call a function in a thread that is in the network of a process, and give what it gives."""

    def enter() -> None:
        library = ctypes.CDLL(None, use_errno=True)
        with open(f"/proc/{pid}/ns/net") as namespace:
            assert library.setns(namespace.fileno(), _CLONE_NEWNET) == 0, ctypes.get_errno()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(enter).result()
        return thread.submit(function).result()


@contextmanager
def another_network() -> Iterator[Callable[..., Any]]:
    """Give what calls a function in a network that has nothing; for a thread in_own_network."""
    library = ctypes.CDLL(None, use_errno=True)
    with ThreadPoolExecutor(1) as thread:

        def there(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
            return thread.submit(function, *arguments, **named).result()

        assert there(library.unshare, _CLONE_NEWNET) == 0
        yield there


def join_networks(there: Callable[..., Any]) -> None:
    """Have a cable from the network of the calling thread to another one: `near` and `far`."""
    thread = there(threading.get_native_id)
    sh(f"ip link add near type veth peer name far netns {thread}", "ip link set near up")
    there(sh, "ip link set lo up", "ip link set far up")


def sh(*commands: str) -> None:
    """Run commands in the network of the calling thread."""
    for command in commands:
        done = subprocess.run(command, shell=True, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr}"


@contextmanager
def descriptor_limit(more: int) -> Iterator[None]:
    """Let this process open at most so many descriptors more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use, limit = descriptors(), 0
    while more or limit in in_use:
        more -= limit not in in_use
        limit += 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def root_only() -> Any:
    """A mark for tests that need to be root."""
    return pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
