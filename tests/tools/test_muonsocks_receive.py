"""muonsocks --receive: clients who have come to another program, and are passed on."""

import errno
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from places import in_own_network, root_only, sh
from programs import (
    GREETING,
    PASSWORD_GREETING,
    accept,
    credentials,
    environment,
    failure,
    listener,
    read_all,
    socks4,
    socks5,
)
from real_server import (
    MUONSOCKS,
    Server,
    children,
    ended,
    kinds_of_descriptors,
    running,
    started,
    until,
    works,
)
from senders import Front, accepted, pass_on


@contextmanager
def receiving(
    path: str, *options: str, workers: int = 2, drain: float = 0.1
) -> Iterator[tuple[Server, Front]]:
    """A server that only receives, and a port from which clients are passed to it."""
    many = (f"--workers={workers}", f"--drain-timeout={drain}")
    command = (MUONSOCKS, f"--receive={path}", *many, *options)
    with started(command, workers=workers) as server, Front(path) as front:
        yield server, front


def joined(front: Front, far: socket.socket) -> tuple[socket.socket, socket.socket]:
    client = front.client()
    client.sendall(socks4(*far.getsockname()[:2]))
    assert read_all(client, 8)[1] == 0x5A
    return client, accept(far)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "receiver")


def test_clients_who_are_passed(path: str) -> None:
    with listener() as far, receiving(path, "--allow-local") as (server, front):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
        server.await_log(rf"listening on unix:{path} \(passed on\)$")
        client, conn = joined(front, far)
        assert works(client, conn)
        us = "{}:{}".format(*client.getsockname())
        server.await_log(f"connected client={us} user=me ")
        client.close()
        conn.close()
        server.await_log(f"closed client={us} user=me .* in=8 out=6 ")
        server.terminate()
        assert server.status == 0
    assert not os.path.exists(path)


def test_it_listens_nowhere_else(path: str) -> None:
    with receiving(path, "--allow-local") as (server, _):
        listening = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True)
        for pid in (server.pid, *server.worker_pids()):
            assert f"pid={pid}," not in listening.stdout


def test_both_ways_in(path: str) -> None:
    with listener() as far, running(f"--receive={path}", workers=2) as server:
        for client, conn in (server.joined(far), joined(Front(path), far)):
            assert works(client, conn)
            client.close()
            conn.close()


def test_several_places(tmp_path: Path) -> None:
    one, two = str(tmp_path / "one"), f"@muonsocks-{os.getpid()}"
    with (
        listener() as far,
        receiving(one, f"--receive={two}", "--allow-local") as (_, front),
        Front(two) as other,
    ):
        for place in (front, other):
            client, conn = joined(place, far)
            assert works(client, conn)
            client.close()
            conn.close()


# Who they are


def test_the_own_side_is_closed_to_them(path: str) -> None:
    with listener() as far, receiving(path) as (_, front):
        client = front.client()
        client.sendall(GREETING + socks5(*far.getsockname()))
        assert read_all(client, 12) == b"\5\0" + failure(2)
        client.close()


def asks_for_password(front: Front, source: str) -> bool:
    client = front.client(source)
    client.sendall(b"\5\2\0\2")
    answer = read_all(client, 2)
    client.close()
    return answer == b"\5\2"


def test_trust_goes_by_their_addresses(path: str) -> None:
    options = ("-w", "127.0.0.9", "-U", "alice", "-P", "secret")
    with receiving(path, *options) as (server, front):
        assert not asks_for_password(front, "127.0.0.9")
        assert asks_for_password(front, "127.0.0.8")
        assert not server.count("open proxy")
    with receiving(path, "-w", "127.0.0.9") as (server, front):
        assert not asks_for_password(front, "127.0.0.9")
        client = front.client("127.0.0.8")
        client.sendall(GREETING)
        assert read_all(client, 2) == b"\5\xff"
        server.await_log("client=127.0.0.8:.* end=client-refused")


def test_one_password_is_enough_for_an_address(path: str, tmp_path: Path) -> None:
    options = ("-1", f"--state={tmp_path / 'state'}", "-U", "alice", "-P", "secret")
    with receiving(path, *options) as (_, front):
        client = front.client("127.0.0.7")
        client.sendall(PASSWORD_GREETING)
        assert read_all(client, 2) == b"\5\2"
        client.sendall(credentials(b"alice", b"secret"))
        assert read_all(client, 2) == b"\1\0"
        assert not asks_for_password(front, "127.0.0.7")
        assert asks_for_password(front, "127.0.0.6")


def test_a_client_over_a_unix_socket_is_in_no_network(path: str) -> None:
    with receiving(path, "-w", "0.0.0.0/0,::/0") as (server, _):
        client, conn = socket.socketpair()
        pass_on(path, conn.fileno())
        conn.close()
        client.sendall(GREETING)
        assert read_all(client, 2) == b"\5\xff"
        server.await_log("client=unix .* end=client-refused")
        client.close()


def test_connections_of_one_source(path: str) -> None:
    with listener() as far, receiving(path, "--allow-local", "--max-per-source=1") as (_, front):
        client, conn = joined(front, far)
        refused = front.client()
        assert refused.recv(1) == b""
        assert works(client, conn)
        for sock in (client, conn, refused):
            sock.close()


def test_everybody_may_come_in(path: str) -> None:
    with receiving(path) as (server, _):
        server.await_log("an open proxy: whoever can reach it may use it; see --users and -w$")


# What comes wrong


