"""socketbox-relay as a real process: who comes in, where it goes, what is said there."""

import os
import re
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conformance import BOUND_OF_ITS_OWN, Conformance, Join, Joint
from ends import End, Outcome, nothing_left_behind, set_small_buffers
from places import in_own_network, root_only, sh
from programs import SECONDS, accept, environment, listener, read_all
from real_server import Server, ended, kinds_of_descriptors, started, until, works
from senders import Front, accepted, pass_on

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = str(ROOT / "bin" / "socketbox-relay")
SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "receiver")


@contextmanager
def relaying(
    *options: str, workers: int = 1, drain: float = 0.2, keep: tuple[int, ...] = ()
) -> Iterator[Server]:
    command = (PROGRAM, f"--workers={workers}", f"--drain-timeout={drain}")
    with started(command, options, workers=workers, keep=keep) as server:
        yield server


def to(far: socket.socket) -> tuple[str, str]:
    """The options for going to a listener."""
    host, port = far.getsockname()[:2]
    return f"-c{host}", f"-p{port}"


def relayed(front: Front, far: socket.socket) -> tuple[socket.socket, socket.socket]:
    client = front.client()
    return client, accept(far)


def close(*socks: socket.socket) -> None:
    for sock in socks:
        sock.close()


# Where they come from


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_those_who_are_passed(path: str, host: str) -> None:
    with listener(host) as far, relaying(f"-s{path}", *to(far)) as server, Front(path) as front:
        server.await_log(f"receiving at unix:{path}$")
        client, conn = relayed(front, far)
        assert works(client, conn)
        client.shutdown(socket.SHUT_WR)
        assert conn.recv(1) == b""
        conn.sendall(b"and more")
        conn.close()
        assert read_all(client) == b"and more"
        us = "{}:{}".format(*client.getsockname()[:2])
        there = f"[{host}]" if ":" in host else host
        target = f"{there}:{far.getsockname()[1]}"
        server.await_log(f"connected client={us} user=- target={re.escape(target)} address=")
        server.await_log(f"closed client={us} .* in=8 out=14 .* end=closed")
        client.close()
        server.terminate()
        assert server.status == 0
    assert not os.path.exists(path)


@pytest.mark.parametrize("option", ["-l", "--listen-fd="])
@pytest.mark.parametrize("blocks", [True, False])
def test_those_who_connect(option: str, blocks: bool) -> None:
    """At a socket that is bound, and need not listen yet."""
    with listener() as far, socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(blocks)
        fd = sock.fileno()
        with relaying(f"{option}{fd}", *to(far), workers=2, keep=(fd,)) as server:
            address = sock.getsockname()
            server.await_log("listening on {}:{}$".format(*address))
            for _ in range(4):
                with socket.create_connection(address, SECONDS) as client, accept(far) as conn:
                    assert works(client, conn)
        assert os.get_blocking(fd) == blocks, "it is as it was"


def test_standard_input(path: str) -> None:
    """Where inetd puts a socket to listen at ("wait")."""
    with listener() as far, socket.create_server(("127.0.0.1", 0)) as sock:
        script = f'exec "$@" <&{sock.fileno()}'
        command = ("bash", "-c", script, "bash", PROGRAM, "--workers=1")
        with (
            started(command, to(far), keep=(sock.fileno(),)),
            socket.create_connection(sock.getsockname()) as client,
            accept(far) as conn,
        ):
            assert works(client, conn)


def test_a_unix_socket_to_listen_at(path: str) -> None:
    with (
        listener() as far,
        socket.socket(socket.AF_UNIX) as sock,
        socket.socket(socket.AF_UNIX) as client,
    ):
        sock.bind(path)
        with relaying(f"-l{sock.fileno()}", *to(far), keep=(sock.fileno(),)) as server:
            server.await_log(f"listening on unix:{path}$")
            client.settimeout(SECONDS)
            client.connect(path)
            with accept(far) as conn:
                assert works(client, conn)


