"""The programs as real processes: the test is their client on fds 0 and 1, and the far end too.

    with listener() as far, serving(INETD, "--allow-local", over="tcp") as program:
        program.client.send(GREETING + socks5(*far.getsockname()))
        assert program.client.read(12) == b"\\5\\0" + success(...)
    assert program.status == 0

A program that is still there when its client has left, or that shows a traceback, fails the test.
"""

import contextlib
import os
import re
import select
import socket
import struct
import subprocess
import tempfile
import termios
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ends import descriptors

ROOT = Path(__file__).resolve().parents[2]
INETD, HANDSHAKE, RELAY = (
    str(ROOT / "bin" / name) for name in ("socks-inetd", "socks-handshake", "socks-relay")
)
PYTHON = "/usr/bin/python3"
SECONDS = 20  # for whatever takes milliseconds on a machine that is not busy
PATH = f"{ROOT / 'bin'}:/usr/bin:/bin:/usr/sbin:/sbin"

# The protocol, written out

GREETING = b"\5\1\0"
PASSWORD_GREETING = b"\5\1\2"


def address_bytes(host: str) -> bytes:
    """Write an address of SOCKS5 with its type; what is no address is a name."""
    for kind, family in ((b"\1", socket.AF_INET), (b"\4", socket.AF_INET6)):
        with contextlib.suppress(OSError, ValueError):
            return kind + socket.inet_pton(family, host)
    return b"\3" + bytes([len(host)]) + host.encode()


def socks5(host: str, port: int, *_: object, command: int = 1) -> bytes:
    """Write a SOCKS5 request."""
    return bytes([5, command, 0]) + address_bytes(host) + struct.pack("!H", port)


def socks4(host: str, port: int, *_: object, user: bytes = b"me", command: int = 1) -> bytes:
    """Write a SOCKS4 request."""
    return struct.pack("!BBH", 4, command, port) + socket.inet_aton(host) + user + b"\0"


def socks4a(host: str, port: int, *_: object, user: bytes = b"me", command: int = 1) -> bytes:
    """Write a SOCKS4A request."""
    return socks4("0.0.0.1", port, user=user, command=command) + host.encode() + b"\0"


def credentials(user: bytes, password: bytes) -> bytes:
    """Write the user and password message of RFC 1929."""
    return b"\1" + bytes([len(user)]) + user + bytes([len(password)]) + password


def failure(code: int) -> bytes:
    """Write the SOCKS5 reply that refuses a request."""
    return bytes([5, code, 0, 1]) + bytes(6)


REJECTED = b"\0\x5b" + bytes(6)


class Version:
    """How one version of the protocol asks, and is answered."""

    def __init__(self, name: str, greeting: bytes, chosen: bytes, request: Callable[..., bytes]):
        self.name = name
        self.greeting = greeting
        self.chosen = chosen  # what the greeting is answered with
        self.request = request

    def success(self, host: str, port: int) -> bytes:
        """Write the reply that grants a request, with the bound address."""
        if self.name == "5":
            return b"\5\0\0" + address_bytes(host) + struct.pack("!H", port)
        return b"\0\x5a" + struct.pack("!H", port) + socket.inet_aton(host)

    def failure(self, code: int) -> bytes:
        """Write the reply that refuses a request."""
        return failure(code) if self.name == "5" else REJECTED

    @property
    def reply_length(self) -> int:
        return len(self.failure(1))


VERSIONS = {
    "5": Version("5", GREETING, b"\5\0", socks5),
    "4": Version("4", b"", b"", socks4),
    "4a": Version("4a", b"", b"", socks4a),
}

# The client's side


