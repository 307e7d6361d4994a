"""Programs that hand their connections over, and the resident relay that takes them: processes."""

import contextlib
import errno
import os
import random
import re
import resource
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ends import descriptors
from programs import (
    GREETING,
    HANDSHAKE,
    INETD,
    RELAY,
    SECONDS,
    VERSIONS,
    Program,
    Version,
    accept,
    environment,
    listener,
    read_all,
    run,
    serving,
    socks4,
    socks5,
)
from real_server import children, until

MESSAGES = socket.SOCK_SEQPACKET
WORKERS = 2
LOCAL = [INETD, "--allow-local", "-v"]


class Resident:
    """A resident relay: its supervisor, its workers, and its log."""

    def __init__(self, process: subprocess.Popen[bytes], path: str, log: int) -> None:
        self.process = process
        self.path = path
        self._log = log

    @property
    def log(self) -> str:
        return os.pread(self._log, 1 << 20, 0).decode()

    def await_log(self, pattern: str) -> str:
        """Give the first line of the log in which the pattern is found, once there is one."""
        return self.until(lambda: next(filter(re.compile(pattern).search, self.lines()), None))

    def lines(self) -> list[str]:
        return self.log.splitlines()

    def workers(self) -> list[int]:
        """Give the process IDs of its workers, as they are now."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def descriptors(self) -> int:
        """Count what the workers have open."""
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.workers())

    def kilobytes(self) -> int:
        """Sum up what is resident of its processes."""
        total = 0
        for pid in (self.process.pid, *self.workers()):
            found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
            assert found
            total += int(found[1])
        return total

    def connections(self) -> list[int]:
        """Say how many connections each worker has: there is a TCP socket at both ends of one."""
        counts = []
        for pid in self.workers():
            inodes = set(descriptors(pid).values())
            table = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
            counts.append(sum(f"socket:[{line.split()[9]}]" in inodes for line in table) // 2)
        return counts

    def send_signal(self, number: int) -> None:
        """Send a signal to all of its processes."""
        os.killpg(self.process.pid, number)

    def await_descriptors(self, count: int) -> None:
        self.until(lambda: self.descriptors() == count)

    def stop(self) -> None:
        """Suspend all of its processes."""
        self.send_signal(signal.SIGSTOP)
        for pid in (self.process.pid, *self.workers()):
            stat = Path(f"/proc/{pid}/stat")
            self.until(lambda stat=stat: stat.read_text().rpartition(")")[2].split()[0] == "T")

    def until(self, condition: Callable[[], Any]) -> Any:
        """Wait; neither a file nor /proc has an event for this."""
        deadline = time.monotonic() + SECONDS
        while not (found := condition()):
            assert time.monotonic() < deadline, self.log
            time.sleep(0.005)
        return found


@contextlib.contextmanager
def resident(
    place: Path, *options: str, limit: int = 1024, status: int = 0, workers: int = WORKERS
) -> Iterator[Resident]:
    """Run one; in the end it is told to go, and must go soon: it has no connection left then."""
    path, notify = str(place / "relay"), f"{place}/notify-{time.monotonic_ns()}"

    def set_limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    with (
        tempfile.TemporaryFile() as log,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        manager.bind(notify)
        process = subprocess.Popen(
            [RELAY, f"--listen={path}", "-v", f"--workers={workers}", *options],
            stdin=subprocess.DEVNULL,
            stdout=log,  # as under systemd, where both are the journal: that is no client
            stderr=log,
            env=environment(NOTIFY_SOCKET=notify),
            preexec_fn=set_limit,
            start_new_session=True,
        )
        relay = Resident(process, path, log.fileno())
        try:
            await_ready(manager)
            manager.close()
            yield relay
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS) == status
        finally:
            with contextlib.suppress(ProcessLookupError):
                relay.send_signal(signal.SIGKILL)
            process.wait()
            print(relay.log)  # pytest shows it with a failure
        assert "Traceback" not in relay.log
        assert "this is a bug" not in relay.log


def await_ready(manager: socket.socket) -> None:
    """Wait, as systemd does, until all workers are ready."""
    manager.settimeout(SECONDS)
    while b"READY=1" not in manager.recv(4096):
        pass


def await_listener(path: str) -> None:
    """Wait until somebody serves there; to look is to make a connection that offers nothing."""
    deadline = time.monotonic() + SECONDS
    with socket.socket(socket.AF_UNIX, MESSAGES) as probe:
        probe.settimeout(SECONDS)
        while probe.connect_ex(path):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        probe.shutdown(socket.SHUT_WR)
        assert probe.recv(1) == b""


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Resident]:
    with resident(tmp_path) as made:
        yield made


def begin(program: Program, far: socket.socket, early: bytes = b"") -> socket.socket:
    """Ask for a connection to `far`, and give its end there."""
    program.client.send(GREETING + socks5(*far.getsockname()) + early)
    assert program.client.read(12)[:4] == b"\5\0\5\0"
    return accept(far)


def exchange(program: Program, conn: socket.socket) -> None:
    """Something both ways, and to the end."""
    program.client.send(b"question")
    assert read_all(conn, 8) == b"question"
    conn.sendall(b"answer")
    assert program.client.read(6) == b"answer"
    program.client.end()
    assert read_all(conn) == b""
    conn.sendall(b"late")
    conn.close()
    assert program.client.rest() == b"late"


# A connection that is handed over


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
@pytest.mark.parametrize("over", ["tcp", "tcp6", "mapped", "unix"])
def test_the_program_is_gone(relay: Resident, over: str, version: Version) -> None:
    """And the connection is there, with a line of either in the log."""
    with listener() as far, serving(*LOCAL, f"--relay={relay.path}", over=over) as program:
        client = program.client
        client.send(version.greeting)
        assert client.read(len(version.chosen)) == version.chosen
        client.send(version.request(*far.getsockname()))
        conn = accept(far)
        reply = version.success(*conn.getpeername())
        assert client.read(len(reply)) == reply
        assert program.status == 0
        exchange(program, conn)
    [connected] = program.log.splitlines()
    facts = re.search(r"connected (client=.* target=127\.0\.0\.1:\d+) address=", connected)
    assert facts
    closed = relay.await_log(" closed ")
    assert re.search(
        rf"closed {re.escape(facts[1])} reply=0 in=8 out=10 secs=\d+\.\d+ end=closed$", closed
    )


def test_secs_are_of_the_whole_connection(relay: Resident) -> None:
    with listener() as far, serving(*LOCAL, f"--relay={relay.path}", over="tcp") as program:
        program.client.send(GREETING)
        assert program.client.read(2) == b"\5\0"
        time.sleep(0.5)
        program.client.send(socks5(*far.getsockname()))
        assert program.client.read(10)[:2] == b"\5\0"
        exchange(program, accept(far))
    found = re.search(r" secs=(\S+) ", relay.await_log("closed"))
    assert found and 0.5 <= float(found[1]) < SECONDS


def test_handshake_and_relay_hand_over(relay: Resident) -> None:
    environ = environment(SOCKS_RELAY=relay.path)
    command = [HANDSHAKE, RELAY, "--allow-local"]
    with listener() as far, serving(*command, environ=environ, over="tcp") as program:
        program.client.send(socks4(*far.getsockname(), user=b"al ice\xff") + b"early")
        assert program.client.read(8)[:2] == b"\0\x5a"
        conn = accept(far)
        assert program.status == 0
        assert read_all(conn, 5) == b"early"
        exchange(program, conn)
    assert r" user=al\x20ice\xff " in relay.await_log("closed .* in=13 out=10 .*end=closed")


def test_who_the_client_is_by_a_header_goes_with_it(relay: Resident) -> None:
    """Who hands over is told by a proxy in front of it, and tells the far end."""
    options = ["--proxy-protocol=required", "--send-proxy", f"--relay={relay.path}"]
    with listener() as far, serving(*LOCAL, *options, over="tcp") as program:
        header = b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 1080\r\n"
        program.client.send(header + socks4(*far.getsockname()) + b"early")
        with accept(far) as conn:
            told = bytes.fromhex("0d0a0d0a000d0a515549540a 2111000c cb007107")
            assert read_all(conn, 28)[:20] == told
            assert read_all(conn, 5) == b"early"
            assert program.status == 0
            assert program.client.read(8)[1] == 0x5A
        assert program.client.rest() == b""
        program.client.close()
        relay.await_log(r"closed client=203\.0\.113\.7:4711 .* in=5 out=0 ")


def test_a_forwarder_hands_over(relay: Resident) -> None:
    environ = environment(SOCKS_RELAY=relay.path)
    with listener() as far:
        host, port = far.getsockname()
        with serving(RELAY, host, str(port), environ=environ, over="tcp") as program:
            conn = accept(far)
            assert program.status == 0
            exchange(program, conn)
    assert f" user=- target={host}:{port} reply=- " in relay.await_log("closed")


def test_a_forwarder_to_a_unix_socket(relay: Resident, tmp_path: Path) -> None:
    path = tmp_path / "a socket\n<3>closed"
    with socket.socket(socket.AF_UNIX) as far:
        far.bind(str(path))
        far.listen()
        command = [RELAY, "--relay", relay.path, f"unix:{path}"]
        with serving(*command, over="unix") as program:
            conn = accept(far)
            assert program.status == 0
            exchange(program, conn)
    target = rf"target=unix:{tmp_path}/a\x20socket\x0a<3>closed "
    assert target in relay.await_log(" closed ")
    assert f"{target}address=- \n".replace(" \n", "\n") in program.log


def test_what_came_early_is_not_lost(relay: Resident) -> None:
    """Behind the request in the same segment, and then some."""
    data = os.urandom(1 << 20)
    with listener() as far, serving(*LOCAL, f"--relay={relay.path}", over="tcp") as program:

        def send() -> None:
            program.client.send(GREETING + socks5(*far.getsockname()) + data)
            program.client.end()

        thread = threading.Thread(target=send)
        thread.start()
        with accept(far) as conn:
            assert read_all(conn) == data
        thread.join()
        assert program.status == 0
        assert len(program.client.rest()) == 12
    relay.await_log(f" in={len(data)} out=0 .*end=closed")


def test_much_both_ways(relay: Resident) -> None:
    up, down = (random.Random(seed).randbytes(50 << 20) for seed in (1, 2))
    got: list[bytes] = []
    with listener() as far, serving(*LOCAL, f"--relay={relay.path}", over="tcp") as program:
        conn = begin(program, far)
        assert program.status == 0

        def send_up() -> None:
            program.client.send(up)
            program.client.end()

        def send_down() -> None:
            conn.sendall(down)
            conn.shutdown(socket.SHUT_WR)

        calls = (send_up, send_down, lambda: got.append(conn.makefile("rb").read()))
        threads = [threading.Thread(target=call) for call in calls]
        for thread in threads:
            thread.start()
        assert program.client.socket
        program.client.socket.settimeout(SECONDS)
        assert program.client.socket.makefile("rb").read() == down
        for thread in threads:
            thread.join()
        assert got == [up]
        conn.close()
    relay.await_log(f" in={len(up)} out={len(down)} .*end=closed")


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_resets_pass(relay: Resident) -> None:
    for who in ("client", "far end"):
        with listener() as far, serving(*LOCAL, f"--relay={relay.path}", over="tcp") as program:
            conn = begin(program, far)
            assert program.status == 0
            conn.sendall(b"part")
            assert program.client.read(4) == b"part"
            if who == "client":
                program.client.reset()
                with pytest.raises(ConnectionResetError):
                    conn.recv(1)
                conn.close()
            else:
                reset(conn)
                with pytest.raises(ConnectionResetError):
                    program.client.read(1)
    relay.until(lambda: relay.log.count("out=4 ") == relay.log.count("end=reset") == 2)


def test_limits_go_with_the_connection(relay: Resident) -> None:
    options = [f"--relay={relay.path}", "--idle-timeout=0.3"]
    with listener() as far, serving(*LOCAL, *options, over="tcp") as program:
        conn = begin(program, far)
        with pytest.raises(ConnectionResetError):
            conn.recv(1)
        conn.close()
    relay.await_log("end=idle-timeout")


def test_the_blocking_mode_is_left_as_the_relay_needs_it(relay: Resident) -> None:
    kept: list[int] = []
    command = [*LOCAL, f"--relay={relay.path}"]
    with listener() as far, serving(*command, over="tcp", keep=kept) as program:
        conn = begin(program, far)
        assert program.status == 0
        assert not any(os.get_blocking(fd) for fd in kept)
        for fd in kept:
            os.close(fd)
        exchange(program, conn)


def test_many_idle_connections(tmp_path: Path) -> None:
    """Hundreds take no process, few kilobytes each, and are all alive."""
    clients = []
    with (
        resident(tmp_path, workers=1) as relay,
        listener() as far,
        contextlib.ExitStack() as stack,
    ):
        far.listen(300)
        environ = environment()
        before = relay.kilobytes()
        for _ in range(250):
            client, served = (stack.enter_context(sock) for sock in socket.socketpair())
            clients.append(client)
            process = subprocess.Popen(
                [*LOCAL, f"--relay={relay.path}"],
                stdin=served,
                stdout=served,
                stderr=subprocess.DEVNULL,
                env=environ,
            )
            served.close()
            client.settimeout(SECONDS)
            client.sendall(socks4(*far.getsockname()))
            assert read_all(client, 8)[:2] == b"\0\x5a"
            clients[-1] = client
            conn = stack.enter_context(accept(far))
            assert process.wait(SECONDS) == 0
            clients.append(conn)
        each = (relay.kilobytes() - before) / 250
        for client, conn in zip(clients[::2], clients[1::2], strict=True):
            client.sendall(b"still there?")
            assert read_all(conn, 12) == b"still there?"
        for sock in clients:
            sock.close()
        relay.until(lambda: relay.log.count("end=") == 250)
    assert each < 20


# One that is not


@pytest.mark.parametrize("over", ["pipes", "fifos", "pty"])
def test_only_a_socket_is_handed_over(relay: Resident, over: str) -> None:
    with listener() as far, serving(*LOCAL, f"--relay={relay.path}", over=over) as program:
        with begin(program, far) as conn:
            program.await_log("not handed over: only stream sockets can be")
            program.client.send(b"question")
            assert read_all(conn, 8) == b"question"
        program.client.close()
        assert program.status == 0
    assert " in=8 out=0 " in program.log.splitlines()[-1]


@contextlib.contextmanager
def keeps(why: str, path: str, *options: str) -> Iterator[Program]:
    """Hold that a program relays itself, and why."""
    command = [*LOCAL, f"--relay={path}", *options]
    with listener() as far, serving(*command, over="tcp") as program:
        conn = begin(program, far, b"early")
        assert read_all(conn, 5) == b"early"
        program.await_log(f"not handed over: {re.escape(path)}: {why}")
        yield program
        assert program.process.poll() is None
        exchange(program, conn)
        assert program.status == 0
    assert re.search(r"closed .* in=13 out=10 .*end=closed$", program.log)


def test_no_relay(tmp_path: Path) -> None:
    with keeps("No such file", str(tmp_path / "relay")):
        pass


def test_a_relay_that_is_gone(tmp_path: Path) -> None:
    with resident(tmp_path) as relay:
        pass
    assert os.path.exists(relay.path)
    with keeps("Connection refused", relay.path):
        pass


def test_a_relay_that_may_not_be_asked(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("another user to be takes root")
    with resident(tmp_path) as relay, listener() as far:
        os.chmod(relay.path, 0o600)
        for directory in (tmp_path, *tmp_path.parents[:3]):
            if directory.stat().st_uid == 0 and directory.parts[1:2] == ("tmp",):
                directory.chmod(directory.stat().st_mode | 0o011)
        command = [*LOCAL, f"--relay={relay.path}"]
        with serving(*command, over="tcp", user=65534, group=65534) as program:
            conn = begin(program, far)
            program.await_log("Permission denied")
            exchange(program, conn)


def test_a_relay_that_is_full(tmp_path: Path) -> None:
    """Who asks is told so at once, but not before all workers are; the log says it once."""
    with (
        resident(tmp_path, limit=40) as relay,
        listener() as far,
        contextlib.ExitStack() as stack,
    ):
        far.listen(100)
        taken = []
        while True:
            command = [*LOCAL, f"--relay={relay.path}"]
            program = stack.enter_context(serving(*command, over="tcp"))
            conn = stack.enter_context(begin(program, far))
            relay.until(
                lambda program=program: (
                    program.process.poll() is not None or "not handed over" in program.log
                )
            )
            if "it is full" in program.log:
                break
            assert program.status == 0
            taken.append((program, conn))
        exchange(program, conn)
        assert relay.connections() == [len(taken) // WORKERS] * WORKERS
        assert len(taken) > WORKERS
        for _ in range(20):
            before = time.monotonic()
            with keeps("it is full", relay.path):
                assert time.monotonic() - before < 0.9  # a relay that says nothing gets a second
        assert len([line for line in relay.lines() if "no more connections for now" in line]) == 1
        for program, conn in taken:
            exchange(program, conn)
        relay.until(lambda: sum(relay.connections()) == 0)
        with serving(*LOCAL, f"--relay={relay.path}", over="tcp") as another:
            conn = begin(another, far)
            assert another.status == 0
            exchange(another, conn)
        relay.await_log("the shortage is over")


def test_a_relay_that_is_stopped(relay: Resident) -> None:
    """It wakes up when the program has long gone on by itself: it has to let go then."""
    before = relay.descriptors()
    relay.stop()
    with keeps("the time limit has passed", relay.path) as program:
        relay.send_signal(signal.SIGCONT)
        # It accepts in its turn: once a second one is served, it has looked at the first.
        with serving(*LOCAL, f"--relay={relay.path}", over="tcp") as other, listener() as far:
            conn = begin(other, far)
            assert other.status == 0
            exchange(other, conn)
        relay.await_log("closed")
        relay.await_descriptors(before)
        assert program.process.poll() is None
    assert relay.log.count(" closed ") == 1


def test_a_relay_that_is_stopped_up_to_the_end(relay: Resident) -> None:
    """Even what the relay has not looked at yet is ended in time."""
    relay.stop()
    with keeps("the time limit has passed", relay.path):
        pass
    relay.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def pretending(place: Path, answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Pretend to be a relay, for one connection."""
    path = str(place / "pretender")
    with socket.socket(socket.AF_UNIX, MESSAGES) as front:
        front.bind(path)
        front.listen()
        front.settimeout(SECONDS)

        def serve() -> None:
            sock, _ = front.accept()
            with sock:
                sock.recv(1 << 16)  # and not the sockets
                answer(sock)

        thread = threading.Thread(target=serve)
        thread.start()
        yield path
        thread.join()


