"""A private network for clients that go through a proxy: a web server, sshd and the proxy.

    with network() as net:
        net.run(["curl", "--socks5", net.proxy, f"http://{net.web}/"])

Its loopback device has documentation addresses (RFC 5737, RFC 3849) for the targets, so that the
proxy needs no --allow-local, and torsocks, which keeps loopback targets away from it, is content.
"""

import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from places import in_network_of

ROOT = Path(__file__).resolve().parents[2]
SOCKS_INETD, MUONSOCKS = str(ROOT / "bin" / "socks-inetd"), str(ROOT / "bin" / "muonsocks")
TARGET, TARGET6 = "192.0.2.1", "2001:db8::1"
NAME = "target.example"  # /etc/hosts of the network has it
SECONDS = 60

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

# What is mounted is so for the processes in this network only; sshd needs /run/sshd and a root
# whose account is not locked.
_PREPARE = """\
ip link set lo up
ip address add $1/32 dev lo
ip address add $2/128 dev lo nodad
mount --bind "$3/hosts" /etc/hosts
mount --bind "$3/shadow" /etc/shadow
mount -t tmpfs tmpfs /run
mkdir /run/sshd
echo ready
exec sleep 600
"""


# What serves: a process for each connection (0), or so many workers that stay.
SERVERS = {"socks-inetd": 0, "muonsocks, 1 worker": 1, "muonsocks, 3 workers": 3}


def missing(*programs: str) -> str | None:
    """Why clients that need these programs cannot be run here, or None."""
    if os.geteuid() != 0:
        return "a private network needs root"
    lacking = [name for name in programs if not which(name)]
    return f"no {', '.join(lacking)} here: tests/run installs it" if lacking else None


def which(program: str) -> str:
    """The whole name of a program; empty if there is none."""
    return shutil.which(program, path=_PATH) or ""


class Web(BaseHTTPRequestHandler):
    """Answers /N with N bytes, and an upload with its size and hash."""

    def handle(self) -> None:
        with contextlib.suppress(ConnectionResetError):  # a client that has no more need of it
            super().handle()

    def do_GET(self) -> None:
        data = body(int(self.path[1:] or 0))
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{len(data)} {hashlib.sha256(data).hexdigest()}".encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def body(size: int) -> bytes:
    """So many bytes that do not repeat soon."""
    piece = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(1024))
    return (piece * (size // len(piece) + 1))[:size]


class Network:
    """Namespaces with servers in them; `run` runs a client there."""

    def __init__(self, holder: int, work: Path, log: Path) -> None:
        self.holder = holder
        self.work = work
        self._log = log
        self.web: dict[str, int] = {}  # the port at each target address

    @property
    def log(self) -> str:
        return self._log.read_text(errors="backslashreplace")

    def command(self, command: list[str]) -> list[str]:
        return ["nsenter", f"--target={self.holder}", "--net", "--mount", "--", *command]

    def run(self, command: list[str]) -> subprocess.CompletedProcess[bytes]:
        """Run a client to its end."""
        return subprocess.run(
            self.command(command),
            env={"PATH": _PATH, "HOME": str(self.work)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
        )

    def start(
        self, stack: contextlib.ExitStack, command: list[str], listens: tuple[str, int]
    ) -> None:
        """Run a server up to the end of the stack; wait until it listens."""
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                self.command(["setpriv", "--pdeathsig", "KILL", *command]),
                env={"PATH": _PATH, "HOME": str(self.work)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        stack.callback(_end, process)
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                self.socket(listens, connect=True).close()
                return
            except ConnectionRefusedError:
                assert process.poll() is None and time.monotonic() < deadline, self.log
                time.sleep(0.01)  # there is no event for "somebody listens now"

    def socket(
        self, address: tuple[str, int], connect: bool = False, datagrams: bool = False
    ) -> socket.socket:
        """Make a TCP socket in this network: connected to an address, or listening there; or one
        that takes datagrams there.
        """

        def make() -> socket.socket:
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            if datagrams:
                sock = socket.socket(family, socket.SOCK_DGRAM)
                sock.bind(address)
                return sock
            if connect:
                return socket.create_connection(address, SECONDS)
            return socket.create_server(address, family=family, backlog=64)

        return in_network_of(self.holder, make)

    def proxy(
        self, stack: contextlib.ExitStack, server: str, at: tuple[str, int], options: list[str]
    ) -> None:
        """Run one of SERVERS for whoever connects to an address."""
        host, port = at
        if SERVERS[server]:
            command = [MUONSOCKS, f"--workers={SERVERS[server]}", f"-i{host}", f"-p{port}"]
        else:
            listen = f"--listen={f'[{host}]' if ':' in host else host}:{port}"
            command = ["systemd-socket-activate", "--accept", "--inetd", listen, SOCKS_INETD]
        self.start(stack, [*command, *options], at)

    def serve_web(self, stack: contextlib.ExitStack) -> None:
        """Serve the web at both targets."""
        for host in (TARGET, TARGET6):
            server = ThreadingHTTPServer((host, 0), Web, bind_and_activate=False)
            server.socket.close()
            server.socket = self.socket((host, 0))
            server.daemon_threads = True
            self.web[host] = server.socket.getsockname()[1]
            thread = threading.Thread(target=server.serve_forever, args=(0.02,))
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)


SSH_PORT = 22


@contextlib.contextmanager
def sshd(net: Network) -> Iterator[None]:
    """An sshd at TARGET with keys of its own; `ssh/client` in the work directory is let in."""
    work = net.work / "ssh"
    work.mkdir(mode=0o700)
    for name in ("host", "client"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(work / name)]
        subprocess.run(command, check=True)
    shutil.copy(work / "client.pub", work / "authorized")
    config = work / "sshd_config"
    config.write_text(
        f"""\
HostKey {work}/host
AuthorizedKeysFile {work}/authorized
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin yes
PrintMotd no
"""
    )
    server = which("sshd")  # it has to be started by its whole name
    with contextlib.ExitStack() as stack:
        listen = ["-o", f"ListenAddress={TARGET}:{SSH_PORT}"]
        net.start(stack, [server, "-D", "-e", "-f", str(config), *listen], (TARGET, SSH_PORT))
        yield


def ssh(proxy: str, key: Path) -> list[str]:
    """The words of an ssh to that sshd, through a proxy command, with the client's key."""
    options = {
        "ProxyCommand": proxy,
        "IdentityFile": str(key),
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "no",
        "LogLevel": "ERROR",
        "BatchMode": "yes",
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    return ["ssh", "-F", "none", *words, "-p", str(SSH_PORT), f"root@{TARGET}"]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a server, and let it end what it has started."""
    process.terminate()
    try:
        process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


@contextlib.contextmanager
def network(work: Path) -> Iterator[Network]:
    """Make a network with a web server; end all in it afterwards."""
    (work / "hosts").write_text(f"127.0.0.1 localhost\n{TARGET} {NAME}\n")
    (work / "shadow").write_text("root:*:20000:0:99999:7:::\n")
    (work / "log").touch()
    with contextlib.ExitStack() as stack:
        holder = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "sh", "-ec"]
            + [_PREPARE, "sh", TARGET, TARGET6, str(work)],
            env={"PATH": _PATH},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        stack.enter_context(holder)
        stack.callback(holder.kill)
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        net = Network(holder.pid, work, work / "log")
        net.serve_web(stack)
        yield net
