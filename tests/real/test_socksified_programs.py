"""Programs that know nothing of proxies, by python3 -m muonsocks.client: nothing leaves their host
but what goes to the proxy.

    their network -- the proxy's -- that of the servers

All packets of their network are looked at. There is a way for others, and a name server is on it,
so that a program that is run without all this works as well, and is seen.
"""

import contextlib
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import between
import clients
import pytest
from between import CLIENT, OURS, SERVER, here, running
from clients import MUONSOCKS, SECONDS, Web, body, which
from nameserver import nameserver, own_files
from places import another_network, in_own_network, join_networks, sh
from test_pysocks_users import certificate, digest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("unaware_program.py")
PROXY, PORT = between.PROXY
NAME = "server.example"
SIZE = 50_000
VSFTPD = between.VSFTPD.replace("pasv_enable=NO", "pasv_enable=YES")


class Capture:
    """All packets of the network of a thread."""

    def __init__(self, there: Callable[..., Any]) -> None:
        everything = socket.htons(0x0003)  # ETH_P_ALL
        self._socket: socket.socket = there(
            socket.socket, socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, everything
        )
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 1 << 25)  # SO_RCVBUFFORCE

    def close(self) -> None:
        self._socket.close()

    def take(self) -> tuple[int, list[str]]:
        """Give how many packets there were to the proxy or from it, and what others there were."""
        count, others = 0, list[str]()
        while True:
            try:
                packet, (_, kind, *_) = self._socket.recvfrom(128)
            except BlockingIOError:
                break
            if is_of_proxy(kind, packet):
                count += 1
            elif not is_of_link(kind, packet):
                others.append(said(kind, packet))
        statistics = self._socket.getsockopt(263, 6, 8)  # SOL_PACKET, PACKET_STATISTICS
        assert struct.unpack("II", statistics)[1] == 0, "packets have not been seen"
        return count, others


def is_of_proxy(kind: int, packet: bytes) -> bool:
    if kind != 0x0800 or packet[9] not in (6, 17):
        return False
    length = (packet[0] & 15) * 4
    hosts, ports = (packet[12:16], packet[16:20]), struct.unpack_from("!HH", packet, length)
    ends = zip(hosts, ports, strict=True)
    proxy = [port for host, port in ends if host == socket.inet_aton(PROXY)]
    # Datagrams have ports of their own there; the name server's is at the same address.
    return bool(proxy) and (proxy[0] == PORT if packet[9] == 6 else proxy[0] != 53)


def is_of_link(kind: int, packet: bytes) -> bool:
    """Say whether it is nothing that a program sends: ARP, or how IPv6 finds its neighbours."""
    return kind == 0x0806 or (kind == 0x86DD and packet[6] in (0, 58))


def said(kind: int, packet: bytes) -> str:
    if kind != 0x0800:
        return f"{kind:#06x} {packet.hex()}"
    source, destination = (socket.inet_ntoa(packet[start : start + 4]) for start in (12, 16))
    ports = struct.unpack_from("!HH", packet, (packet[0] & 15) * 4)
    return f"protocol {packet[9]} {source}:{ports[0]} to {destination}:{ports[1]}"


# The servers