def test_a_relay_that_is_killed_after_it_has_taken(tmp_path: Path) -> None:
    def take_and_die(sock: socket.socket) -> None:
        sock.shutdown(socket.SHUT_RD)  # first: nobody will read GO
        sock.send(b"TAKEN")

    with pretending(tmp_path, take_and_die) as path, keeps("Broken pipe", path):
        pass


@pytest.mark.parametrize("answer", [b"", b"NO", b"OFFER 1", b"taken", b"TAKEN\n", bytes(1000)])
def test_a_relay_of_another_kind(tmp_path: Path, answer: bytes) -> None:
    def say(sock: socket.socket) -> None:
        if answer:
            sock.send(answer)

    with pretending(tmp_path, say) as path, keeps("", path):
        pass


def test_the_default_is_in_the_environment(relay: Resident) -> None:
    """It can be switched off, and need not be there."""
    for options, value, handed_over in (
        ([], relay.path, True),
        (["--relay="], relay.path, False),
        ([], "", False),
        ([], "/nowhere/at/all", False),
        (["--relay=/nowhere"], relay.path, False),
        ([f"--relay={relay.path}"], "/nowhere/at/all", True),
    ):
        environ = environment(SOCKS_RELAY=value)
        with listener() as far, serving(*LOCAL, *options, environ=environ, over="tcp") as program:
            conn = begin(program, far)
            if handed_over:
                assert program.status == 0
            exchange(program, conn)
        assert ("closed" in program.log) is not handed_over
        asked = bool(options) and options != ["--relay="]
        assert ("not handed over" in program.log) is (asked and not handed_over)


