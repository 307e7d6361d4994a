#!/usr/bin/python3
"""Measure socketbox: the CPU time that it costs a connection to be passed on.

One worker passes connections of this host to a receiver that closes them. Its CPU time is taken,
the kernel's part included, from before the first to after the last. Beside it stands the least that
a program in Python can do with a connection, which is to accept and close it; and what another
socketbox takes, if there is one to compare: --other names its program, which gets -l, -p and -S.

It needs nothing but the loopback interface, and a machine that has little else to do.
"""

import argparse
import contextlib
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BOX = Path(__file__).resolve().parents[2] / "bin" / "socketbox"
ADDRESS = "127.0.0.1"
CLIENTS = 4  # at a time
TICKS = os.sysconf("SC_CLK_TCK")
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
ENTRIES = 10_000
ACCEPT = (
    "import _socket, os, sys; s = _socket.socket(fileno=int(sys.argv[1]))\n"
    "while True: os.close(s._accept()[0])"
)


def cpu(pid: int) -> float:
    """Seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def come(port: int, count: int) -> None:
    """Be so many clients, one after the other, each until it is closed."""
    for _ in range(count):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            client.connect((ADDRESS, port))
            with contextlib.suppress(ConnectionResetError):
                client.recv(1)


def crowd(port: int, count: int) -> None:
    """Be as many clients in all."""
    threads = [threading.Thread(target=come, args=(port, count // CLIENTS)) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def measured(pid: int, port: int, count: int) -> float:
    """Microseconds of CPU time for each connection."""
    crowd(port, CLIENTS * 50)
    before = cpu(pid)
    crowd(port, count)
    return (cpu(pid) - before) / count * 1e6


@contextlib.contextmanager
def receiver(path: str) -> Iterator[None]:
    """Take what is passed, and close it."""
    there = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    there.bind(path)

    def receive() -> None:
        while fds := socket.recv_fds(there, 1, 1)[1]:
            os.close(fds[0])

    thread = threading.Thread(target=receive)
    thread.start()
    try:
        yield
    finally:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"\0", path)  # without a descriptor: the end
        thread.join()
        there.close()


@contextlib.contextmanager
def started(command: list[str], **popen: Any) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, **popen) as process:
        try:
            yield process
        finally:
            process.terminate()


def free_port() -> int:
    with socket.create_server((ADDRESS, 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def plain_accept(count: int) -> float:
    with socket.create_server((ADDRESS, 0), backlog=4096) as sock:
        number = sock.fileno()
        command = [sys.executable, "-IS", "-c", ACCEPT, str(number)]
        with started(command, pass_fds=(number,)) as process:
            return measured(process.pid, sock.getsockname()[1], count)


def box(count: int, path: str, *options: str) -> float:
    ready, tell = os.pipe()
    port = free_port()
    where = ["-l", ADDRESS, "-p", str(port), "--workers=1", f"--notify-fd={tell}"]
    with (
        receiver(path),
        open(f"{path}.log", "wb") as log,
        started([str(BOX), *where, *options], stderr=log, pass_fds=(tell,)) as process,
    ):
        os.close(tell)
        with open(ready, "rb") as told:
            if told.readline() != b"\n":
                raise SystemExit(Path(f"{path}.log").read_text())
        [worker] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return measured(int(worker), port, count)


def other(program: str, count: int, path: str) -> float:
    port = free_port()
    command = [program, "-l", f"::ffff:{ADDRESS}", "-p", str(port), "-S", path]
    with receiver(path), started(command) as process:
        deadline = time.monotonic() + 10
        while True:
            try:
                come(port, 1)
                break
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        return measured(process.pid, port, count)


def rules(path: str, receiver: str) -> str:
    """Write rules with a map of many entries; the one that is wanted is the last."""
    lines = ["rule-set:0", "jump-map:0", "map-set:0", "match-lip:128"]
    lines += [f"ip:10.{n >> 16}.{n >> 8 & 255}.{n & 255} fail" for n in range(ENTRIES)]
    Path(path).write_text("\n".join([*lines, f"ip:{ADDRESS} jump-unix:{receiver}", ""]))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--connections", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--other", help="the program of another socketbox")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        numbers = iter(range(1 << 30))

        def path() -> str:
            return f"{directory}/{next(numbers)}"

        def passing(*options: str) -> float:
            there = path()
            return box(args.connections, there, "-S", there, *options)

        def by_rules() -> float:
            there = path()
            return box(args.connections, there, "-q", "-f", rules(path(), there))

        rows: dict[str, Callable[[], float]] = {
            "accept and close": lambda: plain_accept(args.connections),
            "socketbox -q": lambda: passing("-q"),
            "socketbox": passing,
            f"socketbox -q, a map of {ENTRIES:,}": by_rules,
        }
        if args.other:
            rows["the other one"] = lambda: other(args.other, args.connections, path())
        print("µs of CPU time a connection: the median, the least and the most")
        for name, measure in rows.items():
            found = sorted(measure() for _ in range(args.rounds))
            print(f"{name:32} {found[len(found) // 2]:6.1f} {found[0]:6.1f} {found[-1]:6.1f}")


if __name__ == "__main__":
    main()