@contextlib.contextmanager
def web(there: Callable[..., Any], port: int, key: Path | None) -> Iterator[None]:
    server = ThreadingHTTPServer((SERVER, port), Web, bind_and_activate=False)
    server.socket.close()
    server.socket = there(socket.create_server, (SERVER, port), backlog=64)
    server.daemon_threads = True
    if key:
        import ssl

        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def echo(there: Callable[..., Any], port: int) -> Iterator[None]:
    """Send datagrams back."""
    sock: socket.socket = there(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    there(sock.bind, (SERVER, port))

    def serve() -> None:
        while True:
            data, source = sock.recvfrom(1 << 16)
            if not data:
                return
            sock.sendto(data, source)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        there(sock.sendto, b"", (SERVER, port))
        thread.join()
        sock.close()


@contextlib.contextmanager
def mail(there: Callable[..., Any], port: int) -> Iterator[None]:
    """Be polite to one client after the other."""
    server: socket.socket = there(socket.create_server, (SERVER, port))

    def serve() -> None:
        while True:
            conn, _ = server.accept()
            with conn, conn.makefile("rwb", buffering=0) as file:
                file.write(b"220 here\r\n")
                while line := file.readline():
                    if line == b"end\r\n":
                        return
                    file.write(b"221 bye\r\n" if line.upper() == b"QUIT\r\n" else b"250 yes\r\n")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        there(socket.create_connection, (SERVER, port)).sendall(b"end\r\n")
        thread.join()
        server.close()


# The programs

PAGE = digest(body(SIZE))[:22] + "\n"
OF_TLS = ("https_by_urllib", "https_by_client", "tls_that_connects_itself", "in_asyncio")
EXPECTED = {
    "http_by_urllib": PAGE,
    "https_by_urllib": PAGE,
    "http_by_client": f"True True True\n{PAGE}",
    "https_by_client": f"True True True\n{PAGE}",
    "tls_that_connects_itself": PAGE,
    "by_requests": PAGE,  # which reads ALL_PROXY, and has PySocks go there
    "threads": f"{ {PAGE[:-1]} }\n",
    "in_asyncio": f"{ {PAGE[:-1]} }\n",
    "with_selectors": PAGE,
    "processes": f"{ {PAGE[:-1]} }\n",
    "child": PAGE,
    "passive_ftp": f"{PAGE[:-1]} ['file']\n",
    "mail": "(250, b'yes')\n",
    "datagrams": "b'to an address'\nb'to a name'\nb'connected'\nb'in asyncio'\n",
    "own_host": "b'hello'\n" * 3 + "b'pair' ['']\n",
    "ways_around": "PermissionError\n" * 5
    + "OSError\n" * 3
    + "herror\ngaierror\nRequestRefused\nDestinationUnreachable\n"
    + "short 192.0.2.2 True\n",
}
PORTS = {"passive_ftp": 21, "mail": 25, "datagrams": 7} | dict.fromkeys(OF_TLS, 443)


class Outcome:
    """What has come of a program."""

    def __init__(self, done: subprocess.CompletedProcess[str], seen: tuple[int, list[str]]) -> None:
        self.status, self.output, self.errors = done.returncode, done.stdout, done.stderr
        self.to_proxy, self.others = seen


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """What has come of each of EXPECTED; and of two of them without all this."""
    if reason := clients.missing("vsftpd", "openssl", "curl", "ip"):
        pytest.skip(reason)
    for module in ("requests", "socks"):
        pytest.importorskip(module, reason=f"no {module} here: tests/run installs it")
    found: dict[str, Outcome] = {}
    in_own_network(lambda: run_all(tmp_path_factory.mktemp("work"), found))
    return found


def run_all(work: Path, found: dict[str, Outcome]) -> None:
    root, empty = work / "root", work / "empty"
    for place in (root, empty):
        place.mkdir(mode=0o755)
    for place in (work, *work.parents[:3]):
        if place.owner() == "root" and place != Path("/tmp"):
            place.chmod(0o755)  # pytest's directories are for one user alone
    (root / "file").write_bytes(body(SIZE))
    (work / "vsftpd.conf").write_text(VSFTPD.format(root=root, empty=empty))
    key = certificate(work, NAME, SERVER)
    vsftpd = [which("vsftpd"), str(work / "vsftpd.conf")]
    proxy = [MUONSOCKS, f"-i{PROXY}", f"-p{PORT}", "--workers=1"]
    with another_network() as nearer, another_network() as there, contextlib.ExitStack() as stack:
        join_networks(nearer)
        sh("ip link set near down", "ip link set near name nearer", "ip link set nearer up")
        sh(f"ip addr add {PROXY}/24 dev nearer", "sysctl -q net.ipv4.ip_forward=1")
        nearer(sh, f"ip addr add {CLIENT}/24 dev far", f"ip route add default via {PROXY}")
        join_networks(there)
        sh(f"ip addr add {OURS}/24 dev near")
        there(sh, f"ip addr add {SERVER}/24 dev far", f"ip route add default via {OURS}")
        own_files(work, "127.0.0.1 localhost\n", PROXY)
        dns = stack.enter_context(nameserver(PROXY, {NAME: SERVER}))
        stack.enter_context(web(there, 80, None))
        stack.enter_context(web(there, 443, key))
        stack.enter_context(echo(there, 7))
        stack.enter_context(mail(there, 25))
        stack.enter_context(running(there, vsftpd, work / "vsftpd.log", (SERVER, 21)))
        stack.enter_context(running(here, proxy, work / "log", (PROXY, PORT)))
        capture = Capture(nearer)
        stack.callback(capture.close)

        def run(what: str, *before: str, **environ: str) -> Outcome:
            words = [str(PROGRAM), what, NAME, str(PORTS.get(what, 80))]
            words += [str(work / "public.pem")] if what in OF_TLS else []
            done = nearer(
                subprocess.run,
                ["/usr/bin/python3", "-X", "dev", *before, *words],
                env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "lib"), **environ},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=SECONDS,
            )
            return Outcome(done, capture.take())

        lacking = work / "lacking"
        lacking.mkdir()
        (lacking / "socks.py").write_text("raise ImportError('no PySocks')\n")
        through = f"socks5h://{PROXY}:{PORT}"
        for what in EXPECTED:
            found[what] = run(what, "-m", "muonsocks.client", ALL_PROXY=through)
        found["requests, unaware"] = run(
            *("by_requests", "-m", "muonsocks.client"),
            SOCKS_SERVER=f"{PROXY}:{PORT}",
            PYTHONPATH=f"{ROOT / 'lib'}:{lacking}",
        )
        found["by option"] = run("child", "-m", "muonsocks.client", "--proxy", through)
        found["looked up here"] = run(
            "http_by_urllib", "-m", "muonsocks.client", ALL_PROXY=f"socks5://{PROXY}:{PORT}"
        )
        found["excepted"] = run(
            "http_by_urllib", "-m", "muonsocks.client", ALL_PROXY=through, NO_PROXY="example"
        )
        found["socks4a"] = run(
            "datagrams", "-m", "muonsocks.client", ALL_PROXY=f"socks4a://{PROXY}:{PORT}"
        )
        found["direct"] = run("http_by_urllib")
        found["direct datagrams"] = run("datagrams")
        assert NAME in dns.asked
    assert "Traceback" not in (work / "log").read_text()