def test_a_receiver_that_is_open_already(path: str) -> None:
    """-e: it is left as it is."""
    with listener() as far, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        fd = sock.fileno()
        with relaying("-e", f"-l{fd}", *to(far), keep=(fd,)) as server, Front(path) as front:
            server.await_log(f"receiving at unix:{path}$")
            client, conn = relayed(front, far)
            assert works(client, conn)
            close(client, conn)
        assert os.path.exists(path)
        assert os.get_blocking(fd)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_a_connection_that_they_are_passed_over(kind: int) -> None:
    """When the other side has gone, that is the end; who has come is relayed on."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    options = ("-e", f"-l{theirs.fileno()}")
    with (
        listener() as far,
        relaying(*options, *to(far), drain=30, keep=(theirs.fileno(),)) as server,
    ):
        theirs.close()
        with accepted() as (client, passed):
            socket.send_fds(ours, [b"\0"], [passed.fileno()])
            passed.close()
            with accept(far) as conn:
                ours.close()
                server.await_log("who passed connections on has gone$")
                assert works(client, conn)
        assert server.status == 0


def test_the_end_is_told_once() -> None:
    """Whatever the number of workers."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    options = ("-e", f"-l{theirs.fileno()}", "-c127.0.0.1", "-p9")
    with ours, relaying(*options, workers=3, keep=(theirs.fileno(),)) as server:
        theirs.close()
        ours.close()
        assert server.status == 0
    assert server.count("who passed connections on has gone") == 1


def test_a_socket_that_its_sender_keeps(path: str) -> None:
    """Has nothing to do with us once it is closed, and can be passed again."""
    with (
        listener() as far,
        relaying(f"-s{path}", *to(far)) as server,
        accepted() as (client, passed),
    ):
        for count in (1, 2, 3):
            pass_on(path, passed.fileno())
            with accept(far) as conn:
                conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            server.await_log("closed client=", count)
        assert "could not be carried out" not in server.log
        assert client.fileno() >= 0


def test_sockets_of_systemd(path: str) -> None:
    def activated(sock: socket.socket, option: str) -> Any:
        script = f'exec 3<&{sock.fileno()}; LISTEN_PID=$$ exec "$@"'
        command = ("bash", "-c", script, "bash", PROGRAM, "--workers=1")
        environ = environment(LISTEN_FDS="1")
        return started(command, (option, *to(far)), environ=environ, keep=(sock.fileno(),))

    with listener() as far:
        with (
            socket.create_server(("127.0.0.1", 0)) as sock,
            activated(sock, "--listen-fd=systemd"),
            socket.create_connection(sock.getsockname()) as client,
            accept(far) as conn,
        ):
            assert works(client, conn)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.bind(path)
            with activated(sock, "-ssystemd"), Front(path) as front:
                client, conn = relayed(front, far)
                assert works(client, conn)
                close(client, conn)


# Where they go


def test_unix_sockets(path: str, tmp_path: Path) -> None:
    for name in (str(tmp_path / "far"), f"@socketbox-relay-{os.getpid()}"):
        with socket.socket(socket.AF_UNIX) as far:
            far.bind(f"\0{name[1:]}" if name.startswith("@") else name)
            far.listen()
            far.settimeout(SECONDS)
            with relaying(f"-s{path}", f"-u{name}") as server, Front(path) as front:
                client, conn = relayed(front, far)
                assert works(client, conn)
                server.await_log(f"connected client=.* target=unix:{name} ")
                close(client, conn)


