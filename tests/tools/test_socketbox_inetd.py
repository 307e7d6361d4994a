"""socketbox-inetd as a real process: connections are passed to it, and programs answer them."""

import os
import resource
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from programs import INETD as SOCKS_INETD
from programs import SECONDS, accept, environment, listener, read_all, socks4
from real_server import Server, children, ended, is_alive, kinds_of_descriptors, started, until
from senders import Front, accepted, pass_on

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = str(ROOT / "bin" / "socketbox-inetd")
PYTHON = "/usr/bin/python3"


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "receiver")


@contextmanager
def inetd(
    path: str,
    *program: str,
    options: tuple[str, ...] = (),
    environ: dict[bytes, bytes] | None = None,
    drain: float = 0.2,
) -> Iterator[tuple[Server, Front]]:
    command = (PROGRAM, f"--drain-timeout={drain}", *options)
    with started(command, (path, *program), environ=environ) as server, Front(path) as front:
        yield server, front


def say(client: socket.socket, words: bytes = b"hello\n") -> str:
    """Say something, and give the answer up to the end."""
    client.settimeout(SECONDS)
    client.sendall(words)
    client.shutdown(socket.SHUT_WR)
    with client:
        return read_all(client).decode()


def shell(script: str) -> tuple[str, str, str]:
    return "/bin/sh", "-c", script


ECHO = shell('read x; echo "you said $x"; echo "and to the log: $x" >&2')


# A program


def test_a_program_for_each_connection(path: str) -> None:
    with inetd(path, *ECHO) as (server, front):
        server.await_log(f"receiving at unix:{path}$")
        client = front.client()
        us = "{}:{}".format(*client.getsockname())
        assert say(client) == "you said hello\n"
        server.await_log("^and to the log: hello$")
        line = server.await_log(f"started client={us} pid=[0-9]+$")
        pid = line.rpartition("=")[2]
        server.await_log(rf"ended client={us} pid={pid} status=0 secs=\d+\.\d{{3}}$")
        assert say(front.client(), b"again\n") == "you said again\n"
    assert not os.path.exists(path)


def test_how_it_ends(path: str) -> None:
    with inetd(path, *shell('read x; eval "$x"')) as (server, front):
        for words, status in (
            (b"exit 3\n", "3"),
            (b"exit 126\n", "126"),
            (b"kill -9 $$\n", "signal-9"),
        ):
            assert say(front.client(), words) == ""
            server.await_log(f"ended client=.* status={status} ")


def test_what_a_program_has(path: str) -> None:
    """The connection as it came, blocking; standard error; nothing else of ours."""
    script = """
import fcntl, os, resource, signal, sys
assert os.get_blocking(0) and os.get_blocking(1)
names = [os.readlink(f"/proc/self/fd/{number}") for number in (0, 1)]
assert names[0] == names[1] and names[0].startswith("socket:"), names
fds = sorted(map(int, os.listdir("/proc/self/fd")))
assert fds == [0, 1, 2, 3], fds  # the last is that of listdir
assert os.getsid(0) == os.getpgrp() == os.getpid()
assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
fields = dict(line.split(":\\t") for line in open("/proc/self/status") if ":\\t" in line)
ignored = {number for number in range(1, 65) if int(fields["SigIgn"], 16) >> number - 1 & 1}
assert ignored - {32, 33} == {signal.SIGPIPE, signal.SIGXFSZ}  # glibc's own, and Python's
sys.stdin.readline()
print(*resource.getrlimit(resource.RLIMIT_NOFILE), sys.argv[1:])
"""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = min(soft, 1024)
    ignoring = f"ulimit -Sn {soft}; trap '' HUP INT USR1 CHLD; exec \"$@\""
    command = ("/bin/sh", "-c", ignoring, "sh", PROGRAM)
    program = (PYTHON, "-c", script, "-x", "--", "two words", "")
    with (
        socket.socket() as other,
        started(command, (path, *program), keep=(other.fileno(),)),
        Front(path) as front,
    ):
        assert say(front.client()) == f"{soft} {hard} ['-x', '--', 'two words', '']\n"


def test_closed_standard_streams(path: str) -> None:
    command = ("/bin/sh", "-c", 'exec "$@" <&- >&-', "sh", PROGRAM)
    script = 'read x; echo "$x"; ls /proc/self/fd | wc -l'
    with started(command, (path, *shell(script))), Front(path) as front:
        assert say(front.client()) == "hello\n4\n"