def test_terminated_while_it_waits(tmp_path: Path) -> None:
    """Neither side may take this for an end."""
    asked = threading.Event()
    over = threading.Event()

    def hold(_: socket.socket) -> None:
        asked.set()
        assert over.wait(SECONDS)

    with pretending(tmp_path, hold) as path, listener() as far:
        with serving(*LOCAL, f"--relay={path}", over="tcp") as program:
            conn = begin(program, far)
            assert asked.wait(SECONDS)
            program.process.send_signal(signal.SIGTERM)
            assert program.status == 0
            for read in (lambda: conn.recv(1), lambda: program.client.read(1)):
                with pytest.raises(ConnectionResetError):
                    read()
            conn.close()
        over.set()
    assert program.end == "terminated"


# The relay


def test_a_relay_that_is_told_to_stop_lets_connections_finish(tmp_path: Path) -> None:
    with resident(tmp_path) as relay, listener() as far:
        with serving(*LOCAL, f"--relay={relay.path}", over="tcp") as program:
            conn = begin(program, far)
            assert program.status == 0
            relay.process.send_signal(signal.SIGTERM)
            relay.until(lambda: no_listener(relay.path))
            with keeps("Connection refused", relay.path):
                pass  # and that at once
            assert relay.process.poll() is None
            exchange(program, conn)
        assert relay.process.wait(SECONDS) == 0
        relay.await_log("closed .* in=8 out=10 .*end=closed")
        assert relay.lines()[-1].endswith("stopped, connections that were cut: 0")


