"""socks-connect as people use it: ssh, git, scripts and programs of others, over real proxies."""

import contextlib
import hashlib
import socket
import subprocess
import threading
from collections.abc import Iterator

import clients
import pytest
import upstreams
from clients import NAME, SECONDS, TARGET, TARGET6, Network, body, ssh
from programs import ROOT
from real_server import until
from upstreams import DANTE_LOGIN, HAVE_PASSWORDS, HOST, LOGIN, UPSTREAMS, url

pytestmark = pytest.mark.xdist_group("socks-connect")  # one network

CONNECT = str(ROOT / "bin" / "socks-connect")
ALL = [(name, scheme) for name, schemes in UPSTREAMS.items() for scheme in schemes]
ENDING_TOO_SOON = ("microsocks", "tinyproxy")  # they take the end of one side for that of both
RESOLVER = (HOST, 2060)
SIZE = 100_000_000  # bytes


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    if reason := clients.missing("unshare", "nsenter", "ip"):
        pytest.skip(reason)
    work = tmp_path_factory.mktemp("socks-connect")
    with clients.network(work) as net, contextlib.ExitStack() as stack:
        for name in UPSTREAMS:
            if not upstreams.missing(name):
                upstreams.start(net, stack, name)
                if name in HAVE_PASSWORDS:
                    upstreams.start(net, stack, name, with_password=True)
        if upstreams.missing("ssh") is None:  # whose sshd is that of all
            (work / "big").write_bytes(body(SIZE))
        resolver = [clients.MUONSOCKS, f"-i{HOST}", f"-p{RESOLVER[1]}", "--workers=1"]
        net.start(stack, [*resolver, "--resolve-commands"], RESOLVER)
        yield net
    print(net.log)
    assert "Traceback" not in net.log and "this is a bug" not in net.log


def need(*names: str) -> None:
    for name in names:
        if reason := upstreams.missing(name):
            pytest.skip(reason)


def piped(net: Network, command: list[str], data: bytes) -> subprocess.CompletedProcess[bytes]:
    """Run it with these bytes on a pipe, which ends after them."""
    return subprocess.run(net.command(command), input=data, capture_output=True, timeout=SECONDS)


def get(net: Network, host: str, size: int, *words: str) -> subprocess.CompletedProcess[bytes]:
    """Ask the web server for so many bytes, and say that this was all."""
    port = str(net.web[TARGET6 if host == TARGET6 else TARGET])
    return piped(net, [CONNECT, *words, host, port], b"GET /%d HTTP/1.0\r\n\r\n" % size)


def fetch(net: Network, host: str, size: int, *words: str) -> subprocess.CompletedProcess[bytes]:
    """The same without saying that this was all: by a program."""
    port = str(net.web[TARGET6 if host == TARGET6 else TARGET])
    script = f"printf 'GET /{size} HTTP/1.0\\r\\n\\r\\n' >&7; exec cat <&6"
    return net.run([CONNECT, *words, host, port, "sh", "-c", script])


def content(done: subprocess.CompletedProcess[bytes]) -> bytes:
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize(("name", "scheme"), ALL)
def test_a_page(net: Network, name: str, scheme: str) -> None:
    """By each proxy, in each protocol it speaks."""
    need(name)
    proxy = f"--proxy={url(name, scheme)}"
    for host in (TARGET, NAME):
        assert content(fetch(net, host, 1 << 20, proxy)) == body(1 << 20)
        if name not in ENDING_TOO_SOON:
            assert content(get(net, host, 1 << 20, proxy)) == body(1 << 20)


@pytest.mark.parametrize("name", HAVE_PASSWORDS)
def test_passwords(net: Network, name: str) -> None:
    need(name)
    login = DANTE_LOGIN if name == "dante" else LOGIN
    scheme = UPSTREAMS[name][-1]
    assert content(fetch(net, TARGET, 1000, f"--proxy={url(name, scheme, login)}")) == body(1000)
    wrong = get(net, TARGET, 1000, f"--proxy={url(name, scheme, login + 'x')}")
    assert (wrong.returncode, wrong.stdout) == (97, b"")
    assert b": it " in wrong.stderr


def test_ipv6(net: Network) -> None:
    done = get(net, TARGET6, 1000, f"--proxy={url('muonsocks', 'socks5')}")
    assert content(done) == body(1000)


def test_through_two(net: Network) -> None:
    need("microsocks", "muonsocks")
    words = [f"--proxy={url('microsocks', 'socks5')}", f"--proxy={url('muonsocks', 'socks4a')}"]
    assert content(fetch(net, NAME, 1000, *words)) == body(1000)


@pytest.mark.parametrize(("name", "scheme"), ALL)
def test_nobody_listens_there(net: Network, name: str, scheme: str) -> None:
    """The status is the one of curl."""
    need(name)
    proxy = url(name, scheme)
    done = net.run([CONNECT, f"--proxy={proxy}", TARGET, "9"])
    assert (done.returncode, done.stdout) == (97, b"")
    assert proxy.encode() in done.stderr
    if scheme != "http":  # for which it has another one
        if reason := clients.missing("curl"):
            pytest.skip(reason)
        assert net.run(["curl", "-s", "-x", proxy, f"http://{TARGET}:9/"]).returncode == 97


# ssh


def logged_in(net: Network, way: str, command: str) -> list[str]:
    return [*ssh(f"{CONNECT} {way} %h %p", net.work / "ssh" / "client"), command]


