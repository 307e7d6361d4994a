"""What starts a program for each connection: the real ones, on loopback, with their logs in reach.

    with running("tcpserver", [program, "--allow-local"], work) as server:
        client = socket.create_connection(server.address)
        server.log.await_line("client=")

A launcher and all it starts live in namespaces of their own: of processes, so that not one is left
behind, and of mounts, so that /dev/log is a socket of ours (under inetd the programs log through
syslog, since their standard error is the client). That needs root.
"""

import contextlib
import os
import re
import selectors
import shlex
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

# Of 127/8, an address for each process: parallel workers cannot be in each other's way.
ADDRESS = f"127.{os.getpid() >> 16 & 255}.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"
UNITS = Path(__file__).parents[2] / "units"
SECONDS = 20  # for whatever takes milliseconds on a machine that is not busy

_DIE_WITH_US = ["setpriv", "--pdeathsig", "KILL"]

# The shell stays process 1: some of the launchers behave differently when they are that.
_NAMESPACE = """\
work=$1; shift
mkdir $work/dev && mount -t tmpfs tmpfs $work/dev
for device in null zero random urandom; do
    : > $work/dev/$device && mount --bind /dev/$device $work/dev/$device
done
ln -s $work/syslog $work/dev/log
mount --rbind $work/dev /dev
"$@" &
wait
"""


class Log:
    """The lines that a launcher and its programs write, to standard error or to syslog."""

    def __init__(self, syslog: socket.socket, output: int) -> None:
        self._lines: list[str] = []
        self._more = threading.Condition()
        self._sources = selectors.DefaultSelector()
        self._sources.register(syslog, selectors.EVENT_READ, lambda: syslog.recv(4096) + b"\n")
        self._sources.register(output, selectors.EVENT_READ, lambda: os.read(output, 65536))
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def await_line(self, pattern: str) -> str:
        """Return the first line that the pattern is found in; AssertionError if none comes."""
        deadline = time.monotonic() + SECONDS
        with self._more:
            while True:
                for line in self.text.splitlines():
                    if re.search(pattern, line):
                        return line
                if not self._more.wait(deadline - time.monotonic()):
                    raise AssertionError(f"no line with {pattern!r} in the log:\n{self.text}")

    @property
    def text(self) -> str:
        return "".join(self._lines)

    def close(self) -> None:
        """Wait for the end of the output: of the launcher and all that it started."""
        self._thread.join()
        self._sources.close()

    def _collect(self) -> None:
        running = True
        while running:
            for key, _ in self._sources.select():
                data: bytes = key.data()
                running = running and bool(data)
                with self._more:
                    self._lines.append(data.decode(errors="backslashreplace"))
                    self._more.notify_all()


class Server(NamedTuple):
    """A launcher that listens."""

    address: tuple[str, int]
    log: Log


class Launcher(NamedTuple):
    """How to make a launcher serve a program; `command` may write files into the directory."""

    program: str
    command: Callable[[list[str], int, Path], list[str]]
    tells_client: bool = True  # whether the program can know whom it serves


def _socket_activate(program: list[str], port: int, work: Path) -> list[str]:
    listen = f"--listen={ADDRESS}:{port}"
    return ["systemd-socket-activate", "--accept", "--inetd", listen, *program]


def _openbsd_inetd(program: list[str], port: int, work: Path) -> list[str]:
    sample = _sample("inetd.conf", program[0], port)
    (work / "inetd.conf").write_text(f"{sample.rstrip()} {' '.join(program[1:])}\n")
    return ["inetd", "-d", str(work / "inetd.conf")]


def _xinetd(program: list[str], port: int, work: Path) -> list[str]:
    sample = _sample("xinetd.conf", program[0], port)
    arguments = " ".join(program[1:])
    if arguments:
        sample = sample.replace("}", f"\tserver_args\t= {arguments}\n}}")
    (work / "xinetd.conf").write_text(sample)
    files = ["-f", str(work / "xinetd.conf"), "-pidfile", str(work / "xinetd.pid")]
    return ["xinetd", "-dontfork", *files]


