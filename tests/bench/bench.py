#!/usr/bin/python3
"""Compare SOCKS servers on this machine: connection rate, round trips, bulk, idle memory.

All servers are measured in turn, round after round, each freshly started, in namespaces (network,
mount, process) of the benchmark's own: its loopback device carries the proxy's address and one a
target process. It needs root there, a C compiler and ip(8), and for idle memory the memory
controller of cgroups(7); servers that are not installed are left out. Limit the CPUs with
taskset(1).

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
import json
import os
import platform
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import servers
from memory import measured
from report import METRICS, Results, Sample
from servers import DIRECT, Place

HERE = Path(__file__).resolve().parent
NETWORK = "192.0.2."  # RFC 5737: an address of our own, as C servers refuse 127/8 as a target
PROXY = f"{NETWORK}1"
CPUS = len(os.sched_getaffinity(0))
MOST_PROCESSES = 64  # of load.c
LOAD = min(max(CPUS // 2, 1), MOST_PROCESSES)
DESCRIPTORS = 65536  # a server in one process needs two a connection
PATIENCE = 100  # seconds, over what a run should take; 9000 connections may be opened slowly
SETTINGS = {
    "tcp_congestion_control": "reno",  # under bbr loopback is slow and tells nothing
    "tcp_tw_reuse": "1",
    "tcp_max_tw_buckets": "4096",  # in mode rate all connections end there: ports must not run out
    "ip_local_port_range": "10000 65535",
}
FULL = {"rate": [1, 16, 64, 256], "trips": [1, 16, 64], "down": [1, 4, 16], "up": [1, 4, 16]}
FULL["idle"] = [1000, 9000]
QUICK = {"rate": [1, 16, 64], "trips": [1, 64], "down": [1, 4], "up": [1, 4], "idle": [1000]}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="about a minute: one short round, of the goals' rows")
    add("--only", metavar="MODE", choices=FULL, help=" ".join(FULL))
    add("--rounds", type=int, help="default 5, half an hour; 1 with --quick")
    add("--seconds", type=float, help="of a measurement; default 2; 0.4 with --quick")
    add("--servers", metavar="A,B", help=f"of {', '.join(servers.SERVERS)}; {DIRECT!r} always is")
    add("--processes", type=int, default=LOAD, help="of clients, and of targets; 1 in bulk")
    add("--add", metavar="NAME=COMMAND", action="append", default=[], help="one more server")
    add("--ours", metavar="NAME", default="muonsocks", help="whose ratios and goals to show")
    add("--json", metavar="FILE", help="write every measurement there")
    add("--plot", metavar="FILE.svg", help="draw the medians (needs matplotlib)")
    add("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.rounds = args.rounds or (1 if args.quick else 5)
    args.seconds = args.seconds or (0.4 if args.quick else 2.0)
    args.warmup = min(0.5, args.seconds / 4)
    if not 1 <= args.processes <= MOST_PROCESSES:
        parser.error(f"--processes: write 1 to {MOST_PROCESSES}")
    args.targets = [f"{NETWORK}{11 + i}" for i in range(args.processes)]
    for text in args.add:
        name, equals, command = text.partition("=")
        if not equals:
            parser.error(f"--add {text}: write NAME=COMMAND")
        servers.add(name, command)
    names = args.servers.split(",") if args.servers else list(servers.SERVERS)
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


def enter_namespaces() -> None:
    """Start over as process 1 of new namespaces: when it ends, whatever it started ends."""
    words = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.getuid():
        words.append("--map-root-user")
    os.execvp(words[0], [*words, sys.executable, __file__, "--inside", *sys.argv[1:]])


def prepare(targets: list[str]) -> None:
    """Addresses and settings of the namespaces, and limits."""
    lines = ["link set lo up", *(f"address add {a}/24 dev lo" for a in (PROXY, *targets))]
    for line in lines:
        subprocess.run(["ip", *line.split()], check=True)
    for name, value in SETTINGS.items():
        Path(f"/proc/sys/net/ipv4/{name}").write_text(value)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    os.environ["PATH"] += ":/usr/local/sbin:/usr/sbin:/sbin"
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        most = max(hard, DESCRIPTORS)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        print(f"bench: descriptors are limited to {hard}", file=sys.stderr)


class Bench:
    """One run."""

    def __init__(self, args: argparse.Namespace, directory: Path) -> None:
        self.args = args
        self.directory = directory
        self.port = 2000
        self.load = directory / "load"
        build = ["cc", "-O2", "-Wall", "-Wextra", "-o", str(self.load), str(HERE / "load.c")]
        subprocess.run(build, check=True)
        self.servers = []
        for name in args.servers:
            if program := servers.missing(name, self.place()):
                print(f"bench: {name} is left out: there is no {program}", file=sys.stderr)
            else:
                self.servers.append(name)

    def place(self) -> Place:
        """A port that nobody has used yet, or not for long; below those the kernel gives out."""
        self.port = 2000 + (self.port - 2000 + 2) % 7000
        return Place(PROXY, self.port, self.directory)

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
            try:
                found = self.idle(n, server) if mode == "idle" else self.speed(mode, n, server)
            except (servers.Failed, subprocess.SubprocessError, OSError) as error:
                for metric in METRICS:
                    if metric.split()[0] == mode:
                        yield {"metric": metric, **about, "error": str(error)}
                continue
            about["time wait"] = time_wait()
            for metric, value in found.items():
                yield {"metric": metric, **about, "value": value}

    def command(self, mode: str, n: int, server: str, place: Place) -> list[str]:
        proxy = "direct" if server == DIRECT else f"{place.address}:{place.port}"
        times = [str(self.args.seconds), str(self.args.warmup)]
        if mode == "idle":
            times = ["20", "0"]  # within which all must answer
        targets = self.args.targets[: 1 if mode in ("down", "up") else None]
        return [str(self.load), mode, str(n), *times, proxy, *targets]

    def speed(self, mode: str, n: int, server: str) -> dict[str, float]:
        place = self.place()
        with servers.running(server, place) as proxy:
            before = proxy.cpu_seconds()
            done = subprocess.run(
                self.command(mode, n, server, place),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=self.args.seconds + self.args.warmup + PATIENCE,
            )
            cpu = proxy.cpu_seconds() - before
        result = outcome(done.stdout, done.stderr)
        rate = result["count"] / result["seconds"]
        if mode in ("rate", "trips"):
            return {mode: rate}
        found = {mode: rate / 1e6}
        if server != DIRECT:
            found[f"{mode} cpu"] = cpu / (result["total"] / 1e9)
        return found

    def idle(self, n: int, server: str) -> dict[str, float]:
        """KiB a connection."""
        place = self.place()
        with (
            measured() as memory,
            servers.running(server, place, memory.enter),
            tempfile.TemporaryFile("w+") as errors,
        ):
            before = memory.settled()
            with subprocess.Popen(
                self.command("idle", n, server, place),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            ) as load:
                assert load.stdout
                if select.select([load.stdout], [], [], PATIENCE)[0]:
                    first = load.stdout.readline()
                    after = memory.settled()
                    rest, _ = load.communicate(b"\n", PATIENCE)
                else:
                    load.kill()
                    raise servers.Failed(f"{n} connections were not open in {PATIENCE} s")
            errors.seek(0)
            outcome((rest or first).decode(), errors.read())
        return {"idle": (after - before) / n / 1024}


def outcome(line: str, errors: str) -> dict[str, float]:
    """What load says; Failed if it found anything wrong."""
    try:
        result: dict[str, float] = json.loads(line)
    except ValueError:
        raise servers.Failed(f"load has failed: {errors.strip() or line}") from None
    if result["error"]:
        raise servers.Failed(str(result["error"]))
    return result


def time_wait() -> int:
    """Connections in TIME_WAIT in this namespace."""
    sockets = Path("/proc/net/sockstat").read_text()
    return int(sockets.partition(" tw ")[2].split()[0])


def line(sample: Sample) -> str:
    about = "{metric}, {n}, {server}, round {round}: ".format_map(sample)
    if "error" in sample:
        return about + str(sample["error"])
    return f"{about}{sample['value']:,.{METRICS[sample['metric']].decimals}f}"


def machine() -> dict[str, str | int]:
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": model,
        "cpus": CPUS,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load average at the start": Path("/proc/loadavg").read_text().split()[0],
    }


def main() -> None:
    args = arguments()
    if not args.inside:
        enter_namespaces()
    prepare(args.targets)
    about = machine()
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        try:
            for sample in Bench(args, Path(directory)).run():
                samples.append(sample)
                print("bench:", line(sample), file=sys.stderr)
        except KeyboardInterrupt:
            print("bench: interrupted; this is what there is", file=sys.stderr)
    results = Results(samples, args.ours)
    title = ", ".join(f"{name} {value}" for name, value in about.items())
    title += f", {args.rounds} round{'s'[: args.rounds > 1]} of {args.seconds:g} s"
    print(title, results.table(), results.goals_table(), sep="\n\n")
    if dante := results.against_dante():
        print(dante)
    if args.json:
        told = {
            "machine": about,
            "rounds": args.rounds,
            "seconds": args.seconds,
            "processes": args.processes,
        }
        told |= {"samples": samples, "goals": results.goals()}
        Path(args.json).write_text(json.dumps(told, indent=1) + "\n")
    if args.plot:
        results.plot(args.plot, title)


if __name__ == "__main__":
    main()
