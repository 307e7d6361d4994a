"""socketbox in one network, its receivers in others without any interface, clients in a third one.

All of them are real processes, and what is passed on is served by programs that can connect to
nobody.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from box import boxed, queue_length, served_by
from ends import descriptors
from places import another_network, in_own_network, join_networks, root_only, sh
from programs import INETD as SOCKS_INETD
from programs import PYTHON, SECONDS, read_all
from real_server import Server, children, ended, started, until

pytestmark = root_only()

PROGRAM = str(Path(__file__).resolve().parents[2] / "bin" / "socketbox-inetd")
NOWHERE = ("unshare", "--net")  # not even a loopback interface is up there
HOST, HOST_6 = "192.0.2.1", "2001:db8::1"  # where socketbox is
CLIENT, CLIENT_6 = "192.0.2.7", "2001:db8::7"


@contextmanager
def receiving(
    path: Path | str, *program: str, before: tuple[str, ...] = NOWHERE
) -> Iterator[Server]:
    """Run a program in a network of its own for each connection that is passed to a path."""
    with started((*before, PROGRAM, "--drain-timeout=30"), (str(path), *program)) as server:
        yield server


def answers(name: str) -> tuple[str, str, str]:
    """A program that says who it is, who asks for whom, and how many addresses it has itself."""
    who = "$REMOTE_ADDR to $TCPLOCALIP:$TCPLOCALPORT"
    return "/bin/sh", "-c", f'read word; echo "{name}, {who}, $(ip -o address | wc -l)"'


def ask(host: str, port: int = 80) -> str:
    """What a client gets; nothing, if it finds the connection closed."""
    with socket.create_connection((host, port), SECONDS) as client:
        try:
            client.sendall(b"word\n")
            return read_all(client).decode().strip()
        except ConnectionError:
            return ""


@contextmanager
def clients() -> Iterator[Callable[..., Any]]:
    """A network of clients, whose way to everywhere leads through that of the calling thread."""
    with another_network() as there:
        join_networks(there)
        sh(f"ip addr add {HOST}/24 dev near", f"ip addr add {HOST_6}/64 dev near nodad")
        there(sh, f"ip addr add {CLIENT}/24 dev far", f"ip addr add {CLIENT_6}/64 dev far nodad")
        there(sh, f"ip route add default via {HOST}", f"ip route add default via {HOST_6}")
        yield there


# Where what is


def test_receivers_that_have_no_network(tmp_path: Path) -> None:
    """Over IPv4 and IPv6 they serve clients whom they could not reach."""

    def check() -> None:
        path = tmp_path / "r"
        with (
            clients() as there,
            receiving(path, *answers("I")),
            served_by("-S", str(path), "-p", "80"),
        ):
            assert there(ask, HOST) == f"I, {CLIENT} to {HOST}:80, 0"
            assert there(ask, HOST_6) == f"I, {CLIENT_6} to {HOST_6}:80, 0"

    in_own_network(check)


def test_every_address_of_a_network_has_its_receiver(tmp_path: Path) -> None:
    """AnyIP: a /64 leads to a host that has none of its addresses, and a map of them decides."""

    def check() -> None:
        names = ("one", "two", "others")
        rules = tmp_path / "rules"
        rules.write_text(
            "rule-set:0\nip:2001:db8:1::/64 jump-map:0\nmap-set:0\nmatch-lip:128\n"
            f"ip:2001:db8:1::1 jump-unix:{tmp_path}/one\n"
            f"ip:2001:db8:1:0:ffff:ffff:ffff:2 jump-unix:{tmp_path}/two\n"
            f"default jump-unix:{tmp_path}/others\n"
        )
        sh("ip -6 route add local 2001:db8:1::/64 dev lo")
        with ExitStack() as stack:
            there = stack.enter_context(clients())
            for name in names:
                stack.enter_context(receiving(tmp_path / name, *answers(name)))
            stack.enter_context(served_by("-f", str(rules), "-p", "80"))
            for address, name in (
                ("2001:db8:1::1", "one"),
                ("2001:db8:1:0:ffff:ffff:ffff:2", "two"),
                ("2001:db8:1::2", "others"),
                ("2001:db8:1:0:1234:5678:9abc:def0", "others"),
            ):
                assert there(ask, address) == f"{name}, {CLIENT_6} to {address}:80, 0"
            assert there(ask, HOST_6) == "", "that is not of this network"

    in_own_network(check)


# Whatever comes for these networks is for port 8080 here, and goes there by a route of its own.
TPROXY = """
table inet divert {
    chain prerouting {
        type filter hook prerouting priority mangle
        ip daddr 198.51.100.0/24 meta l4proto tcp tproxy ip to :8080 meta mark set 1 accept
        ip6 daddr 2001:db8:2::/48 meta l4proto tcp tproxy ip6 to :8080 meta mark set 1 accept
    }
}
"""


def divert() -> None:
    """Have TPROXY in the network of the calling thread, or skip the test and say why not."""
    nft = shutil.which("nft")
    if not nft:
        pytest.skip("no nft here: tests/run installs it (Debian package nftables)")
    done = subprocess.run([nft, "-f", "-"], input=TPROXY, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no TPROXY in this kernel (CONFIG_NFT_TPROXY): {done.stderr.splitlines()[0]}")
    for version in ("-4", "-6"):
        sh(f"ip {version} rule add fwmark 1 lookup 100")
        sh(f"ip {version} route add local default dev lo table 100")


@pytest.mark.parametrize("option", [(), ("-z",)], ids=["", "-z"])
def test_connections_to_others(tmp_path: Path, option: tuple[str, ...]) -> None:
    """TPROXY: they come here, are looked up by where they were to go, and served as from there."""

    def check() -> None:
        rules = tmp_path / "rules"
        rules.write_text(
            f"rule-set:0\nip:198.51.100.80 port:80 jump-unix:{tmp_path}/web\n"
            f"ip:2001:db8:2::80 port:80 jump-unix:{tmp_path}/web\n"
            f"port:25 jump-unix:{tmp_path}/mail\n"
        )
        divert()
        with ExitStack() as stack:
            there = stack.enter_context(clients())
            for name in ("web", "mail"):
                stack.enter_context(receiving(tmp_path / name, *answers(name)))
            options = ("-f", str(rules), "-p", "8080", "-t", *option)
            stack.enter_context(served_by(*options))
            for client, address, port, name in (
                (CLIENT, "198.51.100.80", 80, "web"),
                (CLIENT, "198.51.100.7", 25, "mail"),
                (CLIENT_6, "2001:db8:2::80", 80, "web"),
                (CLIENT_6, "2001:db8:2:7:8:9:a:b", 25, "mail"),
            ):
                assert there(ask, address, port) == f"{name}, {client} to {address}:{port}, 0"
            assert there(ask, "198.51.100.81", 80) == "", "that is for nobody"

    in_own_network(check)


def test_those_that_wait_for_a_receiver_without_a_network(tmp_path: Path) -> None:
    """While it does not run, its queue takes eleven; the other ones of two hundred wait."""

    def check() -> None:
        path, count = tmp_path / "r", 200
        with (
            receiving(path, "/bin/echo", "hello") as server,
            boxed("-S", str(path), "--queue-timeout=60", workers=2) as box,
            ExitStack() as stack,
        ):
            [worker] = server.worker_pids()
            before = sockets_of(box)
            os.kill(worker, signal.SIGSTOP)
            waiting = [stack.enter_context(box.connect()) for _ in range(count)]
            until("they wait", lambda: sockets_of(box) >= before + count - queue_length())
            assert box.count("passed ") == queue_length()
            os.kill(worker, signal.SIGCONT)
            assert [read_all(client) for client in waiting] == [b"hello\n"] * count
            box.await_log("passed ", count)
            assert box.count("closed ") == 0

    in_own_network(check)


# Under load


class Crowd:
    """Clients of three addresses, some at a time: each has an address of its own, too, by which it
    is known, and is greeted or finds an end.
    """

    def __init__(self, port: int, count: int, at_a_time: int) -> None:
        self.served = 0
        self.lost: list[str] = []
        self.known: list[str] = []
        self._port = port
        self._numbers = iter(range(count))
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._come) for _ in range(at_a_time)]
        for thread in self._threads:
            thread.start()

    def _come(self) -> None:
        while True:
            with self._lock:
                number = next(self._numbers, None)
            if number is None:
                return
            address = f"127.0.0.{number % 3 + 1}", self._port
            name = f"127.1.{number >> 8}.{number & 255}"
            with socket.create_connection(address, SECONDS * 2, (name, 0)) as client:
                try:
                    greeted = read_all(client) == b"hello\n"
                except ConnectionResetError:
                    greeted = False
            with self._lock:
                self.known.append(name)
                if greeted:
                    self.served += 1
                else:
                    self.lost.append(name)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


def open_in(*servers: Server) -> list[Counter[str]]:
    """What all processes of these servers have open, by kind: "socket" and so on, or "file"."""
    pids = [pid for server in servers for pid in (server.pid, *server.worker_pids())]
    links = [descriptors(pid).values() for pid in pids]
    return [
        Counter("file" if one[0] == "/" else one.split(":[")[0] for one in some) for some in links
    ]


def test_a_receiver_that_is_killed_under_load(tmp_path: Path) -> None:
    """5000 connections for three, of which one is killed half-way and started again: who was not
    that one's already is served, and nothing is left open, in socketbox or in the receivers.
    """
    count, at_a_time = 5000, 30
    paths = [tmp_path / name for name in ("one", "two", "three")]
    rules = tmp_path / "rules"
    entries = [f"ip:127.0.0.{number} jump-unix:{path}\n" for number, path in enumerate(paths, 1)]
    rules.write_text("rule-set:0 jump-map:0\nmap-set:0 match-lip:128\n" + "".join(entries))

    def check() -> None:
        hello = ("/bin/echo", "hello")
        options = ("-f", str(rules), "--queue-timeout=60")
        with ExitStack() as stack, boxed(*options, host="0.0.0.0", workers=2) as box:
            one, two, three = (stack.enter_context(receiving(path, *hello)) for path in paths)
            _, port = box.address
            Crowd(port, 60, 3).join()
            servers = (box, one, two, three)
            until("all is closed", lambda: all(map(has_ended, (one, two, three))))
            before, held = open_in(*servers), sockets_of(box)

            crowd = Crowd(port, count, at_a_time)
            until("half of them have come", lambda: len(crowd.known) >= count // 2, SECONDS * 3)
            for pid in (two.pid, *two.worker_pids()):
                os.kill(pid, signal.SIGKILL)
            assert two.status == -signal.SIGKILL
            until("all wait for it", lambda: sockets_of(box) >= held + at_a_time - 10)
            again = stack.enter_context(receiving(paths[1], *hello))
            crowd.join()

            assert len(crowd.known) == len(set(crowd.known)) == count
            passed = {}
            box.await_log("passed ", count + 60)
            form = r"passed client=(\S+):\d+ local=\S+ to=(\S+) waited=(\S+)$"
            for client, path, seconds in re.findall(form, box.log, re.M):
                passed[client] = path, float(seconds)
            refused = box.count("closed ")
            waited = sum(passed[name][1] > 0 for name in crowd.known)
            lost = len(crowd.lost)
            print(f"{crowd.served} served, {waited} waited, {refused} refused, {lost} lost")
            assert refused == 0
            assert waited >= at_a_time // 2
            assert all(passed[name][0] == str(paths[1]) for name in crowd.lost)
            # One more may have been taken out of the queue just then.
            assert lost <= queue_length() + 1
            assert crowd.served + lost == count

            until("programs have ended", lambda: all(map(has_ended, (one, again, three))))
            until("all is closed", lambda: open_in(box, one, again, three) == before)

    in_own_network(check)


def has_ended(server: Server) -> bool:
    """Whether no program of a receiver runs any more, and none has still to be noted."""
    [worker] = server.worker_pids()
    return not children(worker) and server.count("started ") == server.count("ended ")


def sockets_of(server: Server) -> int:
    return sum(kinds["socket"] for kinds in open_in(server))


# Registration


def test_a_receiver_that_registers_from_elsewhere(tmp_path: Path) -> None:
    """If it is who may: another user's group is not to be had."""
    control, document = tmp_path / "ctl", tmp_path / "box.json"
    content = {
        "socketbox-version": 1,
        "incoming": [{"address": "::", "port": 80}],
        "paths": [{"socket": str(control)}],
        "outgoing": [{"uid": os.getuid() + 1, "path_nr": 0}, {"uid": os.getuid(), "path_nr": 0}],
        "rules": {"_start": {"type": "rule", "rules": [{"jump": "o:1"}]}},
    }
    document.write_text(json.dumps(content))

    def check() -> None:
        with clients() as there, served_by("--json", str(document)):
            program = (*NOWHERE, PROGRAM)
            status, lines = ended(f"--register={control}", "0", "true", program=program)
            reason = "the server does not take us as group 0: is it another user's, or taken?"
            assert (status, lines) == (111, [f"socketbox-inetd: {control}: {reason}"])
            mine = (f"--register={control}", "1", *answers("I"))
            with started((*program, "--drain-timeout=30"), mine):
                assert there(ask, HOST) == f"I, {CLIENT} to {HOST}:80, 0"
                assert there(ask, HOST_6) == f"I, {CLIENT_6} to {HOST_6}:80, 0"

    in_own_network(check)


