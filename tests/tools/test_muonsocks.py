"""muonsocks as a server: where it listens, what it says, reloads; and the conformance suite."""

import errno
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conformance import BOUND_OF_ITS_OWN, Conformance, Join, Joint
from ends import End, Outcome, nothing_left_behind, set_small_buffers
from places import in_own_network, root_only, sh
from programs import (
    GREETING,
    PASSWORD_GREETING,
    SECONDS,
    VERSIONS,
    Version,
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
    ADDRESS,
    MUONSOCKS,
    Server,
    ended,
    free_port,
    running,
    until,
    works,
)

# Where it listens


def start_lines(*options: str, **environ: str) -> list[str]:
    """What it says when it starts, without the time and the process."""
    process = subprocess.Popen(
        [MUONSOCKS, "--workers=1", "--notify-fd=1", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(**environ),
    )
    assert process.stdout
    process.stdout.readline()
    process.terminate()
    _, log = process.communicate(timeout=SECONDS)
    assert process.returncode in (0, 111), log
    lines = [line.split("]: ", 1)[-1] for line in log.decode().splitlines()]
    return [line for line in lines if not line.startswith("stopped")]


ALONE = "only for this host, as everybody may come in; see --users, -w and -i"
WARNING = "an open proxy: whoever can reach it may use it; see --users and -w"
BELIEVED = "whoever can reach it may say to be somebody else; see --proxy-from"
USER = ("-U", "alice", "-P", "secret")


@root_only()
def test_where_it_listens() -> None:
    """Everywhere if it is limited who may come in, and on loopback if not."""

    def check() -> None:
        sh("ip addr add 192.0.2.1/24 dev lo", "ip addr add fe80::7/64 dev lo nodad")
        everywhere = "listening on 0.0.0.0:1080, [::]:1080"
        assert start_lines() == ["listening on 127.0.0.1:1080, [::1]:1080", ALONE]
        assert start_lines(*USER) == [everywhere]
        assert start_lines(*USER, "-w", "192.0.2.0/24", "-p", "1081") == [
            everywhere.replace("1080", "1081")
        ]
        assert start_lines("-p81") == ["listening on 127.0.0.1:81, [::1]:81", ALONE]
        assert start_lines("-i", "127.0.0.1") == ["listening on 127.0.0.1:1080"]
        assert start_lines("-i", "192.0.2.1") == ["listening on 192.0.2.1:1080", WARNING]
        assert start_lines("-i", "0.0.0.0") == ["listening on 0.0.0.0:1080", WARNING]
        assert start_lines("-i", "::1") == ["listening on [::1]:1080"]
        assert start_lines("-i", "[::1]", "--listen=127.0.0.9") == [
            "listening on [::1]:1080, 127.0.0.9:1080"
        ]
        assert start_lines("-i", "::", "-i", "0.0.0.0", *USER) == [
            "listening on [::]:1080, 0.0.0.0:1080"
        ]
        assert start_lines("-q") == []
        assert start_lines("-q", "-i", "::") == [WARNING]
        header = "--proxy-protocol=optional"
        assert start_lines("-q", *USER, "-i", "::", header) == [BELIEVED]
        assert start_lines("-q", "-i", "::", header) == [BELIEVED, WARNING]
        assert start_lines("-q", *USER, "-i", "::", header, "--proxy-from=192.0.2.0/24") == []
        assert start_lines("-q", "-i", "::1", header) == []

    in_own_network(check)


@root_only()
def test_a_host_with_one_family() -> None:
    def check() -> None:
        sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1")
        assert start_lines() == ["listening on 127.0.0.1:1080", ALONE]
        assert ended("-i", "::1") == (
            111,
            ["muonsocks: cannot listen on [::1]:1080: Cannot assign requested address"],
        )
        sh("ip addr del 127.0.0.1/8 dev lo", "sysctl -qw net.ipv6.conf.all.disable_ipv6=0")
        sh("ip link set lo down", "ip link set lo up")
        sh("ip addr flush dev lo", "ip -6 addr add ::1/128 dev lo nodad")
        assert start_lines()[-1] == ALONE

    in_own_network(check)


def test_a_kernel_without_ipv6() -> None:
    """Told by strace, which lets socket(2) fail as there."""
    inject = "inject=socket:error=EAFNOSUPPORT:when=2"
    strace = ("strace", "-o", "/dev/null", "-e", "trace=socket", "-e", inject)
    port = free_port("127.0.0.1")
    status, lines = ended(
        f"-p{port}",
        "--workers=1",
        program=("timeout", "1", *strace, MUONSOCKS),
        env=environment(HOME="/"),  # or Python asks a name service for it, by a socket
    )
    assert any(line.endswith(f"listening on 127.0.0.1:{port}") for line in lines), lines
    assert status == 124


@pytest.mark.parametrize("option", ["-i", "-p"])
def test_an_address_in_use(option: str) -> None:
    with listener(ADDRESS) as taken:
        host, port = taken.getsockname()
        where = ["-i", host, "-p", str(port)]
        assert ended(*where) == (
            111,
            [f"muonsocks: cannot listen on {host}:{port}: Address already in use"],
        )


WRONG = {
    ("-i", "localhost"): "-i: 'localhost' is not an address; give IPv4 or IPv6 in full",
    ("-i", "127.1"): "-i: '127.1' is not an address; give IPv4 or IPv6 in full",
    ("-i", ""): "-i: '' is not an address; give IPv4 or IPv6 in full",
    ("-i", "127.0.0.1:80"): "-i: '127.0.0.1:80' is not an address; give IPv4 or IPv6 in full",
    ("-p", "65536"): "-p is '65536'; it must be a port, 0 to 65535",
    ("-p", "http"): "-p is 'http'; it must be a port, 0 to 65535",
    ("-p", "-1"): "-p is '-1'; it must be a port, 0 to 65535",
    ("--workers=1025",): "--workers: '1025' is too large; give 0 to 1024",
    ("--workers=many",): "--workers: 'many' is not a number; give 0 to 1024",
    ("--max-connections=-1",): "--max-connections: '-1' is too small; give 0 to 16777216",
    ("--max-per-source=x",): "--max-per-source: 'x' is not a number; give 0 to 16777216",
    ("--drain-timeout=0",): "--drain-timeout: '0' is not a time; give seconds, more than 0",
    ("-d", "99"): "--notify-fd: descriptor 99: Bad file descriptor; see --help",
    ("-d", "2"): "--notify-fd: descriptor 2 is for the log; give another one, say 3",
    ("-d", "x"): "--notify-fd: 'x' is not a number; give 0 to 1048576",
    ("argument",): "'argument' is not an option; see --help",
    ("-i", "::1", "argument"): "the arguments do not fit; see --help",
    ("--no-such",): "there is no option --no-such; see --help",
    ("-U", "alice"): "-U and -P go together; or use --users FILE",
    ("--proxy-protocol=required", "--max-per-source=9"): (
        "--max-per-source counts nobody where anybody may come for others; give --proxy-from too"
    ),
}


@pytest.mark.parametrize("options", WRONG, ids=" ".join)
def test_wrong_usage(options: tuple[str, ...]) -> None:
    assert ended(*options) == (100, [f"muonsocks: {WRONG[options]}"])


def test_a_notify_descriptor_that_cannot_be_written_to() -> None:
    reader, writer = os.pipe()
    assert ended("-d", str(reader), pass_fds=(reader,)) == (
        100,
        [f"muonsocks: --notify-fd: descriptor {reader} is only for reading; give the other end"],
    )
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_what_it_is_asked_for(option: str) -> None:
    status, lines = ended(option)
    assert status == 0
    assert lines[0].startswith("Serve SOCKS" if option == "--help" else "muonsocks ")


# Sockets of systemd


@contextmanager
def activated(*options: str, listen: str, fd: int = 3) -> Iterator[list[str]]:
    """Be started by systemd-socket-activate, as it accepts the first connection; give the log."""
    command = ["systemd-socket-activate", f"--listen={listen}", MUONSOCKS, "--workers=2"]
    process = subprocess.Popen(
        [*command, *options],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stderr
    log = [process.stderr.readline()]  # it listens
    try:
        yield log
    finally:
        process.terminate()
        log += process.communicate(timeout=SECONDS)[1].splitlines()
    assert process.returncode == 0, log


def test_sockets_of_systemd() -> None:
    host, port = ADDRESS, free_port()
    with listener() as far, activated("--allow-local", listen=f"{host}:{port}") as log:
        with socket.create_connection((host, port), SECONDS) as client:
            client.sendall(socks4(*far.getsockname()))
            assert read_all(client, 8)[1] == 0x5A
            with accept(far) as conn:
                assert works(client, conn)
        with socket.create_connection((host, port), SECONDS) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert client.recv(1) == b""
    assert [line for line in log if line.endswith(f"listening on {host}:{port}")], log


def test_a_unix_socket_of_systemd(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with listener() as far, activated("--allow-local", listen=path) as log:
        until("it listens", lambda: os.path.exists(path))
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(SECONDS)
            client.connect(path)
            client.sendall(socks4(*far.getsockname()))
            assert read_all(client, 8)[1] == 0x5A
            with accept(far) as conn:
                assert works(client, conn)
    assert [line for line in log if line.endswith(f"listening on unix:{path}")], log
    assert [line for line in log if "closed client=unix user=me" in line]


def with_sockets(*sockets: socket.socket, options: tuple[str, ...] = ()) -> tuple[int, list[str]]:
    """Run it with LISTEN_FDS, as systemd does."""
    script = (
        "".join(f"exec {number}<&{sock.fileno()}; " for number, sock in enumerate(sockets, 3))
        + 'LISTEN_PID=$$ exec "$@"'
    )
    return ended(
        *options,
        program=("bash", "-c", script, "bash", MUONSOCKS),
        env=environment(LISTEN_FDS=str(len(sockets))),
        pass_fds=[sock.fileno() for sock in sockets],
    )


@pytest.mark.parametrize("options", [("-i", "::1"), ("-p", "1080"), ("-p0", "-i", "127.0.0.1")])
def test_sockets_of_systemd_and_options(options: tuple[str, ...]) -> None:
    with listener() as sock:
        assert with_sockets(sock, options=options) == (
            100,
            ["muonsocks: systemd has the sockets; leave -i and -p out"],
        )


def test_sockets_of_systemd_that_are_none_to_accept_from() -> None:
    """Accept=yes by mistake, or ListenDatagram= with a port."""
    one, other = socket.socketpair()
    with one, other, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
        for sock in (one, datagram):
            problem = "descriptor 3 is no socket to accept from"
            hint = "use ListenStream= or ListenDatagram= with a path"
            assert with_sockets(sock) == (100, [f"muonsocks: {problem}; {hint}"])


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors(closed: str) -> None:
    """Where the log goes must not become a socket, or a line of it would be in a connection."""
    shell = ("/bin/sh", "-c", f'exec "$@" {closed}', "sh")
    with listener() as far, running(before=shell) as server:
        for pid in (server.pid, *server.worker_pids()):
            assert os.readlink(f"/proc/{pid}/fd/2") == "/dev/null"
        client, conn = server.joined(far)
        assert works(client, conn)
        client.close()
        conn.close()


# A connection


@pytest.fixture(scope="module", params=[1, 3], ids=["1 worker", "3 workers"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with running(workers=request.param) as server:
        yield server


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_a_connection(server: Server, version: Version) -> None:
    """And its two lines in the log, of the worker that had it."""
    with listener() as far, server.connect() as client:
        client.sendall(version.greeting)
        assert read_all(client, len(version.chosen)) == version.chosen
        host, port = far.getsockname()
        client.sendall(version.request(host, port))
        with accept(far) as conn:
            reply = version.success(*conn.getpeername())
            assert read_all(client, len(reply)) == reply
            assert works(client, conn)
            client.shutdown(socket.SHUT_WR)
            assert conn.recv(1) == b""
        assert client.recv(1) == b""
        us = "{}:{}".format(*client.getsockname())
        user = "-" if version.name == "5" else "me"
        facts = f"client={us} user={user} target={host}:{port}"
        stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ muonsocks\[(\d+)\]: "
        connected = server.await_log(f"connected {re.escape(facts)} ")
        closed = server.await_log(f"closed {re.escape(facts)} ")
    found = re.fullmatch(f"{stamp}connected {re.escape(facts)} address={host}:{port}", connected)
    assert found and int(found[1]) in server.worker_pids()
    end = r"reply=0 in=8 out=6 secs=\d+\.\d{3} end=closed"
    found = re.fullmatch(f"{stamp}closed {re.escape(facts)} {end}", closed)
    assert found and int(found[1]) in server.worker_pids()


class TestConformance(Conformance):
    """A connection of a real server, with 1 and 3 workers."""

    kinds = ("tcp",)
    bound = BOUND_OF_ITS_OWN

    @pytest.fixture
    def join(self, kind: str, server: Server, tmp_path: Path) -> Iterator[Join]:
        joints = []

        def join(early: bytes = b"") -> Joint:
            joints.append(joined(server, early))
            return joints[-1]

        with nothing_left_behind():
            yield join
            for joint in joints:
                joint.close()
                joint.over()


def joined(server: Server, early: bytes) -> Joint:
    with socket.create_server(("127.0.0.1", 0)) as front:
        set_small_buffers(front)
        front.settimeout(SECONDS)
        client = socket.socket()
        set_small_buffers(client)
        client.settimeout(SECONDS)
        client.connect(server.address)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(socks4(*front.getsockname()) + early)
        assert read_all(client, 8)[1] == 0x5A
        far, _ = front.accept()
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        there = "{}:{}".format(*front.getsockname())
    us = "{}:{}".format(*client.getsockname())

    def over() -> Outcome:
        # A client may have a port that another one had before, but not with the same target.
        return Outcome.of(server.await_log(f"closed client={us} user=.* target={there} "))

    return Joint(End.of(client), End.of(far), over)


def test_quiet() -> None:
    """Connections are not logged, and all else is."""
    with listener() as far, running("-q") as server:
        client, conn = server.joined(far)
        assert works(client, conn)
        client.close()
        conn.close()
        worker = server.worker_pids()[0]
        os.kill(worker, signal.SIGKILL)
        server.await_log("killed by signal 9")
        assert len(server.log.splitlines()) == 1


def test_verbose() -> None:
    with running("-v") as server, server.connect() as client:
        client.sendall(socks4("127.0.0.1", port := free_port("127.0.0.1")))
        assert read_all(client, 8)[1] == 0x5B
        line = server.await_log("tried=")
        assert line.endswith(f'tried=127.0.0.1 error="{os.strerror(errno.ECONNREFUSED)}"')
        assert f"target=127.0.0.1:{port} " in line


# Reload


def comes_in(server: Server, user: bytes, password: bytes) -> bool:
    with server.connect() as client:
        client.sendall(PASSWORD_GREETING)
        assert read_all(client, 2) == b"\5\2"
        client.sendall(credentials(user, password))
        return read_all(client, 2) == b"\1\0"


def may_go(server: Server, far: socket.socket) -> bool:
    with server.connect() as client:
        client.sendall(GREETING + socks5(*far.getsockname()))
        answer = read_all(client, 12)
        if answer == b"\5\0" + failure(2):
            return False
        assert answer.startswith(b"\5\0\5\0")
        accept(far).close()
        return True


def test_users_are_read_again(tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text("alice:one\n")
    with running(f"--users={users}", workers=3) as server:
        assert comes_in(server, b"alice", b"one")
        users.write_text("alice:two\nbob:b\n")
        server.signal(signal.SIGHUP)
        server.await_log("reloaded")
        for user, password, right in (
            (b"alice", b"one", 0),
            (b"alice", b"two", 1),
            (b"bob", b"b", 1),
        ):
            until(
                "all workers know it",
                lambda: {comes_in(server, user, password) for _ in range(12)} == {bool(right)},  # noqa: B023
            )


def test_rules_are_read_again(tmp_path: Path) -> None:
    """Connections that are open go on, whatever the new rules say."""
    rules = tmp_path / "rules"
    rules.write_text("allow 127.0.0.1\ndeny *\n")
    with listener() as far, running(f"--rules={rules}", workers=3) as server:
        pairs = [server.joined(far) for _ in range(50)]
        rules.write_text("deny 127.0.0.1\n")
        server.signal(signal.SIGHUP)
        server.await_log("reloaded")
        until("all workers know it", lambda: not any(may_go(server, far) for _ in range(12)))
        line = server.await_log("refused-by-rule")
        assert f"denied by {rules}:1" in line
        assert all(works(*pair) for pair in pairs)
        rules.write_text("")
        server.signal(signal.SIGHUP)
        server.await_log("reloaded", 2)
        until("all workers know it", lambda: all(may_go(server, far) for _ in range(12)))
        for client, conn in pairs:
            assert works(client, conn)
            client.close()
            conn.close()


def unreadable(path: Path) -> None:
    path.unlink()
    path.mkdir()


BAD: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "rules: syntax": (
        "rules",
        lambda path: path.write_text("\nallow\n"),
        ":2: the line is not a rule",
    ),
    "rules: network": (
        "rules",
        lambda path: path.write_text("deny 1.2.3.4/99"),
        ":1: '1.2.3.4/99'",
    ),
    "rules: bytes": ("rules", lambda path: path.write_bytes(b"\xff\xfe"), " is not UTF-8 text"),
    "rules: missing": ("rules", lambda path: path.unlink(), ": No such file or directory"),
    "rules: large": (
        "rules",
        lambda path: path.write_bytes(b"#" * (5 << 20)),
        " is larger than 4194304",
    ),
    "users: syntax": (
        "users",
        lambda path: path.write_text("a:b\nbob\n"),
        ":2: the line is not NAME",
    ),
    "users: twice": (
        "users",
        lambda path: path.write_text("a:b\na:c\n"),
        ":2: the user is named twice",
    ),
    "users: none": ("users", lambda path: path.write_text("# nobody\n"), ": there is no user"),
    "users: missing": ("users", lambda path: path.unlink(), ": No such file or directory"),
    "users: directory": ("users", unreadable, ": Is a directory"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_file_changes_nothing(tmp_path: Path, what: str) -> None:
    """It is said what is wrong with it, and where."""
    rules, users = tmp_path / "rules", tmp_path / "users"
    rules.write_text("allow 127.0.0.1\ndeny *\n")
    users.write_text("alice:one\n")
    name, spoil, words = BAD[what]
    options = [f"--rules={rules}", f"--users={users}", "-w127.0.0.0/8"]
    with listener() as far, running(*options, workers=2) as server:
        pairs = [server.joined(far) for _ in range(10)]
        spoil(tmp_path / name)
        server.signal(signal.SIGHUP)
        line = server.await_log("not reloaded")
        assert f": not reloaded, all stays as it was: {tmp_path / name}{words}" in line
        assert all(may_go(server, far) for _ in range(4))
        assert all(works(*pair) for pair in pairs)
        for client, conn in pairs:
            client.close()
            conn.close()


@root_only()
def test_a_file_that_may_not_be_read_any_more(tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text("alice:one\n")
    powerless = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    with running(f"--users={users}", before=powerless) as server:
        users.chmod(0)
        server.signal(signal.SIGHUP)
        line = server.await_log("not reloaded")
        assert line.endswith(f"{users}: Permission denied")
        assert comes_in(server, b"alice", b"one")


def test_users_cannot_appear_or_vanish(tmp_path: Path) -> None:
    """A credential that is gone must not open the door, nor a new one shut it unseen."""
    users = tmp_path / "users"
    environ = environment(CREDENTIALS_DIRECTORY=str(tmp_path))
    with running(environ=environ) as server:
        users.write_text("alice:one\n")
        server.signal(signal.SIGHUP)
        words = "whether there are users is decided at the start; restart"
        assert server.await_log("not reloaded").endswith(words)
    with running(environ=environ) as server:
        users.unlink()
        server.signal(signal.SIGHUP)
        assert server.await_log("not reloaded").endswith(words)
        assert comes_in(server, b"alice", b"one")


def test_the_password_of_the_command_line_after_a_reload(tmp_path: Path) -> None:
    """It is hidden already, and still right."""
    with running("-U", "alice", "-P", "secret") as server:
        server.signal(signal.SIGHUP)
        server.await_log("reloaded")
        for pid in (server.pid, *server.worker_pids()):
            assert b"secret" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert comes_in(server, b"alice", b"secret")
        assert not comes_in(server, b"alice", b"******")