@pytest.mark.parametrize("how", ["the time is over", "told twice"])
def test_a_relay_that_ends_resets(tmp_path: Path, how: str) -> None:
    options = ["--drain-timeout=0.3"] if how == "the time is over" else []
    with resident(tmp_path, *options) as relay, listener() as far:
        with serving(*LOCAL, f"--relay={relay.path}", over="tcp") as program:
            conn = begin(program, far)
            assert program.status == 0
            conn.sendall(b"half")
            assert program.client.read(4) == b"half"
            relay.process.send_signal(signal.SIGTERM)
            relay.until(lambda: no_listener(relay.path))
            if not options:
                relay.process.send_signal(signal.SIGINT)
            assert relay.process.wait(SECONDS) == 0
            for read in (lambda: conn.recv(1), lambda: program.client.read(1)):
                with pytest.raises(ConnectionResetError):
                    read()
            conn.close()
        relay.await_log("closed .* out=4 .*end=terminated")
        assert relay.lines()[-1].endswith("stopped, connections that were cut: 1")


def no_listener(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, MESSAGES) as probe:
        return probe.connect_ex(path) == errno.ECONNREFUSED


def test_a_worker_that_is_killed(relay: Resident) -> None:
    """Its connections are lost, the others' are not; another worker takes its place."""
    with listener() as far, contextlib.ExitStack() as stack:
        pairs = []
        while len(pairs) < 40 and (len(pairs) < 2 or 0 in relay.connections()):
            command = [*LOCAL, f"--relay={relay.path}"]
            program = stack.enter_context(serving(*command, over="tcp"))
            pairs.append((program, stack.enter_context(begin(program, far))))
            assert program.status == 0
        had = relay.connections()
        assert sum(had) == len(pairs)
        most = had.index(max(had))
        victim = relay.workers()[most]
        os.kill(victim, signal.SIGKILL)
        line = relay.await_log(f"worker {victim} was killed by signal 9")
        assert line.endswith(f"connections lost with it: {max(had)}")
        alive = 0
        for program, conn in pairs:
            try:
                exchange(program, conn)
                alive += 1
            except (ConnectionError, AssertionError):  # an end where an answer should be
                program.client.close()
        assert alive == len(pairs) - max(had)
        relay.until(lambda: len(relay.workers()) == WORKERS)
        assert victim not in relay.workers()
        with serving(*LOCAL, f"--relay={relay.path}", over="tcp") as program:
            conn = begin(program, far)
            assert program.status == 0
            exchange(program, conn)


