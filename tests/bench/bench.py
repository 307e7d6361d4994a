#!/usr/bin/python3
"""Compare SOCKS servers on this machine: connection rate, round trips, bulk, idle memory.

All servers are measured in turn, round after round, each freshly started, in namespaces (network,
mount, process) of the benchmark's own: its loopback device carries the proxy's address and one a
target process. It needs root there, a C compiler and ip(8), and for idle memory the memory
controller of cgroups(7); servers that are not installed are left out. Limit the CPUs with
taskset(1). What a virtio-mux is measured by is mux.py's.

For connection rate, round trips and idle memory there are half as many client processes as CPUs,
and as many target processes, so that the load leaves room for the proxy. In bulk all streams are
those of one client process and one target process: with more of them and no proxy, all CPUs are
busy passing bytes, and what is compared is how many CPUs there are.

The table has the median of the rounds, and the ratios' medians: each ratio is of two measurements
of the same round. CPU time is that of all the server's processes, over all bytes carried.

Idle memory is what n open connections add to the server's processes and to what the kernel has for
them, divided by n; see memory.py. Two sockets of each connection are in it, whatever the server.
"""

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import program
import servers
from measure import BULK, Load, sampled
from memory import measured
from report import Sample
from servers import DIRECT, MUX

FULL = {"rate": [1, 16, 64, 256], "trips": [1, 16, 64], "down": [1, 4, 16], "up": [1, 4, 16]}
FULL["idle"] = [1000, 9000]
QUICK = {"rate": [1, 16, 64], "trips": [1, 64], "down": [1, 4], "up": [1, 4], "idle": [1000]}


def arguments() -> argparse.Namespace:
    parser = program.parser(
        __doc__, FULL, "about a minute: one short round, of the goals' rows", "half an hour"
    )
    add = parser.add_argument
    add("--servers", metavar="A,B", help=f"of {', '.join(servers.SERVERS)}; {DIRECT!r} always is")
    add("--add", metavar="NAME=COMMAND", action="append", default=[], help="one more server")
    add("--ours", metavar="NAME", default="muonsocks", help="whose ratios and goals to show")
    add("--plot", metavar="FILE.svg", help="draw the medians (needs matplotlib)")
    args = program.arguments(parser)
    for text in args.add:
        name, equals, command = text.partition("=")
        if not equals:
            parser.error(f"--add {text}: write NAME=COMMAND")
        servers.add(name, command)
    usual = [name for name in servers.SERVERS if name != MUX]  # which has a program of its own
    names = args.servers.split(",") if args.servers else usual
    args.servers = [DIRECT, *(name for name in names if name != DIRECT)]
    for name in args.servers:
        if name not in servers.SERVERS:
            parser.error(f"no server {name!r}: there are {', '.join(servers.SERVERS)}")
    if args.plot:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            parser.error("--plot needs matplotlib")
    return args


class Bench:
    """One run."""

    def __init__(self, args: argparse.Namespace, directory: Path) -> None:
        self.args = args
        self.load = Load(directory, args.targets, args.seconds)
        self.servers = []
        for name in args.servers:
            if missing := servers.missing(name, self.load.place()):
                print(f"bench: {name} is left out: there is no {missing}", file=sys.stderr)
            else:
                self.servers.append(name)

    def run(self) -> Iterator[Sample]:
        """Measure everything; each measurement as it comes."""
        modes = QUICK if self.args.quick else FULL
        for number in range(self.args.rounds):
            for mode, ns in modes.items():
                if self.args.only in (None, mode):
                    for n in ns:
                        yield from self.compare(number, mode, n)

    def compare(self, number: int, mode: str, n: int) -> Iterator[Sample]:
        """All servers in turn, in one mode."""
        for server in self.servers:
            if mode == "idle" and server == DIRECT:
                continue
            about: Sample = {"n": n, "server": server, "round": number}
            metrics = [mode, f"{mode} cpu"] if mode in BULK else [mode]
            measurement = self.idle if mode == "idle" else partial(self.speed, mode)
            yield from sampled(about, metrics, partial(measurement, n, server))

    def speed(self, mode: str, n: int, server: str) -> dict[str, float]:
        """A second; in bulk MB, and the CPU's seconds for a GB."""
        rate, cpu = self.load.speed(mode, n, server)
        if mode not in BULK:
            return {mode: rate}
        found = {mode: rate / 1e6}
        if server != DIRECT:
            found[f"{mode} cpu"] = cpu * 1e9
        return found

    def idle(self, n: int, server: str) -> dict[str, float]:
        """KiB a connection."""
        place = self.load.place()
        with measured() as memory, servers.running(server, place, lambda command: memory.enter()):
            before = memory.settled()
            with self.load.holding(n, server, place):
                after = memory.settled()
        return {"idle": (after - before) / n / 1024}


def main() -> None:
    args = arguments()
    results, title = program.carry_out(
        args, __file__, args.ours, lambda directory: Bench(args, directory).run()
    )
    if dante := results.against_dante():
        print(dante)
    if args.plot:
        results.plot(args.plot, title)


if __name__ == "__main__":
    main()
