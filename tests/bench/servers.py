"""The servers that are measured: how each is started, and what CPU time it uses.

To add one, write a function that returns its commands and put it into SERVERS; or give bench.py
--add 'NAME=COMMAND', with {address} and {port} where they belong. Every server listens on
place.address and place.port, lets everyone in without a password, and stays in the foreground;
what it logs by default it logs, to /dev/null.
"""

import os
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TICK = os.sysconf("SC_CLK_TCK")
READY = 10  # seconds a server may take until it answers
DIRECT = "no proxy"
MUX = "virtio-mux"


class Place(NamedTuple):
    """Where a server is to run."""

    address: str
    port: int  # and port + 1 is free as well
    directory: Path  # for configuration; the same for all servers of a run


class Command(NamedTuple):
    words: list[str]
    port: int = 0  # it is ready when this answers, or at once if there is none
    side: str = ""  # of a pair; their standard input and output are the ends of a unix socket pair


class Failed(Exception):
    """A server does not do what it is here for."""


def muonsocks(place: Place) -> list[Command]:
    words = [str(ROOT / "bin/muonsocks"), "-i", place.address, "-p", str(place.port)]
    return [Command(words, place.port)]


def microsocks(place: Place) -> list[Command]:
    words = ["microsocks", "-i", place.address, "-p", str(place.port)]
    return [Command(words, place.port)]


def virtio_mux(place: Place) -> list[Command]:
    """Both sides, and in the place of a port between them two sockets."""
    program = str(ROOT / "bin/virtio-mux")
    guest = [program, "guest", "-i", place.address, "-p", str(place.port), "-"]
    return [Command([program, "host", "-"], side="host"), Command(guest, place.port, "guest")]


DANTE = """\
logoutput: stderr
internal: {address} port = {port}
external: {address}
clientmethod: none
socksmethod: none
user.privileged: root
user.unprivileged: nobody
client pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}
socks pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}
"""


def dante(place: Place) -> list[Command]:
    configuration = place.directory / f"danted-{place.port}.conf"
    configuration.write_text(DANTE.format(address=place.address, port=place.port))
    pid_file = configuration.with_suffix(".pid")
    return [Command(["danted", "-f", str(configuration), "-p", str(pid_file)], place.port)]


def ssh(place: Place) -> list[Command]:
    """ssh -D to an sshd of its own, with keys of their own, over TCP."""
    keys = place.directory / "ssh"
    if not keys.is_dir():
        keys.mkdir(mode=0o700)
        for name in ("host", "user"):
            make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / name)]
            subprocess.run(make, check=True)
    Path("/run/sshd").mkdir(exist_ok=True)  # on a tmpfs of this namespace
    sshd = f"""-D -f /dev/null -p {place.port + 1} -oListenAddress={place.address}
        -oHostKey={keys}/host -oAuthorizedKeysFile={keys}/user.pub -oStrictModes=no -oUsePAM=no
        -oPermitRootLogin=prohibit-password -oPidFile=none"""
    client = f"""-N -F /dev/null -i {keys}/user -oBatchMode=yes -oStrictHostKeyChecking=no
        -oUserKnownHostsFile=/dev/null -oExitOnForwardFailure=yes
        -D {place.address}:{place.port} -p {place.port + 1}"""
    user = f"{pwd.getpwuid(os.getuid()).pw_name}@{place.address}"
    return [
        Command([shutil.which("sshd") or "sshd", *sshd.split()], place.port + 1),
        Command(["ssh", *client.split(), user], place.port),
    ]


SERVERS: dict[str, Callable[[Place], list[Command]]] = {
    DIRECT: lambda place: [],
    "microsocks": microsocks,
    "dante": dante,
    "ssh -D": ssh,
    "muonsocks": muonsocks,
    MUX: virtio_mux,
}


def add(name: str, command: str) -> None:
    """Put a command line with {address} and {port} into SERVERS."""

    def commands(place: Place) -> list[Command]:
        words = command.format(address=place.address, port=place.port)
        return [Command(shlex.split(words), place.port)]

    SERVERS[name] = commands


def missing(name: str, place: Place) -> str:
    """The program that is not installed here and without which `name` cannot run, or ''."""
    if name == "ssh -D" and not shutil.which("ssh-keygen"):
        return "ssh-keygen"
    programs = [command.words[0] for command in SERVERS[name](place)]
    return next((program for program in programs if not shutil.which(program)), "")


class Proxy:
    """A running server: the processes started for it and all below them."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[bytes]] = []

    def tree(self) -> list[int]:
        """The ids of its processes."""
        parents = {pid: parent for pid, parent, _ in _processes()}
        ids = [process.pid for process in self.started]
        for one in ids:  # which grows meanwhile
            ids += [pid for pid, parent in parents.items() if parent == one]
        return ids

    def cpu_seconds(self) -> float:
        """User and system time of its processes, and of their children that are gone."""
        ids = set(self.tree())
        return sum(ticks for pid, _, ticks in _processes() if pid in ids) / TICK

    def check(self) -> None:
        """Raise Failed if a program of it has ended."""
        for process in self.started:
            if process.poll() is not None:
                name = Path(str(process.args[0])).name
                raise Failed(f"{name} ended with status {process.returncode}")


def _processes() -> Iterator[tuple[int, int, int]]:
    """(id, parent, clock ticks used) of every process."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text()
            except OSError:  # it is gone
                continue
            fields = stat[stat.rindex(")") + 2 :].split()
            yield int(entry), int(fields[1]), sum(map(int, fields[11:15]))


@contextmanager
def running(
    name: str, place: Place, prepare: Callable[[Command], None] = lambda command: None
) -> Iterator[Proxy]:
    """A server, from when it answers to when all of it is gone.

    Each process that is started for it begins with `prepare`.
    """
    proxy = Proxy()
    try:
        with ExitStack() as stack:
            ends = [stack.enter_context(end) for end in socket.socketpair()]
            for command in SERVERS[name](place):
                stream = ends.pop().fileno() if command.side else subprocess.DEVNULL
                proxy.started.append(
                    subprocess.Popen(
                        command.words,
                        stdin=stream,
                        stdout=stream,
                        stderr=subprocess.DEVNULL,
                        start_new_session=True,
                        preexec_fn=partial(prepare, command),
                    )
                )
                if command.port:
                    _wait_until_it_answers(proxy, place.address, command.port)
        yield proxy
        proxy.check()
    finally:
        _stop(proxy)


@contextmanager
def serving(*words: str) -> Iterator[None]:
    """While a program of ours is there, from the line on that it says when it is ready."""
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            process.stdout.readline()
            yield
        finally:
            process.kill()


def _wait_until_it_answers(proxy: Proxy, address: str, port: int) -> None:
    deadline = time.monotonic() + READY
    while True:
        proxy.check()
        try:
            socket.create_connection((address, port), 1).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise Failed(f"no answer in {READY} s: {error}") from None
        time.sleep(0.02)


def _stop(proxy: Proxy) -> None:
    left = proxy.tree()
    for process in reversed(proxy.started):
        process.terminate()
    deadline = time.monotonic() + 3
    while any(process.poll() is None for process in proxy.started):
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    for process in proxy.started:
        process.wait()
