"""Clients as people use them, through a process for each connection and servers that stay."""

import contextlib
import hashlib
import subprocess
from collections.abc import Iterator

import clients
import pytest
from clients import NAME, TARGET, TARGET6, Network, body

PYTHON = "/usr/bin/python3"
PLAIN, GUARDED, PLAIN6 = ("127.0.0.1", 1080), ("127.0.0.1", 1081), ("::1", 1080)
MUCH = 32 << 20  # bytes

EACH_SERVER = [
    pytest.param(server, marks=pytest.mark.xdist_group(f"clients of {server}"))  # a network each
    for server in clients.SERVERS
]


@pytest.fixture(scope="module", params=EACH_SERVER)
def net(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Network]:
    server = request.param
    if reason := clients.missing("unshare", "nsenter", "ip", "systemd-socket-activate"):
        pytest.skip(reason)
    work = tmp_path_factory.mktemp("clients")
    users = work / "users"
    users.write_text("alice:secret\n")
    with clients.network(work) as net, contextlib.ExitStack() as stack:
        net.proxy(stack, server, PLAIN, ["-v"])
        net.proxy(stack, server, GUARDED, [f"--users={users}"])
        net.proxy(stack, server, PLAIN6, [])
        yield net
    assert "Traceback" not in net.log and "this is a bug" not in net.log


def need(*programs: str) -> None:
    if reason := clients.missing(*programs):
        pytest.skip(reason)


def need_module(name: str) -> None:
    done = subprocess.run([PYTHON, "-c", f"import {name}"], capture_output=True)
    if done.returncode:
        pytest.skip(f"{PYTHON} has no {name}: tests/run installs it")


def url(net: Network, host: str, size: int) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{net.web[TARGET if host == NAME else host]}/{size}"


def at(address: tuple[str, int]) -> str:
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


# curl

CURL = ["curl", "--silent", "--show-error", "--max-time", "50"]
CURLS = {
    "--socks4": (PLAIN, TARGET),
    "--socks4 name": (PLAIN, NAME),
    "--socks4a": (PLAIN, NAME),
    "--socks4a address": (PLAIN, TARGET),
    "--socks5": (PLAIN, TARGET),
    "--socks5 name": (PLAIN, NAME),
    "--socks5 IPv6": (PLAIN, TARGET6),
    "--socks5-hostname": (PLAIN, NAME),
    "--socks5-hostname address": (PLAIN, TARGET),
    "--socks5-hostname IPv6": (PLAIN, TARGET6),
    "--socks4 over IPv6": (PLAIN6, TARGET),
    "--socks4a over IPv6": (PLAIN6, NAME),
    "--socks5 over IPv6": (PLAIN6, TARGET6),
    "--socks5-hostname over IPv6": (PLAIN6, NAME),
}


@pytest.mark.parametrize("how", CURLS)
def test_curl(net: Network, how: str) -> None:
    need("curl")
    proxy, host = CURLS[how]
    done = net.run([*CURL, how.split()[0], at(proxy), url(net, host, 1000)])
    assert (done.returncode, done.stdout, done.stderr) == (0, body(1000), b"")


@pytest.mark.parametrize(
    ("user", "status"),
    [("alice:secret", 0), ("alice:guess", 97), ("mallory:secret", 97), ("alice:", 97), (None, 97)],
)
def test_curl_with_a_password(net: Network, user: str | None, status: int) -> None:
    """97 is CURLE_PROXY."""
    need("curl")
    login = ["--proxy-user", user] if user else []
    for option, host in (("--socks5", TARGET), ("--socks5-hostname", NAME)):
        done = net.run([*CURL, option, at(GUARDED), *login, url(net, host, 10)])
        assert done.returncode == status
        assert done.stdout == (b"" if status else body(10))


@pytest.mark.parametrize("option", ["--socks4", "--socks4a"])
def test_curl_socks4_where_passwords_are_required(net: Network, option: str) -> None:
    need("curl")
    done = net.run([*CURL, option, at(GUARDED), url(net, TARGET, 10)])
    assert (done.returncode, done.stdout) == (97, b"")


@pytest.mark.parametrize("option", ["--socks4", "--socks5", "--socks5-hostname"])
def test_curl_to_this_host_s_own_side(net: Network, option: str) -> None:
    need("curl")
    done = net.run([*CURL, option, at(PLAIN), "http://localhost:1080/"])
    assert (done.returncode, done.stdout) == (97, b"")
    assert b"refus" in done.stderr or b"SOCKS" in done.stderr or b"connection" in done.stderr


