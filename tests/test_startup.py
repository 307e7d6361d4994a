"""What a program of one connection imports is counted: each module costs every connection.

The programs serve real connections here, unchanged and without options, and the interpreter itself
(-X importtime) tells what was imported from the first byte to the last. Without options only a
target that is not this host's own is reached, so each runs in a network namespace with a
documentation address (RFC 5737) on its loopback device.
"""

import functools
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ["/usr/bin/python3", "-X", "importtime", "-IS"]
TARGET = "192.0.2.1"
SECONDS = 30

# Measured in FACTS, "Start-up": what these cost is what the house is built to avoid.
FORBIDDEN = {
    "argparse",
    "asyncio",
    "collections",
    "contextlib",
    "dataclasses",
    "docopt",
    "enum",
    "functools",
    "inspect",
    "ipaddress",
    "logging",
    "re",
    "selectors",
    "socket",
    "subprocess",
    "systemd",
    "threading",
    "types",
    "typing",
}
# Everything else that may be imported beyond the interpreter's own start. Who adds a module here
# says what it is for, and has measured what it costs.
ALLOWED = {
    # for the stub, 0.9 ms: paths and descriptors
    *("os", "_collections_abc", "_stat", "genericpath", "posixpath", "stat"),
    # in C and built in, .03 to .2 ms each
    "_heapq",  # the loop's deadlines
    "_operator",  # comparing secrets in constant time
    "_socket",
    "errno",
    "fcntl",  # the size of a pipe, what a descriptor holds
    "gc",  # which would look through all that is imported
    "select",
    "__future__",  # annotations that are never evaluated, .1 ms
}

# Runs in the namespace: a target that listens there is sent back over a unix socket.
PREPARE = """
import os, socket, subprocess, sys
for line in "link set lo up", "address add ADDRESS/32 dev lo":
    subprocess.run(["ip", *line.split()], check=True)
with socket.create_server(("ADDRESS", 0)) as target, socket.socket(fileno=int(sys.argv[1])) as far:
    socket.send_fds(far, [b"."], [target.fileno()])
os.execv(sys.argv[2], sys.argv[2:])
""".replace("ADDRESS", TARGET)

PRIVATE_NETWORK = ["unshare", "--net"] + ([] if os.geteuid() == 0 else ["--map-root-user"])


@functools.cache
def no_network() -> str:
    """Why there can be no private network here; empty if there can."""
    try:
        probe = [*PRIVATE_NETWORK, "ip", "link", "set", "lo", "up"]
        done = subprocess.run(probe, capture_output=True, text=True)
    except FileNotFoundError as error:
        return str(error)
    return done.stderr if done.returncode else ""


def imported(importtime: str) -> set[str]:
    """The modules that a log of -X importtime names."""
    lines = [line for line in importtime.splitlines() if line.startswith("import time:")]
    found = {line.rpartition("|")[2].strip() for line in lines} - {"imported package"}
    assert found, importtime
    return found


@functools.cache
def imported_by_nothing() -> set[str]:
    done = subprocess.run([*PYTHON, "-c", "pass"], capture_output=True, text=True, check=True)
    return imported(done.stderr)


class Connection:
    """A client that a program serves on stdin and stdout, and a target that it may be sent to."""

    def __init__(self, client: socket.socket, target: socket.socket) -> None:
        self.client = client
        self.target = target
        self.port = target.getsockname()[1].to_bytes(2)

    def ask(self, request: bytes, answer: bytes) -> None:
        """Send, and expect an answer that begins so."""
        self.client.sendall(request)
        got = b""
        while len(got) < len(answer) and (piece := self.client.recv(len(answer) - len(got))):
            got += piece
        assert got == answer

    def exchange(self) -> None:
        """Real bytes both ways, ended by either side in turn."""
        far, _ = self.target.accept()
        with far:
            far.settimeout(SECONDS)
            self.client.sendall(b"ping")
            self.client.shutdown(socket.SHUT_WR)
            assert far.makefile("rb").read() == b"ping"
            far.sendall(b"pong")
        assert self.client.makefile("rb").read().endswith(b"pong")