def test_nobody_is_there(path: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with relaying(f"-s{path}", *to(closed)) as server, Front(path) as front:
            client = front.client()
            assert client.recv(1) == b""
            client.close()
            server.await_log('end=dial-failed detail="Connection refused"')


def test_the_port_that_they_have_come_to(path: str) -> None:
    with (
        listener("127.0.0.3") as far,
        relaying(f"-s{path}", "-c127.0.0.3", "-p0"),
        socket.create_server(("127.0.0.2", far.getsockname()[1])) as front,
        socket.create_connection(front.getsockname()) as client,
        front.accept()[0] as passed,
    ):
        pass_on(path, passed.fileno())
        with accept(far) as conn:
            assert works(client, conn)


@root_only()
def test_nat64(path: str, tmp_path: Path) -> None:
    """Clients come to any address of a prefix, and go to the one inside."""

    def passed_to(address: str, port: int = 80) -> socket.socket:
        with socket.create_server(("::", port), family=socket.AF_INET6) as front:
            client = socket.create_connection((address, port), SECONDS)
            with front.accept()[0] as conn:
                pass_on(path, conn.fileno())
        return client

    def check() -> None:
        sh("ip route add local 64:ff9b::/96 dev lo", "ip addr add 192.0.2.7/24 dev lo")
        sh("ip route add local 2001:db8:1:2::/64 dev lo")
        sh("ip addr add 2001:db8:9::5/128 dev lo nodad")
        with listener("192.0.2.7") as far:
            port = far.getsockname()[1]
            with relaying("-N", f"-s{path}", "-c::ffff:0:0", f"-p{port}") as server:
                with passed_to("64:ff9b::192.0.2.7") as client, accept(far) as conn:
                    assert works(client, conn)
                with passed_to("64:ff9b::127.0.0.1") as client:
                    assert client.recv(1) == b""
                    server.await_log("end=refused-by-rule .*127.0.0.1 is on this host's own side")
                with passed_to("2001:db8:1:2::5") as client:
                    assert client.recv(1) == b""
                    server.await_log("end=refused-by-rule .* is not in 64:ff9b::/96")
        with listener("127.0.0.1") as far:
            options = ("--nat64", "--allow-local", "-c0.0.0.0", f"-p{far.getsockname()[1]}")
            with (
                relaying(f"-s{path}", *options),
                passed_to("64:ff9b::127.0.0.1") as client,
                accept(far) as conn,
            ):
                assert works(client, conn)
        with listener("2001:db8:9::5") as far:
            options = ("-Nx", "-P2001:db8:1:2::", "-c2001:db8:9::", f"-p{far.getsockname()[1]}")
            with (
                relaying(f"-s{path}", *options),
                passed_to("2001:db8:1:2::5") as client,
                accept(far) as conn,
            ):
                assert works(client, conn)
        name = str(tmp_path / "far")
        with socket.socket(socket.AF_UNIX) as sock, relaying("-N", f"-s{path}", f"-u{name}"):
            sock.bind(f"{name}-c0000207")
            sock.listen()
            sock.settimeout(SECONDS)
            with passed_to("64:ff9b::192.0.2.7") as client, accept(sock) as conn:
                assert works(client, conn)

    in_own_network(check)


@root_only()
def test_a_link_local_address(path: str) -> None:
    def check() -> None:
        sh("ip addr add fe80::7/64 dev lo nodad")
        index = socket.if_nametoindex("lo")
        with socket.socket(socket.AF_INET6) as far:
            far.bind(("fe80::7", 0, 0, index))
            far.listen()
            far.settimeout(SECONDS)
            port = far.getsockname()[1]
            for scope in ("-Ilo", f"-n{index}"):
                with relaying(f"-s{path}", "-cfe80::7", f"-p{port}", scope), Front(path) as front:
                    client, conn = relayed(front, far)
                    assert works(client, conn)
                    close(client, conn)

    in_own_network(check)


# What is said first


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_version_1(path: str, host: str) -> None:
    """As the C program says it, and before anything of the client."""
    with listener() as far, relaying(f"-s{path}", *to(far), "-i"), Front(path, host) as front:
        client, conn = relayed(front, far)
        client.sendall(b"ping")
        client.shutdown(socket.SHUT_WR)
        family = 6 if ":" in host else 4
        port, local = client.getsockname()[1], front.address[1]
        expected = f"PROXY TCP{family} {host} {host} {port} {local}\r\nping"
        assert read_all(conn) == expected.encode()
        close(client, conn)


def test_version_2(path: str) -> None:
    options = ("--proxy-protocol=2",)
    with listener() as far, relaying(f"-s{path}", *to(far), *options), Front(path) as front:
        client, conn = relayed(front, far)
        client.sendall(b"ping")
        ports = struct.pack("!HH", client.getsockname()[1], front.address[1])
        addresses = socket.inet_aton("127.0.0.1") * 2 + ports
        expected = SIGNATURE + bytes.fromhex("2111000c") + addresses + b"ping"
        assert read_all(conn, len(expected)) == expected
        conn.sendall(b"pong")
        assert read_all(client, 4) == b"pong"
        close(client, conn)


def test_to_unix_sockets(path: str, tmp_path: Path) -> None:
    """-i does not say it there, as in C; it is told so at the start."""
    name = str(tmp_path / "far")
    with socket.socket(socket.AF_UNIX) as far:
        far.bind(name)
        far.listen()
        far.settimeout(SECONDS)
        with relaying(f"-s{path}", f"-u{name}", "-i") as server, Front(path) as front:
            server.await_log("-i is for addresses; --proxy-protocol=1 says it to a unix socket")
            client, conn = relayed(front, far)
            assert works(client, conn)
            close(client, conn)
        with relaying(f"-s{path}", f"-u{name}", "--proxy-protocol=1"):
            client, passed = socket.socketpair()
            with passed:
                pass_on(path, passed.fileno())
            conn = accept(far)
            assert read_all(conn, 15) == b"PROXY UNKNOWN\r\n"
            close(client, conn)


def test_who_has_gone_before_that(path: str) -> None:
    with listener() as far, relaying(f"-s{path}", *to(far), "-i") as server:
        with accepted() as (client, passed):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            pass_on(path, passed.fileno())
        server.await_log("refused client=- end=no-connection")


# A connection


class TestConformance(Conformance):
    """A connection of a real process."""

    kinds = ("tcp",)
    bound = BOUND_OF_ITS_OWN

    @pytest.fixture(scope="class")
    def place(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str, int]]:
        path = str(tmp_path_factory.mktemp("relay") / "receiver")
        # Each connection goes to the port that it has come to, and that is the test's.
        with relaying(f"-s{path}", "-c127.0.0.3", "-p0") as server:
            yield server, path, 0

    @pytest.fixture
    def join(self, kind: str, place: tuple[Server, str, int]) -> Iterator[Join]:
        joints = []
        server, path, _ = place

        def join(early: bytes = b"") -> Joint:
            joints.append(joined(server, path, early))
            return joints[-1]

        with nothing_left_behind():
            yield join
            for joint in joints:
                joint.close()
                joint.over()