def test_workers_that_are_killed_under_load(relay: Resident) -> None:
    """Whatever a program has not handed over by then, it serves; and others are taken again."""
    over = threading.Event()
    kept, handed_over, lost = [], [], []

    def use(seed: int) -> None:
        chance = random.Random(seed)
        while not over.is_set():
            command = [*LOCAL, f"--relay={relay.path}"]
            with listener() as far, serving(*command, over="tcp") as program:
                conn = begin(program, far)
                over.wait(chance.random() / 10)
                try:
                    exchange(program, conn)
                except (ConnectionError, AssertionError):
                    lost.append(program)
                    program.client.close()
                conn.close()
                assert program.status == 0
                is_kept = "not handed over" in program.log
                (kept if is_kept else handed_over).append(program)

    with ThreadPoolExecutor(4) as threads:
        uses = [threads.submit(use, seed) for seed in range(4)]
        try:
            for count in range(1, 6):
                relay.until(lambda: len(relay.workers()) == WORKERS)
                already = len(handed_over)
                relay.until(lambda already=already: len(handed_over) > already + 2)
                os.kill(relay.workers()[count % WORKERS], signal.SIGKILL)
                relay.until(lambda count=count: relay.log.count("by signal 9") == count)
        finally:
            over.set()
        for use_ in uses:
            use_.result()
    assert not [program.log for program in lost if program in kept]
    said = re.findall(r"connections lost with it: (\d+)", relay.log)
    assert len(lost) <= sum(map(int, said)) < len(handed_over)
    with listener() as far, serving(*LOCAL, f"--relay={relay.path}", over="tcp") as program:
        conn = begin(program, far)
        assert program.status == 0
        exchange(program, conn)