def _tcpserver(program: list[str], port: int, work: Path) -> list[str]:
    (work / "tcpserver.sh").write_text(_sample("tcpserver.sh", program[0], port))
    return ["sh", str(work / "tcpserver.sh"), *program[1:]]


def _socat(program: list[str], port: int, work: Path) -> list[str]:
    # -t: after an end of file one way it gives the other way half a second, if not told
    return _socat_exec(program, port, "", patience=SECONDS)


def _socat_pipes(program: list[str], port: int, work: Path) -> list[str]:
    # socat 1.7.4 has both ends of the pipe that it reads, so that it never sees an end of file
    # there: when the program has ended it waits for as long as -t says, and only then closes.
    return _socat_exec(program, port, ",pipes", patience=1)


def _socat_exec(program: list[str], port: int, options: str, patience: int) -> list[str]:
    listen = f"TCP-LISTEN:{port},bind={ADDRESS},reuseaddr,fork,backlog=100"
    command = re.sub("[:,]", r"\\\g<0>", shlex.join(program))  # else they are socat's own
    return ["socat", "-t", str(patience), listen, f"EXEC:{command}{options}"]


def _sample(name: str, program: str, port: int) -> str:
    """The lines that units/ has for a launcher, for this program and port, and as root.

    (Nobody else may be able to read the checkout and the test's files.)
    """
    sample = (UNITS / name).read_text()
    for shipped, ours in (
        ("127.0.0.1", ADDRESS),
        ("1080", str(port)),
        ("/usr/local/bin/socks-inetd", program),
        ("nobody", "root"),
        ("65534", "0"),
    ):
        assert shipped in sample or ours in ("root", "0")
        sample = sample.replace(shipped, ours)
    return sample


LAUNCHERS = {
    "systemd-socket-activate": Launcher("systemd-socket-activate", _socket_activate),
    "openbsd-inetd": Launcher("inetd", _openbsd_inetd),
    "xinetd": Launcher("xinetd", _xinetd),
    "tcpserver": Launcher("tcpserver", _tcpserver),
    "socat-socketpair": Launcher("socat", _socat, tells_client=False),
    "socat-pipes": Launcher("socat", _socat_pipes, tells_client=False),
}


def missing(name: str) -> str | None:
    """Why this launcher cannot be run here, or None."""
    if os.geteuid() != 0:
        return "a launcher in namespaces of its own needs root"
    if not shutil.which(LAUNCHERS[name].program):
        return f"no {LAUNCHERS[name].program} here: tests/run installs it"
    return None


@contextlib.contextmanager
def running(name: str, program: list[str], work: Path) -> Iterator[Server]:
    """Run a launcher in an empty directory; end it, and all that it started, afterwards."""
    port = _free_port()
    command = LAUNCHERS[name].command(program, port, work)
    with contextlib.ExitStack() as cleanup:
        syslog = cleanup.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        syslog.bind(str(work / "syslog"))
        namespaces = ["--mount", "--mount-proc", "--pid", "--fork", "--kill-child"]
        process = subprocess.Popen(
            [*_DIE_WITH_US, "unshare", *namespaces, "sh", "-ec", _NAMESPACE, "sh", work, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert process.stdout
        cleanup.enter_context(process)
        log = Log(syslog, process.stdout.fileno())
        cleanup.callback(log.close)
        cleanup.callback(process.kill)
        server = Server((ADDRESS, port), log)
        _await_listener(server, process)
        yield server


def _await_listener(server: Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            socket.create_connection(server.address).close()
            return
        except ConnectionRefusedError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"nobody listens:\n{server.log.text}") from None
            time.sleep(0.01)  # there is no event for "somebody listens now"


def _free_port() -> int:
    with socket.create_server((ADDRESS, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
