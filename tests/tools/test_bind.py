"""BIND and the look-ups that Tor has added, by the real programs: alone, in a chain, resident.

A network of its own has the proxy, and two others that it is cabled to have who may come, and who
may not. Traffic goes nowhere else.
"""

import contextlib
import re
import signal
import socket
import struct
import threading
from pathlib import Path
from typing import Any

import pytest
from bound import come, exchange, is_turned_away, told
from nameserver import own_files
from places import another_network, in_own_network, join_networks, root_only, sh
from programs import (
    GREETING,
    HANDSHAKE,
    INETD,
    REJECTED,
    VERSIONS,
    Client,
    Version,
    failure,
    read_all,
    serving,
    socks4a,
    socks5,
)
from real_server import Server, kinds_of_descriptors, running, until

BIND, RESOLVE, RESOLVE_PTR = 2, 0xF0, 0xF1
HERE, ELSEWHERE = "127.0.0.1", "127.0.0.2"
PROGRAMS = {
    "socks-inetd": [INETD, "--allow-local"],
    "socks-handshake socks-relay": [HANDSHAKE, "socks-relay", "--allow-local"],
}
EACH_PROGRAM = pytest.mark.parametrize("command", PROGRAMS.values(), ids=PROGRAMS)
EACH_VERSION = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)


def ask(client: Client, version: Version, host: str = HERE) -> tuple[str, int]:
    """Make a BIND; give where the peer is waited for."""
    client.send(version.greeting + version.request(host, 21, command=BIND))
    assert client.read(len(version.chosen)) == version.chosen
    return told(client, version, host)


# One connection


@EACH_VERSION
@EACH_PROGRAM
@pytest.mark.parametrize("over", ["tcp", "unix", "pipes"])
def test_a_connection(over: str, command: list[str], version: Version) -> None:
    with serving(*command, "-v", over=over) as program:
        where = ask(program.client, version)
        assert is_turned_away(where, ELSEWHERE)
        with come(where, HERE) as peer:
            assert told(program.client, version) == peer.getsockname()
            exchange(program.client, peer)
        assert program.status == 0
    lines = [line.split("]: ")[1] for line in program.log.splitlines()]
    assert [line.split()[0] for line in lines] == ["bound", "dropped", "connected", "closed"]
    assert lines[0].endswith(f"target={HERE}:21 listen={HERE}:{where[1]}")
    assert " reply=0 in=8 out=6 " in lines[3] and program.end == "closed"


@EACH_PROGRAM
def test_ipv6(command: list[str]) -> None:
    version = VERSIONS["5"]
    with serving(*command) as program:
        where = ask(program.client, version, "::1")
        with come(where, "::1") as peer:
            assert told(program.client, version, "::1") == peer.getsockname()[:2]
            exchange(program.client, peer)


def test_anybody_is_awaited_where_the_client_has_come() -> None:
    for over, host in (("tcp", HERE), ("tcp6", "::1"), ("mapped", HERE)):
        with serving(INETD, "--allow-local", "--bind-any", over=over) as program:
            program.client.send(GREETING + socks5("0.0.0.0", 0, command=BIND))
            assert program.client.read(2) == b"\5\0"
            where = told(program.client, VERSIONS["5"], host)
            with come(where, host) as peer:
                told(program.client, VERSIONS["5"], host)
                exchange(program.client, peer)


def test_socks4_cannot_be_told_of_ipv6() -> None:
    with serving(INETD, "--allow-local", "--bind-any", over="tcp6") as program:
        program.client.send(VERSIONS["4"].request("0.0.0.0", 0, command=BIND))
        assert program.client.read(8) == REJECTED
        program.client.end()
        assert program.status == 0
    assert "reply=8 " in program.log and program.end == "bind-failed"