def test_curl_to_a_port_that_is_closed(net: Network) -> None:
    need("curl")
    done = net.run([*CURL, "--socks5", at(PLAIN), f"http://{TARGET}:1/"])
    assert (done.returncode, done.stdout) == (97, b"")
    assert b"(5)" in done.stderr  # connection refused, RFC 1928 section 6


@pytest.mark.parametrize("proxy", [PLAIN, PLAIN6], ids=at)
def test_curl_much_down_and_up(net: Network, proxy: tuple[str, int]) -> None:
    need("curl")
    data = body(MUCH)
    socks = [*CURL, "--socks5-hostname", at(proxy)]
    done = net.run([*socks, url(net, NAME, MUCH)])
    assert done.returncode == 0
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()
    upload = net.work / "upload"
    upload.write_bytes(data)
    done = net.run([*socks, "--upload-file", str(upload), url(net, NAME, 0)])
    assert done.returncode == 0
    assert done.stdout == f"{MUCH} {hashlib.sha256(data).hexdigest()}".encode()


def test_curl_many_at_once(net: Network) -> None:
    need("curl")
    urls = [url(net, NAME, size) for size in range(1000, 1040)]
    done = net.run([*CURL, "--parallel", "--socks5-hostname", at(PLAIN), *urls])
    assert done.returncode == 0
    assert len(done.stdout) == sum(range(1000, 1040))


# ssh, through netcat


@pytest.fixture(scope="module")
def sshd(net: Network) -> Iterator[None]:
    need("sshd", "ssh", "ssh-keygen", "nc")
    with clients.sshd(net):
        yield


@pytest.mark.parametrize("version", ["5", "4"])
def test_ssh(net: Network, sshd: None, version: str) -> None:
    data = body(1 << 20)
    upload = net.work / "ssh" / f"upload{version}"
    upload.write_bytes(data)
    proxy = f"nc -X {version} -x {at(PLAIN)} %h %p"
    ssh = clients.ssh(proxy, net.work / "ssh" / "client")
    redirected = ["sh", "-c", 'file=$1; shift; exec "$@" <"$file"', "sh", str(upload)]
    done = net.run([*redirected, *ssh, "cat"])
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == data
    assert net.run([*ssh, "exit 42"]).returncode == 42


# What is put in front of a program


@pytest.mark.parametrize(
    ("line", "works"),
    [
        ("socks5 127.0.0.1 1080", True),
        ("socks4 127.0.0.1 1080", True),
        ("socks5 127.0.0.1 1081 alice secret", True),
        ("socks5 127.0.0.1 1081 alice guess", False),
        ("socks4 127.0.0.1 1081", False),
    ],
)
@pytest.mark.parametrize("host", [TARGET, NAME])
def test_proxychains(net: Network, line: str, works: bool, host: str) -> None:
    need("proxychains4", "curl")
    config = net.work / "proxychains.conf"
    config.write_text(f"strict_chain\nproxy_dns\nquiet_mode\n[ProxyList]\n{line}\n")
    proxychains = ["proxychains4", "-q", "-f", str(config)]
    done = net.run([*proxychains, *CURL, "--noproxy", "*", url(net, host, 1000)])
    assert (done.returncode == 0) == works
    assert done.stdout == (body(1000) if works else b"")


@pytest.mark.parametrize("host", [TARGET, NAME])
@pytest.mark.parametrize("password", [None, "secret", "guess"])
def test_torsocks(net: Network, password: str | None, host: str) -> None:
    """Names it resolves by Tor's own command 0xf0, which is refused: it needs an address."""
    need("torsocks", "curl")
    port = PLAIN[1] if password is None else GUARDED[1]
    login = ["-u", "alice", "-p", password] if password else []
    torsocks = ["torsocks", "-a", "127.0.0.1", "-P", str(port), *login]
    done = net.run([*torsocks, *CURL, url(net, host, 1000)])
    works = password != "guess" and host == TARGET
    assert done.stdout == (body(1000) if works else b"")
    assert (done.returncode == 0) == works


# Libraries