pytestmark = pytest.mark.xdist_group("socksified programs")


@pytest.mark.parametrize("what", EXPECTED)
def test_nothing_leaves_but_to_the_proxy(outcomes: dict[str, Outcome], what: str) -> None:
    one = outcomes[what]
    assert one.output == EXPECTED[what], one.errors
    assert (one.status, one.errors) == (0, "")
    if what == "own_host":
        assert one.to_proxy == 0
        assert all("127.0.0.1" in other for other in one.others)
    else:
        assert one.to_proxy > 0
        assert not one.others


def test_requests_need_no_pysocks_if_they_do_not_know(outcomes: dict[str, Outcome]) -> None:
    one = outcomes["requests, unaware"]
    assert (one.status, one.output) == (0, PAGE), one.errors
    assert one.to_proxy and not one.others


def test_a_child_goes_where_the_option_says(outcomes: dict[str, Outcome]) -> None:
    one = outcomes["by option"]
    assert (one.status, one.output) == (0, PAGE), one.errors
    assert one.to_proxy and not one.others


def test_names_are_looked_up_here_if_the_url_says_so(outcomes: dict[str, Outcome]) -> None:
    one = outcomes["looked up here"]
    assert one.output == PAGE, one.errors
    assert one.to_proxy and one.others
    assert all(f"{PROXY}:53" in other for other in one.others)


def test_exceptions_are_gone_to_directly(outcomes: dict[str, Outcome]) -> None:
    one = outcomes["excepted"]
    assert one.output == PAGE, one.errors
    assert not one.to_proxy
    assert any(f"to {SERVER}:80" in other for other in one.others)


def test_datagrams_go_nowhere_if_the_proxy_cannot_take_them(outcomes: dict[str, Outcome]) -> None:
    one = outcomes["socks4a"]
    assert (one.status, one.output) == (1, "")
    assert "socks4a has no way to ask for" in one.errors
    assert not one.others


def test_the_capture_sees_what_goes_directly(outcomes: dict[str, Outcome]) -> None:
    for what, port in (("direct", 80), ("direct datagrams", 7)):
        one = outcomes[what]
        assert one.status == 0, one.errors
        assert any(f"to {SERVER}:{port}" in other for other in one.others)
        assert any(f"to {PROXY}:53" in other for other in one.others)
        assert not one.to_proxy