def test_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    """The workers finish what they have, and another relay can listen there at once."""
    command = [*LOCAL, f"--relay={tmp_path}/relay"]
    with resident(tmp_path, status=-signal.SIGKILL) as old, listener() as far:
        with serving(*command, over="tcp") as program:
            conn = begin(program, far)
            assert program.status == 0
            workers = old.workers()
            old.process.kill()
            old.until(lambda: no_listener(old.path))
            with resident(tmp_path) as new:
                with serving(*command, over="tcp") as another:
                    another_conn = begin(another, far)
                    assert another.status == 0
                    exchange(another, another_conn)
                new.await_log(" closed ")
            exchange(program, conn)
        old.await_log("closed .* in=8 out=10 .*end=closed")
        old.until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers))


def test_relays_from_systemd(tmp_path: Path) -> None:
    path = str(tmp_path / "relay")
    with (tmp_path / "log").open("wb") as log:
        activate = ["systemd-socket-activate", "--seqpacket", "-l", path]
        process = subprocess.Popen(
            [*activate, RELAY, "--listen=systemd"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=environment(),
        )
    try:
        await_listener(path)  # which makes it start, too
        with listener() as far, serving(*LOCAL, f"--relay={path}", over="tcp") as program:
            conn = begin(program, far)
            assert program.status == 0
            exchange(program, conn)
    finally:
        process.terminate()
        assert process.wait(SECONDS) == 0
    assert re.search(r" closed .* in=8 out=10 .*end=closed\n", (tmp_path / "log").read_text())


OFFER = b"""\
OFFER 1
client 192.0.2.5:49152
user -
target www.example.com:80
address 198.51.100.7:80
reply 0
age 0.1
idle 900
half-close 120

"""


def offered(relay: Resident, message: bytes, fds: list[int], go: bytes = b"GO") -> bytes:
    """Offer something; give the answer, or b"" if there is none."""
    with socket.socket(socket.AF_UNIX, MESSAGES) as sock:
        sock.settimeout(SECONDS)
        sock.connect(relay.path)
        socket.send_fds(sock, [message], fds)
        try:
            answer = sock.recv(100)
        except ConnectionResetError:
            return b""
        if answer == b"TAKEN" and go:
            sock.send(go)
        return answer


INJECTIONS = [
    OFFER.replace(b"www.example.com:80", target)
    for target in (
        b"a\nclosed client=x",
        b"a closed client=x",
        b"a\r<3>closed",
        b"\x1b[2Ja",
        b"\xff\xfe",
        b"a" * 5000,
    )
] + [OFFER.replace(b"user -", b"user " + user) for user in (b"a b", b"a\nb", b"61" * 1000)]


@pytest.mark.parametrize("message", INJECTIONS)
def test_nobody_writes_into_the_log(relay: Resident, message: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert offered(relay, message, [ours.fileno()] * 2) == b""
    line = relay.await_log("refused an offer: ")
    assert relay.lines() == [line] and len(line) < 200


def test_a_user_is_written_as_ever(relay: Resident) -> None:
    """Whatever bytes it has: they are in hexadecimal."""
    ours, theirs = socket.socketpair()
    with theirs, ours:
        message = OFFER.replace(b"user -", b"user " + b'a b\n"<3>\\'.hex().encode())
        assert offered(relay, message, [ours.fileno()] * 2) == b"TAKEN"
    assert r" user=a\x20b\x0a\x22<3>\x5c target=" in relay.await_log(" closed ")
    assert len(relay.lines()) == 2


def test_bad_offers_by_the_hundred(relay: Resident) -> None:
    """It is none the worse for them: nothing stays open, and a good one is taken."""
    before = relay.descriptors()
    chance = random.Random(7)
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(sock) for sock in socket.socketpair()]
        file = stack.enter_context(open("/etc/passwd", "rb"))
        kinds = [end.fileno() for end in ends] + [file.fileno()]
        for _ in range(300):
            message = bytearray(OFFER)
            for _ in range(chance.randrange(4)):
                place = chance.randrange(len(message))
                message[place : place + chance.randrange(20)] = chance.randbytes(
                    chance.randrange(20)
                )
            fds = [chance.choice(kinds) for _ in range(chance.choice((0, 1, 2, 2, 2, 3, 9)))]
            offered(relay, bytes(message) or b".", fds, chance.choice((b"", b"STOP")))
    relay.await_descriptors(before)
    with listener() as far, serving(*LOCAL, f"--relay={relay.path}", over="tcp") as program:
        conn = begin(program, far)
        assert program.status == 0
        exchange(program, conn)
    assert all(line.isprintable() for line in relay.lines())


def test_those_that_say_nothing_are_no_harm(tmp_path: Path) -> None:
    """More of them than it may have descriptors: who comes later waits, or relays itself."""
    with resident(tmp_path, limit=40) as relay, contextlib.ExitStack() as stack:
        before = relay.descriptors()
        for _ in range(200):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX, MESSAGES))
            sock.connect(relay.path)
        relay.await_log("the limit on descriptors, 40, allows no more connections for now")
        with listener() as far, serving(*LOCAL, f"--relay={relay.path}", over="tcp") as program:
            exchange(program, begin(program, far))
        stack.close()
        relay.await_descriptors(before)
        with listener() as far, serving(*LOCAL, f"--relay={relay.path}", over="tcp") as program:
            conn = begin(program, far)
            assert program.status == 0
            exchange(program, conn)