class Client:
    """The other side of a program's standard input and output."""

    def __init__(self, reader: int, writer: int, sock: socket.socket | None = None) -> None:
        self.reader = reader
        self.writer = writer
        self.socket = sock

    def send(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.writer, data) :]

    def read(self, count: int) -> bytes:
        """Read exactly so many bytes, or what there is up to the end of file."""
        data = b""
        while len(data) < count and (piece := self._piece(count - len(data))):
            data += piece
        return data

    def rest(self) -> bytes:
        """Read up to the end of file."""
        return self.read(1 << 30)

    def _piece(self, limit: int) -> bytes:
        poll = select.poll()
        poll.register(self.reader, select.POLLIN)
        if not poll.poll(SECONDS * 1000):
            raise AssertionError("the client waits for an answer, and none comes")
        try:
            return os.read(self.reader, min(limit, 1 << 16))
        except ConnectionResetError:
            raise
        except OSError:  # EIO: that is how a pseudo-terminal ends
            return b""

    def end(self) -> None:
        """Send no more."""
        if self.socket is not None:
            self.socket.shutdown(socket.SHUT_WR)
        elif self.writer not in (self.reader, -1):
            os.close(self.writer)
            self.writer = -1

    def reset(self) -> None:
        """Leave in a hurry: TCP sends a reset."""
        assert self.socket is not None
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """Leave."""
        if self.socket is not None:
            self.socket.close()
        else:
            for fd in {self.reader, self.writer} - {-1}:
                os.close(fd)
        self.reader = self.writer = -1


Ends = tuple[Client, int, int]  # the client, and what is to be the program's fds 0 and 1


def _sockets(client: socket.socket, served: socket.socket) -> Ends:
    fd = served.detach()
    return Client(client.fileno(), client.fileno(), client), fd, os.dup(fd)


def _tcp(host: str = "127.0.0.1", source: str = "") -> Ends:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as front:
        here = (source, 0) if source else None
        client = socket.create_connection(front.getsockname()[:2], source_address=here)
        return _sockets(client, front.accept()[0])


def tcp_from(source: str) -> Callable[[], Ends]:
    """A client at an address of the loopback network."""
    return lambda: _tcp(source=source)


def _tcp6() -> Ends:
    return _tcp("::1")


