#!/usr/bin/python3
"""Measure UDP ASSOCIATE: datagrams there and back, and what idle associations take.

One client process and one target process, which sends back what it gets. As many datagrams are
under way on each association as 64 KiB hold, 32 at most; one that does not come back within 100 ms
is lost, and not counted. A datagram goes through the proxy twice. CPU time is that of all the
server's processes, for one there and back.

All servers are measured in turn, round after round, each freshly started, in namespaces as those of
bench.py, which says what they need. Idle memory is what is added
to a server's processes and to what the kernel has for them by an association that has been used
once; see memory.py.
"""

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import program
import servers
from measure import Load, sampled
from memory import measured
from report import Sample
from servers import DIRECT, Command, Place

SIZES = [64, 1400, 8192]
ASSOCIATIONS = [1, 16]
IDLE = 1000
MODES = ["echo", "idle"]
OURS, ALONE = "muonsocks", "muonsocks, 1 worker"


def one_worker(place: Place) -> list[Command]:
    """Without the others, who have nothing to do with one association."""
    [command] = servers.muonsocks(place)
    return [Command([*command.words, "--workers=1"], command.port)]


class Bench:
    """One run."""

    def __init__(self, args: argparse.Namespace, directory: Path) -> None:
        self.args = args
        self.load = Load(directory, args.targets[:1], args.seconds, "datagrams.c")
        self.servers = [DIRECT, "dante", OURS, ALONE]
        for name in self.servers.copy():
            if missing := servers.missing(name, self.load.place()):
                print(f"bench: {name} is left out: there is no {missing}", file=sys.stderr)
                self.servers.remove(name)

    def echo(self, number: int) -> Iterator[Sample]:
        for size in SIZES:
            for n in ASSOCIATIONS:
                for server in self.servers:
                    about: Sample = {"n": n, "server": server, "round": number}
                    metrics = [f"echo {size}", f"echo {size} cpu"]
                    yield from sampled(about, metrics, partial(self.speed, size, n, server))

    def speed(self, size: int, n: int, server: str) -> dict[str, float]:
        """A second, or MB a second; and microseconds of the server's."""
        rate, cpu = self.load.speed("echo", n, server, write=size)
        found = {f"echo {size}": rate if size == SIZES[0] else rate * size / 1e6}
        if server != DIRECT:
            found[f"echo {size} cpu"] = cpu * 1e6
        return found

    def idle(self, number: int) -> Iterator[Sample]:
        for server in self.servers:
            if server != DIRECT:
                about: Sample = {"n": IDLE, "server": server, "round": number}
                yield from sampled(about, ["associations"], partial(self.memory, server))

    def memory(self, server: str) -> dict[str, float]:
        """KiB an association."""
        place = self.load.place()
        with measured() as memory, servers.running(server, place, lambda command: memory.enter()):
            before = memory.settled()
            with self.load.holding(IDLE, server, place):
                after = memory.settled()
        return {"associations": (after - before) / IDLE / 1024}


def main() -> None:
    servers.SERVERS[ALONE] = one_worker
    parser = program.parser(__doc__, MODES, "half a minute: one short round", "six minutes")
    args = program.arguments(parser)
    program.carry_out(
        args, __file__, OURS, lambda directory: program.measured(Bench(args, directory), MODES)
    )


if __name__ == "__main__":
    main()
