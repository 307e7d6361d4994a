"""socks-inetd under everything that may start it: one suite of checks, every launcher."""

import contextlib
import hashlib
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import launchers
import pytest
from launchers import LAUNCHERS, SECONDS, Server

SOCKS_INETD = str(Path(__file__).parents[2] / "bin" / "socks-inetd")

GREETING = b"\x05\x01\x00"  # one method: no authentication
GREETING_WITH_PASSWORD = b"\x05\x01\x02"

Address = tuple[str, int]


class Echo(socketserver.BaseRequestHandler):
    """Sends back what it gets, as it comes."""

    def handle(self) -> None:
        while data := self.request.recv(65536):
            self.request.sendall(data)


class Digest(socketserver.BaseRequestHandler):
    """Reads to the end, and only then answers with the hash of what it was."""

    def handle(self) -> None:
        digest = hashlib.sha256()
        while data := self.request.recv(65536):
            digest.update(data)
        self.request.sendall(digest.digest())


@contextlib.contextmanager
def target(handler: type[socketserver.BaseRequestHandler]) -> Iterator[Address]:
    with socketserver.ThreadingTCPServer((launchers.ADDRESS, 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        host, port = server.server_address[:2]
        yield str(host), port
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def echo() -> Iterator[Address]:
    with target(Echo) as address:
        yield address


@pytest.fixture(scope="module")
def digest() -> Iterator[Address]:
    with target(Digest) as address:
        yield address


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in LAUNCHERS],
)
def launcher(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if reason := launchers.missing(name):
        pytest.skip(reason)
    return name


@contextlib.contextmanager
def serving(launcher: str, options: list[str], work: Path) -> Iterator[Server]:
    with launchers.running(launcher, [SOCKS_INETD, "--allow-local", *options], work) as server:
        yield server
    assert "Traceback" not in server.log.text


@pytest.fixture(scope="module")
def server(launcher: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that asks for no password."""
    with serving(launcher, [], tmp_path_factory.mktemp(launcher)) as server:
        yield server


@pytest.fixture(scope="module")
def guarded(launcher: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that lets in alice with the password secret."""
    work = tmp_path_factory.mktemp(launcher)
    users = work / "users"
    users.write_text("alice:secret\n")
    with serving(launcher, [f"--users={users}"], work) as server:
        yield server


def connect(server: Server) -> socket.socket:
    return socket.create_connection(server.address, timeout=SECONDS)


def read(client: socket.socket, size: int = 1 << 30) -> bytes:
    """Read so many bytes, or what there is up to the end of file."""
    data = b""
    while len(data) < size and (piece := client.recv(min(size - len(data), 65536))):
        data += piece
    return data


def socks5_request(address: Address) -> bytes:
    return b"\x05\x01\x00\x01" + socket.inet_aton(address[0]) + struct.pack("!H", address[1])


def socks5_success(client: socket.socket) -> bool:
    """Read the reply; it carries an IPv4 address."""
    return read(client, 10)[:4] == b"\x05\x00\x00\x01"


def socks4_request(address: Address) -> bytes:
    return b"\x04\x01" + struct.pack("!H", address[1]) + socket.inet_aton(address[0]) + b"me\0"


def socks4a_request(address: Address) -> bytes:
    port = struct.pack("!H", address[1])
    return b"\x04\x01" + port + b"\0\0\0\1" + b"me\0" + address[0].encode() + b"\0"


def through(server: Server, address: Address) -> socket.socket:
    """Connect to an address through a server that asks for no password."""
    client = connect(server)
    client.sendall(GREETING)
    assert read(client, 2) == b"\x05\x00"
    client.sendall(socks5_request(address))
    assert socks5_success(client)
    return client


def test_carries_bytes_both_ways(server: Server, echo: Address) -> None:
    with through(server, echo) as client:
        for piece in (b"one", b"\0" * 5000, bytes(range(256))):
            client.sendall(piece)
            assert read(client, len(piece)) == piece
        client.shutdown(socket.SHUT_WR)
        assert read(client) == b""


def test_half_close_keeps_the_answer(server: Server, digest: Address) -> None:
    data = bytes(range(256)) * 4096  # 1 MiB
    with through(server, digest) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        assert read(client) == hashlib.sha256(data).digest()


def test_early_data_is_not_lost(server: Server, digest: Address) -> None:
    with connect(server) as client:
        client.sendall(GREETING + socks5_request(digest) + b"early")
        client.shutdown(socket.SHUT_WR)
        assert read(client, 2) == b"\x05\x00"
        assert socks5_success(client)
        assert read(client) == hashlib.sha256(b"early").digest()


@pytest.mark.parametrize("request_to", [socks4_request, socks4a_request])
def test_socks4(server: Server, echo: Address, request_to: Callable[[Address], bytes]) -> None:
    with connect(server) as client:
        client.sendall(request_to(echo))
        assert read(client, 8)[:2] == b"\x00\x5a"
        client.sendall(b"data")
        assert read(client, 4) == b"data"


@pytest.mark.parametrize(
    ("garbage", "refusal"),
    [
        pytest.param(b"GET / HTTP/1.0\r\n\r\n", b"", id="http"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), b"", id="tls"),
        pytest.param(b"\xff" * 5000, b"", id="ones"),
        pytest.param(b"\x05\x01\x80", b"\x05\xff", id="no-known-method"),
        pytest.param(b"\x04\x09\0\x50\x7f\0\0\1me\0", b"\x00\x5b", id="socks4-command"),
        pytest.param(GREETING + b"\x05\x09\0\1\x7f\0\0\1\0\x50", b"\5\0\5\7", id="socks5-command"),
        pytest.param(GREETING + b"\x05\x01\0\7\x7f\0\0\1\0\x50", b"\5\0\5\x08", id="address-type"),
        pytest.param(b"\x05", b"", id="half-a-greeting"),
        pytest.param(b"", b"", id="nothing"),
    ],
)
def test_garbage_is_refused(server: Server, echo: Address, garbage: bytes, refusal: bytes) -> None:
    with connect(server) as client:
        client.sendall(garbage)
        client.shutdown(socket.SHUT_WR)
        answer = read(client)
    assert answer[: len(refusal)] == refusal
    assert len(answer) <= 12 if refusal else answer == b""  # two bytes, and ten of a reply
    through(server, echo).close()


def test_log_names_the_client(launcher: str, server: Server, echo: Address) -> None:
    with through(server, echo) as client:
        host, port = client.getsockname()
    if not LAUNCHERS[launcher].tells_client:
        pytest.skip(f"{launcher} does not hand the client's address on")
    name, to = rf"client={host}:{port}\b", rf"target={echo[0]}:{echo[1]}\b"
    server.log.await_line(rf"{name}.*{to}")
    server.log.await_line(rf"{name}.*{to}.*end=")


def give_password(client: socket.socket, password: bytes) -> bytes:
    """Authenticate as alice (RFC 1929); return the status."""
    client.sendall(GREETING_WITH_PASSWORD)
    assert read(client, 2) == b"\x05\x02"
    client.sendall(b"\x01\x05alice" + bytes([len(password)]) + password)
    return read(client, 2)


def test_right_password(guarded: Server, echo: Address) -> None:
    with connect(guarded) as client:
        assert give_password(client, b"secret") == b"\x01\x00"
        client.sendall(socks5_request(echo) + b"data")
        assert socks5_success(client)
        assert read(client, 4) == b"data"


def test_wrong_password(guarded: Server) -> None:
    with connect(guarded) as client:
        assert give_password(client, b"guess") == b"\x01\x01"
        assert read(client) == b""


def test_no_password(guarded: Server) -> None:
    with connect(guarded) as client:
        client.sendall(GREETING)
        assert read(client) == b"\x05\xff"


def test_socks4_has_no_password(guarded: Server, echo: Address) -> None:
    with connect(guarded) as client:
        client.sendall(socks4_request(echo))
        assert read(client)[:2] in (b"\x00\x5b", b"\x00\x5d")
