"""One measurement: load.c, run against a server that has just been started."""

import json
import select
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import servers
from namespaces import PROXY
from report import Sample
from servers import DIRECT, Place

HERE = Path(__file__).resolve().parent
MOST_PROCESSES = 64  # of load.c
PATIENCE = 100  # seconds, over what a run should take; 9000 connections may be opened slowly
BULK = ("down", "up")


class Speed(NamedTuple):
    rate: float  # exchanges, or bytes, a second
    cpu: float  # seconds of the server's processes, for each of these


class Load:
    """load.c, or another source, built in a directory, with `targets` for addresses and `seconds`
    for a measurement.

    Before it is measured a server has some time to warm up: half a second at most.
    """

    def __init__(
        self, directory: Path, targets: list[str], seconds: float, source: str = "load.c"
    ) -> None:
        self.directory = directory
        self.targets = targets
        self.seconds = seconds
        self.warmup = min(0.5, seconds / 4)
        self.port = 2000
        self.program = directory / "load"
        build = ["cc", "-O2", "-Wall", "-Wextra", "-o", str(self.program), str(HERE / source)]
        subprocess.run(build, check=True)

    def place(self) -> Place:
        """A port that nobody has used yet, or not for long; below those the kernel gives out."""
        self.port = 2000 + (self.port - 2000 + 2) % 7000
        return Place(PROXY, self.port, self.directory)

    def command(
        self, mode: str, n: int, server: str, place: Place, options: Iterable[str] = ()
    ) -> list[str]:
        proxy = "direct" if server == DIRECT else f"{place.address}:{place.port}"
        times = [str(self.seconds), str(self.warmup)]
        if mode == "idle":
            times = ["20", "0"]  # within which all must answer
        targets = self.targets[: 1 if mode in BULK else None]
        return [str(self.program), *options, mode, str(n), *times, proxy, *targets]

    def speed(self, mode: str, n: int, server: str, write: int = 0, blocked: int = 0) -> Speed:
        """Run a mode but idle; with writes of so many bytes, and so many more that are blocked."""
        options = [
            *(["-w", str(write)] if write else []),
            *(["-b", str(blocked)] if blocked else []),
        ]
        place = self.place()
        with servers.running(server, place) as proxy:
            before = proxy.cpu_seconds()
            done = subprocess.run(
                self.command(mode, n, server, place, options),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=self.seconds + self.warmup + PATIENCE,
            )
            cpu = proxy.cpu_seconds() - before
        result = outcome(done.stdout, done.stderr)
        return Speed(result["count"] / result["seconds"], cpu / result["total"])

    @contextmanager
    def holding(self, n: int, server: str, place: Place) -> Iterator[None]:
        """While n idle connections are open; each has been used, and is once more afterwards."""
        with (
            tempfile.TemporaryFile("w+") as errors,
            subprocess.Popen(
                self.command("idle", n, server, place),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            ) as load,
        ):
            assert load.stdout
            if not select.select([load.stdout], [], [], PATIENCE)[0]:
                load.kill()
                raise servers.Failed(f"{n} connections were not open in {PATIENCE} s")
            first = load.stdout.readline()
            yield
            rest, _ = load.communicate(b"\n", PATIENCE)
            errors.seek(0)
            outcome((rest or first).decode(), errors.read())


def outcome(line: str, errors: str) -> dict[str, float]:
    """What load says; Failed if it found anything wrong."""
    try:
        result: dict[str, float] = json.loads(line)
    except ValueError:
        raise servers.Failed(f"load has failed: {errors.strip() or line}") from None
    if result["error"]:
        raise servers.Failed(str(result["error"]))
    return result


def sampled(
    about: Sample, metrics: Iterable[str], measurement: Callable[[], dict[str, float]]
) -> Iterator[Sample]:
    """What a measurement finds of each of its metrics; or, of each, that it has failed."""
    try:
        found = measurement()
    except (servers.Failed, subprocess.SubprocessError, OSError) as error:
        for metric in metrics:
            yield {"metric": metric, **about, "error": str(error)}
        return
    waiting = time_wait()
    for metric, value in found.items():
        yield {"metric": metric, **about, "time wait": waiting, "value": value}


def time_wait() -> int:
    """Connections in TIME_WAIT in this namespace."""
    sockets = Path("/proc/net/sockstat").read_text()
    return int(sockets.partition(" tw ")[2].split()[0])