def joined(server: Server, path: str, early: bytes) -> Joint:
    with socket.create_server(("127.0.0.3", 0)) as far, socket.socket() as front:
        set_small_buffers(far)
        far.settimeout(SECONDS)
        front.bind(("127.0.0.2", far.getsockname()[1]))
        set_small_buffers(front)
        front.listen()
        client = socket.socket()
        set_small_buffers(client)
        client.settimeout(SECONDS)
        client.connect(front.getsockname())
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(early)
        with front.accept()[0] as passed:
            pass_on(path, passed.fileno())
        conn, _ = far.accept()
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        there = "{}:{}".format(*far.getsockname())
    us = "{}:{}".format(*client.getsockname())

    def over() -> Outcome:
        return Outcome.of(server.await_log(f"closed client={us} user=.* target={there} "))

    return Joint(End.of(client), End.of(conn), over)


def test_time_limits(path: str) -> None:
    limits = ("--idle-timeout=0.3", "--half-close-timeout=0.1")
    with (
        listener() as far,
        relaying(f"-s{path}", *to(far), *limits) as server,
        Front(path) as front,
    ):
        client, conn = relayed(front, far)
        server.await_log("end=idle-timeout")
        close(client, conn)
        client, conn = relayed(front, far)
        client.shutdown(socket.SHUT_WR)
        server.await_log("end=half-close-timeout")
        close(client, conn)