# Who is connected


VARIABLES = ("REMOTE_ADDR", "REMOTE_PORT", "PROTO", "TCPREMOTEIP", "TCPREMOTEPORT")
VARIABLES += ("TCPLOCALIP", "TCPLOCALPORT")
SHOW = shell("read x;" + "".join(f'echo "${{{name}-unset}}";' for name in VARIABLES))
STALE = dict.fromkeys(VARIABLES, "stale")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_environment(path: str, host: str) -> None:
    with inetd(path, *SHOW, environ=environment(**STALE)), accepted(host) as (client, conn):
        pass_on(path, conn.fileno())
        here, there = (map(str, name()[:2]) for name in (client.getsockname, client.getpeername))
        (ip, port), (local_ip, local_port) = here, there
        conn.close()
        said = say(client).split()
        assert said == [ip, port, "TCP", ip, port, local_ip, local_port]


def test_an_ipv4_client_of_an_ipv6_socket(path: str) -> None:
    """As systemd has it."""
    with (
        inetd(path, *SHOW),
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as front,
        socket.create_connection(("127.0.0.1", front.getsockname()[1])) as client,
    ):
        with front.accept()[0] as conn:
            pass_on(path, conn.fileno())
        ip, port = client.getsockname()
        local = client.getpeername()
        assert say(client).split() == [ip, str(port), "TCP", ip, str(port), *map(str, local)]


def test_a_client_over_a_unix_socket(path: str) -> None:
    with inetd(path, *SHOW, environ=environment(**STALE)) as (server, _):
        client, conn = socket.socketpair()
        with conn:
            pass_on(path, conn.fileno())
        assert say(client).split() == ["unset", "unset", "UNIX", *["unset"] * 4]
        server.await_log("started client=unix pid=")


def test_what_is_not_for_programs(path: str) -> None:
    names = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID")
    script = "".join(f'echo "${{{name}-unset}}";' for name in names) + 'echo "$KEPT"'
    environ = environment(NOTIFY_SOCKET="/nowhere", WATCHDOG_USEC="1000000000", LISTEN_FDS="1")
    environ |= {b"KEPT": b"kept \xff", b"WATCHDOG_PID": b"1", b"LISTEN_PID": b"1"}
    with inetd(path, *shell(script), environ=environ) as (_, front):
        client = front.client()
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"unset\n" * 5 + b"kept \xff\n"
        client.close()


def test_a_client_who_has_gone(path: str) -> None:
    """No program is started for nobody."""
    with inetd(path, *ECHO) as (server, front):
        with accepted() as (client, conn):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
            pass_on(path, conn.fileno())
        server.await_log("ended client=gone pid=- status=gone secs=0.000$")
        assert say(front.client()) == "you said hello\n"
        server.await_log("ended client=127.0.0.1")
        assert server.count("started") == 1


# What may be passed: what the C program takes, and what it does not


@pytest.mark.parametrize("size", [0, 1, 4, 1000])
def test_what_goes_with_a_descriptor_does_not_matter(path: str, size: int) -> None:
    with inetd(path, *ECHO), accepted("::1") as (client, conn):
        pass_on(path, conn.fileno(), word=b"x" * size)
        conn.close()
        assert say(client) == "you said hello\n"


def test_further_descriptors_are_closed(path: str) -> None:
    with inetd(path, *ECHO), accepted() as (client, conn), accepted() as (other, second):
        pass_on(path, conn.fileno(), second.fileno())
        conn.close()
        second.close()
        assert say(client) == "you said hello\n"
        assert other.recv(1) == b""


def test_what_is_discarded(path: str) -> None:
    with inetd(path, *ECHO) as (server, front):
        with open("/dev/null") as file, socket.socket(type=socket.SOCK_DGRAM) as udp:
            pass_on(path, file.fileno())
            pass_on(path, udp.fileno())
            pass_on(path)
        assert say(front.client()) == "you said hello\n"
        assert server.count("refused client=- end=no-connection") == 3


