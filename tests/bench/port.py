#!/usr/bin/python3
"""Measure virtio-mux in a virtual machine, over a real virtio-serial port, under emulation.

A client in the guest talks to a server on the host in three ways, in turn, round after round:

    raw    not at all: a program in the guest reads and writes the port, one on the host its socket
    plain  through copies: a program in the guest has the port and a TCP connection, and copies what
           it reads from one to the other; another does on the host. One connection at a time
    mux    through virtio-mux guest and virtio-mux host

The table has the medians of the rounds, and the ratios' medians: each ratio is of two measurements
of the same round. Everything in the guest shares one emulated processor, so a client's own work and
the switches between processes count, in all but raw. It needs what tests/run installs.
"""

import argparse
import contextlib
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/real"))

import port_client  # noqa: E402
import port_copy  # noqa: E402
import raw_port  # noqa: E402
from qemu import Guest, build, missing  # noqa: E402
from report import aligned  # noqa: E402

LEAST_RATE, MOST_TRIP = 0.8, 2.0  # the goals: of what a plain copy reaches, and of the raw port's
PLACES = {port_client: "/tmp/port_client.py", port_copy: "/tmp/port_copy.py"}
PROXY = 1080
PATIENCE = 120  # s for a measurement

Figures = dict[str, float]  # MB/s down and up, ms of a round trip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="default 5, of half a minute each")
    add("--megabytes", type=int, default=100, help="each way; default 100")
    add("--trips", type=int, default=1000, help="round trips of 64 bytes; default 1000")
    return parser.parse_args()


def answer(connection: socket.socket) -> None:
    """Do what a client asks for: see port_client.py."""
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        mode, size = port_client.REQUEST.unpack(port_client.receive(connection))
        if mode == b"D":
            port_client.send(connection, size)
        elif mode == b"U":
            port_client.take(connection, size)
            connection.sendall(b".")
        while data := connection.recv(1 << 16):
            connection.sendall(data)


@contextlib.contextmanager
def target() -> Iterator[int]:
    """The server, as the number of a port of 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return  # it was shut down
                threading.Thread(target=answer, args=[connection], daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def joined(guest: Guest, inside: list[str], ready: bytes, outside: list[str]) -> Iterator[None]:
    """Have a program at either end of the port; the guest's says when it is `ready`."""
    with subprocess.Popen(outside) as host:
        program = guest.start(*inside)
        try:
            program.wait_for(ready)
            yield
        finally:
            program.kill(group=True)
            program.wait()
            host.terminate()
    guest.replug(calls=False)  # what one of them left in it is no other's


def ask(guest: Guest, mode: str, amount: int, where: str) -> float:
    command = f"exec python3 {PLACES[port_client]} {mode} {amount} {PROXY} {where}"
    return float(guest.run(command, timeout=PATIENCE).stdout)


def figures(guest: Guest, args: argparse.Namespace, where: str) -> Figures:
    """Measure with a client in the guest; `where` it is to go by SOCKS, or nothing."""
    size = args.megabytes * 10**6
    return {
        "down": size / ask(guest, "D", size, where) / 1e6,
        "up": size / ask(guest, "U", size, where) / 1e6,
        "trip": ask(guest, "E", args.trips, where) * 1e3,
    }


def raw(guest: Guest, args: argparse.Namespace, port: int) -> Figures:
    found = raw_port.raw_speed(guest, args.megabytes * 10**6)
    return {
        "down": found.to_guest / 1e6,
        "up": found.from_guest / 1e6,
        "trip": found.round_trip * 1e3,
    }


def plain(guest: Guest, args: argparse.Namespace, port: int) -> Figures:
    found = {}
    inside = ["python3", PLACES[port_copy], "guest", str(PROXY)]
    outside = [sys.executable, port_copy.__file__, "host", str(guest.port), str(port)]
    size = args.megabytes * 10**6
    for name, mode, amount in (("down", "D", size), ("up", "U", size), ("trip", "E", args.trips)):
        with joined(guest, inside, b"ready", outside):  # which cannot pass an end on
            took = ask(guest, mode, amount, "")
        found[name] = took * 1e3 if mode == "E" else amount / took / 1e6
    return found


def mux(guest: Guest, args: argparse.Namespace, port: int) -> Figures:
    inside = ["virtio-mux", "guest"]
    outside = [str(ROOT / "bin/virtio-mux"), "host", "-q", "--allow-local", str(guest.port)]
    with joined(guest, inside, b"the host is there", outside):
        return figures(guest, args, str(port))


WAYS: dict[str, Callable[[Guest, argparse.Namespace, int], Figures]]
WAYS = {"raw": raw, "plain": plain, "mux": mux}
ROWS = {"down": "down, MB/s", "up": "up, MB/s", "trip": "64-byte round trip, ms"}


def ratio(rounds: list[dict[str, Figures]], row: str, other: str) -> float:
    return statistics.median(one["mux"][row] / one[other][row] for one in rounds)


def table(rounds: list[dict[str, Figures]]) -> str:
    lines = [["", *WAYS, "mux / plain", "mux / raw", "goal", ""]]
    for row, title in ROWS.items():
        line = [title]
        for way in WAYS:
            line.append(f"{statistics.median(one[way][row] for one in rounds):.3g}")
        to_plain, to_raw = ratio(rounds, row, "plain"), ratio(rounds, row, "raw")
        if row == "trip":
            goal, is_reached = f"{MOST_TRIP:g} of raw", to_raw <= MOST_TRIP
        else:
            goal, is_reached = f"{LEAST_RATE:g} of plain", to_plain >= LEAST_RATE
        verdict = "reached" if is_reached else "short"
        lines.append([*line, f"{to_plain:.2f}", f"{to_raw:.2f}", goal, verdict])
    return aligned(lines)


def main() -> None:
    args = arguments()
    if reason := missing():
        sys.exit(f"port: {reason}")
    rounds: list[dict[str, Figures]] = []
    with tempfile.TemporaryDirectory() as directory, target() as port:
        trees = {ROOT / "bin": "/usr/local/bin", ROOT / "lib": "/usr/local/lib"}
        image = build(Path(directory), trees)
        with Guest(image) as guest:
            for program, place in PLACES.items():
                assert program.__file__
                guest.put(place, Path(program.__file__).read_bytes())
            for number in range(args.rounds):
                rounds.append({})
                for way, measure in WAYS.items():
                    found = rounds[-1][way] = measure(guest, args, port)
                    text = ", ".join(f"{row} {value:.3g}" for row, value in found.items())
                    print(f"port: round {number}, {way}: {text}", file=sys.stderr)
    print(table(rounds))


if __name__ == "__main__":
    main()