@contextmanager
def served(command: list[str], modules: set[str], status: int = 0) -> Iterator[Connection]:
    """Have one connection served by a program; adds the modules that it imported."""
    if why := no_network():
        pytest.skip(f"no private network namespace here: {why}")
    near, far = socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as front, tempfile.TemporaryFile("w+") as log:
        client = socket.create_connection(front.getsockname())
        accepted, _ = front.accept()
        prepare = [*PRIVATE_NETWORK, "/usr/bin/python3", "-c", PREPARE, str(far.fileno())]
        process = subprocess.Popen(
            [*prepare, *command],
            stdin=accepted,
            stdout=accepted,
            stderr=log,
            pass_fds=[far.fileno()],
            env={"PATH": os.environ["PATH"]},
        )
        accepted.close()
        far.close()
        with process, client, near:
            try:
                for side in (client, near):
                    side.settimeout(SECONDS)
                [target] = socket.recv_fds(near, 1, 1)[1]
                with socket.socket(fileno=target) as listener:
                    listener.settimeout(SECONDS)
                    yield Connection(client, listener)
                client.close()
                assert process.wait(SECONDS) == status
            finally:
                process.kill()
                log.seek(0)
                print(log.read())  # pytest shows it with a failure
        log.seek(0)
        modules |= imported(log.read()) - imported_by_nothing()


def program(name: str) -> list[str]:
    return [*PYTHON, str(ROOT / "bin" / name)]


def socks5(address: str, port: bytes) -> bytes:
    return b"\x05\x01\x00\x01" + socket.inet_aton(address) + port


def held_to_the_list(modules: set[str]) -> None:
    assert modules & FORBIDDEN == set()
    ours = {name for name in modules if name.split(".")[0] == "muonsocks"}
    assert ours
    assert "muonsocks.socks.auth_once" not in ours, "only -1 needs it"
    assert modules - ours - ALLOWED == set()


def test_a_socks5_connection_that_is_relayed() -> None:
    modules: set[str] = set()
    with served(program("socks-inetd"), modules) as connection:
        connection.ask(b"\x05\x01\x00", b"\x05\x00")
        connection.ask(socks5(TARGET, connection.port), b"\x05\x00\x00\x01")
        connection.exchange()
    held_to_the_list(modules)
    assert modules >= ALLOWED, "what is imported no more goes from the list"


def test_a_socks4_connection_that_is_relayed() -> None:
    modules: set[str] = set()
    with served(program("socks-inetd"), modules) as connection:
        request = b"\x04\x01" + connection.port + socket.inet_aton(TARGET) + b"user\x00"
        connection.ask(request, b"\x00\x5a")
        connection.exchange()
    held_to_the_list(modules)


def test_a_socks5_connection_that_the_target_refuses() -> None:
    modules: set[str] = set()
    with served(program("socks-inetd"), modules) as connection:
        connection.target.close()
        connection.ask(b"\x05\x01\x00", b"\x05\x00")
        connection.ask(socks5(TARGET, connection.port), b"\x05\x05\x00\x01")
    held_to_the_list(modules)


@pytest.mark.parametrize("name", [b"localhost", b"127.1"])
def test_a_name_that_is_this_host_s_own(name: bytes) -> None:
    modules: set[str] = set()
    with served(program("socks-inetd"), modules, status=1) as connection:
        connection.ask(b"\x05\x01\x00", b"\x05\x00")
        request = b"\x05\x01\x00\x03" + bytes([len(name)]) + name + connection.port
        connection.ask(request, b"\x05\x02\x00\x01")
    held_to_the_list(modules)


def test_a_peer_that_does_not_speak_socks() -> None:
    modules: set[str] = set()
    with served(program("socks-inetd"), modules) as connection:
        connection.client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        connection.client.makefile("rb").read()
    held_to_the_list(modules)


def test_socks_handshake_and_socks_relay() -> None:
    modules: set[str] = set()
    command = [*program("socks-handshake"), *program("socks-relay")]
    with served(command, modules) as connection:
        connection.ask(b"\x05\x01\x00", b"\x05\x00")
        connection.ask(socks5(TARGET, connection.port), b"\x05\x00\x00\x01")
        connection.exchange()
    assert {"muonsocks.tools.socks_handshake", "muonsocks.tools.socks_relay"} <= modules
    held_to_the_list(modules)


def test_a_connection_that_is_handed_over(tmp_path: Path) -> None:
    """The test is the relay, and takes it."""
    modules: set[str] = set()
    path = str(tmp_path / "relay")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as relay:
        relay.bind(path)
        relay.listen()
        relay.settimeout(SECONDS)
        with served(
            ["/usr/bin/env", f"SOCKS_RELAY={path}", *program("socks-inetd")], modules
        ) as connection:
            connection.ask(b"\x05\x01\x00", b"\x05\x00")
            connection.ask(socks5(TARGET, connection.port), b"\x05\x00\x00\x01")
            with relay.accept()[0] as passage:
                passage.settimeout(SECONDS)
                offer, fds, _, _ = socket.recv_fds(passage, 1 << 16, 2)
                assert offer.startswith(b"OFFER 1\n")
                for fd in fds:
                    os.close(fd)
                passage.send(b"TAKEN")
                assert passage.recv(100) == b"GO"
    assert "muonsocks.socks.handover" in modules
    held_to_the_list(modules)


