"""SocksSocket, connected: what it is, options, BIND, copies; and the conformance suite."""

import copy
import errno
import http.client
import os
import pickle
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conformance import BOUND_OF_ITS_OWN, Conformance, Join, Joint
from ends import End, Outcome, no_garbage, nothing_left_behind, set_small_buffers
from programs import SECONDS, accept, closed_port, read_all
from real_server import Server, works
from relays import Proxy, settle

from muonsocks.client import (
    DestinationRefused,
    ProxyMisbehaved,
    ProxyTimedOut,
    SocksSocket,
    create_connection,
)

THERE = ("192.0.2.1", 80)
CLOSED = closed_port()
clean = pytest.mark.usefixtures("clean")


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy() as one:
        yield one


def says(number: int) -> Any:
    return pytest.raises(OSError, match=rf"\[Errno {number}\]")


def made(proxy: Any, family: int = socket.AF_INET) -> SocksSocket:
    sock = SocksSocket(family, proxy=proxy)
    sock.settimeout(SECONDS)
    return sock


# Connected


class TestConformance(Conformance):
    """A connection through a real server."""

    kinds = ("tcp",)
    bound = BOUND_OF_ITS_OWN

    @pytest.fixture(params=["SocksSocket", "without blocking", "create_connection"])
    def join(
        self, kind: str, request: pytest.FixtureRequest, server: Server, far: socket.socket
    ) -> Iterator[Join]:
        joints = []

        def join(early: bytes = b"") -> Joint:
            joints.append(self.joined(request.param, server, far, early))
            return joints[-1]

        settle()
        with nothing_left_behind():
            yield join
            for joint in joints:
                joint.close()
                joint.over()
            settle()

    @staticmethod
    def joined(way: str, server: Server, far: socket.socket, early: bytes) -> Joint:
        times = server.count("closed client=")
        set_small_buffers(far)
        sock: socket.socket
        if way == "create_connection":
            sock = create_connection(far.getsockname(), SECONDS, proxy=server.url)
        else:
            sock = made(server.url)
            if way == "without blocking":
                sock.setblocking(False)
                assert sock.connect_ex(far.getsockname()) == errno.EINPROGRESS
                sock.settimeout(SECONDS)
            sock.connect(far.getsockname())
        set_small_buffers(sock)
        sock.sendall(early)
        plain = socket.socket(fileno=os.dup(sock.fileno()))
        sock.close()
        client, conn = End.of(plain), End.of(accept(far))

        def over() -> Outcome:
            return Outcome.of(server.await_log("closed client=", times + 1))

        return Joint(client, conn, over)


PLAIN = [
    *("send", "sendall", "sendto", "sendmsg", "recv", "recv_into", "recvfrom", "recvfrom_into"),
    *("recvmsg", "recvmsg_into", "shutdown", "settimeout", "setblocking", "fileno", "makefile"),
    *("sendfile", "gettimeout"),
]


@clean
@pytest.mark.parametrize("is_blocking", [True, False])
def test_connected_it_is_a_plain_socket(proxy: Proxy, is_blocking: bool) -> None:
    """Nothing of Python's stands between a program and the kernel."""
    with made(proxy.url) as sock:
        sock.setblocking(is_blocking)
        sock.connect_ex(THERE)
        sock.settimeout(SECONDS)
        if not is_blocking:
            sock.connect(THERE)
        for name in PLAIN:
            assert getattr(type(sock), name) is getattr(socket.socket, name), name
        plain = create_connection(THERE, SECONDS, proxy=proxy.url)
        assert type(plain) is socket.socket
        plain.close()


@clean
def test_names_and_addresses(server: Server, far: socket.socket) -> None:
    with made(server.url) as sock:
        sock.connect(("localhost", far.getsockname()[1]))
        with accept(far) as conn:
            assert works(sock, conn)
            assert sock.getsockname() == conn.getpeername(), "the proxy's side"
            assert sock.getpeername() == ("localhost", far.getsockname()[1])
            assert "raddr=('localhost'" in repr(sock)
        with says(errno.EISCONN):
            sock.connect(THERE)


@clean
def test_again_after_a_failure(server: Server, far: socket.socket) -> None:
    with made(server.url) as sock:
        for _ in range(2):
            with pytest.raises(DestinationRefused):
                sock.connect(("127.0.0.1", CLOSED))
            assert sock.connect_ex(("127.0.0.1", CLOSED)) == errno.ECONNREFUSED
            assert isinstance(sock.failure, DestinationRefused)
        sock.connect(far.getsockname())
        with accept(far) as conn:
            assert works(sock, conn)


