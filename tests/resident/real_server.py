"""The resident server as a real process, with workers and a log to look at.

    with running("--allow-local", workers=3) as server:
        client = server.connect()
        server.await_log("connected client=")
    assert server.status == 0

It is told to stop in the end, if it has not been. A server or a worker that is then still there, or
a traceback in the log, fails the test.
"""

import contextlib
import os
import random
import re
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ends import descriptors
from programs import SECONDS, accept, environment, read_all, socks4

ROOT = Path(__file__).resolve().parents[2]
MUONSOCKS = str(ROOT / "bin" / "muonsocks")
ECHO = (str(ROOT / "tests" / "resident" / "echo_server.py"),)
RESET_ON_CLOSE = struct.pack("ii", 1, 0)

# Of 127/8, an address for each process: parallel tests cannot be in each other's way.
ADDRESS = f"127.{os.getpid() >> 16 & 255}.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"


def free_port(host: str = ADDRESS) -> int:
    """A port that nobody listens on, and that no connection of a parallel test gets meanwhile: it
    is not one of those that the kernel chooses from (ip_local_port_range).
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        port = random.randrange(10000, 32768)
        with contextlib.suppress(OSError), socket.create_server((host, port), family=family):
            return port


def until(what: str, holds: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """Wait until something holds that has no event: give what was true."""
    deadline = time.monotonic() + seconds
    while not (result := holds()):
        assert time.monotonic() < deadline, f"it does not come to it that {what}"
        time.sleep(0.005)
    return result


# What /proc says of a process


def children(pid: int) -> list[int]:
    """The processes that a process has started, the oldest first."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def is_alive(pid: int) -> bool:
    return state(pid) not in "XZ"


def state(pid: int) -> str:
    """R, S, T and so on; X if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def asleep(pid: int, seconds: float = 1.0) -> float:
    """The part of a time in which a process sleeps: a busy loop never does, however busy the
    machine is, and who only waits does nearly always.
    """
    seen = Counter[str]()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        seen[state(pid)] += 1
        time.sleep(0.01)
    return seen["S"] / seen.total()


def kinds_of_descriptors(pid: int) -> Counter[str]:
    """How many descriptors of which kind a process has open: "socket", "pipe", "anon_inode"..."""
    return Counter(link.split(":[")[0] for link in descriptors(pid).values())


def resident_memory(pid: int) -> int:
    """KB."""
    found = re.search(r"VmRSS:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1])


# The server


class Server:
    """A running server."""

    def __init__(self, process: subprocess.Popen[bytes], log: int, address: tuple[str, int]):
        self.process = process
        self.address = address
        self.workers = 0  # how many there should be
        self._log = log
        self._whole_log: str | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        if self._whole_log is not None:
            return self._whole_log
        return os.pread(self._log, 1 << 24, 0).decode()

    @property
    def url(self) -> str:
        """As clients name it that leave names to it."""
        host, port = self.address
        return f"socks5h://{host}:{port}"

    def _lines(self) -> list[str]:
        """The lines that are whole: who reads while one is written may see a part of it."""
        return self.log.rpartition("\n")[0].splitlines()

    def count(self, pattern: str) -> int:
        """In how many lines of the log the pattern is found."""
        return sum(bool(re.search(pattern, line)) for line in self._lines())

    def await_log(self, pattern: str, times: int = 1) -> str:
        """Give the line in which the pattern is found for the nth time, once there is one."""

        def found() -> str:
            lines = [line for line in self._lines() if re.search(pattern, line)]
            return lines[times - 1] if len(lines) >= times else ""

        try:
            line: str = until(f"the log has {pattern!r}", found)
        except AssertionError as error:
            raise AssertionError(f"{error}:\n{self.log}") from None
        return line

    def worker_pids(self) -> list[int]:
        """The workers, once all are there."""
        pids = until("all workers are there", lambda: self._all(children(self.pid)))
        return list(pids)

    def _all(self, pids: list[int]) -> list[int]:
        return pids if len(pids) == self.workers else []

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def terminate(self) -> None:
        self.signal(signal.SIGTERM)

    @property
    def status(self) -> int:
        """Wait for the end."""
        return self.process.wait(SECONDS)

    def connect(self) -> socket.socket:
        """Come as a client, and say nothing yet."""
        client = socket.create_connection(self.address, SECONDS)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    def ask(self, far: socket.socket) -> socket.socket:
        """Come as a client that wants to go to `far`; the answer is not read."""
        client = self.connect()
        client.sendall(socks4(*far.getsockname()[:2]))
        return client

    def joined(self, far: socket.socket) -> tuple[socket.socket, socket.socket]:
        """A client, and the connection to `far` that it has got."""
        client = self.ask(far)
        assert read_all(client, 8)[1] == 0x5A
        return client, accept(far)

    def log_is_complete(self) -> None:
        self._whole_log = self.log


def works(client: socket.socket, conn: socket.socket) -> bool:
    """Pass bytes both ways."""
    client.sendall(b"question")
    if read_all(conn, 8) != b"question":
        return False
    conn.sendall(b"answer")
    return read_all(client, 6) == b"answer"


def reset(sock: socket.socket) -> None:
    """Leave in a hurry."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    sock.close()