def test_an_import_is_seen() -> None:
    log = subprocess.run([*PYTHON, "-c", "import re"], capture_output=True, text=True).stderr
    assert {"re", "enum", "functools"} <= imported(log) - imported_by_nothing()


def run_and_listed(command: list[str], *fds: int) -> tuple[str, set[str]]:
    """Run a program that needs no network; give what it prints, and what it imported."""
    environ = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        command, pass_fds=fds, env=environ, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, imported(done.stderr) - imported_by_nothing()


GREETING, CHOICE, GRANTED = b"\5\1\0", b"\5\0", b"\5\0\0\1" + bytes(6)


@pytest.mark.parametrize("way", ["--proxy=URL", "--proxy URL", "ALL_PROXY"])
@pytest.mark.parametrize("program", [[], ["/usr/bin/true"]], ids=["to copy", "for a program"])
def test_socks_connect(way: str, program: list[str]) -> None:
    """To an address, through a proxy that is given as scripts do; or as ssh's configuration has it,
    which comes to the same.
    """
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        url = f"socks5h://127.0.0.1:{proxy.getsockname()[1]}"
        options = way.replace("URL", url).split() if way.startswith("-") else []
        environ = {"PATH": os.environ["PATH"]} | ({} if options else {way: url})
        with (
            tempfile.TemporaryFile("w+") as log,
            subprocess.Popen(
                [
                    *PYTHON,
                    str(ROOT / "bin" / "socks-connect"),
                    *options,
                    "192.0.2.1",
                    "80",
                    *program,
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environ,
            ) as process,
        ):
            try:
                proxy.settimeout(SECONDS)
                with proxy.accept()[0] as conn:
                    conn.settimeout(SECONDS)
                    assert conn.recv(3, socket.MSG_WAITALL) == GREETING
                    conn.sendall(CHOICE)
                    assert len(conn.recv(10, socket.MSG_WAITALL)) == 10
                    conn.sendall(GRANTED + (b"" if program else b"answer"))
                answer, _ = process.communicate(timeout=SECONDS)
                assert (process.returncode, answer) == (0, b"" if program else b"answer")
            finally:
                process.kill()
                log.seek(0)
                modules = imported(log.read()) - imported_by_nothing()
        held_to_the_list(modules)
        assert "muonsocks.tools.socks_connect" in modules
        assert {"muonsocks.client.errors", "muonsocks.socks.rules"} & modules == set()
        assert "muonsocks.tools.ucspi" not in modules or program


@pytest.mark.parametrize("options", [[], ["-r"], ["-l", "-p"], ["-Rra"]])
def test_socket_query(options: list[str]) -> None:
    """With the options that scripts give too."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
    ):
        fd = client.fileno()
        command = [*program("socket-query"), *options, "-f", str(fd)]
        output, modules = run_and_listed(command, fd)
    assert output
    held_to_the_list(modules)
    assert "muonsocks.tools.socket_query" in modules
    assert "muonsocks.socks" not in modules


def test_send_receive_fd() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        fds = [near.fileno(), far.fileno()]
        for words in ("-s 0 {}", "-r {} -- /usr/bin/true"):
            command = [*program("send-receive-fd"), *words.format(fds.pop(0)).split()]
            _, modules = run_and_listed(command, near.fileno(), far.fileno())
            held_to_the_list(modules)
            assert "muonsocks.tools.send_receive_fd" in modules
            assert "muonsocks.socks" not in modules


def test_send_receive_fd_at_a_path(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    command = [*program("send-receive-fd"), "-r", path, "/usr/bin/true"]
    log = tmp_path / "log"
    with log.open("w") as stderr, subprocess.Popen(command, stderr=stderr) as process:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            while probe.connect_ex(path):
                assert process.poll() is None
        _, modules = run_and_listed([*program("send-receive-fd"), "-s", "0", path])
        held_to_the_list(modules)
        assert process.wait(SECONDS) == 0
    held_to_the_list(imported(log.read_text()) - imported_by_nothing())
