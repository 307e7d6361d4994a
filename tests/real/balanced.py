"""Three machines with muonsocks, HAProxy in front of them by units/haproxy.cfg, and clients.

    with in_front_of(tmp_path, "-w", "198.51.100.0/24") as site:
        client = site.client("198.51.100.7")

Each machine is a network of its own, with the address that the sample has for it; so are HAProxy's
and the clients'. In each machine's network there is a target, too, at one and the same address,
which says as whose it is found. For a thread of places.in_own_network, which becomes HAProxy's.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from places import another_network, sh
from programs import PATH, SECONDS, read_all, socks5
from real_server import MUONSOCKS, Server, children, started, until

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATION = ROOT / "units" / "haproxy.cfg"
NAMES = ("one", "two", "three")
BALANCER, FRONT = "192.0.2.1", ("198.51.100.1", 1080)
TARGET = ("203.0.113.80", 80)
needs_haproxy = pytest.mark.skipif(not shutil.which("haproxy", path=PATH), reason="no haproxy here")

There = Callable[..., Any]


def address_of(name: str) -> str:
    return f"192.0.2.{11 + NAMES.index(name)}"


class Machine:
    """One of the three. Its muonsocks can be killed, and started again."""

    def __init__(self, name: str, there: There, options: tuple[str, ...]) -> None:
        self.name = name
        self.there = there
        self.logs: list[Server] = []
        self._options = options
        self._stack = contextlib.ExitStack()

    @property
    def server(self) -> Server:
        return self.logs[-1]

    @property
    def log(self) -> str:
        return "".join(server.log for server in self.logs)

    def start(self) -> None:
        where = (f"--listen={address_of(self.name)}", "--workers=2")
        front = ("--proxy-protocol=required", f"--proxy-from={BALANCER}")
        running = started((MUONSOCKS, *where, *front), self._options, workers=2)
        self.logs.append(self.there(running.__enter__))
        self._stack.callback(running.__exit__, None, None, None)

    def kill(self) -> None:
        """As if it had lost its power, but for the kernel's last words."""
        pids = [self.server.pid, *children(self.server.pid)]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert self.server.status == -signal.SIGKILL

    def close(self) -> None:
        self._stack.close()


class Target:
    """Says by its name that it is there, and gives back what it is sent."""

    def __init__(self, name: str, sock: socket.socket) -> None:
        self.peers: list[str] = []
        self._name = name.encode() + b"\n"
        self._sock = sock
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                conn, _ = self._sock.accept()
            except OSError:
                return  # it is shut down: that is how it is told to end
            threading.Thread(target=self._serve, args=(conn,), daemon=True).start()

    def _serve(self, conn: socket.socket) -> None:
        with conn, contextlib.suppress(OSError):
            conn.settimeout(3 * SECONDS)
            conn.sendall(self._name)
            while data := conn.recv(1 << 16):
                conn.sendall(data)

    def close(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._sock.close()


class Site:
    """All of them."""

    def __init__(self, clients: There, machines: dict[str, Machine], log: Path) -> None:
        self.machines = machines
        self._clients = clients
        self._log = log

    @property
    def log(self) -> str:
        """HAProxy's."""
        return self._log.read_text()

    def connect(self, source: str) -> socket.socket:
        """Come as a client from an address of 198.51.100.0/24."""
        client: socket.socket = self._clients(socket.create_connection, FRONT, SECONDS, (source, 0))
        return client

    def served_by(self, source: str, greeting: bytes = b"\5\1\0", chosen: bytes = b"\5\0") -> str:
        """Ask for the target as a client, and say which machine has led there; "" if none."""
        with self.connect(source) as client:
            try:
                client.sendall(greeting + socks5(*TARGET))
                answer = read_all(client, len(chosen) + 10)
                if answer[: len(chosen) + 2] != chosen + b"\5\0":
                    return ""
                return read_name(client)
            except ConnectionResetError:
                return ""

    def await_state(self, name: str, state: str, times: int = 1) -> None:
        """Wait until HAProxy has found a machine UP or DOWN so often."""
        line = f"Server muonsocks/{name} is {state}"
        until(f"HAProxy says: {line}", lambda: self.log.count(line) >= times)

    def sources(self, name: str, count: int = 1, others: str = "") -> list[str]:
        """Addresses whose clients that machine serves."""
        found = []
        for number in range(10, 250):
            source = f"198.51.100.{number}"
            if source not in others and self.served_by(source) == name:
                found.append(source)
                if len(found) == count:
                    return found
        raise AssertionError(f"{name} does not serve {count} of 240 addresses: {found}")


def read_name(client: socket.socket) -> str:
    """Read a line, a byte at a time."""
    line = b""
    while not line.endswith(b"\n") and (piece := client.recv(1)):
        line += piece
    return line.decode().strip()


@contextlib.contextmanager
def in_front_of(
    work: Path, *options: str, drain: float = 0.1, configuration: Path = CONFIGURATION
) -> Iterator[Site]:
    """Run them all, to the end of the block. `{name}` in an option is the name of the machine."""
    with contextlib.ExitStack() as stack:
        sh("ip link add machines type bridge", "ip link set machines up")
        sh(f"ip address add {BALANCER}/24 dev machines")
        machines: dict[str, Machine] = {}
        options = (*options, f"--drain-timeout={drain}")
        for name in NAMES:
            there = stack.enter_context(another_network())
            cable(there, name)
            sh(f"ip link set {name} master machines")
            address = address_of(name)
            there(sh, f"ip address add {address}/24 dev eth", f"ip address add {TARGET[0]} dev lo")
            target = Target(name, there(socket.create_server, TARGET, backlog=1024))
            stack.callback(target.close)
            its_own = tuple(option.format(name=name) for option in options)
            machines[name] = machine = Machine(name, there, its_own)
            stack.callback(machine.close)
            machine.start()
        clients = stack.enter_context(another_network())
        cable(clients, "clients")
        sh(f"ip address add {FRONT[0]}/24 dev clients")
        clients(sh, "ip address add 198.51.100.2/24 dev eth")
        clients(sh, "ip route add local 198.51.100.0/24 dev lo table local")  # each is a client's
        clients(sh, f"ip rule add pref 10 to {FRONT[0]} table main", "ip rule del pref 0")
        clients(sh, "ip rule add pref 20 table local")
        log = work / "haproxy.log"
        site = Site(clients, machines, log)
        stack.enter_context(haproxy(configuration, log, FRONT))
        yield site


def cable(there: There, name: str) -> None:
    """Connect the network of the calling thread with another one: `name`, and there `eth`."""
    thread = there(threading.get_native_id)
    sh(f"ip link add {name} type veth peer name eth netns {thread}", f"ip link set {name} up")
    there(sh, "ip link set lo up", "ip link set eth up")


@contextlib.contextmanager
def haproxy(configuration: Path, log: Path, front: tuple[str, int]) -> Iterator[None]:
    """Run HAProxy in the network of the calling thread, up to the end of the block."""
    binary = shutil.which("haproxy", path=PATH)
    assert binary
    with log.open("w") as output:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", binary, "-db", "-f", str(configuration)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            until("HAProxy listens", lambda: process.poll() is not None or is_served(front))
            assert process.poll() is None, log.read_text()
            yield
        finally:
            process.kill()
            process.wait()
            print(log.read_text())  # pytest shows it with a failure


def is_served(front: tuple[str, int]) -> bool:
    """Whether somebody listens there. To connect would already make somebody a client."""
    command = ["ss", "-Hltn", "sport", "=", f":{front[1]}"]
    return bool(subprocess.run(command, capture_output=True, check=True).stdout)
