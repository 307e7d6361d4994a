"""muonsocks when something runs out: descriptors, connections, time, ports, a name server."""

import contextlib
import errno
import os
import signal
import socket
import struct
import threading
import time
from pathlib import Path

import pytest
from places import in_own_network, root_only, sh
from programs import SECONDS, accept, listener, read_all, socks4, socks4a
from real_server import Server, asleep, children, running, state, until, works

Pair = tuple[socket.socket, socket.socket]


def close(*pairs: Pair) -> None:
    for pair in pairs:
        for end in pair:
            end.close()


def is_answered(client: socket.socket, seconds: float = SECONDS) -> bool:
    """Whether a client that asked in SOCKS4 is told that it is connected."""
    client.settimeout(seconds)
    try:
        answer = read_all(client, 8)
    except TimeoutError:
        return False
    finally:
        client.settimeout(SECONDS)
    assert answer[1] == 0x5A, "it is refused"
    return True


def fill(server: Server, far: socket.socket) -> tuple[list[Pair], socket.socket]:
    """Connect until it has enough: give the connections, and the client that waits."""
    pairs: list[Pair] = []
    while True:
        client = server.ask(far)
        if not is_answered(client, 0.5 if pairs else SECONDS):
            return pairs, client
        pairs.append((client, accept(far)))


# Descriptors

FEW = ("prlimit", "--nofile=64:64")
EXHAUSTED = "the limit on descriptors, 64, allows no more connections for now"


def test_out_of_descriptors() -> None:
    """It is said, those that are open go on, others wait; when some end, others come in."""
    with listener() as far, running(before=FEW) as server:
        pid = server.worker_pids()[0]
        pairs, waiting = fill(server, far)
        assert len(pairs) > 8
        others = [server.ask(far) for _ in range(5)]
        assert server.count(EXHAUSTED) == 1
        assert all(works(*pair) for pair in pairs)
        assert asleep(pid, 0.5) > 0.8
        close(*pairs[:6])
        for client in (waiting, *others):
            assert is_answered(client)
            pairs.append((client, accept(far)))
        assert all(works(*pair) for pair in pairs[6:])
        close(*pairs)
        late = server.joined(far)
        server.await_log("the shortage is over")
        close(late)
        again, waiting = fill(server, far)
        assert len(again) > 8
        server.await_log(EXHAUSTED, 2)
        waiting.close()
        close(*again)
        assert server.count("refused|system-error|cannot accept|could not") == 0


def test_bulk_takes_no_descriptors_from_connections() -> None:
    """Pipes are for speed, and there are only so many."""
    with listener() as far, running(before=FEW) as server:
        pairs: list[Pair] = []
        while is_answered(client := server.ask(far), 0.5 if pairs else SECONDS):
            pairs.append((client, accept(far)))
            for end in pairs[-1]:
                end.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        end.send(bytes(1 << 20))
                end.settimeout(SECONDS)
            assert len(pairs) < 64
        client.close()
        assert server.count("Too many open files|system-error|cannot accept|could not") == 0
        assert server.count(EXHAUSTED) == 1
        close(*pairs)


def test_look_ups_when_it_is_nearly_out_of_descriptors() -> None:
    """A name server takes descriptors too."""
    with listener() as far, running(before=FEW) as server:
        pairs, waiting = fill(server, far)
        waiting.close()
        close(*pairs[-1:])
        until("it has noticed", lambda: server.count("closed client=") == 1)
        with server.connect() as client:
            client.sendall(socks4a("localhost", far.getsockname()[1]))
            assert is_answered(client)
            accept(far).close()
        close(*pairs)


@pytest.mark.parametrize("full", [0, 1])
def test_a_full_worker_keeps_nobody_from_an_idle_one(full: int) -> None:
    """One connection comes when a worker has taken all it can and the other one sleeps."""
    with listener() as far, running(workers=2, before=FEW) as server:
        pids = server.worker_pids()
        idle = pids[1 - full]
        os.kill(idle, signal.SIGSTOP)
        pairs, waiting = fill(server, far)
        waiting.close()
        count = len(pairs)
        close(*pairs)
        until("all are closed", lambda: server.count("closed client=") >= count)
        pairs = [server.joined(far) for _ in range(count)]
        os.kill(idle, signal.SIGCONT)
        for _ in range(3):
            client = server.ask(far)
            assert is_answered(client)
            pairs.append((client, accept(far)))
        close(*pairs)