def test_descriptors_are_not_inherited(relay: Resident) -> None:
    """Were it to run a program, that would have none of them."""
    with listener() as far, serving(*LOCAL, f"--relay={relay.path}", over="tcp") as program:
        conn = begin(program, far)
        assert program.status == 0
        flags = {}
        for pid in (relay.process.pid, *relay.workers()):
            for info in Path(f"/proc/{pid}/fdinfo").iterdir():
                found = re.search(r"flags:\s+(\d+)", info.read_text())
                flags[pid, int(info.name)] = bool(found and int(found[1], 8) & os.O_CLOEXEC)
        assert {fd for (_, fd), on_exec in flags.items() if not on_exec} == {0, 1, 2}
        assert len(flags) > (1 + WORKERS) * 3 + 2
        exchange(program, conn)


USAGE = {
    "too long": (["--listen=/" + "p" * 107], "a path or @NAME of 107 bytes at most fits"),
    "empty": (["--listen="], "a path or @NAME of 107 bytes at most fits"),
    "no systemd": (["--listen=systemd"], "systemd has passed no socket; start it by"),
    "rules": (
        ["--listen=/run/somewhere", "--allow-local"],
        "--listen does not go with --allow-local",
    ),
    "an address to leave from": (
        ["--listen=/run/somewhere", "-b", "::1"],
        "--listen does not go with --bind-address; give that to who hands over; here go"
        " --workers, --drain-timeout, -v and -q\n",
    ),
    "a relay": (["--listen=/run/somewhere", "--relay=/tmp/y"], "--listen does not go with --relay"),
    "a limit": (["--listen=/run/somewhere", "--idle-timeout=5"], "does not go with --idle-timeout"),
    "workers that are none": (
        ["--listen=/run/somewhere", "--workers=-1"],
        "--workers: '-1' is too small",
    ),
    "no time": (
        ["--listen=/run/somewhere", "--drain-timeout=0"],
        "--drain-timeout: '0' is not a time",
    ),
    "workers for one": (["--workers=2", "host", "80"], "--workers is for a resident relay; give"),
    "a drain for one": (["--drain-timeout=2", "host", "80"], "--drain-timeout is for a resident"),
    "a destination": (
        ["--listen=/run/somewhere", "host", "80"],
        "the arguments do not fit; see --help",
    ),
    "a refusal": (
        ["--listen=/run/somewhere", "--refuse=2"],
        "the arguments do not fit; see --help",
    ),
    "a long relay": (["--relay=/" + "p" * 107, "host", "80"], "--relay: '/ppp"),
}