@clean
def test_from_a_port_of_ours(proxy: Proxy) -> None:
    """Claimed by bind(), also for a second try, and where nothing but the port is claimed."""
    for host in ("127.0.0.9", "0.0.0.0", "::"):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with made(proxy.url, family) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, 0))
            here = sock.getsockname()[1]
            sock.settimeout(0.05)
            proxy.may_answer.clear()
            number = proxy.count
            with pytest.raises(ProxyTimedOut):
                sock.connect(THERE)
            assert proxy.connection(number).getpeername()[1] == here
            proxy.connection(number).close()
            proxy.may_answer.set()
            sock.settimeout(SECONDS)
            sock.connect(THERE)
            expected = host if host.startswith("127.0.0.9") else "127.0.0.1"
            assert proxy.connection(number + 1).getpeername() == (expected, here)


@clean
@pytest.mark.parametrize("default", [None, 9.0])
def test_time_limits(proxy: Proxy, default: float | None) -> None:
    before = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(default)
        with SocksSocket(proxy=proxy.url) as sock:
            assert sock.gettimeout() == default
            sock.connect(THERE)
            assert sock.gettimeout() == default
            assert os.get_blocking(sock.fileno()) == (default is None)
    finally:
        socket.setdefaulttimeout(before)


OPTIONS = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77, 77),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1, 1),
    (socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16, 1 << 17),
]
OF_THE_FAMILY = {
    socket.AF_INET: (socket.IPPROTO_IP, socket.IP_TOS, 0x10, 0x10),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 0x10, 0x10),
}


@clean
@pytest.mark.parametrize("where", ["127.0.0.1", "::1", "unix"])
@pytest.mark.parametrize("family", list(OF_THE_FAMILY))
@pytest.mark.parametrize("when", ["before", "afterwards"])
def test_options(where: str, family: int, when: str, tmp_path: Path) -> None:
    """They are as they were set, wherever the proxy is."""
    path = str(tmp_path / "proxy") if where == "unix" else ""
    with Proxy(path or where) as proxy, made(proxy.url, family) as sock:
        options = [*OPTIONS, OF_THE_FAMILY[family]]
        if when == "afterwards":
            sock.connect(THERE)
        for level, name, value, _ in options:
            sock.setsockopt(level, name, value)
        if when == "before":
            sock.connect(THERE)
        for level, name, _, found in options:
            assert sock.getsockopt(level, name) == found
        with says(errno.ENOPROTOOPT):
            sock.setsockopt(socket.IPPROTO_TCP, 9999, 1)
        assert not sock.get_inheritable()
        proxy.connection().sendall(b"answer")
        assert sock.recv(9) == b"answer"


@clean
@pytest.mark.parametrize("family", list(OF_THE_FAMILY))
def test_an_address_that_nobody_knows(family: int, tmp_path: Path) -> None:
    with Proxy(str(tmp_path / "proxy")) as proxy, made(proxy.url, family) as sock:
        proxy.reply = b"\5\0\0\1" + bytes(6)
        sock.connect(THERE)
        zeros = ("::", 0, 0, 0) if family == socket.AF_INET6 else ("0.0.0.0", 0)
        assert sock.getsockname() == zeros


@clean
def test_options_that_are_set_for_ever(proxy: Proxy) -> None:
    """What is set again and again is kept once."""
    with made(proxy.url) as sock:
        for number in range(100):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, number + 1)
        assert len(sock._options) == 1


@clean
def test_inheritable(proxy: Proxy) -> None:
    with made(proxy.url) as sock:
        sock.set_inheritable(True)
        sock.connect(THERE)
        assert sock.get_inheritable()


@clean
def test_nothing_has_to_be_collected(proxy: Proxy) -> None:
    def story() -> None:
        with made(proxy.url) as sock:
            sock.connect(THERE)

    story()
    with no_garbage():
        story()


# As other sockets are used


@clean
def test_copies(proxy: Proxy) -> None:
    with made(proxy.url) as sock:
        sock.connect(THERE)
        with sock.dup() as other:
            assert type(other) is SocksSocket
            assert other.gettimeout() == SECONDS
            assert other.getpeername() == THERE
            sock.close()
            other.sendall(b"data")
            assert proxy.connection().recv(9) == b"data"
            for way in (pickle.dumps, copy.copy):
                with pytest.raises(TypeError):
                    way(other)
            fd = other.detach()
            assert other.fileno() == -1
            os.close(fd)
        assert proxy.connection().recv(1) == b""


@clean
def test_files(proxy: Proxy) -> None:
    sock = made(proxy.url)
    sock.connect(THERE)
    with sock.makefile("rwb") as file:
        sock.close()
        proxy.connection().sendall(b"line\n")
        assert file.readline() == b"line\n"
        file.write(b"answer\n")
        file.flush()
        assert proxy.connection().recv(9) == b"answer\n"
    assert proxy.connection().recv(1) == b""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    place = tmp_path_factory.mktemp("certificate")
    files = str(place / "certificate"), str(place / "key")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(
        [*command.split(), "-out", files[0], "-keyout", files[1], *subject],
        check=True,
        capture_output=True,
    )
    return files