def test_connections_that_last_are_shared_evenly() -> None:
    """They come one after another, when all workers sleep: the kernel always wakes the same one."""
    with listener() as far, running(workers=3) as server:
        pairs = [server.joined(far) for _ in range(60)]
        pids = server.worker_pids()
        server.await_log("connected client=", 60)
        by_worker = [server.count(rf"\[{pid}\]: connected client=") for pid in pids]
        assert min(by_worker) >= 8
        close(*pairs)


INJECTED = {
    "passing": ("ECONNABORTED", "1..5", 0),
    "no memory": ("ENOBUFS", "3..6", 1),
    "no descriptor": ("EMFILE", "1..4", 1),
}


@pytest.mark.parametrize("what", INJECTED)
def test_accept_fails(what: str) -> None:
    """Told by strace: now and then, and it does not matter."""
    name, when, lines = INJECTED[what]
    inject = f"inject=accept4:error={name}:when={when}"
    strace = ("strace", "-D", "-f", "-o", "/dev/null", "-e", "trace=accept4", "-e", inject)
    with listener() as far, running(before=strace) as server:
        for _ in range(6):
            close(server.joined(far))
        assert server.count(f"cannot accept: {os.strerror(getattr(errno, name))}") == lines
        if lines:
            server.await_log("the shortage is over")


def test_no_more_can_be_watched() -> None:
    """The limit of epoll(7) on all that a user waits for: the client is let go, and it is said."""
    inject = "inject=epoll_ctl:error=ENOSPC:when=4"  # after the worker's own three
    strace = ("strace", "-D", "-f", "-o", "/dev/null", "-e", "trace=epoll_ctl", "-e", inject)
    with listener() as far, running(before=strace) as server:
        with server.connect() as client:
            assert read_all(client, 1) == b""
        server.await_log("a request could not be carried out: No space left on device")
        close(server.joined(far))
        server.await_log("the shortage is over")
        assert server.count("bug|ended with status") == 0


def test_no_worker_can_be_watched() -> None:
    """None is started then, or nobody would wait for it."""
    inject = "inject=epoll_ctl:error=ENOSPC:when=4..5"  # after the supervisor's signals and workers
    strace = ("strace", "-D", "-f", "-o", "/dev/null", "-e", "trace=epoll_ctl", "-e", inject)
    with running(workers=2, before=strace) as server:
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        server.await_log("no worker can be started, tried again later: No space left on device", 2)
        server.await_log("was killed by signal 9")
        assert len(server.worker_pids()) == 2
        assert "Z" not in map(state, children(server.pid))


# Connections


@pytest.mark.parametrize("workers", [1, 3])
def test_most_connections(workers: int) -> None:
    """The others wait, and have their turn; nobody is refused."""
    with listener() as far, running("--max-connections=5", workers=workers) as server:
        clients = [server.ask(far) for _ in range(25)]
        for number, client in enumerate(clients):
            client.sendall(bytes([number]))  # so that one can tell whose connection it is
        open_now: list[Pair] = []
        served = 0
        while served < 25:
            far.settimeout(SECONDS)
            with contextlib.suppress(TimeoutError):
                while True:
                    conn = accept(far)
                    open_now.append((clients[read_all(conn, 1)[0]], conn))
                    served += 1
                    far.settimeout(0.3)
                    assert len(open_now) <= 5
            assert open_now, "nobody is served any more"
            assert all(is_answered(client) for client, _ in open_now)
            assert all(works(*pair) for pair in open_now)
            close(*open_now)
            open_now.clear()
        assert server.count("all 5 connections of --max-connections are in use") >= 1
        assert server.count("refused") == 0


def test_most_connections_of_one_source() -> None:
    """Never more, though three workers take them and many come at once; and then again."""
    with listener() as far, running("--max-per-source=4", workers=3) as server:
        for turn in (1, 2, 3):
            clients = [server.ask(far) for _ in range(40)]
            let_in, refused = [], 0
            for client in clients:
                try:
                    answer = read_all(client, 8)
                except ConnectionResetError:
                    answer = b""
                if answer:
                    let_in.append(client)
                else:
                    refused += 1
            assert 1 <= len(let_in) <= 4
            assert refused == 40 - len(let_in)
            close(*((client, accept(far)) for client in let_in))
            for client in clients:
                client.close()
            until(
                "all are closed",
                lambda: server.count("closed client=") == server.count("connected client="),
            )
            assert server.count("end=too-many-of-this-source") >= 36 * turn
        with socket.socket() as other:
            other.bind(("127.0.0.77", 0))
            other.settimeout(SECONDS)
            other.connect(server.address)
            other.sendall(socks4(*far.getsockname()))
            assert is_answered(other)
            accept(far).close()


