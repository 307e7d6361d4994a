#!/usr/bin/python3
"""Measure socketbox-preload: how long a connection takes to be made, accepted and answered.

A server in C accepts, writes a byte and closes, again and again; a client in C comes, a connection
after the other. First to the server's own port; then to one that is passed what has come, by a
program in C that does nothing else, and by socketbox: to a receiver in C that knows how to receive,
and to the first server, under socketbox-preload. They take turns, so that what else the machine
does is in the way of all. It needs a compiler, and nothing but the loopback interface.
"""

import argparse
import contextlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from socketbox import ADDRESS, BOX, free_port, started

HERE = Path(__file__).resolve().parent
PRELOAD = BOX.with_name("socketbox-preload")
OURS = "C, socketbox-preload"  # what is to be reached, whoever it is that passes
LIMIT = 2.2  # times as long as without


@contextlib.contextmanager
def boxed(path: str) -> Iterator[int]:
    """Pass on what comes to a port, which is given, to a path."""
    port = free_port()
    with started([str(BOX), "-q", "-l", ADDRESS, "-p", str(port), "--workers=1", "-S", path]):
        yield port


@contextlib.contextmanager
def served(*command: str) -> Iterator[None]:
    """Run a server that says when it is ready."""
    with started([*command], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit(f"{command[-2]} does not start")
        yield


def measured(ends: str, port: int, count: int) -> float:
    """Microseconds for each connection."""
    done = subprocess.run(
        [ends, "come", str(port), str(count)], check=True, stdout=subprocess.PIPE, text=True
    )
    return float(done.stdout)


def await_server(ends: str, port: int) -> None:
    """Wait until a connection is answered."""
    deadline = time.monotonic() + 10
    while subprocess.run([ends, "come", str(port), "1"], capture_output=True).returncode:
        if time.monotonic() > deadline:
            raise SystemExit(f"nobody answers at port {port}")
        time.sleep(0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--connections", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        ends = f"{place}/accepts"
        subprocess.run(["cc", "-O2", "-o", ends, HERE / "accepts.c"], check=True)
        native = free_port()
        stack.enter_context(served(ends, "listen", str(native)))
        stack.enter_context(served(ends, "receive", f"{place}/received"))
        listen = f"--listen={ADDRESS}:80={place}/preloaded"
        stack.enter_context(served(str(PRELOAD), listen, ends, "listen", "80"))
        receivers = {"a receiver in C": "received", "socketbox-preload": "preloaded"}
        rows = {"native": native}
        for receiver, name in receivers.items():
            path = f"{place}/{name}"
            rows[f"C, {receiver}"] = port = free_port()
            stack.enter_context(served(ends, "pass", str(port), path))
            rows[f"socketbox, {receiver}"] = stack.enter_context(boxed(path))
        found: dict[str, list[float]] = {name: [] for name in rows}
        for port in rows.values():
            await_server(ends, port)
            measured(ends, port, args.connections // 10)
        for _ in range(args.rounds):
            for name, port in rows.items():
                found[name].append(measured(ends, port, args.connections))
        print("µs a connection: the median, the least and the most; times native")
        ratios = {name: median(times) / median(found["native"]) for name, times in found.items()}
        for name, times in found.items():
            least, most = min(times), max(times)
            print(f"{name:30} {median(times):6.1f} {least:6.1f} {most:6.1f} {ratios[name]:6.2f}")
        verdict = "reached" if ratios[OURS] <= LIMIT else "short"
        print(f"{OURS}: {LIMIT} times native at most: {verdict}")


if __name__ == "__main__":
    main()
