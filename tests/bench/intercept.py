#!/usr/bin/python3
"""Measure what it costs a program to be led through a proxy by socksify.

connect   connections of a C program that waits for each, one at a time, through microsocks and
          through muonsocks: under socksify, in each of its modes; under proxychains4 and torsocks;
          and without a proxy. What socket(2) and connect(2) take together, by connects.c, some by
          each in turn.
down      curl fetching a page under socksify, and by its own SOCKS support. What curl itself says
          that it got in a second, in turn; each of the three programs on a processor of its own.
together  200 connections at once of an asyncio program, through a proxy that takes a second for
          each, under socksify. Not in mode hold, and not under proxychains4: there each waits for
          the one before.

In turn, round after round, in namespaces as those of bench.py, which says what they need.
"""

import argparse
import contextlib
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median

import program
import servers
from measure import PATIENCE, sampled
from namespaces import PROXY
from report import Sample
from servers import DIRECT, ROOT, Place

MODES = ["connect", "down", "together"]
OURS, PROXYCHAINS, TORSOCKS, OWN = "socksify", "proxychains4", "torsocks", "curl's own SOCKS"
MODES_OF_SOCKSIFY = ("hold", "async", "isolate")
THROUGH = ["microsocks", "muonsocks"]
BATCH = 20  # connections of one kind, until it is the next one's turn
PAGE = 1 << 30  # bytes: what it takes to begin is not to count
STEADIER = 5  # times as long as others: one page takes a third more or less than the next
TOGETHER, DELAY = 200, 1.0  # connections; s
HERE = Path(__file__).resolve().parent
ENDS, TARGET = str(HERE / "intercept_ends.py"), str(HERE / "client_ends.py")
PYTHON = "/usr/bin/python3"
SOCKSIFY = str(ROOT / "bin/socksify")
TARGET_PORT = 9100
CHAIN = """\
strict_chain
quiet_mode
[ProxyList]
socks5 {address} {port}
"""


def kinds(place: Place) -> list[str]:
    """What a program can be run under here; socksify by itself chooses a mode."""
    wrapped = [*kinds_of_ours(), PROXYCHAINS, TORSOCKS]
    return [*(kind for kind in wrapped if runs(kind, place)), DIRECT]


def kinds_of_ours() -> list[str]:
    return [OURS, *(f"{OURS} {mode}" for mode in MODES_OF_SOCKSIFY)]


def runs(kind: str, place: Place) -> bool:
    words = under(kind, place)
    reason = f"there is no {words[0]}"
    if shutil.which(words[0]):
        done = subprocess.run([*words, "true"], capture_output=True, text=True, timeout=PATIENCE)
        reason = done.stderr.strip()[-200:]
        if not done.returncode:
            return True
    print(f"bench: {kind} is left out: {reason}", file=sys.stderr)
    return False


def under(kind: str, place: Place) -> list[str]:
    """The words in front of a program's that lead it through the proxy at a place."""
    name, _, mode = kind.partition(" ")
    if name == OURS:
        options = [f"--mode={mode}"] if mode else []
        return [SOCKSIFY, *options, f"--proxy=socks5h://{place.address}:{place.port}"]
    if kind == PROXYCHAINS:
        chain = place.directory / f"proxychains-{place.port}.conf"
        chain.write_text(CHAIN.format(address=place.address, port=place.port))
        return [PROXYCHAINS, "-q", "-f", str(chain)]
    if kind == TORSOCKS:
        return [TORSOCKS, "-q", "-a", place.address, "-P", str(place.port)]
    return []


class Connecting:
    """A program that connects BATCH times whenever it is asked to."""

    def __init__(self, words: list[str]) -> None:
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.took: list[float] = []  # s, the median of each batch

    def go(self) -> None:
        """Measure a batch. Failed."""
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):  # then it has something to say
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], PATIENCE)[0]:
            raise servers.Failed(f"{BATCH} connections took more than {PATIENCE} s")
        said = self._process.stdout.readline()
        if not said:
            _, errors = self._process.communicate(timeout=PATIENCE)
            raise servers.Failed(errors.decode().strip()[-200:] or "it has ended")
        self.took.append(float(said) / 1e9)

    def end(self) -> None:
        """Let it end by itself, as whoever supervises it ends with it."""
        with contextlib.suppress(BrokenPipeError, ValueError):  # it has failed, and gone
            self._process.communicate(timeout=PATIENCE)