# Time


def test_slow_clients_keep_nobody_waiting() -> None:
    """Hundreds of them that say a byte and no more: others are served at once, and they go."""
    with listener() as far, running("--handshake-timeout=1") as server:
        slow = [server.connect() for _ in range(300)]
        for client in slow:
            client.sendall(b"\5")
        for _ in range(20):
            close(server.joined(far))
        assert server.count("end=handshake-timeout") < 300  # so that was meanwhile
        for client in slow:
            assert client.recv(1) == b""
            client.close()
        server.await_log("end=handshake-timeout", 300)


class NameServer:
    """A name server that answers each question after a time, that something.example is here."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind(("127.0.0.1", 53))
        self.asked = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            question, client = self._sock.recvfrom(512)
            self.asked.set()
            answer = threading.Timer(self._seconds, self._answer, (question, client))
            answer.daemon = True
            answer.start()

    def _answer(self, question: bytes, client: tuple[str, int]) -> None:
        name_end = question.index(b"\0", 12) + 1
        kind = question[name_end : name_end + 4]
        found = kind == b"\0\1\0\1"
        head = question[:2] + struct.pack("!HHHHH", 0x8180, 1, found, 0, 0)
        record = b"\xc0\x0c" + kind + struct.pack("!IH", 60, 4) + bytes([127, 0, 0, 1])
        answer = head + question[12 : name_end + 4] + (record if found else b"")
        self._sock.sendto(answer, client)


@root_only()
def test_a_slow_name_server_keeps_nobody_waiting(tmp_path: Path) -> None:
    """In the same worker; and in the end its answer counts."""
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:20\n")
    (tmp_path / "nsswitch.conf").write_text("hosts: files dns\n")

    def check() -> None:
        for name in ("resolv.conf", "nsswitch.conf"):
            sh(f"mount --bind {tmp_path / name} $(realpath /etc/{name})")
        server_of_names = NameServer(3)
        with listener() as far, running() as server:
            started = time.monotonic()
            waiting = [server.connect() for _ in range(5)]
            for number, client in enumerate(waiting):
                client.sendall(socks4a(f"slow{number}.example", far.getsockname()[1]))
            assert server_of_names.asked.wait(SECONDS)
            for _ in range(20):
                close(server.joined(far))
            assert server.count("slow") == 0  # so that was meanwhile
            for client in waiting:
                assert is_answered(client)
                accept(far).close()
                client.close()
            assert time.monotonic() - started >= 3

    in_own_network(check)


# Ports


@root_only()
def test_out_of_ports() -> None:
    """For one destination there are only so many: said once, and nobody waits for it."""

    def check() -> None:
        with running() as server, listener() as far:
            host, port = far.getsockname()
            clients = [server.connect() for _ in range(20)]
            sh("sysctl -qw net.ipv4.ip_local_port_range='61000 61004'")
            answers = []
            for client in clients:
                client.sendall(socks4(host, port))
                answers.append(read_all(client, 8)[1])
            assert 0 < answers.count(0x5A) <= 5
            assert answers.count(0x5A) + answers.count(0x5B) == 20
            sh("sysctl -qw net.ipv4.ip_local_port_range='32768 60999'")
            for client in clients:
                client.close()
            server.await_log("end=dial-failed", answers.count(0x5B))
            words = "a request could not be carried out: Cannot assign requested address"
            assert server.count(words) == 1
            close(server.joined(far))
            server.await_log("the shortage is over")

    in_own_network(check)


# The log


def test_a_log_that_nobody_reads() -> None:
    """Lines are lost, and nobody waits for that."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    script = ("bash", "-c", f'exec 2>&{writer} "$@"', "bash")
    with listener() as far, running(before=script, keep=(writer,)) as server:
        for _ in range(10):
            client, conn = server.joined(far)
            assert works(client, conn)
            close((client, conn))
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        until("it is replaced", lambda: len(children(server.pid)) == 1)
        close(server.joined(far))
    os.close(reader)
    os.close(writer)