def kill_server(pid: int, mark: str) -> None:
    """Kill a process if it is (still) one of ours, with this among its arguments."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        if mark.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def running(
    *options: str,
    workers: int = 1,
    before: tuple[str, ...] = (),
    program: tuple[str, ...] = (MUONSOCKS, "--allow-local"),
    host: str = ADDRESS,
    environ: dict[bytes, bytes] | None = None,
    drain: float = 0.1,
    keep: tuple[int, ...] = (),
) -> Iterator[Server]:
    """Run a server until the end of the block; `before` is a program that starts it.

    `keep` has more descriptors that it is to have.
    """
    port = free_port(host)
    where = (f"--listen={host}", f"--port={port}", f"--workers={workers}")
    command = (*before, *program, *where, f"--drain-timeout={drain}")
    with started(command, options, workers, bool(before), environ, keep) as server:
        server.address = (host, port)
        yield server


@contextlib.contextmanager
def started(
    command: tuple[str, ...],
    arguments: tuple[str, ...] = (),
    workers: int = 1,
    is_started_by_another: bool = False,
    environ: dict[bytes, bytes] | None = None,
    keep: tuple[int, ...] = (),
) -> Iterator[Server]:
    """Run a resident program until the end of the block; -d goes between the command and the
    arguments. Its workers are to end with it.
    """
    ready, tell = os.pipe()
    mark = f"--notify-fd={tell}"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, mark, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment() if environ is None else environ,
            pass_fds=(tell, *keep),
        )
        os.close(tell)
        server = Server(process, log.fileno(), ("", 0))
        server.workers = workers
        processes = set[int]()
        try:
            with open(ready, "rb") as told:
                assert told.readline() == b"\n", f"it does not get ready:\n{server.log}"
                assert is_started_by_another or told.read() == b"", "it is not closed"
            processes.update(children(process.pid))
            yield server
            processes.update(children(process.pid))
            if process.poll() is None:
                server.terminate()
                assert server.status == 0
            until("no worker is left", lambda: not any(map(is_alive, processes)))
        finally:
            processes.update(children(process.pid))
            process.kill()
            process.wait()
            for pid in processes:
                kill_server(pid, mark)
            server.log_is_complete()
            print(server.log)  # pytest shows it with a failure
        assert "Traceback" not in server.log
        assert "this is a bug" not in server.log


def ended(
    *options: str, program: tuple[str, ...] = (MUONSOCKS,), **popen: Any
) -> tuple[int, list[str]]:
    """Run a server that cannot start; give its status and what it says."""
    popen.setdefault("env", environment())
    done = subprocess.run(
        [*program, *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=SECONDS,
        **popen,
    )
    log = done.stdout.decode()
    assert "Traceback" not in log and "this is a bug" not in log, log
    return done.returncode, log.splitlines()