class Bench:
    """One run."""

    def __init__(self, args: argparse.Namespace, directory: Path) -> None:
        self.args = args
        self.directory = directory
        self.port = 2000
        self.target = args.targets[0]
        self.kinds = kinds(self.place())
        self.connects = str(directory / "connects")
        build = ["cc", "-O2", "-Wall", "-Wextra", "-o", self.connects, str(HERE / "connects.c")]
        subprocess.run(build, check=True)

    def place(self) -> Place:
        self.port += 2
        return Place(PROXY, self.port, self.directory)

    def connect(self, number: int) -> Iterator[Sample]:
        for name in THROUGH:
            place = self.place()
            if missing := servers.missing(name, place):
                print(f"bench: {name} is left out: there is no {missing}", file=sys.stderr)
                continue
            metric = f"held by {name}"
            target = [self.target, str(TARGET_PORT)]
            serving = servers.serving(PYTHON, TARGET, "target", *target)
            with serving, servers.running(name, place):
                found = self.connections(place, [self.connects, *target, str(BATCH)])
            for kind, figure in found.items():
                about: Sample = {"n": 1, "server": kind, "round": number}
                yield from sampled(about, [metric], partial(microseconds, metric, figure))

    def connections(self, place: Place, words: list[str]) -> dict[str, float | servers.Failed]:
        """Seconds that a connection takes by each kind, or why there is none."""
        found: dict[str, float | servers.Failed] = {}
        running = {kind: Connecting([*under(kind, place), *words]) for kind in self.kinds}
        try:
            end = time.monotonic() + self.args.seconds * len(running)
            turn = 0
            while time.monotonic() < end or turn < 3:
                turn += 1
                for kind in running.keys() - found.keys():
                    try:
                        running[kind].go()
                    except servers.Failed as error:
                        found[kind] = error
        finally:
            for one in running.values():
                one.end()
        warm = {kind: one.took[1:] for kind, one in running.items()}
        return {kind: found.get(kind) or median(took) for kind, took in warm.items()}

    def down(self, number: int) -> Iterator[Sample]:
        place = self.place()
        page = f"http://{self.target}:{TARGET_PORT}/"
        curl = ["curl", "-sS", "-o", "/dev/null", "-w", "%{speed_download}", page]
        own = ["--socks5-hostname", f"{place.address}:{place.port}"]
        commands = {OURS: [*under(OURS, place), *curl], OWN: [*curl, *own]}
        rates: dict[str, list[float]] = {kind: [] for kind in commands}
        pages = [ENDS, "pages", self.target, str(TARGET_PORT), str(PAGE)]
        with contextlib.ExitStack() as stack:
            with on_processor(0):
                stack.enter_context(servers.serving(PYTHON, *pages))
            with on_processor(1):
                stack.enter_context(servers.running("muonsocks", place))
            with on_processor(2):
                for kind in self.in_turn(list(commands)):
                    rates[kind].append(float(said_by(commands[kind])))
        for kind, found in rates.items():
            about: Sample = {"n": 1, "server": kind, "round": number}
            yield from sampled(
                about, ["curl down"], partial(dict, {"curl down": median(found) / 1e6})
            )

    def in_turn(self, words: list[str]) -> Iterator[str]:
        """Give each again and again, the first one not always first."""
        end = time.monotonic() + STEADIER * self.args.seconds * len(words)
        yield from words
        while time.monotonic() < end:
            words.reverse()
            yield from words

    def together(self, number: int) -> Iterator[Sample]:
        place = self.place()
        program = [PYTHON, ENDS, "together", self.target, str(TARGET_PORT), str(TOGETHER)]
        for kind in self.kinds:
            if kind.partition(" ")[0] != OURS or kind.endswith(" hold"):
                continue
            words = [*under(kind, place), *program]
            about: Sample = {"n": TOGETHER, "server": kind, "round": number}
            slow = [ENDS, "slow", place.address, str(place.port), str(DELAY)]
            with servers.serving(PYTHON, *slow):
                yield from sampled(about, ["together"], partial(seconds_of, words))


@contextlib.contextmanager
def on_processor(number: int) -> Iterator[None]:
    """Have what is started meanwhile stay on one processor, if there are as many: where the kernel
    puts who makes a page, passes it on and takes it is half or twice as fast.
    """
    there = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(there)[number : number + 1] or there)
    try:
        yield
    finally:
        os.sched_setaffinity(0, there)


def microseconds(metric: str, figure: float | servers.Failed) -> dict[str, float]:
    if isinstance(figure, servers.Failed):
        raise figure
    return {metric: figure * 1e6}


def seconds_of(words: list[str]) -> dict[str, float]:
    return {"together": float(said_by(words))}


def said_by(words: list[str]) -> str:
    """What a program says that ends as it should. Failed."""
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE
    )
    if done.returncode:
        reason = done.stderr.strip()[-200:]
        raise servers.Failed(f"{Path(words[0]).name} ended with {done.returncode}: {reason}")
    return done.stdout


def main() -> None:
    parser = program.parser(__doc__, MODES, "half a minute: one short round", "five minutes")
    args = program.arguments(parser)
    program.carry_out(
        args, __file__, OURS, lambda directory: program.measured(Bench(args, directory), MODES)
    )


if __name__ == "__main__":
    main()