# With what else there is


HTTP = "import http.server as h, socket; c = socket.socket(fileno=0);"
HTTP += "h.SimpleHTTPRequestHandler(c, c.getpeername(), None)"
needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="no curl here")


def curl(*arguments: str) -> str:
    command = ["curl", "-sS", "--max-time", str(SECONDS), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else done.stderr


@needs_curl
def test_a_web_server_without_a_network(tmp_path: Path) -> None:
    """It sees its clients' address, as if they had come to it."""
    (tmp_path / "page").write_text("the page\n")
    path = tmp_path / "r"

    def check() -> None:
        before = (*NOWHERE, "env", "-C", str(tmp_path))
        with (
            clients() as there,
            receiving(path, PYTHON, "-c", HTTP, before=before) as web,
            served_by("-S", str(path), "-l", HOST, "-p", "8080"),
        ):
            assert there(curl, f"http://{HOST}:8080/page") == "the page\n"
            web.await_log(rf'^{re.escape(CLIENT)} - - \[.*\] "GET /page HTTP/1.1" 200 -$')

    in_own_network(check)


@needs_curl
def test_a_socks_proxy_of_another_network(tmp_path: Path) -> None:
    """Its clients get to where the proxy is, and they are not."""
    (tmp_path / "page").write_text("the page\n")
    path = tmp_path / "r"
    url = "http://203.0.113.80/page"

    def check() -> None:
        with clients() as there, another_network() as inside, ExitStack() as stack:
            inside(sh, "ip link set lo up", "ip addr add 203.0.113.80/32 dev lo")
            web = inside(serve_pages, tmp_path)
            stack.callback(end, web)
            receiver = receiving(path, SOCKS_INETD, "--allow-local", before=())
            server = inside(receiver.__enter__)
            stack.callback(inside, receiver.__exit__, None, None, None)
            stack.enter_context(served_by("-S", str(path), "-p", "1080"))
            assert there(curl, "--socks5-hostname", f"{HOST}:1080", url) == "the page\n"
            assert there(curl, "--max-time", "1", url) != "the page\n"
            server.await_log(rf"connected client={CLIENT}:\d+ user=- target=203.0.113.80:80 ")

    in_own_network(check)


def serve_pages(place: Path) -> "subprocess.Popen[str]":
    command = [PYTHON, "-um", "http.server", "--bind=203.0.113.80", "80"]
    web = subprocess.Popen(
        command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert web.stdout
    assert "Serving" in web.stdout.readline()
    return web


def end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()
