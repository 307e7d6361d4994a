"""What the programs of the benchmark have in common: options, and how they tell what they found."""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import namespaces
from measure import MOST_PROCESSES
from report import Results, Sample, line

LOAD = min(max(namespaces.CPUS // 2, 1), MOST_PROCESSES)


def parser(
    about: str | None, modes: Iterable[str], quick: str, rounds: str
) -> argparse.ArgumentParser:
    """The options that all have; `quick` and `rounds` say what these come to."""
    found = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = found.add_argument
    add("--quick", action="store_true", help=quick)
    add("--only", metavar="MODE", choices=modes, help=" ".join(modes))
    add("--rounds", type=int, help=f"default 5, {rounds}; 1 with --quick")
    add("--seconds", type=float, help="of a measurement; default 2; 0.4 with --quick")
    add("--processes", type=int, default=LOAD, help="of clients, and of targets; 1 in bulk")
    add("--json", metavar="FILE", help="write every measurement there")
    add("--inside", action="store_true", help=argparse.SUPPRESS)
    return found


def arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    args = parser.parse_args()
    args.rounds = args.rounds or (1 if args.quick else 5)
    args.seconds = args.seconds or (0.4 if args.quick else 2.0)
    if not 1 <= args.processes <= MOST_PROCESSES:
        parser.error(f"--processes: write 1 to {MOST_PROCESSES}")
    args.targets = [f"{namespaces.NETWORK}{11 + i}" for i in range(args.processes)]
    return args


def measured(bench: Any, modes: Iterable[str]) -> Iterator[Sample]:
    """Measure all that is asked for, round by round; each measurement as it comes."""
    for number in range(bench.args.rounds):
        for mode in modes:
            if bench.args.only in (None, mode):
                yield from getattr(bench, mode)(number)


def carry_out(
    args: argparse.Namespace,
    program: str,
    ours: str,
    measurements: Callable[[Path], Iterator[Sample]],
) -> tuple[Results, str]:
    """Measure in namespaces, print the tables, write --json. Give the results and their title.

    Outside of the namespaces it starts the program over in them, and does not return.
    `measurements` get a directory of their own.
    """
    if not args.inside:
        namespaces.enter(program)
    namespaces.prepare(args.targets)
    about = namespaces.machine()
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        try:
            for sample in measurements(Path(directory)):
                samples.append(sample)
                print("bench:", line(sample), file=sys.stderr)
        except KeyboardInterrupt:
            print("bench: interrupted; this is what there is", file=sys.stderr)
    results = Results(samples, ours)
    title = ", ".join(f"{name} {value}" for name, value in about.items())
    title += f", {args.rounds} round{'s'[: args.rounds > 1]} of {args.seconds:g} s"
    print(title, results.table(), results.goals_table(), sep="\n\n")
    if args.json:
        told = {
            "machine": about,
            "rounds": args.rounds,
            "seconds": args.seconds,
            "processes": args.processes,
        }
        told |= {"samples": samples, "goals": results.goals()}
        Path(args.json).write_text(json.dumps(told, indent=1) + "\n")
    return results, title