def _mapped() -> Ends:
    """An IPv4 client of an IPv6 listener."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as front:
        client = socket.create_connection(("127.0.0.1", front.getsockname()[1]))
        return _sockets(client, front.accept()[0])


def _unix() -> Ends:
    return _sockets(*socket.socketpair())


def _pipes() -> Ends:
    stdin, writer = os.pipe()
    reader, stdout = os.pipe()
    return Client(reader, writer), stdin, stdout


def _fifos() -> Ends:
    with tempfile.TemporaryDirectory() as place:
        ends = []
        for name in ("in", "out"):
            path = f"{place}/{name}"
            os.mkfifo(path)
            reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            ends += [reader, os.open(path, os.O_WRONLY)]
            os.set_blocking(reader, True)
    stdin, writer, reader, stdout = ends
    return Client(reader, writer), stdin, stdout


def _pty() -> Ends:
    """A terminal in raw mode."""
    master, slave = os.openpty()
    tty.setraw(slave)
    return Client(master, master), slave, os.dup(slave)


def _canonical_pty() -> Ends:
    """A terminal that gives whole lines, and does not echo."""
    ends = _pty()
    attributes = termios.tcgetattr(ends[1])
    attributes[3] |= termios.ICANON | termios.IEXTEN
    termios.tcsetattr(ends[1], termios.TCSANOW, attributes)
    return ends


KINDS: dict[str, Callable[[], Ends]] = {
    "tcp": _tcp,
    "tcp6": _tcp6,
    "mapped": _mapped,
    "unix": _unix,
    "pipes": _pipes,
    "fifos": _fifos,
    "pty": _pty,
    "canonical pty": _canonical_pty,
}

# The program


class Program:
    """A running program, its client and its log."""

    def __init__(self, process: subprocess.Popen[bytes], client: Client, log: int) -> None:
        self.process = process
        self.client = client
        self._log = log
        self._whole_log: str | None = None

    @property
    def log(self) -> str:
        if self._whole_log is not None:
            return self._whole_log
        return os.pread(self._log, 1 << 20, 0).decode()

    def log_is_complete(self) -> None:
        """Keep the log: its file is about to be closed."""
        self._whole_log = self.log

    @property
    def end(self) -> str:
        """How it ended, by the last line of the log."""
        found = re.search(r" end=(\S+)", (self.log.splitlines() or [""])[-1])
        return found[1] if found else ""

    def await_log(self, pattern: str) -> str:
        """Give the first line of the log in which the pattern is found, once there is one."""
        deadline = time.monotonic() + SECONDS
        while True:
            for line in self.log.splitlines():
                if re.search(pattern, line):
                    return line
            assert time.monotonic() < deadline, f"no {pattern!r} in the log:\n{self.log}"
            time.sleep(0.005)  # a file has no event for "it has grown"

    @property
    def status(self) -> int:
        """Wait for the end."""
        return self.process.wait(SECONDS)


def environment(**variables: str | bytes) -> dict[bytes, bytes]:
    """An environment with nothing in it that the programs look at, but what is given."""
    environ = {name.encode(): os.fsencode(value) for name, value in variables.items()}
    return {b"PATH": PATH.encode(), b"LC_ALL": b"C.UTF-8"} | environ


@contextlib.contextmanager
def serving(
    *command: str | bytes,
    over: str | Callable[[], Ends] = "unix",
    environ: dict[bytes, bytes] | None = None,
    log_to_client: bool = False,
    keep: list[int] | None = None,
    **popen: Any,
) -> Iterator[Program]:
    """Run a program for one client, over one of KINDS or over what `over` makes.

    `keep` is given duplicates of the program's fds 0 and 1.
    In the end the client leaves, if it has not done so, and the program has to end by itself.
    """
    client, stdin, stdout = (KINDS[over] if isinstance(over, str) else over)()
    with tempfile.TemporaryFile() as log:
        environ = environment() if environ is None else environ
        if environ.get(b"JOURNAL_STREAM") == b"log":  # the log will be the journal
            status = os.fstat(log.fileno())
            environ[b"JOURNAL_STREAM"] = b"%d:%d" % (status.st_dev, status.st_ino)
        popen.setdefault("stderr", stdout if log_to_client else log)
        process = subprocess.Popen(command, stdin=stdin, stdout=stdout, env=environ, **popen)
        if keep is not None:
            keep += [stdin, stdout]
        else:
            os.close(stdin)
            os.close(stdout)
        program = Program(process, client, log.fileno())
        try:
            yield program
            client.close()
            program.process.wait(SECONDS)
        finally:
            client.close()
            process.kill()
            process.wait()
            program.log_is_complete()
            print(program.log)  # pytest shows it with a failure
        assert "Traceback" not in program.log
        assert "this is a bug" not in program.log


class Outcome:
    """What came of a program that had nobody to serve."""

    def __init__(self, status: int, output: bytes, log: str) -> None:
        self.status = status
        self.output = output
        self.log = log


def run(*command: str | bytes, stdin: bytes | int = b"", **popen: Any) -> Outcome:
    """Run a program on the bytes of a file, with a pipe for the answer."""
    with tempfile.TemporaryFile() as file:
        if isinstance(stdin, bytes):
            file.write(stdin)
            file.seek(0)
        popen.setdefault("env", environment())
        popen.setdefault("stderr", subprocess.PIPE)
        done = subprocess.run(
            command,
            stdin=file if isinstance(stdin, bytes) else stdin,
            stdout=subprocess.PIPE,
            timeout=SECONDS,
            **popen,
        )
    log = (done.stderr or b"").decode()
    assert "Traceback" not in log and "this is a bug" not in log, log
    return Outcome(done.returncode, done.stdout, log)


# The far end


def listener(host: str = "127.0.0.1") -> socket.socket:
    """A far end that listens on a free port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server = socket.create_server((host, 0), family=family)
    server.settimeout(SECONDS)
    return server


def accept(far: socket.socket) -> socket.socket:
    """Take the connection that has come."""
    sock = far.accept()[0]
    sock.settimeout(SECONDS)
    return sock


def read_all(sock: socket.socket, count: int = 1 << 30) -> bytes:
    """Read so many bytes, or up to the end of file."""
    data = b""
    while len(data) < count and (piece := sock.recv(min(count - len(data), 1 << 16))):
        data += piece
    return data


def wait_for_syn_sent(pid: int) -> None:
    """Wait until the process has a TCP socket that is connecting (state 02, proc(5))."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        table = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
        connecting = {line.split()[9] for line in table if line.split()[3] == "02"}
        if not connecting.isdisjoint(link.strip("socket:[]") for link in descriptors(pid).values()):
            return
    raise AssertionError("it does not connect")


def closed_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, and nobody else can take."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    _taken.append(sock)
    port: int = sock.getsockname()[1]
    return port


_taken: list[socket.socket] = []
