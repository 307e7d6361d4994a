"""Where the benchmark runs: this machine, in namespaces (network, mount, process) of its own."""

import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

NETWORK = "192.0.2."  # RFC 5737: an address of our own, as C servers refuse 127/8 as a target
PROXY = f"{NETWORK}1"
CPUS = len(os.sched_getaffinity(0))
DESCRIPTORS = 65536  # a server in one process needs two a connection
SETTINGS = {
    "tcp_congestion_control": "reno",  # under bbr loopback is slow and tells nothing
    "tcp_tw_reuse": "1",
    "tcp_max_tw_buckets": "4096",  # in mode rate all connections end there: ports must not run out
    "ip_local_port_range": "10000 65535",
}


def enter(program: str) -> None:
    """Start over as process 1 of new namespaces: when it ends, whatever it started ends."""
    words = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.getuid():
        words.append("--map-root-user")
    os.execvp(words[0], [*words, sys.executable, program, "--inside", *sys.argv[1:]])


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
