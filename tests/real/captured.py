"""Programs in a network with one cable, and whatever goes through that cable.

    inner: the program, as nobody -- the cable, which is looked at -- outer: the proxy, and servers

There is a way for everything: outer has a name server and forwards nothing, but is everybody, so
that a program works without the proxy as well, and is seen.

    with world() as there:
        outcome = there.run(["curl", there.url], mode="hold")
        outcome.leaks, outcome.proxied
"""

import contextlib
import os
import shutil
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import clients
from clients import MUONSOCKS, NAME, ROOT, TARGET, Network, Web
from compiled import GO, compiled
from nameserver import Nameserver, resolv_conf
from packets import Capture, open_capture, open_marks
from places import in_network_of
from test_pysocks_users import certificate

SOCKSIFY = str(ROOT / "bin" / "socksify")
PYTHON = "/usr/bin/python3"
REAPER = str(Path(__file__).with_name("leak_reaper.py"))
NOBODY = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--inh-caps=-all"]
MODES = ("hold", "async", "isolate")
OUTER, INNER, RESOLVER = "198.51.100.1", "198.51.100.2", "203.0.113.53"
OUTER6, INNER6 = "2001:db8:1::1", "2001:db8:1::2"
PROXY = (OUTER, 1080)
HTTPS_PORT, GIT_HTTP_PORT, GIT_PORT = 443, 8080, 9418
SECONDS = 60
GIVEN_UP = "-"  # for a target, in the log of who has been told none

# No address is looked for or solicited: the ends know each other. What joins a group says so
# at once.
_PREPARE_INNER = """\
echo 0 > /proc/sys/net/ipv6/conf/default/accept_ra
echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
echo 0 > /proc/sys/net/ipv6/conf/default/router_solicitations
echo 1 > /proc/sys/net/ipv6/conf/default/mldv2_unsolicited_report_interval
echo 1 > /proc/sys/net/ipv4/igmp_qrv
echo 1 > /proc/sys/net/ipv4/conf/default/igmpv3_unsolicited_report_interval
echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range
ip link set lo up
for name in hosts resolv.conf nsswitch.conf; do mount --bind "$1/inner/$name" /etc/$name; done
echo ready
exec sleep 3600
"""
_JOIN = f"""\
ip link set outer up
ip address add {OUTER}/24 dev outer
ip address add {OUTER6}/64 dev outer nodad
ip address add {RESOLVER}/32 dev lo
ip neighbour replace {INNER} lladdr 02:00:00:00:00:02 dev outer
ip neighbour replace {INNER6} lladdr 02:00:00:00:00:02 dev outer
"""
_JOIN_INNER = f"""\
ip link set inner up
ip address add {INNER}/24 dev inner
ip address add {INNER6}/64 dev inner nodad
ip neighbour replace {OUTER} lladdr 02:00:00:00:00:01 dev inner
ip neighbour replace {OUTER6} lladdr 02:00:00:00:00:01 dev inner
ip neighbour replace fe80::1 lladdr 02:00:00:00:00:01 dev inner
ip route add default via {OUTER}
ip route add default via {OUTER6}
"""


class Outcome(NamedTuple):
    """What came of a program: what it said, and what was seen of it."""

    status: int
    output: str
    proxied: list[str]  # where to, of each connection that the proxy logged
    to_proxy: int  # packets
    leaks: list[str]  # what was not to the proxy
    asked: list[str]  # of the name server, which nobody is to ask