@pytest.mark.parametrize("what", USAGE)
def test_wrong_usage(what: str) -> None:
    arguments, said = USAGE[what]
    done = run(RELAY, *arguments)
    assert done.status == 100
    assert said in done.log and done.log.count("\n") == 1


def test_the_environment_is_not_for_a_relay(tmp_path: Path) -> None:
    """What it would make of SOCKS_RELAY is for the programs that hand over."""
    for value in (str(tmp_path / "relay"), f"{tmp_path}/{'p' * 120}"):
        Path(value).touch()
        done = run(RELAY, f"--listen={tmp_path}/no/relay", env=environment(SOCKS_RELAY=value))
        assert (done.status, done.log.count("\n")) == (111, 1)
        assert f"{tmp_path}/no/relay: No such file or directory" in done.log


@pytest.mark.parametrize("option", ["--listen", "--lis"])
def test_the_log_may_be_where_standard_output_is(tmp_path: Path, option: str) -> None:
    """It is no peer, as it would be for one connection; docopt takes a part of the option."""
    log = tmp_path / "log"
    with log.open("wb") as file:
        command = [RELAY, f"{option}={tmp_path}/relay", "--workers=1"]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment()
        )
    try:
        until("it has a worker", lambda: children(process.pid))
    finally:
        process.terminate()
    assert process.wait(SECONDS) == 0
    assert "stopped, connections that were cut: 0" in log.read_text()


def test_a_place_that_is_taken(relay: Resident) -> None:
    done = run(RELAY, f"--listen={relay.path}")
    assert (done.status, done.log.count("\n")) == (111, 1)
    assert f"{relay.path}: Address already in use" in done.log


def test_a_long_path_in_the_environment(tmp_path: Path) -> None:
    place = tmp_path / ("p" * 120)
    place.touch()
    done = run(RELAY, "host", "80", env=environment(SOCKS_RELAY=str(place)))
    assert done.status == 100 and "SOCKS_RELAY: " in done.log


# A peer that has come


@pytest.mark.parametrize("command", [[INETD], [HANDSHAKE, "socks-relay"]], ids=["whole", "chain"])
def test_a_bind_is_handed_over_when_the_peer_is_there(relay: Resident, command: list[str]) -> None:
    options = ["--allow-local", f"--relay={relay.path}"]
    with serving(*command, *options, over="tcp") as program:
        program.client.send(GREETING + socks5("127.0.0.1", 21, command=2) + b"early")
        first = program.client.read(12)
        where = "127.0.0.1", int.from_bytes(first[-2:], "big")
        with socket.create_connection(where, SECONDS) as peer:
            met = VERSIONS["5"].success(*peer.getsockname())
            assert program.client.read(10) == met
            assert program.status == 0
            assert read_all(peer, 5) == b"early"
            exchange(program, peer)
    assert "reply=0 in=13 out=10 " in relay.await_log("target=127.0.0.1:21 reply=")