def test_how_strict_it_is(path: str) -> None:
    environ = environment(SKBOX_STRICT_STREAM_MODE="0")
    with inetd(path, *shell("echo here >&2"), environ=environ) as (server, _):
        with socket.socket(type=socket.SOCK_DGRAM) as udp:
            udp.bind(("127.0.0.1", 0))
            udp.connect(udp.getsockname())
            pass_on(path, udp.fileno())
        server.await_log("^here$")
        with open("/dev/null") as file:
            pass_on(path, file.fileno())
        server.await_log("^here$", 2)
        server.await_log("ended client=unknown .* status=0")
    line = "socketbox-inetd: SKBOX_STRICT_STREAM_MODE is 'x'; it must be 0, 1 or 2"
    environ = environment(SKBOX_STRICT_STREAM_MODE="x")
    assert ended(path, "true", program=(PROGRAM,), env=environ) == (100, [line])


# How many


def test_others_wait(path: str) -> None:
    """Eleven fit into the queue of the socket; all have their turn."""
    with inetd(path, *ECHO, options=("--max=2",)) as (server, front):
        clients = [front.client() for _ in range(2)]
        server.await_log("started", 2)
        clients += [front.client() for _ in range(8)]
        server.await_log("all 2 connections of --max are in use$")
        assert server.count("started") == 2
        for client in clients:
            assert say(client) == "you said hello\n"
        until("all have ended", lambda: server.count("ended") == 10)
        server.await_log("the shortage is over")


def test_of_one_source(path: str) -> None:
    with inetd(path, *ECHO, options=("--max-per-source=1",)) as (server, front):
        first, second = front.client(), front.client()
        assert second.recv(1) == b""
        other = front.client("127.0.0.2")
        server.await_log("refused client=127.0.0.1:.* end=too-many-of-this-source")
        assert say(first) == say(other) == "you said hello\n"
        until("it has ended", lambda: server.count("ended") == 2)
        assert say(front.client()) == "you said hello\n"
        second.close()


def test_many(path: str) -> None:
    """Every child is reaped, and no descriptor stays behind."""
    with inetd(path, *ECHO) as (server, front):
        [worker] = server.worker_pids()
        assert say(front.client()) == "you said hello\n"
        server.await_log("ended")
        before = kinds_of_descriptors(worker)
        for _ in range(20):
            clients = [front.client() for _ in range(10)]
            for client in clients:
                assert say(client) == "you said hello\n"
        until("all have ended", lambda: server.count("ended client=.* status=0 ") == 201)
        assert children(worker) == []
        assert kinds_of_descriptors(worker) == before


# What cannot be run


def test_no_such_program(path: str, tmp_path: Path) -> None:
    def tried(name: str) -> tuple[int, list[str]]:
        return ended(path, name, program=(PROGRAM,))

    line = "socketbox-inetd: {} cannot be executed: {}"
    for name in ("no-such-program", str(tmp_path / "nothing")):
        assert tried(name) == (127, [line.format(name, "there is no such program")])
    file = tmp_path / "file"
    file.write_text("")
    reason = "it is no program, or not ours to run"
    for name in (str(file), str(tmp_path)):
        assert tried(name) == (126, [line.format(name, reason)])
    assert not os.path.exists(path)


def test_a_program_that_is_removed(path: str, tmp_path: Path) -> None:
    """Others may come when it is back."""
    program = tmp_path / "program"
    shutil.copy("/bin/cat", program)
    with inetd(path, str(program)) as (server, front):
        assert say(front.client()) == "hello\n"
        program.unlink()
        client = front.client()
        assert client.recv(1) == b""
        client.close()
        server.await_log(f"{program} cannot be executed: No such file or directory$")
        server.await_log("ended client=.* pid=- status=127 ")
        program.write_bytes(b"not a program")
        program.chmod(0o755)
        client = front.client()
        assert client.recv(1) == b""
        client.close()
        server.await_log("cannot be executed: Exec format error$")
        server.await_log("ended client=.* pid=- status=126 ")
        program.unlink()
        shutil.copy("/bin/cat", program)
        assert say(front.client()) == "hello\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "no PROG is given; say what is to be run, socks-inetd for instance"),
        (("PATH",), "no PROG is given; say what is to be run, socks-inetd for instance"),
        (
            ("", "true"),
            "PATH: '' is no path of a socket; a path or @NAME of 107 bytes at most fits",
        ),
        (("--max=x", "PATH", "true"), "--max: 'x' is not a number; give 0 to 1048576"),
        (("--no-such", "PATH", "true"), "there is no option --no-such; see --help"),
        (("systemd", "true"), "systemd has passed no socket; start it by its socket unit"),
        (("--register=x", "y", "true"), "--register: 'y' is no group; give 0 to 4294967295"),
        (("--register=x", "4294967296", "true"), "--register: '4294967296' is no group"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], line: str) -> None:
    status, lines = ended(*arguments, program=(PROGRAM,))
    assert status == 100
    assert len(lines) == 1 and lines[0].startswith(f"socketbox-inetd: {line}")