class World:
    """Both networks. `outer` may have more servers, `work` more files; all can read those."""

    def __init__(self, outer: Network, inner: Network, capture: Capture, ns: Nameserver) -> None:
        self.outer, self.inner, self.work = outer, inner, outer.work
        self.home = self.work / "home"
        self.url = f"http://{NAME}:{outer.web[TARGET]}/1000"
        self._capture = capture
        self._nameserver = ns
        self.proxy_log = self.work / "proxy.log"
        self._log_start = 0

    def command(
        self,
        command: list[str],
        mode: str = "",
        *,
        proxy: tuple[str, int] = PROXY,
        is_root: bool = False,
        options: tuple[str, ...] = (),
    ) -> list[str]:
        """Give the words that run a command: as nobody, in the inner network, until all are gone
        that came of it; under socksify if there is a mode.
        """
        words = self.inner.command([PYTHON, "-IS", REAPER, *([] if is_root else NOBODY)])
        if mode:
            host = f"[{proxy[0]}]" if ":" in proxy[0] else proxy[0]
            words += [SOCKSIFY, f"--mode={mode}", f"--proxy=socks5h://{host}:{proxy[1]}"]
            words += [*options, "--"]
        return words + command

    @property
    def environ(self) -> dict[str, str]:
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        return {"PATH": path, "HOME": str(self.home), "PYTHONDONTWRITEBYTECODE": "1"}

    def run(self, command: list[str], mode: str = "", **named: object) -> Outcome:
        """Run a command to the end of all that came of it, and tell what was seen."""
        self.begin()
        whole = self.command(command, mode, **named)  # type: ignore[arg-type]
        done = subprocess.run(
            whole,
            env=self.environ,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SECONDS,
        )
        return self.seen(done.returncode, done.stdout.decode(errors="backslashreplace"), **named)

    def begin(self) -> None:
        """Forget what has been seen."""
        self._capture.packets()
        self._nameserver.asked.clear()
        self._log_start = len(self.proxy_log.read_bytes())

    def seen(
        self, status: int = 0, output: str = "", proxy: tuple[str, int] = PROXY, **_: object
    ) -> Outcome:
        """Tell what has been seen since the beginning."""
        packets = self._capture.packets()
        leaks = [leak for packet in packets if (leak := packet.leak(proxy))]
        mine = [packet for packet in packets if packet.destination == proxy]
        if proxy == PROXY:
            self.wait_for_targets(len({packet.begins for packet in mine} - {0}))
        asked = list(self._nameserver.asked)
        proxied = [target for target in targets(self._log()) if target != GIVEN_UP]
        return Outcome(status, output, proxied, len(mine), leaks, asked)

    def _log(self) -> str:
        return self.proxy_log.read_bytes()[self._log_start :].decode()

    def wait_for_targets(self, count: int) -> None:
        """Let the proxy say of so many connections what has become of them."""
        deadline = time.monotonic() + SECONDS
        while len(targets(self._log())) < count:
            assert time.monotonic() < deadline, self._log()
            time.sleep(0.005)  # nothing tells of a line in a log


def targets(log: str) -> list[str]:
    """Give where each connection was to lead, of the log of a proxy."""
    ended = [line for line in log.splitlines() if " end=" in line]
    words = [word for line in ended for word in line.split() if word.startswith("target=")]
    return [word.removeprefix("target=") for word in words]


def missing(*programs: str) -> str | None:
    """Why programs cannot be run here, or None."""
    return clients.missing("unshare", "nsenter", "ip", "openssl", "setpriv", *programs)


@contextlib.contextmanager
def world() -> Iterator[World]:
    """Make both networks, with a proxy, and with servers of pages."""
    with contextlib.ExitStack() as stack:
        work = Path(tempfile.mkdtemp(prefix="muonsocks-leaks-"))
        stack.callback(shutil.rmtree, work)
        work.chmod(0o755)
        (work / "home").mkdir()
        (work / "home").chmod(0o1777)
        outer = stack.enter_context(clients.network(work))
        inner = stack.enter_context(_inner_network(work))
        mac = "address 02:00:00:00:00:0"
        _do(
            outer,
            f"ip link add outer {mac}1 type veth peer name inner {mac}2 netns {inner.holder}",
        )
        _do(outer, _JOIN)
        end = in_network_of(outer.holder, lambda: open_capture("outer", is_outgoing=False))
        stack.enter_context(end)
        _do(inner, _JOIN_INNER)  # nothing has come from there before
        begin = in_network_of(inner.holder, lambda: open_capture("inner", is_outgoing=True))
        stack.enter_context(begin)
        marks = stack.enter_context(in_network_of(inner.holder, lambda: open_marks("inner")))
        capture = Capture(begin, end, marks)
        ns = in_network_of(outer.holder, lambda: Nameserver(RESOLVER, {NAME: TARGET}, frozenset()))
        stack.callback(in_network_of, outer.holder, ns.close)
        there = World(outer, inner, capture, ns)
        _start_proxy(stack, there)
        yield there