def test_what_is_no_connection(path: str) -> None:
    with listener() as far, receiving(path, "--allow-local") as (server, front):
        pass_on(path)
        pass_on(path, far.fileno())
        server.await_log('refused client=- end=no-connection detail="a message without')
        server.await_log('refused client=- end=no-connection detail=".* is a listener"')
        client, conn = joined(front, far)
        assert works(client, conn)
        client.close()
        conn.close()


def test_a_socket_that_its_sender_keeps(path: str) -> None:
    """Has nothing to do with us once it is closed, and can be passed again."""
    with receiving(path, "--allow-local", workers=1) as (server, _), accepted() as (client, conn):
        for count in (1, 2, 3):
            pass_on(path, conn.fileno())
            client.send(b"\x09no SOCKS")
            server.await_log("closed client=", count)
        assert "could not be carried out" not in server.log


def test_nothing_is_leaked(path: str) -> None:
    """Messages with too many descriptors, with none, with clients who have left."""
    with listener() as far, receiving(path, "--allow-local", workers=1) as (server, front):
        [worker] = server.worker_pids()
        joined(front, far)[0].close()
        until("it is closed", lambda: server.count("closed client=") == 1)
        before = kinds_of_descriptors(worker)
        for _ in range(50):
            until("there is room", lambda: sent(path, far.fileno(), far.fileno(), far.fileno()))
            until("there is room", lambda: sent(path))
            with accepted() as (client, conn):
                client.close()
                until("there is room", lambda: sent(path, conn.fileno(), far.fileno()))
        until("all are closed", lambda: server.count("closed client=") == 51)
        assert kinds_of_descriptors(worker) == before


def sent(path: str, *fds: int) -> bool:
    try:
        pass_on(path, *fds)
    except BlockingIOError:
        return False
    return True


def test_who_has_been_passed_is_served_to_the_end(path: str) -> None:
    """While the workers do not run they cannot take them in; then they are told to stop."""
    with listener() as far, receiving(path, "--allow-local", drain=30) as (server, front):
        workers = server.worker_pids()
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        clients = [front.client() for _ in range(8)]
        server.terminate()
        until("nobody finds it any more", lambda: not os.path.exists(path))
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
        for client in clients:
            client.sendall(socks4(*far.getsockname()[:2]))
            assert read_all(client, 8)[1] == 0x5A
            conn = accept(far)
            assert works(client, conn)
            client.close()
            conn.close()
        assert server.status == 0


def test_a_worker_that_dies(path: str) -> None:
    """The socket is the other's too, and its successor's."""
    with listener() as far, receiving(path, "--allow-local") as (server, front):
        for pid in server.worker_pids():
            os.kill(pid, signal.SIGKILL)
            until("it is replaced", lambda gone=pid: gone not in children(server.pid))
            client, conn = joined(front, far)
            assert works(client, conn)
            client.close()
            conn.close()


# Where it receives


def test_a_dead_file_is_replaced(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(path)
    with listener() as far, receiving(path, "--allow-local") as (_, front):
        client, conn = joined(front, far)
        assert works(client, conn)
        client.close()
        conn.close()


def test_a_place_that_is_taken(path: str, tmp_path: Path) -> None:
    with receiving(path):
        line = f"muonsocks: cannot receive at {path}: {os.strerror(errno.EADDRINUSE)}"
        other = str(tmp_path / "other")
        assert ended(f"--receive={other}", f"--receive={path}") == (111, [line])
        assert not os.path.exists(other), "what was made is removed"
        assert os.path.exists(path)
    Path(path).write_text("a file")
    assert ended(f"--receive={path}") == (111, [line])
    assert Path(path).read_text() == "a file"


def test_wrong_usage(path: str) -> None:
    hint = "a path or @NAME of 107 bytes at most fits"
    for wrong in ("", "x" * 108):
        line = f"muonsocks: --receive: {wrong[:60]!r} is no path of a socket; {hint}"
        assert ended(f"--receive={wrong}") == (100, [line])
    line = "muonsocks: -p is for -i, where there is --receive; give -i too, or leave it out"
    assert ended(f"--receive={path}", "-p1080") == (100, [line])
    assert not os.path.exists(path)


def test_a_socket_of_systemd(path: str) -> None:
    """ListenDatagram=: it is left as it is, with who waits there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, listener() as far:
        sock.bind(path)
        script = f'exec 3<&{sock.fileno()}; LISTEN_PID=$$ exec "$@"'
        command = ("bash", "-c", script, "bash", MUONSOCKS, "--workers=1", "--drain-timeout=30")
        with started(
            command,
            ("--allow-local",),
            environ=environment(LISTEN_FDS="1"),
            keep=(sock.fileno(),),
        ) as server:
            front = Front(path)
            client, conn = joined(front, far)
            assert works(client, conn)
            client.close()
            conn.close()
            server.terminate()
            assert server.status == 0
            last = front.client()
        assert os.path.exists(path)
        _, fds, _, _ = socket.recv_fds(sock, 10, 1)
        os.close(fds[0])
        last.close()


@root_only()
def test_clients_of_another_network(path: str) -> None:
    """The server has no interface but a loopback of its own, and serves who comes to the host's."""

    def check() -> None:
        sh("ip addr add 192.0.2.7/32 dev lo")
        with listener("192.0.2.7") as far, receiving(path) as (server, _):
            client = outside.submit(front.client).result()
            client.sendall(socks4(*far.getsockname()[:2]))
            assert read_all(client, 8)[1] == 0x5A
            conn = accept(far)
            assert works(client, conn)
            conn.close()
            us = "{}:{}".format(*client.getsockname())
            server.await_log(f"connected client={us} user=me target=192.0.2.7:")
            client.close()

    with Front(path) as front, ThreadPoolExecutor(1) as outside:
        outside.submit(int).result()  # now there is its thread, in this network
        in_own_network(check)