@pytest.mark.parametrize("name", ["muonsocks", "dante", "ssh", "tinyproxy"])
def test_100_mb_by_ssh(net: Network, name: str) -> None:
    need("ssh", name)
    way = f"--proxy={url(name, UPSTREAMS[name][-1])}"
    done = net.run(logged_in(net, way, f"cat {net.work}/big"))
    assert (done.returncode, done.stderr) == (0, b"")
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(body(SIZE)).digest()


def test_100_mb_to_ssh(net: Network) -> None:
    need("ssh")
    command = logged_in(net, f"--proxy={url('muonsocks', 'socks5h')}", "sha256sum")
    done = piped(net, command, body(SIZE))
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.split()[0].decode() == hashlib.sha256(body(SIZE)).hexdigest()


@pytest.mark.parametrize("command", ["true", "exit 7", "kill -9 $PPID"])
def test_it_is_gone_when_ssh_is(net: Network, command: str) -> None:
    """And says nothing, unless the server has gone without a word."""
    need("ssh")
    for _ in range(3):
        done = net.run(logged_in(net, f"--proxy={url('muonsocks', 'socks5h')}", command))
        assert done.returncode == {"true": 0, "exit 7": 7}.get(command, 255)
        if done.returncode != 255:
            assert done.stderr == b""
    words = ["pgrep", "-f", f"{CONNECT} --proxy={url('muonsocks', 'socks5h')} {TARGET}"]
    until("it is gone", lambda: not net.run(words).stdout)


def test_git(net: Network) -> None:
    if reason := clients.missing("git"):
        pytest.skip(reason)
    need("ssh")
    work, copy = net.work / "repository", net.work / "clone"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C", str(work)]
    subprocess.run(["git", "init", "-q", str(work)], check=True)
    (work / "file").write_bytes(body(5_000_000))
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    proxy = f"{CONNECT} --proxy={url('muonsocks', 'socks5h')} %h %p"
    *options, where = ssh(proxy, net.work / "ssh" / "client")
    quoted = " ".join(f"'{word}'" for word in options)
    command = [
        "env",
        f"GIT_SSH_COMMAND={quoted}",
        "git",
        "clone",
        "-q",
        f"{where}:{work}",
        str(copy),
    ]
    done = net.run(command)
    assert done.returncode == 0, done.stderr
    assert (copy / "file").read_bytes() == body(5_000_000)


# Programs of UCSPI


def test_a_program_of_ucspi_tcp(net: Network) -> None:
    """mconnect-io copies between its standard input and output and descriptors 6 and 7."""
    if reason := clients.missing("mconnect-io"):
        pytest.skip(reason)
    words = [f"--proxy={url('muonsocks', 'socks5h')}", TARGET, str(net.web[TARGET]), "mconnect-io"]
    done = piped(net, [CONNECT, *words], b"GET /1000 HTTP/1.0\n\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(body(1000))


def test_it_is_told_what_tcpclient_tells(net: Network) -> None:
    if reason := clients.missing("tcpclient"):
        pytest.skip(reason)
    tell = ["sh", "-c", "env | grep -E '^(TCP|PROTO)' | sort"]
    where = [TARGET, str(net.web[TARGET])]
    theirs = net.run(["tcpclient", "-HRl0", *where, *tell]).stdout.decode().splitlines()
    ours = net.run([CONNECT, *where, *tell]).stdout.decode().splitlines()

    def but(lines: list[str]) -> list[str]:
        return [line for line in lines if not line.startswith(("TCPLOCALPORT=", "TCPLOCALHOST="))]

    assert but(ours) == but(theirs) and len(but(ours)) == 4


# What else than to connect


@pytest.mark.parametrize("scheme", ["socks4", "socks5", "socks5h"])
def test_a_file_to_who_comes(net: Network, scheme: str) -> None:
    """A shell script reads where that is, and the rest is for another program."""
    script = """
"$@" < "$file" | {
    read address port
    echo "$address $port"
    sha256sum
}"""
    data = body(1 << 20)
    (net.work / "file").write_bytes(data)
    command = [CONNECT, f"--proxy={url('muonsocks', scheme)}", "--bind", TARGET, "0"]
    words = ["env", f"file={net.work}/file", "sh", "-ec", script, "sh", *command]
    with subprocess.Popen(net.command(words), stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            address, port = process.stdout.readline().decode().split()
            with net.socket((address, int(port)), connect=True) as peer:
                sender = threading.Thread(target=peer.sendall, args=(data[::-1],))
                sender.start()
                got = b""
                while piece := peer.recv(1 << 16):
                    got += piece
                sender.join()
                peer.shutdown(socket.SHUT_WR)
            digest = process.stdout.read().split()[0].decode()
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()
    assert got == data
    assert digest == hashlib.sha256(data[::-1]).hexdigest()


@pytest.mark.parametrize("what", [NAME, TARGET])
def test_what_tor_resolve_finds(net: Network, what: str) -> None:
    if reason := clients.missing("tor-resolve"):
        pytest.skip(reason)
    where = f"{RESOLVER[0]}:{RESOLVER[1]}"
    theirs = net.run(["tor-resolve", "-x" if what == TARGET else "-5", what, where])
    ours = net.run([CONNECT, f"--proxy=socks5h://{where}", "--resolve", what])
    assert ours.stdout and ours.stdout == theirs.stdout


def test_who_cannot_look_up(net: Network) -> None:
    for name in ("microsocks", "dante", "ssh"):
        if upstreams.missing(name) is None:
            done = net.run([CONNECT, f"--proxy={url(name, 'socks5')}", "--resolve", NAME])
            assert (done.returncode, done.stdout) == (97, b""), name
