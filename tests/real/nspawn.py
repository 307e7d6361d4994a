"""A real systemd as PID 1, on this host's own root file system, in under a second.

    with Machine(binds={"/path/to/prefix/local": "/usr/local"}) as machine:
        machine.run("systemctl start something.socket")

The root is the host's `/` under a tmpfs overlay, so whatever the machine does to it is gone with
it. It has a network namespace of its own with nothing but `lo`. Only basic.target is booted, and no
timers.

Needs root and the Debian packages systemd-container, util-linux and iproute2.
"""

import contextlib
import itertools
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from places import in_network_of

CGROUPS = Path("/sys/fs/cgroup")
BOOT_SECONDS = 60  # takes 0.5 to 3; more when every core is busy with other tests
END_SECONDS = 10
_numbers = itertools.count()
_Result = TypeVar("_Result")

# Enter a control group of our own (nspawn must not be in the root one; version 1's cpuset takes no
# process before it is set up), see `/` where it can be a container's root, and become nspawn.
# The mount is private to this process and goes with it.
_LAUNCH = """\
group=$1 root=$2; shift 2
for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/*; do
    test -e $hierarchy/cgroup.procs -a ! -e $hierarchy/cgroup.type || continue
    case $hierarchy in */cpuset) continue ;; esac
    mkdir -p $hierarchy/$group && echo $$ > $hierarchy/$group/cgroup.procs
done
mount --make-rprivate / && mount --bind / $root && exec "$@"
"""


class BootError(Exception):
    """No systemd could be booted here, for the reason given."""


def missing() -> str | None:
    """Why no machine can be booted on this host, or None."""
    if os.geteuid() != 0:
        return "booting a systemd needs root"
    for program, package in (
        ("systemd-nspawn", "systemd-container"),
        ("nsenter", "util-linux"),
        ("ip", "iproute2"),
    ):
        if not shutil.which(program):
            return f"no {program} here (Debian package {package})"
    return None


class Machine:
    """A booted container; a context manager that ends it and leaves nothing behind."""

    def __init__(self, binds: dict[str, str] | None = None) -> None:
        """`binds` maps directories of the host to where the machine sees them, read-only."""
        self.name = f"muonsocks-{os.getpid()}-{next(_numbers)}"
        self._binds = binds or {}
        self._cleanup = contextlib.ExitStack()
        self._leader = 0
        self._nspawn: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Machine":
        try:
            self._boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def run(
        self, command: str, *, input: str = "", check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command in the machine; one that fails is an AssertionError, unless told."""
        done = subprocess.run(
            [*self._enter(), "/bin/sh", "-c", command],
            input=input,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"$ {command}\n{done.stdout}{done.stderr}exit status {done.returncode}"
            )
        return done

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a program in the machine; it ends with the machine at the latest."""
        process = subprocess.Popen(
            [*self._enter(), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._cleanup.callback(_await_end, process)
        return process

    def inside(self, function: Callable[[], _Result]) -> _Result:
        """Call a function of ours in a thread that has the machine's network, and no more of it."""
        return in_network_of(self._leader, function)

    def put(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file in the machine, with the directories it needs."""
        where = shlex.quote(path)
        self.run(
            f"mkdir -p $(dirname {where}) && cat > {where} && chmod {mode:o} {where}", input=text
        )

    def close(self) -> None:
        """End the machine, there and then, and remove what it left here; harmless to repeat."""
        if self._leader and self._nspawn and self._nspawn.poll() is None:
            os.kill(self._leader, signal.SIGKILL)  # and with process 1 all the others
        self._cleanup.close()

    def _boot(self) -> None:
        reason = missing()
        if reason:
            raise BootError(reason)
        work = Path(tempfile.mkdtemp(prefix="muonsocks-nspawn-"))
        self._cleanup.callback(shutil.rmtree, work, ignore_errors=True)
        self._cleanup.callback(_remove_cgroups, self.name)
        root, log = work / "root", work / "log"
        root.mkdir()
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._cleanup.callback(notify.close)
        notify.bind(str(work / "notify"))
        launch = ["unshare", "--mount", "/bin/sh", "-ec", _LAUNCH, "sh"]
        nspawn = ["systemd-nspawn", "--quiet", f"--directory={root}", f"--machine={self.name}"]
        nspawn += ["--register=no", "--keep-unit", "--private-network", "--volatile=overlay"]
        # nor is anything of the host's to be touched: its journal, resolv.conf, time zone
        nspawn += ["--link-journal=no", "--resolv-conf=off", "--timezone=off"]
        # these let the machine's own units use every capability, IPAddressDeny=, and what
        # programs need that answer the calls of others
        calls = "bpf pidfd_getfd process_vm_readv process_vm_writev"
        nspawn += ["--capability=all", f"--system-call-filter={calls}"]
        nspawn += ["--console=read-only", "--notify-ready=yes"]
        binds = [f"--bind-ro={host}:{there}" for host, there in self._binds.items()]
        boot = ["--show-status=0", "--unit=basic.target", "systemd.mask=timers.target"]
        with log.open("wb") as output:
            self._nspawn = subprocess.Popen(
                [*launch, self.name, root, *nspawn, *binds, "--boot", "--", *boot],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={
                    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                    "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
                    "NOTIFY_SOCKET": str(work / "notify"),
                },
            )
        self._cleanup.callback(_await_end, self._nspawn)
        ready = self._await_ready(notify)
        notify.close()  # what comes now would wait for a reader for ever, and PID 1 with it
        if not ready:
            said = log.read_text(errors="replace").strip().splitlines()
            raise BootError(f"systemd-nspawn did not boot: {said[-1] if said else 'no word'}")

    def _await_ready(self, notify: socket.socket) -> bool:
        """Read nspawn's notifications until PID 1 says that it has booted."""
        assert self._nspawn
        ended = os.pidfd_open(self._nspawn.pid)
        self._cleanup.callback(os.close, ended)
        deadline = time.monotonic() + BOOT_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select([notify.fileno(), ended], [], [], left)
            if notify.fileno() not in ready:
                return False
            for line in notify.recv(4096).decode().splitlines():
                if line.startswith("X_NSPAWN_LEADER_PID="):
                    self._leader = int(line.partition("=")[2])
                    self._end_with_this_process()
                if line == "READY=1":
                    return True
        return False

    def _end_with_this_process(self) -> None:
        """See to it that the machine does not outlive us, however we end."""
        kill = ["/bin/sh", "-c", 'cat; exec kill -KILL "$1"', "sh", str(self._leader)]
        watcher = subprocess.Popen(kill, stdin=subprocess.PIPE, start_new_session=True)
        self._cleanup.callback(_await_end, watcher)
        self._cleanup.callback(watcher.kill)

    def _enter(self) -> list[str]:
        namespaces = ["-m", "-u", "-i", "-n", "-p", "-C"]
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return ["nsenter", "-t", str(self._leader), *namespaces, "/usr/bin/env", "-i", path]


def assert_is_confined(status: str) -> None:
    """Hold that a process, of which this is /proc/PID/status, has no privilege and a filter."""
    found = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
    assert 0 not in map(int, found["Uid"].split() + found["Gid"].split())
    sets = ("Inh", "Prm", "Eff", "Bnd", "Amb")
    assert {int(found[f"Cap{which}"], 16) for which in sets} == {0}
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"


def _await_end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout):
        if stream:
            stream.close()


def _remove_cgroups(name: str) -> None:
    for group in [CGROUPS / name, *CGROUPS.glob(f"*/{name}")]:
        # rmdir(2) is the only way to remove one, children first; files in it do not count
        for directory, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(directory)