def test_who_has_been_passed_is_served_to_the_end(path: str) -> None:
    with (
        listener() as far,
        relaying(f"-s{path}", *to(far), drain=30) as server,
        Front(path) as front,
    ):
        [worker] = server.worker_pids()
        os.kill(worker, signal.SIGSTOP)
        clients = [front.client() for _ in range(8)]
        server.terminate()
        until("nobody finds it any more", lambda: not os.path.exists(path))
        os.kill(worker, signal.SIGCONT)
        for client in clients:
            with client, accept(far) as conn:
                assert works(client, conn)
        assert server.status == 0


def test_nothing_is_leaked(path: str) -> None:
    with listener() as far, relaying(f"-s{path}", *to(far), "-i") as server, Front(path) as front:
        [worker] = server.worker_pids()
        close(*relayed(front, far))
        server.await_log("closed")
        before = kinds_of_descriptors(worker)
        for _ in range(100):
            close(*relayed(front, far))
        until("all are closed", lambda: server.count("closed client=") == 101)
        until("all is closed", lambda: kinds_of_descriptors(worker) == before)


# Wrong usage


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("-l99",), "-l: descriptor 99 is not open; leave it open for this program"),
        (("-lx",), "-l: 'x' is no descriptor; give its number, say 3"),
        (("-l0",), "-l: descriptor 0 is no socket; give one, or -s"),
        (("-lsystemd",), "systemd has passed no socket; start it by its socket unit"),
        (("-s/x", "-e"), "-s and -e exclude each other; see --help"),
        (("-clocalhost",), "-c: 'localhost' is not an address; give IPv4 or IPv6 in full"),
        (("-p65536",), "-p is '65536'; it must be a port, 0 to 65535"),
        (("-Inone",), "-I: there is no interface 'none'; see ip link"),
        (("-Ilo", "-n1"), "-I and -n exclude each other; give one of them"),
        (("-N", "-Px"), "-P: 'x' is not an IPv6 address; give it in full"),
        (("-N", "-P:x"), "-P: ':x' is not an address; give IPv4 or IPv6 in full"),
        (("-N", "-P10.1.0.0"), "-P: '10.1.0.0' is not an IPv6 address; give it in full"),
        (("-x",), "-x is for -N; give that too"),
        (("-N", "-u" + "x" * 99), "-u: 'xxxx"),
        (("-u",), "-u requires argument"),
        (("--proxy-protocol=3",), "--proxy-protocol: '3' is no version; give 1 or 2"),
        (("what",), "'what' is not an option; see --help"),
    ],
)
def test_wrong_usage(options: tuple[str, ...], line: str) -> None:
    status, lines = ended(*options, program=(PROGRAM,))
    assert status == 100
    assert len(lines) == 1 and lines[0].startswith(f"socketbox-relay: {line}"), lines


def test_sockets_that_are_none_to_listen_at() -> None:
    one, other = socket.socketpair()
    with one, other, socket.socket(type=socket.SOCK_DGRAM) as udp:
        for sock in (one, udp):
            fd = sock.fileno()
            status, lines = ended(f"-l{fd}", program=(PROGRAM,), pass_fds=(fd,))
            assert status == 100
            assert lines[0].startswith(
                f"socketbox-relay: -l: descriptor {fd} is no socket to listen"
            )
    with socket.create_server(("127.0.0.1", 0)) as tcp:
        fd = tcp.fileno()
        status, lines = ended("-e", f"-l{fd}", program=(PROGRAM,), pass_fds=(fd,))
        assert status == 100
        problem = f"-l: connections cannot be passed to descriptor {fd}"
        assert lines == [f"socketbox-relay: {problem}; without -e it is one to listen at"]


def test_somebody_else_listens_first() -> None:
    with socket.socket() as ours, socket.socket() as other:
        for sock in (other, ours):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", 0) if sock is other else other.getsockname())
        other.listen()
        fd, port = ours.fileno(), ours.getsockname()[1]
        status, lines = ended(f"-l{fd}", program=(PROGRAM,), pass_fds=(fd,))
        problem = f"cannot listen on 127.0.0.1:{port}: Address already in use"
        assert (status, lines) == (111, [f"socketbox-relay: {problem}"])