@clean
@pytest.mark.parametrize("is_blocking", [True, False])
def test_tls(
    server: Server, far: socket.socket, certificate: tuple[str, str], is_blocking: bool
) -> None:
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(*certificate)
    ours = ssl.create_default_context(cafile=certificate[0])

    def serve() -> None:
        with theirs.wrap_socket(accept(far), server_side=True) as conn:
            conn.sendall(conn.recv(99).upper())

    thread = threading.Thread(target=serve)
    thread.start()
    sock = made(server.url)
    sock.setblocking(is_blocking)
    sock.connect_ex(("localhost", far.getsockname()[1]))
    sock.settimeout(SECONDS)
    with ours.wrap_socket(sock, server_hostname="localhost") as tls:
        tls.sendall(b"question")
        assert read_all(tls) == b"QUESTION"  # type: ignore[arg-type]
    thread.join()


@clean
def test_http(server: Server, far: socket.socket) -> None:
    """http.client sets TCP_NODELAY, and wraps the socket in files."""

    def serve() -> None:
        with accept(far) as conn:
            while b"\r\n\r\n" not in conn.recv(9999, socket.MSG_PEEK):
                pass
            conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndata")

    def create(address: Any, timeout: Any, source: Any) -> SocksSocket:
        sock = made(server.url)
        sock.connect(address)
        return sock

    thread = threading.Thread(target=serve)
    thread.start()
    client = http.client.HTTPConnection("localhost", far.getsockname()[1], timeout=SECONDS)
    client._create_connection = create  # type: ignore[attr-defined]
    client.request("GET", "/")
    assert client.getresponse().read() == b"data"
    client.close()
    thread.join()


# Without proxies, and other kinds of sockets


@clean
def test_without_proxies(far: socket.socket) -> None:
    with made("direct") as sock:
        sock.connect(far.getsockname())
        with accept(far) as conn:
            assert works(sock, conn)
            assert sock.getpeername() == far.getsockname()
            assert sock.getsockname() == conn.getpeername()
    with made("direct") as sock, socket.socket() as client:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        client.connect(sock.getsockname())
        conn, peer = sock.accept()
        with conn:
            assert peer == client.getsockname()


@clean
def test_other_kinds(proxy: Proxy, tmp_path: Path) -> None:
    with SocksSocket(socket.AF_UNIX, proxy=proxy.url) as sock, SocksSocket(socket.AF_UNIX) as peer:
        sock.bind(str(tmp_path / "socket"))
        sock.listen()
        peer.connect(str(tmp_path / "socket"))
        conn, _ = sock.accept()
        conn.close()
    assert proxy.count == 0


# BIND


@clean
@pytest.mark.parametrize("timeout", [SECONDS, None])
def test_bind_through_a_real_proxy(server: Server, timeout: float | None) -> None:
    with made(server.url) as sock:
        sock.listen(peer=("127.0.0.1", 0))
        where = sock.getsockname()
        assert where[0] != "0.0.0.0"
        sock.settimeout(0.02)
        with pytest.raises(TimeoutError, match="timed out"):
            sock.accept()
        sock.settimeout(timeout)
        with socket.create_connection(where, SECONDS) as peer:
            conn, address = sock.accept()
            with conn:
                assert address == conn.getpeername() == peer.getsockname()
                assert type(conn) is SocksSocket
                assert conn.gettimeout() is None
                assert works(conn, peer)
        with says(errno.EINVAL):
            sock.accept()


SECOND = b"\5\0\0\1\xc0\0\2\x07\0\x51"


@clean
def test_a_failure_when_somebody_has_come(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is not lost, and what it carries is not taken for a reply."""
    with made(proxy.url) as sock:
        sock.listen()
        proxy.connection().sendall(SECOND + b"data")

        def fail(_: int) -> int:
            raise OSError(errno.EMFILE, "too many")

        for name in ("dup", "_retire"):
            with monkeypatch.context() as patch:
                patch.setattr(SocksSocket, name, fail)
                with says(errno.EMFILE):
                    sock.accept()
        conn, peer = sock.accept()
        with conn:
            assert peer == ("192.0.2.7", 81)
            assert conn.recv(9) == b"data"


@clean
def test_a_proxy_that_goes_while_it_listens(proxy: Proxy) -> None:
    with made(proxy.url) as sock:
        sock.listen()
        proxy.connection().shutdown(socket.SHUT_RDWR)
        with pytest.raises(ProxyMisbehaved):
            sock.accept()
        sock.listen()
        proxy.connection(1).sendall(SECOND)
        conn, peer = sock.accept()
        conn.close()
        assert peer == ("192.0.2.7", 81)


@clean
def test_listening_here(proxy: Proxy) -> None:
    class Here(SocksSocket):
        listens_here = True

    with Here(proxy=proxy.url) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        with socket.create_connection(sock.getsockname()):
            conn, _ = sock.accept()
            conn.close()
    assert proxy.count == 0
