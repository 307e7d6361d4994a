"""HAProxy in front of several machines with muonsocks, as units/haproxy.cfg has it."""

import os
import re
import socket
import threading
from pathlib import Path

import launchers
import pytest
from balanced import NAMES, TARGET, Site, haproxy, in_front_of, needs_haproxy, read_name
from places import in_own_network, root_only, sh
from programs import INETD, SECONDS, accept, credentials, listener, read_all, socks5
from real_server import free_port, until

pytestmark = [root_only(), needs_haproxy, pytest.mark.xdist_group("haproxy")]


def test_who_the_client_is(tmp_path: Path) -> None:
    """In the log of the machine, and by -w; and looks are not in the log."""

    def check() -> None:
        trusted = "198.51.100.0/25"
        with in_front_of(tmp_path, "-w", trusted) as site:
            sources = [f"198.51.100.{number}" for number in range(10, 40)]
            found = {source: site.served_by(source) for source in sources}
            assert set(found.values()) == set(NAMES)
            for source, name in found.items():
                server = site.machines[name].server
                server.await_log(rf"closed client={re.escape(source)}:\d+ .* end=closed")
            assert {source: site.served_by(source) for source in sources} == found
            assert site.served_by("198.51.100.200") == ""
            until("it is in a log", lambda: "198.51.100.200" in logs(site))
            assert re.search(r"client=198\.51\.100\.200:\d+ .* end=client-refused", logs(site))
            closed, all_of_them = "closed client=", 2 * len(sources) + 1
            until("all are over", lambda: len(re.findall(closed, logs(site))) >= all_of_them)
            assert len(re.findall(closed, logs(site))) == all_of_them
            assert "192.0.2.1:" not in logs(site)
            assert " is DOWN" not in site.log

    in_own_network(check)


def logs(site: Site) -> str:
    return "".join(machine.log for machine in site.machines.values())


