#!/usr/bin/python3
"""Measure the client's side: what a connection through a proxy costs a shell, and a program.

start    socks-connect from its start to its end, with a connection through a proxy and a byte
         that comes back. Beside it `nc -X 5` that does the same, together with the bare start of
         the interpreter: without site (-IS), as our programs have it, and with it.
connect  connections, one at a time, by create_connection; by PySocks, and without a proxy. For
         comparison by SocksSocket.connect and by asyncio. A proxy's URL is read each time.
down     one stream of create_connection's socket, and one of PySocks'.

In turn, round after round, in namespaces as those of bench.py, which says what they need. Each
figure of `start` is the median of many runs in one round, in which the programs take turns.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median

import program
import servers
from measure import PATIENCE, outcome, sampled
from namespaces import PROXY
from report import Sample
from servers import DIRECT, ROOT, Place

MODES = ["start", "connect", "down"]
OURS, PYSOCKS = "muonsocks", "PySocks"
BARE, USUAL = "nc + python3 -IS", "nc + python3"
KINDS = [OURS, PYSOCKS, DIRECT, "SocksSocket", "asyncio"]
# Not microsocks: it takes the end of standard input, here at once, for that of both sides.
STARTED_THROUGH = ["muonsocks", "dante"]
THROUGH = ["muonsocks", "microsocks"]
ENDS = str(Path(__file__).with_name("client_ends.py"))
PYTHON = "/usr/bin/python3"
TARGET_PORT = 9100


class Bench:
    """One run."""

    def __init__(self, args: argparse.Namespace, directory: Path) -> None:
        self.args = args
        self.directory = directory
        self.port = 2000
        self.target = args.targets[0]
        self.servers = []
        for name in dict.fromkeys(STARTED_THROUGH + THROUGH):
            if missing := servers.missing(name, self.place()):
                print(f"bench: {name} is left out: there is no {missing}", file=sys.stderr)
            else:
                self.servers.append(name)

    def place(self) -> Place:
        self.port += 2
        return Place(PROXY, self.port, self.directory)

    def those_of(self, names: list[str]) -> list[str]:
        return [name for name in names if name in self.servers]

    def run(self) -> Iterator[Sample]:
        """Measure everything; each measurement as it comes."""
        with servers.serving(PYTHON, ENDS, "target", self.target, str(TARGET_PORT)):
            yield from program.measured(self, MODES)

    def start(self, number: int) -> Iterator[Sample]:
        for name in self.those_of(STARTED_THROUGH):
            place = self.place()
            metric = f"start by {name}"
            try:
                with servers.running(name, place):
                    found = self.starts(place)
            except (servers.Failed, subprocess.SubprocessError, OSError) as error:
                found = {}
                yield {
                    "metric": metric,
                    "n": 1,
                    "server": OURS,
                    "round": number,
                    "error": str(error),
                }
            for server, seconds in found.items():
                about: Sample = {"n": 1, "server": server, "round": number}
                yield from sampled(about, [metric], partial(dict, {metric: seconds * 1e3}))

    def starts(self, place: Place) -> dict[str, float]:
        """Seconds, by the names of the columns."""
        host, port = self.target, str(TARGET_PORT)
        proxy = f"{place.address}:{place.port}"
        ours = [str(ROOT / "bin/socks-connect"), f"--proxy=socks5h://{proxy}", host, port]
        theirs = ["nc", "-d", "-X", "5", "-x", proxy, host, port]
        bare, usual = [PYTHON, "-IS", "-c", "pass"], [PYTHON, "-c", "pass"]
        took: dict[str, list[float]] = {OURS: [], BARE: [], USUAL: []}
        end = time.monotonic() + 4 * self.args.seconds
        while time.monotonic() < end:
            took[OURS].append(run_time(ours, b"x"))
            nc = run_time(theirs, b"x")
            took[BARE].append(nc + run_time(bare))
            took[USUAL].append(nc + run_time(usual))
        return {name: median(times[1:]) for name, times in took.items()}

    def connect(self, number: int) -> Iterator[Sample]:
        for name in self.those_of(THROUGH):
            place = self.place()
            metric = f"connect by {name}"
            with servers.running(name, place):
                seconds = len(KINDS) * self.args.seconds
                yield from self.loaded("connect", metric, ",".join(KINDS), place, seconds, number)

    def down(self, number: int) -> Iterator[Sample]:
        place = self.place()
        with servers.running("muonsocks", place):
            kinds = (OURS, PYSOCKS, DIRECT)
            seconds = len(kinds) * self.args.seconds
            yield from self.loaded("down", "client down", ",".join(kinds), place, seconds, number)

    def loaded(
        self, what: str, metric: str, kinds: str, place: Place, seconds: float, number: int
    ) -> Iterator[Sample]:
        """What client_ends.py finds of some kinds; or, of each, that it has failed."""
        unit = 1e6 if what == "connect" else 1e-6  # microseconds, and MB a second
        found: dict[str, float] = {}

        def figure(kind: str) -> dict[str, float]:
            if not found:
                found.update(self.load(what, kinds, place, seconds))
            return {metric: found[kind] * unit}

        for kind in kinds.split(","):
            about: Sample = {"n": 1, "server": kind, "round": number}
            yield from sampled(about, [metric], partial(figure, kind))

    def load(self, what: str, kinds: str, place: Place, seconds: float) -> dict[str, float]:
        url = f"socks5h://{place.address}:{place.port}"
        where = [self.target, str(TARGET_PORT), str(seconds)]
        done = subprocess.run(
            [PYTHON, ENDS, what, kinds, url, *where],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds + PATIENCE,
        )
        return outcome(done.stdout, done.stderr[-200:])


def run_time(command: list[str], answer: bytes = b"") -> float:
    """Seconds that a command takes from its start to its end; Failed if it is not as it should."""
    begin = time.monotonic()
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=PATIENCE
    )
    took = time.monotonic() - begin
    if done.returncode or done.stdout != answer:
        raise servers.Failed(f"{Path(command[0]).name} ended with {done.returncode}")
    return took


def main() -> None:
    parser = program.parser(__doc__, MODES, "half a minute: one short round", "five minutes")
    args = program.arguments(parser)
    program.carry_out(args, __file__, OURS, lambda directory: Bench(args, directory).run())


if __name__ == "__main__":
    main()
