"""What starts a program for each connection: the real ones, on loopback, each with its log in reach.

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
SECONDS = 20  # for whatever takes milliseconds on a machine that is not busy

# The shell stays process 1: some of the launchers behave differently when they are that.
_NAMESPACE = """\
work=$1; shift
mkdir $work/dev && mount -t tmpfs tmpfs $work/dev
for device in null zero random urandom; do
    : > $work/dev/$device && mount --bind /dev/$device $work/dev/$device
done
ln -s $work/syslog $work/dev/log
mount --rbind $work/dev /dev
"$@" <&- &
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
        self._thread = threading.Thread(target=self._collect)
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
    arguments = " ".join([Path(program[0]).name, *program[1:]])
    conf = work / "inetd.conf"
    conf.write_text(f"{ADDRESS}:{port} stream tcp nowait.2000 root {program[0]} {arguments}\n")
    return ["inetd", "-d", str(conf)]


def _xinetd(program: list[str], port: int, work: Path) -> list[str]:
    conf = work / "xinetd.conf"
    conf.write_text(
        f"""\
service socks
{{
    type = UNLISTED
    socket_type = stream
    protocol = tcp
    wait = no
    bind = {ADDRESS}
    port = {port}
    user = root
    server = {program[0]}
    server_args = {" ".join(program[1:])}
    instances = UNLIMITED
    per_source = UNLIMITED
    cps = 2000 1
}}
"""
    )
    return ["xinetd", "-dontfork", "-f", str(conf), "-pidfile", str(work / "xinetd.pid")]


def _tcpserver(program: list[str], port: int, work: Path) -> list[str]:
    return ["tcpserver", "-HRv", "-l", "0", "-c", "400", ADDRESS, str(port), *program]


def _socat(options: str) -> Callable[[list[str], int, Path], list[str]]:
    def command(program: list[str], port: int, work: Path) -> list[str]:
        listen = f"TCP-LISTEN:{port},bind={ADDRESS},reuseaddr,fork,backlog=100"
        # -t: after an end of file one way socat gives the other way half a second, if not told
        return ["socat", "-t", "60", listen, f"EXEC:{shlex.join(program)}{options}"]

    return command


LAUNCHERS = {
    "systemd-socket-activate": Launcher("systemd-socket-activate", _socket_activate),
    "openbsd-inetd": Launcher("inetd", _openbsd_inetd),
    "xinetd": Launcher("xinetd", _xinetd),
    "tcpserver": Launcher("tcpserver", _tcpserver),
    "socat-socketpair": Launcher("socat", _socat(""), tells_client=False),
    "socat-pipes": Launcher("socat", _socat(",pipes"), tells_client=False),
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
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork"]
            + ["--kill-child", "--mount-proc", "sh", "-ec", _NAMESPACE, "sh", str(work), *command],
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
