#!/usr/bin/python3
"""Measure virtio-mux: one stream, connections beside one that is blocked, memory of each side.

A guest and a host, joined by a unix socket pair in the place of a virtual machine's port, from a
client's TCP to a target's. Both are started afresh for each measurement, in namespaces as those of
bench.py, which says what they need. Beside them stands what there is with no proxy.

A stream is one of one client process, whose writes, or those of its target, have the given size;
whoever reads takes up to 64 KiB at a time.

A blocked connection is one that its client does not read. Its target has sent until no more went
for half a second, so that every window and buffer on the way is full, before the 50 connections
are opened that are measured. These are measured without it as well, just before or, in every
second round, just after. What they keep is the one by the other. In the end the client reads what
was stuck, and all of it must be there.

The memory of a side is what all its processes have, a guest's two and a host's one, while 1000
connections are open and idle that have been used before. Counted is their proportional set size
(Pss in /proc/PID/smaps_rollup): all they have and the files they map, where a page that n processes
map is an nth in each, be they of this side or not. Then the same with what the kernel has for them:
sockets, buffers, descriptors, page tables, stacks; see memory.py. And then with every page of the
files counted in full, once a side: other programs in Python make the first two smaller, and in a
machine of its own a side has the third. What the client and the target have is in none.
"""

import argparse
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import program
import servers
from measure import BULK, Load, sampled
from memory import measured
from report import Sample
from servers import DIRECT, MUX

MODES = ["stream", "blocked", "idle"]
WRITES = [4, 16, 64]  # KiB
BESIDE = 50  # connections beside the one that is blocked
IDLE = 1000
SIDES = ["guest", "host"]


class Bench:
    """One run."""

    def __init__(self, args: argparse.Namespace, directory: Path) -> None:
        self.args = args
        self.load = Load(directory, args.targets, args.seconds)

    def stream(self, number: int) -> Iterator[Sample]:
        for way in BULK:
            for write in WRITES:
                for server in (DIRECT, MUX):
                    about: Sample = {"n": write, "server": server, "round": number}
                    measurement = partial(self.one_stream, way, write, server)
                    yield from sampled(about, [f"stream {way}"], measurement)

    def one_stream(self, way: str, write: int, server: str) -> dict[str, float]:
        """MB a second."""
        return {f"stream {way}": self.load.speed(way, 1, server, write=write << 10).rate / 1e6}

    def blocked(self, number: int) -> Iterator[Sample]:
        for mode in ("trips", "down"):
            for server in (DIRECT, MUX):
                about: Sample = {"n": BESIDE, "server": server, "round": number}
                metrics = [mode, f"{mode} beside", f"{mode} kept"]
                measurement = partial(self.beside, mode, server, number % 2)
                yield from sampled(about, metrics, measurement)

    def beside(self, mode: str, server: str, first: int) -> dict[str, float]:
        """A second, or MB a second, without and beside a blocked one; and percent of the former."""
        unit = 1e6 if mode in BULK else 1
        rates = {
            blocked: self.load.speed(mode, BESIDE, server, blocked=blocked).rate / unit
            for blocked in (first, 1 - first)
        }
        kept = 100 * rates[1] / rates[0]
        return {mode: rates[0], f"{mode} beside": rates[1], f"{mode} kept": kept}

    def idle(self, number: int) -> Iterator[Sample]:
        about: Sample = {"n": IDLE, "server": MUX, "round": number}
        whats = ("processes", "memory", "alone")
        metrics = [f"{side} {what}" for side in SIDES for what in whats]
        yield from sampled(about, metrics, self.sides)

    def sides(self) -> dict[str, float]:
        """MB."""
        place, found = self.load.place(), {}
        with ExitStack() as stack:
            memories = {side: stack.enter_context(measured()) for side in SIDES}
            stack.enter_context(
                servers.running(MUX, place, lambda command: memories[command.side].enter())
            )
            stack.enter_context(self.load.holding(IDLE, MUX, place))
            for side, memory in memories.items():
                memory.settled()
                processes, kernel = memory.with_files(), memory.kernel()
                found[f"{side} processes"] = processes / 1e6
                found[f"{side} memory"] = (processes + kernel) / 1e6
                found[f"{side} alone"] = (memory.alone() + kernel) / 1e6
        return found


def main() -> None:
    parser = program.parser(__doc__, MODES, "half a minute: one short round", "six minutes")
    args = program.arguments(parser)
    program.carry_out(
        args, __file__, MUX, lambda directory: program.measured(Bench(args, directory), MODES)
    )


if __name__ == "__main__":
    main()