def test_who_has_authenticated_stays_with_its_machine(tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text("alice:secret\n")

    def check() -> None:
        state = f"--state={tmp_path}/{{name}}"  # what one knows another one does not
        with in_front_of(tmp_path, f"--users={users}", "-1", state) as site:
            shown = b"\5\1\2" + credentials(b"alice", b"secret")
            for number in (10, 11, 12, 13, 14, 15):
                source = f"198.51.100.{number}"
                assert site.served_by(source) == "", "a password is wanted"
                name = site.served_by(source, shown, b"\5\2\1\0")
                assert name in NAMES
                for _ in range(5):
                    assert site.served_by(source) == name

    in_own_network(check)


class Crowd:
    """Clients that come, exchange some bytes and go, so many at a time, until they are told."""

    def __init__(self, site: Site, count: int) -> None:
        self.served: list[tuple[str, str]] = []
        self.lost: list[tuple[str, str]] = []  # why: where it was
        self._site = site
        self._over = threading.Event()
        self._lock = threading.Lock()
        sources = [f"198.51.100.{10 + number}" for number in range(count)]
        self._threads = [threading.Thread(target=self._come, args=(one,)) for one in sources]
        for thread in self._threads:
            thread.start()

    def _come(self, source: str) -> None:
        while not self._over.is_set():
            name, where = "", "reply"
            try:
                with self._site.connect(source) as client:
                    client.sendall(b"\5\1\0" + socks5(*TARGET))
                    assert read_all(client, 12)[:4] == b"\5\0\5\0"
                    name, where = read_name(client), "relay"
                    for _ in range(3):
                        client.sendall(b"x" * 1000)
                        assert len(read_all(client, 1000)) == 1000
            except (OSError, AssertionError):
                with self._lock:
                    self.lost.append((name, where))
            else:
                with self._lock:
                    self.served.append((source, name))

    def awaits(self, more: int) -> None:
        """Wait until so many more have been served."""
        before = len(self.served)
        until("others are served", lambda: len(self.served) >= before + more, 3 * SECONDS)

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def test_a_machine_that_is_killed_under_load(tmp_path: Path) -> None:
    """That costs its connections, and no other one; its clients are served by the others, and come
    back when it does.
    """

    def check() -> None:
        count = 30
        with in_front_of(tmp_path, "-w", "198.51.100.0/24") as site:
            home = {f"198.51.100.{n}": site.served_by(f"198.51.100.{n}") for n in range(10, 40)}
            assert set(home.values()) == set(NAMES)
            at = {name: source for source, name in home.items()}
            kept = {name: site.connect(source) for name, source in at.items()}
            for name, client in kept.items():
                client.sendall(b"\5\1\0" + socks5(*TARGET))
                assert read_all(client, 12)[:4] == b"\5\0\5\0"
                assert read_name(client) == name
            crowd = Crowd(site, count)
            try:
                crowd.awaits(500)
                site.machines["two"].kill()
                crowd.awaits(500)
                site.await_state("two", "DOWN")
                before = len(crowd.lost)
                crowd.awaits(500)
                assert len(crowd.lost) == before, "it is known that it is away"
                site.machines["two"].start()
                site.await_state("two", "UP")
                crowd.awaits(500)
            finally:
                crowd.end()
            away = sum(name == "two" for name in home.values())
            print(f"{len(crowd.served)} served, {crowd.lost} lost; {away} sources of {count}")
            assert all(name in ("two", "") for name, _ in crowd.lost)
            # One each, as they come one after the other; and who is lost between the death of one
            # process and the next may be so again.
            assert len(crowd.lost) <= 2 * away
            for name in ("one", "three"):
                kept[name].sendall(b"still there")
                assert read_all(kept[name], 11) == b"still there"
            assert gone(kept["two"])
            assert {source: site.served_by(source) for source in home} == home
            for source, name in crowd.served:
                assert home[source] in (name, "two")
            for client in kept.values():
                client.close()

    in_own_network(check)


def gone(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_machine_that_cannot_be_reached_any_more(tmp_path: Path) -> None:
    """Who comes before that is known waits, and is served by another one."""

    def check() -> None:
        with in_front_of(tmp_path, "-w", "198.51.100.0/24") as site:
            [source] = site.sources("two")
            sh("ip link set two down")
            assert site.served_by(source) in ("one", "three")
            site.await_state("two", "DOWN")
            assert site.served_by(source) in ("one", "three")
            sh("ip link set two up")
            site.await_state("two", "UP")
            assert site.served_by(source) == "two"

    in_own_network(check)


def test_a_machine_that_is_told_to_stop_finishes(tmp_path: Path) -> None:
    """HAProxy does not cut what it still does."""

    def check() -> None:
        with in_front_of(tmp_path, "-w", "198.51.100.0/24", drain=60) as site:
            [source] = site.sources("one")
            with site.connect(source) as client:
                client.sendall(b"\5\1\0" + socks5(*TARGET))
                assert read_all(client, 12)[:4] == b"\5\0\5\0"
                assert read_name(client) == "one"
                site.machines["one"].server.terminate()
                site.await_state("one", "DOWN")
                assert site.served_by(source) in ("two", "three")
                client.sendall(b"still there")
                assert read_all(client, 11) == b"still there"
            assert site.machines["one"].server.status == 0

    in_own_network(check)


def test_either_side_may_end_first(tmp_path: Path) -> None:
    def check() -> None:
        with in_front_of(tmp_path, "-w", "198.51.100.0/24") as site:
            data = os.urandom(1 << 20)
            with site.connect("198.51.100.7") as client:
                client.sendall(b"\5\1\0" + socks5(*TARGET))
                assert read_all(client, 12)[:4] == b"\5\0\5\0"
                name = read_name(client)
                sender = threading.Thread(target=send_and_end, args=(client, data))
                sender.start()
                assert read_all(client) == data
                sender.join()
            server = site.machines[name].server
            server.await_log(rf"closed .* in={len(data)} out={len(data) + len(name) + 1} .*=closed")

    in_own_network(check)


def send_and_end(client: socket.socket, data: bytes) -> None:
    client.sendall(data)
    client.shutdown(socket.SHUT_WR)


# In front of a process for each connection

ONE = """\
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen socks
    bind {host}:{port}
    bind unix@{path}
    server one {host}:{to} {how}
"""


@pytest.mark.parametrize("how", ["send-proxy", "send-proxy-v2"])
def test_socks_inetd_under_systemd_socket_activate(how: str, tmp_path: Path) -> None:
    """Of a client that has come over a unix socket HAProxy says nothing: then it is HAProxy."""
    options = [INETD, "--proxy-protocol=required", "--allow-local"]
    with launchers.running("systemd-socket-activate", options, tmp_path) as server:
        host, to = server.address
        port, path = free_port(host), str(tmp_path / "socks")
        configuration = tmp_path / "haproxy.cfg"
        configuration.write_text(ONE.format(host=host, port=port, path=path, to=to, how=how))
        with haproxy(configuration, tmp_path / "haproxy.log", (host, port)), listener(host) as far:
            source = "127.77.0.7"
            client = socket.create_connection((host, port), SECONDS, (source, 0))
            carry(client, far)
            server.log.await_line(rf"closed client={re.escape(source)}:\d+ .* end=closed")
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(SECONDS)
            client.connect(path)
            carry(client, far)
            server.log.await_line(r"closed client=127\.0\.0\.1:\d+ .* end=closed")


def carry(client: socket.socket, far: socket.socket) -> None:
    """Ask for the far end, and end when that does."""
    with client:
        client.sendall(b"\5\1\0" + socks5(*far.getsockname()))
        assert read_all(client, 12)[:4] == b"\5\0\5\0"
        accept(far).close()
        assert read_all(client) == b""
