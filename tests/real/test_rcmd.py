"""Rrcmd and a real rshd, under a real inetd: directly, and by a proxy whose ports it trusts."""

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import clients
import pytest
from between import CLIENT, OURS, PROXIES, PROXY, SERVER, here, networks, running
from classic_calls import forget_all
from clients import which
from ends import at_once
from places import in_own_network, sh
from programs import read_all

from muonsocks.client import rsocks
from muonsocks.client.rcmd import CommandRefused

CACHE = os.environ.get("MUONSOCKS_RSH", str(Path.home() / ".cache/muonsocks-tests/rsh"))
RSHD = Path(CACHE) / "usr/sbin/in.rshd"
PORT = 514
SIZE = 3_000_000  # bytes

# Of the hosts whose users rshd takes for what they say, one is that of the proxy.
ETC = {
    "hosts": f"127.0.0.1 localhost\n{OURS} proxy.example\n",
    "hosts.equiv": "proxy.example\n",
    "passwd": "root:x:0:0:root:/root:/bin/sh\nguest:x:4242:4242::/:/bin/sh\n",
    "group": "root:x:0:\nguest:x:4242:\n",
    "shadow": "root:*:20000:0:99999:7:::\nguest:*:20000:0:99999:7:::\n",
    "pam.d/rsh": "auth required pam_rhosts.so\naccount required pam_unix.so\n"
    "session required pam_unix.so\n",
}

# The only ports that a proxy in this network takes, unasked, are those that rshd wants.
RESERVED = (
    "echo 512 > /proc/sys/net/ipv4/ip_unprivileged_port_start",
    "echo 512 1023 > /proc/sys/net/ipv4/ip_local_port_range",
)


@contextlib.contextmanager
def _rsh(place: Path, *prepare: str) -> Iterator[Callable[[Callable[[], None]], None]]:
    """Run rshd and a proxy; gives what calls a function in the client's network."""
    etc, config, log = place / "etc", place / "inetd.conf", place / "log"
    for name, text in ETC.items():
        (etc / name).parent.mkdir(exist_ok=True, parents=True)
        (etc / name).write_text(text)
    config.write_text(f"{SERVER}:{PORT} stream tcp nowait.2000 root {RSHD} in.rshd\n")
    # Read-only: the files are above those of this machine, for this network alone.
    sh(f"mount -t overlay overlay -o lowerdir={etc}:/etc /etc")
    inetd = [which("inetd"), "-d", str(config)]
    with networks() as (nearer, there):
        sh(*prepare)
        with (
            running(there, inetd, place / "inetd.log", (SERVER, PORT), cwd="/"),
            running(here, [*PROXIES["muonsocks"], "--drain-timeout=0.1"], log, PROXY),
        ):
            yield nearer
    assert "Traceback" not in log.read_text()


def _both(sock: socket.socket, stderr: socket.socket | None) -> tuple[bytes, bytes]:
    """What the command says on both channels, up to its end."""
    assert stderr is not None
    with sock, stderr:
        output, errors = at_once(lambda: read_all(sock), lambda: read_all(stderr))
    return output, errors


def _run(command: str) -> tuple[socket.socket, socket.socket | None]:
    return rsocks.Rrcmd(SERVER, PORT, "guest", "guest", command, True, timeout=clients.SECONDS)


def _commands() -> None:
    """Have commands run by a host that trusts whoever comes from here."""
    sock, stderr = _run("echo output; echo errors >&2; id -un; read word; echo $word; exit 3")
    sock.sendall(b"input\n")
    assert _both(sock, stderr) == (b"output\nguest\ninput\n", b"errors\n")

    much = f"head -c {SIZE} /dev/zero | tr '\\0'"
    output, errors = _both(*_run(f"{much} e >&2 & {much} o; wait"))
    assert output == b"o" * SIZE
    assert errors == b"e" * SIZE

    sock, stderr = _run("echo ready; exec sleep 1000")
    assert stderr is not None and read_all(sock, 6) == b"ready\n"
    stderr.sendall(bytes((signal.SIGTERM,)))
    assert _both(sock, stderr) == (b"", b"")

    sock, none = rsocks.Rrcmd(SERVER, PORT, "guest", "guest", "echo output; echo errors >&2")
    with sock:
        assert none is None
        assert read_all(sock) == b"output\nerrors\n"

    for with_stderr in (True, False):
        with pytest.raises(CommandRefused, match=f"{SERVER}: Permission denied"):
            rsocks.Rrcmd(SERVER, PORT, "mallory", "guest", "id", with_stderr)


@pytest.fixture(autouse=True)
def _ready(monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := clients.missing("inetd"):
        pytest.skip(reason)
    if not RSHD.exists():
        pytest.skip(f"no rshd in {CACHE}: tests/run unpacks it (Debian package rsh-server)")
    forget_all(monkeypatch)
    monkeypatch.setenv("all_proxy", f"socks5h://{PROXY[0]}")


def test_by_a_proxy(tmp_path: Path) -> None:
    def check() -> None:
        with _rsh(tmp_path, *RESERVED) as nearer:
            nearer(_commands)

    in_own_network(check)
    bound = [line for line in (tmp_path / "log").read_text().splitlines() if " bound " in line]
    assert len(bound) == 4, "a BIND for each standard error"
    assert all(f"client={CLIENT}:" in line and f"listen={OURS}:" in line for line in bound)


def test_without_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", SERVER)

    def check() -> None:
        with _rsh(tmp_path):
            _commands()

    in_own_network(check)
    assert f"target={SERVER}" not in (tmp_path / "log").read_text()


def test_by_a_proxy_with_ports_of_any_user(tmp_path: Path) -> None:
    """rshd hangs up, and a program is told so."""

    def refused() -> None:
        for with_stderr in (True, False):
            with pytest.raises(ConnectionError):
                rsocks.Rrcmd(SERVER, PORT, "guest", "guest", "id", with_stderr)

    def check() -> None:
        with _rsh(tmp_path) as nearer:
            nearer(refused)

    in_own_network(check)