# Where it receives


def test_a_dead_file_is_replaced(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(path)
    with inetd(path, *ECHO) as (_, front):
        assert say(front.client()) == "you said hello\n"
        line = f"socketbox-inetd: cannot receive at {path}: Address already in use"
        assert ended(path, "true", program=(PROGRAM,)) == (111, [line])
        assert say(front.client()) == "you said hello\n"


def test_a_file_that_is_another_s_is_not_removed(path: str) -> None:
    with inetd(path, *ECHO) as (server, _):
        os.unlink(path)
        Path(path).write_text("another one")
        server.terminate()
        assert server.status == 0
    assert Path(path).read_text() == "another one"


def test_a_socket_of_systemd(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        script = f'exec 3<&{sock.fileno()}; LISTEN_PID=$$ exec "$@"'
        command = ("bash", "-c", script, "bash", PROGRAM)
        program = ("systemd", *shell('read x; echo "${LISTEN_FDS-unset} $x"'))
        environ, keep = environment(LISTEN_FDS="1"), (sock.fileno(),)
        with started(command, program, environ=environ, keep=keep) as server:
            server.await_log(f"receiving at unix:{path}$")
            assert say(Front(path).client()) == "unset hello\n"
        assert os.path.exists(path)


# The end


def test_programs_may_finish(path: str) -> None:
    """And who has been passed before the end is served."""
    with inetd(path, *ECHO, drain=30) as (server, front):
        [worker] = server.worker_pids()
        first = front.client()
        server.await_log("started")
        os.kill(worker, signal.SIGSTOP)
        others = [front.client() for _ in range(5)]
        server.terminate()
        until("nobody finds it any more", lambda: not os.path.exists(path))
        os.kill(worker, signal.SIGCONT)
        for client in (first, *others):
            assert say(client) == "you said hello\n"
        assert server.status == 0
        server.await_log("stopped, connections that were cut: 0$")


def test_programs_that_do_not_finish(path: str) -> None:
    """They are told to, with what they have started."""
    script = "sleep 1000 & echo $! $$; wait"
    with inetd(path, *shell(script), drain=0.1) as (server, front):
        client = front.client()
        pids = [int(word) for word in client.makefile().readline().split()]
        assert len(pids) == 2 and all(map(is_alive, pids))
        server.terminate()
        assert server.status == 0
        server.await_log("stopped, connections that were cut: 1$")
        until("they have ended", lambda: not any(map(is_alive, pids)))
        client.close()


def test_a_worker_that_dies(path: str) -> None:
    """Programs go on, and count; the next connections are for another worker."""
    with inetd(path, *ECHO, options=("--max=2",)) as (server, front):
        clients = [front.client() for _ in range(2)]
        server.await_log("started", 2)
        kill_the_worker(server)
        server.await_log("lost with it: 0; programs that go on without it: 2$")
        other = front.client()
        server.await_log("all 2 connections of --max are in use$")
        assert say(clients[0]) == "you said hello\n"
        server.await_log(r"ended client=- pid=\d+ status=- secs=")
        server.await_log("started", 3)
        assert say(other) == say(clients[1]) == "you said hello\n"
        server.await_log("ended", 3)
        until("all are buried", lambda: children(server.pid) == workers(server))


@pytest.mark.parametrize("drain", [30, 0.1], ids=["they end", "they do not"])
def test_the_end_of_what_a_worker_has_left(path: str, drain: float) -> None:
    with inetd(path, *shell("echo $$; read x"), drain=drain) as (server, front):
        client = front.client()
        pid = int(client.makefile().readline())
        server.await_log("started")
        kill_the_worker(server)
        server.await_log("programs that go on without it: 1$")
        server.terminate()
        if drain > 1:
            until("nobody finds it any more", lambda: not os.path.exists(path))
            assert is_alive(pid) and server.process.poll() is None
            client.sendall(b"\n")
        assert server.status == 0
        server.await_log(f"connections that were cut: {int(drain < 1)}$")
        until("it has ended", lambda: not is_alive(pid))
        client.close()


def test_a_worker_that_dies_in_the_end(path: str) -> None:
    """What it leaves is told to end as well."""
    with inetd(path, *shell("echo $$; read x"), drain=30) as (server, front):
        client = front.client()
        pid = int(client.makefile().readline())
        server.await_log("started")
        server.terminate()
        until("nobody finds it any more", lambda: not os.path.exists(path))
        [worker] = server.worker_pids()
        os.kill(worker, signal.SIGKILL)
        assert server.status == 0
        until("it has ended", lambda: not is_alive(pid))
        client.close()


def test_what_programs_leave_behind(path: str) -> None:
    """Is not ours: it counts for nothing, and goes on when all ends."""
    script = shell("read x; setsid sleep 1000 >/dev/null 2>&1 & echo $!")
    left: list[int] = []
    try:
        with inetd(path, *script, options=("--max=2",), drain=30) as (server, front):
            left += [int(say(front.client())) for _ in range(2)]
            server.await_log("ended", 2)
            until("they have sessions of their own", lambda: all(map(leads_a_session, left)))
            assert {*left} < {*children(server.pid)}
            kill_the_worker(server)
            assert server.count("programs that go on without it") == 0
            left.append(int(say(front.client())))
            os.kill(left[0], signal.SIGKILL)
            until("it is buried", lambda: left[0] not in children(server.pid))
            server.terminate()
            assert server.status == 0
            assert server.count("connections of --max are in use") == 0
            assert server.count("ended client=-") == 0
            assert all(map(is_alive, left[1:]))
    finally:
        for pid in filter(is_alive, left):
            os.kill(pid, signal.SIGKILL)


def test_what_has_ended_before_its_worker(path: str) -> None:
    """Does not go on without it, though it is reaped after it."""
    with inetd(path, *shell("echo $$; read x"), drain=30) as (server, front):
        clients = [front.client() for _ in range(3)]
        pids = [int(client.makefile().readline()) for client in clients]
        server.await_log("started", 3)
        [worker] = server.worker_pids()
        os.kill(worker, signal.SIGSTOP)
        clients[0].sendall(b"\n")
        until("it has ended", lambda: not is_alive(pids[0]))
        kill_the_worker(server)
        server.await_log("lost with it: 1; programs that go on without it: 2$")
        for client in clients:
            client.shutdown(socket.SHUT_WR)
        until("the others have ended", lambda: not any(map(is_alive, pids)))
        until("they are buried", lambda: children(server.pid) == workers(server))
        kill_the_worker(server)
        assert server.count("programs that go on without it") == 1
        for client in clients:
            client.close()


def kill_the_worker(server: Server) -> None:
    [worker] = workers(server)
    os.kill(worker, signal.SIGKILL)
    server.await_log(f"worker {worker} was killed by signal 9")
    until("there is another one", lambda: {*workers(server)} - {worker})


def workers(server: Server) -> list[int]:
    """Children that have no session of their own, which all others here have."""
    return [pid for pid in children(server.pid) if not leads_a_session(pid)]


def leads_a_session(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return True  # it did, as no worker ends here unseen


# Registration


class Control:
    """A server to register with."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(path)
        self._listener.listen(1)
        self._listener.settimeout(SECONDS)
        self.asked = b""
        self.conn: socket.socket | None = None
        self._thread = threading.Thread(target=self._agree)
        self._thread.start()

    def _agree(self) -> None:
        conn = self._listener.accept()[0]
        conn.settimeout(SECONDS)
        self.asked = conn.recv(100)
        conn.send(bytes.fromhex("80000000"))
        self.conn = conn

    def client(self) -> socket.socket:
        """Come as a client, and be passed on."""
        self._thread.join()
        assert self.conn
        with socket.create_server(("127.0.0.1", 0)) as front:
            client = socket.create_connection(front.getsockname(), SECONDS)
            with front.accept()[0] as conn:
                socket.send_fds(self.conn, [bytes.fromhex("03000000")], [conn.fileno()])
        return client

    def close(self) -> None:
        self._thread.join()
        self._listener.close()
        assert self.conn
        self.conn.close()


def registered(control: Control, drain: float = 30) -> Any:
    """Run it as group 259."""
    command = (PROGRAM, f"--drain-timeout={drain}")
    return started(command, (f"--register={control.path}", "259", *ECHO))


def test_registration(path: str) -> None:
    """Until the server has gone; who has come before is served to the end."""
    control = Control(path)
    with registered(control) as server:
        server.await_log(f"registered as group 259 at unix:{path}$")
        assert say(control.client()) == "you said hello\n"
        assert control.asked == bytes.fromhex("0100000000000103")
        clients = [control.client() for _ in range(3)]
        control.close()
        server.await_log("who passed connections on has gone$")
        for client in clients:
            assert say(client) == "you said hello\n"
        assert server.status == 0
    assert os.path.exists(path), "that was not ours"


@pytest.mark.parametrize("is_told", [False, True])
def test_programs_that_outlast_the_server(path: str, is_told: bool) -> None:
    """They may take any time, unless somebody wants the end: it goes on without that."""
    control = Control(path)
    with registered(control, drain=0.2) as server:
        client = control.client()
        server.await_log("started client=")
        control.close()
        server.await_log("who passed connections on has gone$")
        if is_told:
            server.terminate()
            assert read_all(client) == b""
        else:
            time.sleep(1)  # more than it has when it is told
            assert say(client) == "you said hello\n"
        assert server.status == 0


def test_a_registered_program_is_told_to_stop(path: str) -> None:
    control = Control(path)
    with registered(control) as server:
        [worker] = server.worker_pids()
        assert say(control.client()) == "you said hello\n"
        os.kill(worker, signal.SIGSTOP)
        client = control.client()
        server.terminate()
        until("it has been told", lambda: refuses(control))
        os.kill(worker, signal.SIGCONT)
        assert say(client) == "you said hello\n"
        assert server.status == 0
        assert control.conn and control.conn.recv(1) == b""
    control.close()


def refuses(control: Control) -> bool:
    assert control.conn
    try:
        control.conn.send(b"")
    except BrokenPipeError:
        return True
    return False


def test_a_worker_of_a_registered_program_dies(path: str) -> None:
    control = Control(path)
    with registered(control) as server:
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        assert say(control.client()) == "you said hello\n"
        control.close()
        assert server.status == 0


def test_a_server_that_does_not_agree(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
        control.bind(path)
        control.listen(1)
        control.settimeout(SECONDS)

        def refuse() -> None:
            with control.accept()[0] as conn:
                conn.recv(100)

        thread = threading.Thread(target=refuse)
        thread.start()
        status, lines = ended(f"--register={path}", "7", "true", program=(PROGRAM,))
        thread.join()
    reason = "the server does not take us as group 7: is it another user's, or taken?"
    assert (status, lines) == (111, [f"socketbox-inetd: {path}: {reason}"])


def test_no_server(path: str) -> None:
    lines = [f"socketbox-inetd: {path}: No such file or directory"]
    assert ended(f"--register={path}", "7", "true", program=(PROGRAM,)) == (111, lines)


# With the programs of this house


def test_socks_inetd(path: str) -> None:
    """A SOCKS proxy: its clients' addresses are told by the environment."""
    with listener() as far, inetd(path, SOCKS_INETD, "--allow-local") as (server, front):
        client = front.client()
        client.sendall(socks4(*far.getsockname()))
        assert read_all(client, 8)[1] == 0x5A
        with accept(far) as conn:
            conn.sendall(b"answer")
            assert read_all(client, 6) == b"answer"
        us = "{}:{}".format(*client.getsockname())
        client.close()
        server.await_log(f"closed client={us} user=me .* end=closed")
        server.await_log(f"ended client={us} .* status=0 ")


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl here")
def test_curl(path: str, tmp_path: Path) -> None:
    """A web page through a SOCKS proxy, whose port is another program's."""
    (tmp_path / "page").write_text("the page\n")
    web = subprocess.Popen(
        [PYTHON, "-um", "http.server", "--bind=127.0.0.1", "0"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert web.stdout
        port = web.stdout.readline().split(" port ")[1].split()[0]
        with inetd(path, SOCKS_INETD, "--allow-local") as (_, front):
            done: list[str] = []

            def curl() -> None:
                proxy = "socks5h://{}:{}".format(*front.address)
                command = ["curl", "-sS", "-x", proxy, f"http://127.0.0.1:{port}/page"]
                done.append(subprocess.check_output(command, text=True, timeout=SECONDS))

            thread = threading.Thread(target=curl)
            thread.start()
            front.pass_next()
            thread.join()
            assert done == ["the page\n"]
    finally:
        web.kill()
        web.wait()
