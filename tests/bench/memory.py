"""What a server has in memory: its processes, the files they map or not, and the kernel for it.

The processes' share is in /proc/PID/smaps_rollup, and a page that n of them share counts as an nth
in each. The kernel's share (sockets, descriptors, thread stacks, page tables, socket buffers) is
what a memory cgroup is charged that has nobody else in it, see cgroups(7): neither the client and
the target of the benchmark, nor whatever else runs on the machine. A socket is charged to the
process that accepts it, since Linux 6.12.
"""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path("/run/cgroup")  # on a tmpfs of this namespace, and so gone with it
BEAT = 2.0  # seconds between two moments at which the kernel adds up its figures of a cgroup
CLOSE = 64 << 10  # bytes: figures this close have settled


class Memory:
    """A server's; of its processes and all below them, once they have entered the cgroup."""

    def __init__(self, group: Path) -> None:
        self.group = group
        self.is_unified = (group / "cgroup.controllers").exists()
        if not self.is_unified:  # it counts socket buffers of TCP only if they have a limit
            (group / "memory.kmem.tcp.limit_in_bytes").write_text(str(1 << 40))

    def enter(self) -> None:
        """Put the process that calls this into the cgroup."""
        (self.group / "cgroup.procs").write_text("0")

    def kernel(self) -> int:
        """Bytes that the kernel has for the server."""
        if self.is_unified:
            lines = (self.group / "memory.stat").read_text().splitlines()
            figures = dict(line.split() for line in lines)
            return int(figures["kernel"]) + int(figures["sock"])
        names = ("memory.kmem.usage_in_bytes", "memory.kmem.tcp.usage_in_bytes")
        return sum(int((self.group / name).read_text()) for name in names)

    def processes(self) -> int:
        """Bytes that the server's processes have, apart from the files they map."""
        return sum(each["Pss_Anon"] + each["Pss_Shmem"] for each in self._figures())

    def with_files(self) -> int:
        """Bytes that they have; a page of a file is an nth, whoever the n are that map it."""
        return sum(each["Pss"] for each in self._figures())

    def alone(self) -> int:
        """Bytes that they have if nobody else maps their files, of which one maps all."""
        return self.processes() + max(each["Rss"] - each["Anonymous"] for each in self._figures())

    def _figures(self) -> Iterator[dict[str, int]]:
        """What is known of each process, in bytes."""
        for pid in (self.group / "cgroup.procs").read_text().split():
            try:
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:  # it is gone
                continue
            lines = (line.split() for line in text.splitlines()[1:])
            yield {name.rstrip(":"): int(number) * 1024 for name, number, _ in lines}

    def settled(self) -> int:
        """Bytes in all, once they have hardly changed for longer than the kernel adds up."""
        was, since = 0, 0.0
        for _ in range(40):
            now = self.processes() + self.kernel()
            if abs(now - was) > CLOSE:
                was, since = now, time.monotonic()
            elif time.monotonic() - since > 1.2 * BEAT:
                break
            time.sleep(0.25)
        return now


@contextmanager
def measured() -> Iterator[Memory]:
    """A cgroup for one server. OSError or CalledProcessError if there cannot be one."""
    if not ROOT.is_dir():
        ROOT.mkdir()
        _mount()
    group = ROOT / f"bench-{os.getpid()}-{time.monotonic_ns()}"
    group.mkdir()
    try:
        yield Memory(group)
    finally:
        _until(group.rmdir)


def _mount() -> None:
    """Mount what has the memory controller: the unified hierarchy (version 2) or one of its own."""
    mount = ["mount", "-t"]
    subprocess.run([*mount, "cgroup2", "cgroup", str(ROOT)], check=True)
    if "memory" in (ROOT / "cgroup.controllers").read_text().split():
        (ROOT / "cgroup.subtree_control").write_text("+memory")
        return
    subprocess.run(["umount", str(ROOT)], check=True)
    subprocess.run([*mount, "cgroup", "-o", "memory", "cgroup", str(ROOT)], check=True)


def _until(action: Callable[[], None]) -> None:
    """Processes that have ended leave their cgroup a moment later."""
    for _ in range(100):
        try:
            return action()
        except OSError:
            time.sleep(0.05)
    action()