def _do(net: Network, script: str) -> None:
    done = subprocess.run(
        net.command(["sh", "-ec", script]),
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def _inner_network(work: Path) -> Iterator[Network]:
    files = work / "inner"
    files.mkdir()
    (files / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    (files / "resolv.conf").write_text(resolv_conf(RESOLVER).replace("timeout:30", "timeout:5"))
    (files / "nsswitch.conf").write_text("hosts: files dns\n")
    holder = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "sh", "-ec"]
        + [_PREPARE_INNER, "sh", str(work)],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    with holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"ready\n"
            yield Network(holder.pid, work, work / "log")
        finally:
            holder.kill()


def _start_proxy(stack: contextlib.ExitStack, there: World) -> None:
    log, there.proxy_log = there.outer._log, there.proxy_log
    there.proxy_log.touch()
    there.outer._log = there.proxy_log
    try:
        command = [MUONSOCKS, "--allow-local", f"-i{PROXY[0]}", f"-p{PROXY[1]}", "--workers=1"]
        there.outer.start(stack, command, PROXY)
    finally:
        there.outer._log = log
    there.wait_for_targets(1)  # which was to see whether it is there


# More servers


def serve_https(stack: contextlib.ExitStack, there: World) -> str:
    """Serve pages by HTTPS; give the certificate of who has signed it."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate(there.work, NAME, TARGET))
    (there.work / "public.pem").chmod(0o644)
    server = ThreadingHTTPServer((TARGET, HTTPS_PORT), Web, bind_and_activate=False)
    server.socket.close()
    plain = there.outer.socket((TARGET, HTTPS_PORT))
    server.socket = context.wrap_socket(plain, server_side=True)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    stack.callback(server.server_close)
    stack.callback(thread.join)
    stack.callback(server.shutdown)
    return str(there.work / "public.pem")


def serve_git(stack: contextlib.ExitStack, there: World) -> None:
    """Serve a repository `it` by git's own protocol, and as files by HTTP."""
    place = there.work / "git"
    place.mkdir()
    environ = {**os.environ, "HOME": str(there.work), "GIT_CONFIG_NOSYSTEM": "1"}
    for words in (
        ["init", "-q", "--bare", str(place / "it")],
        ["-C", str(place / "it"), "update-server-info"],
    ):
        subprocess.run(["git", *words], check=True, env=environ, capture_output=True)
    tree = subprocess.run(
        ["git", "-C", str(place / "it"), "hash-object", "-t", "tree", "-w", "--stdin"],
        input=b"",
        check=True,
        capture_output=True,
    ).stdout.decode()
    who = ["-c", "user.name=x", "-c", "user.email=x@example"]
    git = ["git", "-C", str(place / "it"), *who]
    commit = subprocess.run(
        [*git, "commit-tree", "-m", "first", tree.strip()], check=True, capture_output=True
    ).stdout.decode()
    head = (place / "it" / "HEAD").read_text().split()[1]
    subprocess.run([*git, "update-ref", head, commit.strip()], check=True)
    subprocess.run([*git, "update-server-info"], check=True)
    daemon = ["git", "daemon", f"--listen={TARGET}", f"--port={GIT_PORT}", "--export-all"]
    there.outer.start(stack, [*daemon, f"--base-path={place}"], (TARGET, GIT_PORT))
    files = [PYTHON, "-m", "http.server", "--bind", TARGET, "--directory", str(place)]
    there.outer.start(stack, [*files, str(GIT_HTTP_PORT)], (TARGET, GIT_HTTP_PORT))


def serve_ssh(stack: contextlib.ExitStack, there: World) -> Path:
    """Run an sshd; give a key that it lets in, and that nobody can read, as ssh wants it."""
    stack.enter_context(clients.sshd(there.outer))
    key = there.home / "key"
    shutil.copy(there.work / "ssh" / "client", key)
    shutil.chown(key, "nobody")
    key.chmod(0o600)
    return key


# Programs that are compiled

HERE = Path(__file__).parent
BUILDS = {
    "static C": ("leak_fetch.c", "gcc", "-O", "-w", "-static"),
    "static musl": ("leak_fetch.c", "musl-gcc", "-O", "-static"),
    "static Go": ("leak_fetch.go", *GO),
    "hostile C": ("leak_hostile.c", "gcc", "-O", "-w", "-pthread"),
}


def build(there: World, name: str) -> str:
    """Compile one of BUILDS; give where it is."""
    name = name.partition(",")[0]
    place = there.work / name.replace(" ", "-")
    source, *words = BUILDS[name]
    if place.exists():
        return str(place / Path(source).stem)
    place.mkdir()
    place.chmod(0o755)
    return compiled(place, HERE / source, *words)