PYSOCKS = """
import socket, socks, sys
kind, host, port, proxy_host, proxy_port, user, password, rdns = sys.argv[1:]
sock = socks.socksocket(socket.AF_INET6 if ":" in proxy_host else socket.AF_INET)
sock.settimeout(30)
sock.set_proxy(getattr(socks, kind), proxy_host, int(proxy_port), rdns == "yes",
               user or None, password or None)
sock.connect((host, int(port)))
sock.sendall(b"GET /100000 HTTP/1.0\\r\\n\\r\\n")
data = b"".join(iter(lambda: sock.recv(65536), b""))
sys.stdout.buffer.write(data.partition(b"\\r\\n\\r\\n")[2])
"""
PYTHON_SOCKS = """
import sys
from python_socks import ProxyType
from python_socks.sync import Proxy
kind, host, port, proxy_host, proxy_port, user, password, rdns = sys.argv[1:]
proxy = Proxy.create(getattr(ProxyType, kind), proxy_host, int(proxy_port), user or None,
                     password or None, rdns == "yes")
sock = proxy.connect(host, int(port), timeout=30)
sock.sendall(b"GET /100000 HTTP/1.0\\r\\n\\r\\n")
data = b"".join(iter(lambda: sock.recv(65536), b""))
sys.stdout.buffer.write(data.partition(b"\\r\\n\\r\\n")[2])
"""
AIOHTTP_SOCKS = """
import asyncio, aiohttp, sys
from aiohttp_socks import ProxyConnector, ProxyType
kind, host, port, proxy_host, proxy_port, user, password, rdns = sys.argv[1:]
async def main():
    connector = ProxyConnector(getattr(ProxyType, kind), proxy_host, int(proxy_port), user or None,
                               password or None, rdns == "yes")
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/100000"
    async with aiohttp.ClientSession(connector=connector) as session:
        async with session.get(url, timeout=aiohttp.ClientTimeout(30)) as answer:
            sys.stdout.buffer.write(await answer.read())
asyncio.run(main())
"""
LIBRARIES = {"socks": PYSOCKS, "python_socks": PYTHON_SOCKS, "aiohttp_socks": AIOHTTP_SOCKS}


@pytest.mark.parametrize("module", LIBRARIES)
@pytest.mark.parametrize(
    ("kind", "host", "proxy", "login", "rdns", "works"),
    [
        ("SOCKS5", TARGET, PLAIN, ("", ""), "no", True),
        ("SOCKS5", NAME, PLAIN, ("", ""), "yes", True),
        ("SOCKS5", NAME, PLAIN6, ("", ""), "yes", True),
        ("SOCKS5", TARGET6, PLAIN, ("", ""), "no", True),
        ("SOCKS5", TARGET, GUARDED, ("alice", "secret"), "no", True),
        ("SOCKS5", TARGET, GUARDED, ("alice", "guess"), "no", False),
        ("SOCKS5", TARGET, GUARDED, ("", ""), "no", False),
        ("SOCKS5", "localhost", PLAIN, ("", ""), "yes", False),
        ("SOCKS4", TARGET, PLAIN, ("", ""), "no", True),
        ("SOCKS4", NAME, PLAIN, ("me", ""), "yes", True),
        ("SOCKS4", TARGET, GUARDED, ("alice", ""), "no", False),
    ],
)
def test_library(
    net: Network,
    module: str,
    kind: str,
    host: str,
    proxy: tuple[str, int],
    login: tuple[str, str],
    rdns: str,
    works: bool,
) -> None:
    need_module(module)
    port = net.web[TARGET6 if host == TARGET6 else TARGET]
    arguments = [kind, host, str(port), proxy[0], str(proxy[1]), *login, rdns]
    done = net.run([PYTHON, "-I", "-c", LIBRARIES[module], *arguments])
    assert done.stdout == (body(100000) if works else b"")
    assert (done.returncode == 0) == works


def test_the_log(net: Network, request: pytest.FixtureRequest) -> None:
    """Each connection has its two lines, with who and where."""
    need("curl")
    program = request.node.callspec.params["net"].partition(",")[0]
    port = net.web[TARGET]
    done = net.run([*CURL, "--socks5-hostname", at(PLAIN), url(net, NAME, 1234)])
    assert done.stdout == body(1234)
    lines = [line for line in net.log.splitlines() if f"target={NAME}:{port} " in line]
    assert any(f" address={TARGET}:{port}" in line for line in lines)
    assert all(f" {program}[" in line for line in lines)
    assert all(" client=127.0.0.1:" in line or " client=[::1]:" in line for line in lines)