@EACH_PROGRAM
def test_refused_by_rule(command: list[str], tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text("deny bind\n")
    with serving(*command, f"--rules={rules}") as program:
        program.client.send(GREETING + socks5(HERE, 21, command=BIND))
        assert program.client.read(12) == b"\5\0" + failure(2)
        program.client.end()
        assert program.status == 1
    assert program.end == "refused-by-rule"


@EACH_VERSION
@EACH_PROGRAM
def test_nobody_comes(command: list[str], version: Version) -> None:
    with serving(*command, "--bind-timeout=0.2") as program:
        where = ask(program.client, version)
        refusal = version.failure(6)
        assert program.client.read(len(refusal)) == refusal
        with pytest.raises(ConnectionRefusedError):
            come(where, HERE)
        program.client.end()
        assert program.status == 0
    assert "reply=6 in=0 out=0 " in program.log and program.end == "bind-timeout"


@EACH_PROGRAM
@pytest.mark.parametrize("over", ["unix", "tcp"])
def test_the_client_leaves(command: list[str], over: str) -> None:
    with serving(*command, over=over) as program:
        where = ask(program.client, VERSIONS["5"])
        if over == "tcp":
            program.client.reset()
        else:
            program.client.close()
        assert program.status == 0
    assert program.end == "client-lost"
    with pytest.raises(ConnectionRefusedError):
        come(where, HERE)


def test_a_client_that_closes_is_told_all_the_same() -> None:
    """Over TCP that is no more than the end of what it sends: who has come finds it gone."""
    with serving(INETD, "--allow-local", over="tcp") as program:
        where = ask(program.client, VERSIONS["5"])
        program.client.close()
        with come(where, HERE) as peer:
            peer.sendall(b"x")
            with contextlib.suppress(ConnectionResetError):
                assert read_all(peer) == b""
        assert program.status == 0
    assert program.end in ("client-lost", "broken-pipe", "reset", "closed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ended_meanwhile(number: int) -> None:
    with serving(INETD, "--allow-local") as program:
        where = ask(program.client, VERSIONS["5"])
        program.process.send_signal(number)
        assert program.status == 0
    assert program.end == "terminated"
    with pytest.raises(ConnectionRefusedError):
        come(where, HERE)


def test_a_forwarder_has_no_bind() -> None:
    with serving(HANDSHAKE, "socks-relay", HERE, "80") as program:
        program.client.send(GREETING + socks5(HERE, 21, command=BIND))
        assert program.client.read(12) == b"\5\0" + failure(7)
        program.client.end()
    assert program.end == "command-not-supported"


def test_a_flood_of_strangers() -> None:
    """They neither keep the peer out nor make it take longer than the limit."""
    stop = threading.Event()

    def flood(where: tuple[str, int]) -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError), come(where, ELSEWHERE):
                pass

    with serving(INETD, "--allow-local", "--bind-timeout=2") as program:
        where = ask(program.client, VERSIONS["5"])
        threads = [threading.Thread(target=flood, args=(where,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            with come(where, HERE) as peer:
                assert told(program.client, VERSIONS["5"]) == peer.getsockname()
                exchange(program.client, peer)
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def test_a_flood_ends_with_the_limit() -> None:
    stop = threading.Event()

    def flood(where: tuple[str, int]) -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError), come(where, ELSEWHERE):
                pass

    with serving(INETD, "--allow-local", "--bind-timeout=0.5") as program:
        where = ask(program.client, VERSIONS["5"])
        thread = threading.Thread(target=flood, args=(where,))
        thread.start()
        try:
            assert program.client.read(10) == failure(6)
        finally:
            stop.set()
            thread.join()
        program.client.end()
    assert re.search(r'end=bind-timeout detail="\d+ others have connected"', program.log)


# A server that stays


def bind_at(server: Server, version: Version = VERSIONS["5"]) -> tuple[socket.socket, Any]:
    client = server.connect()
    client.sendall(version.greeting + version.request(HERE, 21, command=BIND))
    assert read_all(client, len(version.chosen)) == version.chosen
    return client, told(client, version)


@EACH_VERSION
def test_resident(version: Version) -> None:
    with running(workers=2) as server:
        client, where = bind_at(server, version)
        with client, come(where, HERE) as peer:
            assert told(client, version) == peer.getsockname()
            client.sendall(b"question")
            assert read_all(peer, 8) == b"question"


def test_many_at_once() -> None:
    """And nothing of them is left: those that met, that nobody came to, whose client left."""
    with running("--bind-timeout=3", workers=1) as server:
        [worker] = server.worker_pids()
        before = kinds_of_descriptors(worker)["socket"]
        with contextlib.ExitStack() as stack:
            waiting = [bind_at(server) for _ in range(200)]
            for client, _ in waiting:
                stack.enter_context(client)
            for client, where in waiting[:100]:
                assert is_turned_away(where, ELSEWHERE)
                peer = stack.enter_context(come(where, HERE))
                told(client, VERSIONS["5"])
                client.sendall(b"x")
                assert read_all(peer, 1) == b"x"
            for client, _ in waiting[100:150]:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
            for client, _ in waiting[150:]:
                assert read_all(client) == failure(6)
        until("all is closed", lambda: kinds_of_descriptors(worker)["socket"] == before)


def test_told_to_stop() -> None:
    """It waits for who is waited for as it does for connections, and no longer."""
    with running() as server:
        client, where = bind_at(server)
        with client:
            server.process.terminate()
            server.await_log("end=terminated")
        with pytest.raises(ConnectionRefusedError):
            come(where, HERE)


# Look-ups


@EACH_PROGRAM
def test_resolve(command: list[str]) -> None:
    asked = {
        GREETING + socks5("localhost", 0, command=RESOLVE): b"\5\0",
        socks4a("localhost", 0, command=RESOLVE): b"",
    }
    for asking, chosen in asked.items():
        version = VERSIONS["5" if chosen else "4a"]
        with serving(*command, "-4", "--resolve-commands") as program:
            program.client.send(asking)
            assert program.client.rest() == chosen + version.success(HERE, 0)
            program.client.end()
            assert program.status == 0
        assert program.end == "resolved" and f'detail="{HERE}"' in program.log


@EACH_PROGRAM
def test_resolve_ptr(command: list[str]) -> None:
    with serving(*command, "--resolve-commands") as program:
        program.client.send(GREETING + socks5(HERE, 0, command=RESOLVE_PTR))
        assert program.client.rest() == b"\5\0\5\0\0" + b"\3\x09localhost" + bytes(2)
        program.client.end()
        assert program.status == 0
    assert program.end == "resolved"


@EACH_PROGRAM
def test_look_ups_are_off(command: list[str]) -> None:
    with serving(*command) as program:
        program.client.send(GREETING + socks5("localhost", 0, command=RESOLVE))
        assert program.client.rest() == b"\5\0" + failure(7)
        program.client.end()
        assert program.status == 0
    assert "only with --resolve-commands" in program.log


@root_only()
@pytest.mark.parametrize("root", ["", "chroot"])
def test_names_of_addresses_are_found_outside_of_the_root_directory(
    tmp_path: Path, root: str
) -> None:
    def in_network() -> None:
        own_files(tmp_path, "192.0.2.1 only-here.example\n2001:db8::1 six.example\n")
        (tmp_path / "empty").mkdir()
        options = ["-u", "nobody", "-C", str(tmp_path / "empty")] if root else []
        with running("--resolve-commands", *options, workers=1) as server:
            for host, name in (
                ("192.0.2.1", b"only-here.example"),
                ("2001:db8::1", b"six.example"),
            ):
                with server.connect() as client:
                    client.sendall(GREETING + socks5(host, 0, command=RESOLVE_PTR))
                    reply = b"\5\0\5\0\0\3" + bytes([len(name)]) + name + bytes(2)
                    assert read_all(client) == reply
            with server.connect() as client:
                client.sendall(GREETING + socks5("only-here.example", 0, command=RESOLVE))
                assert read_all(client) == b"\5\0" + VERSIONS["5"].success("192.0.2.1", 0)

    in_own_network(in_network)


# Through a network


@root_only()
def test_from_another_network(tmp_path: Path) -> None:
    """The client on one side, the peer and somebody else on the other: without --allow-local."""

    def check() -> None:
        with another_network() as there:
            join_networks(there)
            sh("ip addr add 192.0.2.1/24 dev near", "ip addr add 2001:db8::1/64 dev near nodad")
            there(sh, "ip addr add 192.0.2.2/24 dev far", "ip addr add 192.0.2.3/24 dev far")
            there(sh, "ip addr add 2001:db8::2/64 dev far nodad")
            meetings = [
                (VERSIONS["5"], "192.0.2.2", "192.0.2.1", "192.0.2.3"),
                (VERSIONS["4"], "192.0.2.2", "192.0.2.1", "192.0.2.3"),
                (VERSIONS["5"], "2001:db8::2", "2001:db8::1", ""),
            ]
            for version, host, ours, other in meetings:
                with serving(INETD, "-v", over="tcp") as program:
                    program.client.send(version.greeting)
                    program.client.send(version.request(host, 21, command=BIND))
                    assert program.client.read(len(version.chosen)) == version.chosen
                    where = told(program.client, version, ours)
                    if other:
                        assert there(is_turned_away, where, other)
                    with there(come, where, host) as peer:
                        told(program.client, version, host)
                        exchange(program.client, peer)
                    assert program.status == 0

    in_own_network(check)
