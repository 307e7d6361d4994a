"""The supervisor and its workers as real processes: how they start, die, reload and stop."""

import itertools
import os
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ends import descriptors
from programs import SECONDS, environment, listener, read_all
from real_server import (
    ADDRESS,
    ECHO,
    MUONSOCKS,
    Server,
    asleep,
    children,
    ended,
    free_port,
    is_alive,
    kinds_of_descriptors,
    resident_memory,
    running,
    state,
    until,
    works,
)

FOREVER = 1000.0  # s: a drain that does not end by itself


def how(what: str) -> dict[bytes, bytes]:
    return environment(HOW=what)


def echoes(client: socket.socket, added: bytes = b"") -> bool:
    client.sendall(b"ping")
    return read_all(client, 4 + len(added)) == b"ping" + added


@contextmanager
def systemd(place: Path) -> Iterator[socket.socket]:
    """Be told what systemd is."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(place / "notify"))
        sock.settimeout(SECONDS)
        yield sock


def await_state(told: socket.socket, prefix: str) -> str:
    """Read what systemd is told up to something, and give that."""
    while True:
        message = told.recv(4096).decode()
        if message.startswith(prefix):
            return message


# Start


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("no user", r"there is no such user; name another one"),
        ("no capability", r"Operation not permitted"),
        ("bug", r"this is a bug, please report it: ValueError: wrong"),
        ("killed", r"worker \d+ was killed by signal 9; connections lost with it: 0"),
    ],
)
def test_a_worker_that_cannot_start(what: str, line: str, workers: int) -> None:
    """The program ends, and one line says why, however many there were to be."""
    done = subprocess.run(
        [*ECHO, f"--listen={ADDRESS}", f"--port={free_port()}", f"--workers={workers}"]
        + ["--notify-fd=1", "--drain-timeout=1"],
        env=how(what),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert (done.returncode, done.stdout) == (111, "")
    assert re.fullmatch(rf"\S+ echo-server\[\d+\]: {line}\n", done.stderr), done.stderr


def test_too_few_descriptors() -> None:
    """A line, whatever it is that cannot be opened, or it starts."""
    for limit in range(5, 12):
        status, lines = ended(
            f"--listen={ADDRESS}",
            f"--port={free_port()}",
            program=("timeout", "1", "prlimit", f"--nofile={limit}", MUONSOCKS),
        )
        if status == 111:
            assert re.search("(^muonsocks|cannot be started): Too many open files", lines[-1])
        else:
            assert status == 124 and limit > 7, lines


def test_a_signal_at_any_moment_of_the_start() -> None:
    """That is no failure: it ends with 0, or by the signal when that came before Python was up."""
    rng = random.Random(1)
    for _ in range(12):
        process = subprocess.Popen(
            [MUONSOCKS, f"--listen={ADDRESS}", f"--port={free_port()}", "--workers=2"],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        time.sleep(rng.random() * 0.15)  # the moment is the point
        process.terminate()
        _, log = process.communicate(timeout=SECONDS)
        assert process.returncode in (0, -signal.SIGTERM), log
        assert "Traceback" not in log and "bug" not in log


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_before_it_is_up(tmp_path: Path, workers: int) -> None:
    """That is no failure either, and it never says that it is ready."""
    gate = str(tmp_path / "gate")
    os.mkfifo(gate)
    done = subprocess.Popen(
        [*ECHO, f"--listen={ADDRESS}", f"--port={free_port()}", f"--workers={workers}"]
        + ["--notify-fd=1", "--drain-timeout=1"],
        env=how(f"waits for {gate}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with open(gate, "wb"):  # opens once the first worker is there
        done.send_signal(signal.SIGHUP)
        done.send_signal(signal.SIGTERM)
        until("it has closed its listener", lambda: kinds_of_descriptors(done.pid)["socket"] == 1)
    output, log = done.communicate(timeout=SECONDS)
    assert (done.returncode, output) == (0, "")
    assert log.endswith("stopped, connections that were cut: 0\n")


def test_what_systemd_is_told(tmp_path: Path) -> None:
    with systemd(tmp_path) as told:
        environ = environment(NOTIFY_SOCKET=str(tmp_path / "notify"))
        with running(workers=2, environ=environ) as server:
            assert told.recv(4096) == b"READY=1"
            assert told.recv(4096).startswith(b"STATUS=connections: 0 open, 0 served, 0 refused;")
            server.signal(signal.SIGHUP)
            await_state(told, "RELOADING=1\nMONOTONIC_USEC=")
            await_state(told, "READY=1")
            with listener() as far, server.joined(far)[0]:
                message = await_state(told, "STATUS=connections: 1 open")
                assert message.endswith("1 served, 0 refused; workers: 2")
                server.terminate()
                await_state(told, "STOPPING=1")
                assert server.status == 0
            told.settimeout(0)
            with pytest.raises(BlockingIOError):
                await_state(told, "READY=1")


# Workers that die


@pytest.mark.parametrize("workers", [1, 3])
def test_a_killed_worker_is_replaced(workers: int) -> None:
    """Its connections are lost, and no others."""
    with listener() as far, running(workers=workers) as server:
        pairs = [server.joined(far) for _ in range(12)]
        victim = server.worker_pids()[0]
        os.kill(victim, signal.SIGKILL)
        line = server.await_log(f"worker {victim} was killed by signal 9")
        alive = 0
        for client, conn in pairs:
            try:
                alive += works(client, conn)
            except ConnectionError:
                client.close()
                conn.close()
        assert line.endswith(f"; connections lost with it: {12 - alive}")
        assert victim not in server.worker_pids()
        for _ in range(10):
            client, conn = server.joined(far)
            assert works(client, conn)
            client.close()
            conn.close()
        assert alive == 0 or workers > 1
        for client, conn in pairs:
            client.close()
            conn.close()


def test_workers_that_die_at_once_are_replaced_ever_more_slowly() -> None:
    with running(program=ECHO, environ=how("dies soon")) as server:
        deaths = []
        for number in range(1, 5):
            server.await_log(r"worker \d+ ended with status 3", number)
            deaths.append(time.monotonic())
        gaps = [after - before for before, after in itertools.pairwise(deaths)]
        for gap, delay in zip(gaps, (0.1, 0.2, 0.4), strict=True):
            assert gap > 0.95 * delay  # the log is looked at every 5 ms
        assert asleep(server.pid, 0.2) > 0.5


def test_a_worker_that_cannot_be_forked() -> None:
    """It is tried again, and the others go on."""
    inject = "inject=clone,clone3,fork:error=EAGAIN:when=3..4"
    strace = ("strace", "-D", "-o", "/dev/null", "-e", "trace=clone,clone3,fork", "-e", inject)
    with listener() as far, running(workers=2, before=strace) as server:
        first, second = children(server.pid)[-2:]
        client, conn = server.joined(far)
        loser = next(pid for pid in (first, second) if not holds_connection(pid))
        os.kill(loser, signal.SIGKILL)
        server.await_log("no worker can be started, tried again later: Resource temporarily", 2)
        assert works(client, conn)
        until("it is replaced", lambda: len(children(server.pid)) == 2)
        assert loser not in children(server.pid)
        client.close()
        conn.close()


def holds_connection(pid: int) -> bool:
    table = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    inodes = {line.split()[9] for line in table if line.split()[3] == "01"}
    return any(link.strip("socket:[]") in inodes for link in descriptors(pid).values())


def test_the_second_worker_cannot_be_forked() -> None:
    """Then the first one is told to end, and it says what there is too little of."""
    inject = "inject=clone,clone3,fork:error=EAGAIN:when=2+"
    strace = ("strace", "-D", "-o", "/dev/null", "-e", "trace=clone,clone3,fork", "-e", inject)
    where = (f"--listen={ADDRESS}", f"--port={free_port()}", "--workers=7")
    status, lines = ended(*where, program=(*strace, MUONSOCKS))
    assert status == 111
    expected = (
        "worker 2 of 7 cannot be started: Resource temporarily unavailable;"
        " allow more, or have fewer workers"
    )
    assert sum(expected in line for line in lines) == 1


def test_no_worker_can_be_forked() -> None:
    inject = "inject=clone,clone3,fork:error=EAGAIN"
    strace = ("strace", "-D", "-o", "/dev/null", "-e", "trace=clone,clone3,fork", "-e", inject)
    status, lines = ended(
        f"--listen={ADDRESS}", f"--port={free_port()}", "--workers=1", program=(*strace, MUONSOCKS)
    )
    assert status == 111
    [line] = lines[1:]
    assert "worker 1 of 1 cannot be started: Resource temporarily unavailable; allow" in line


def test_the_supervisor_is_killed() -> None:
    """Its workers serve the connections that they have, and go; a new one can listen at once."""
    with listener() as far, running(workers=3, drain=FOREVER) as server:
        pairs = [server.joined(far) for _ in range(6)]
        pids = server.worker_pids()
        busy = [pid for pid in pids if holds_connection(pid)]
        server.process.kill()
        assert server.process.wait() == -signal.SIGKILL
        until("nobody listens", lambda: not listens(server.address))
        until("idle workers end", lambda: not any(is_alive(pid) for pid in set(pids) - set(busy)))
        for client, conn in pairs:
            assert works(client, conn)
            client.close()
            conn.close()
        until("all end", lambda: not any(map(is_alive, pids)))
        server.process.returncode = 0  # as it was meant to be


def listens(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address).close()
    except ConnectionRefusedError:
        return False
    except ConnectionResetError:
        return True  # until a moment ago: it was closed with us in its queue
    return True


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_a_stop_that_everybody_is_told_of(number: int) -> None:
    """As ^C or systemd's KillMode=control-group does: it counts once, and connections go on."""
    with listener() as far, running(workers=3, drain=FOREVER) as server:
        client, conn = server.joined(far)
        for pid in [*server.worker_pids(), server.pid]:
            os.kill(pid, number)
        until("nobody listens", lambda: not listens(server.address))
        assert works(client, conn)
        client.close()
        conn.close()
        assert server.status == 0
    assert server.log.splitlines()[-1].endswith("stopped, connections that were cut: 0")


def test_a_reload_that_everybody_is_told_of() -> None:
    with running(workers=3) as server:
        pids = server.worker_pids()
        for pid in [*pids, server.pid]:
            os.kill(pid, signal.SIGHUP)
        server.await_log("reloaded")
        assert server.worker_pids() == pids
        assert server.count("reloaded") == 1


def test_an_interrupt_that_was_ignored_stays_so() -> None:
    """As of what a script runs in the background."""
    before = ("sh", "-c", 'trap "" INT; exec "$@"', "sh")
    with listener() as far, running(before=before) as server:
        server.signal(signal.SIGINT)
        server.signal(signal.SIGHUP)
        server.await_log("reloaded")
        client, conn = server.joined(far)
        assert works(client, conn)
        client.close()
        conn.close()


# Reload


def test_all_workers_take_what_was_read_again() -> None:
    """Those that come later too, however much it is."""
    with running(program=ECHO, workers=3) as server:
        clients = [server.connect() for _ in range(20)]
        assert all(map(echoes, clients))
        server.signal(signal.SIGHUP)
        server.await_log("reloaded")
        for client in clients:
            until("it is taken", lambda: takes(client))  # noqa: B023
        for pid in server.worker_pids():
            os.kill(pid, signal.SIGKILL)
        server.await_log("killed", 3)
        server.worker_pids()
        for client in clients:
            client.close()
        for _ in range(6):
            with server.connect() as client:
                assert echoes(client, b"again")


def takes(client: socket.socket) -> bool:
    client.sendall(b"ping")
    answer = read_all(client, 4)
    client.setblocking(False)
    try:
        answer += client.recv(5)
    except BlockingIOError:
        pass
    client.setblocking(True)
    client.settimeout(SECONDS)
    return answer == b"pingagain"


def test_much_is_read_again_many_times() -> None:
    """4 MiB do not fit into the channel at once; nobody waits for that."""
    with running(program=ECHO, workers=2, environ=how("reread much")) as server:
        for number in range(1, 6):
            server.signal(signal.SIGHUP)
            server.await_log("reloaded", number)

        def is_taken() -> bool:
            with server.connect() as client:
                client.sendall(b"ping")
                client.shutdown(socket.SHUT_WR)
                answer = read_all(client)
            assert answer.startswith(b"ping")
            return len(answer) == 104

        until("a worker has taken it, too", is_taken)  # it reads at its own pace


def test_a_reload_that_fails_changes_nothing() -> None:
    with running(program=ECHO, environ=how("reread fails")) as server:
        server.signal(signal.SIGHUP)
        line = server.await_log("not reloaded")
        assert line.endswith(": not reloaded, all stays as it was: FILE:1: no good; do better")
        with server.connect() as client:
            assert echoes(client)


def test_a_reload_for_which_there_is_no_memory() -> None:
    with running(program=ECHO, environ=how("reread takes memory")) as server:
        server.signal(signal.SIGHUP)
        line = server.await_log("not reloaded")
        assert line.endswith(": not reloaded, all stays as it was: there is no memory for it")
        with server.connect() as client:
            assert echoes(client)


def test_a_worker_that_is_stopped_misses_all_but_the_last() -> None:
    """4 MiB each do not pile up."""
    with running(program=ECHO, environ=how("reread much")) as server:
        [worker] = server.worker_pids()
        os.kill(worker, signal.SIGSTOP)
        server.signal(signal.SIGHUP)
        server.await_log("reloaded")
        before = resident_memory(server.pid)
        for number in range(2, 22):
            server.signal(signal.SIGHUP)
            server.await_log("reloaded", number)
        assert (resident_memory(server.pid) - before) < 24 << 10
        os.kill(worker, signal.SIGCONT)


def noted(pid: int, number: int) -> None:
    """Send a signal, and wait until it is no longer pending: a second one is not lost in it."""
    os.kill(pid, number)

    def pending() -> int:
        status = Path(f"/proc/{pid}/status").read_text()
        return sum(int(line.split()[1], 16) for line in status.splitlines() if "Pnd:" in line)

    until("the signal is noted", lambda: not pending() & 1 << number - 1)


def test_who_asks_for_a_reload_many_times_gets_one_more(tmp_path: Path) -> None:
    os.mkfifo(fifo := tmp_path / "fifo")
    with running(program=ECHO, environ=how(f"reads {fifo}")) as server:
        server.signal(signal.SIGHUP)
        with open(fifo, "wb"):  # it reads now
            for _ in range(4):
                noted(server.pid, signal.SIGHUP)
        server.await_log("reloaded")
        with open(fifo, "wb"):
            pass
        server.await_log("reloaded", 2)
        server.terminate()
        assert server.status == 0
        assert server.count("reloaded") == 2


def test_nothing_is_read_again_before_the_end(tmp_path: Path) -> None:
    os.mkfifo(fifo := tmp_path / "fifo")
    with running(program=ECHO, environ=how(f"reads {fifo}")) as server:
        server.signal(signal.SIGHUP)
        with open(fifo, "wb"):
            noted(server.pid, signal.SIGHUP)
            noted(server.pid, signal.SIGTERM)
        assert server.status == 0
        assert server.count("reloaded") == 1


# Stop


def test_a_stop_waits_for_connections() -> None:
    with listener() as far, running(workers=2, drain=FOREVER) as server:
        pairs = [server.joined(far) for _ in range(6)]
        server.terminate()
        until("nobody listens", lambda: not listens(server.address))
        for client, conn in pairs:
            assert works(client, conn)
            client.close()
            conn.close()
        assert server.status == 0
    assert server.log.splitlines()[-1].endswith("stopped, connections that were cut: 0")


@pytest.mark.parametrize("again", [False, True], ids=["when time is up", "when told again"])
def test_connections_are_cut(again: bool) -> None:
    """Both ends see a reset, and it is said how many there were."""
    with listener() as far, running(workers=3, drain=FOREVER if again else 0.3) as server:
        pairs = [server.joined(far) for _ in range(9)]
        silent = server.connect()
        server.terminate()
        if again:
            until("nobody listens", lambda: not listens(server.address))
            assert all(works(*pair) for pair in pairs)
            server.terminate()
        for ends in pairs:
            for end in ends:
                with pytest.raises(ConnectionResetError):
                    end.recv(1)
                end.close()
        assert silent.recv(1) == b""
        silent.close()
        assert server.status == 0
    assert server.log.splitlines()[-1].endswith("stopped, connections that were cut: 10")
    assert server.count("end=terminated") == 10


@pytest.mark.parametrize("again", [False, True], ids=["when time is up", "when told again"])
def test_a_worker_that_does_not_stop(again: bool) -> None:
    """It is killed, 5 s after it should have ended."""
    with running(workers=2, drain=FOREVER if again else 0.1) as server:
        hung, _ = server.worker_pids()
        os.kill(hung, signal.SIGSTOP)
        server.terminate()
        if again:
            until("the other one ends", lambda: len(children(server.pid)) == 1)
            server.terminate()
        assert server.status == 0
    assert server.count(f"worker {hung} does not end and is killed") == 1
    assert server.count(f"worker {hung} was killed by signal 9") == 1


def test_a_stop_while_a_worker_waits_to_be_replaced() -> None:
    with running(program=ECHO, environ=how("dies soon")) as server:
        server.await_log("ended with status 3", 3)
        server.terminate()
        assert server.status == 0


# Workers that hang

WATCHDOG = 1.2  # s


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[tuple[Server, socket.socket]]:
    with systemd(tmp_path) as told:
        environ = environment(
            NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC=str(int(WATCHDOG * 1e6))
        )
        with running(program=ECHO, workers=2, environ=environ) as server:
            yield server, told


def test_a_worker_that_spins_is_replaced(watched: tuple[Server, socket.socket]) -> None:
    server, _ = watched
    with server.connect() as client, server.connect() as other:
        assert echoes(client) and echoes(other)
        pids = server.worker_pids()
        client.sendall(b"spin")
        line = server.await_log("has hung for . s and is killed")
        found = re.search(r"worker (\d+)", line)
        assert found
        hung = int(found[1])
        assert hung in pids
        server.await_log(f"worker {hung} was killed by signal 6")
    assert hung not in server.worker_pids()


def test_a_worker_that_is_stopped_is_replaced(watched: tuple[Server, socket.socket]) -> None:
    """It would not notice SIGABRT."""
    server, _ = watched
    hung, other = server.worker_pids()
    os.kill(hung, signal.SIGSTOP)
    server.await_log(f"worker {hung} was killed by signal 9")
    assert server.count("has hung") == 1
    assert other in server.worker_pids()


def test_a_worker_that_never_gets_ready_is_replaced(
    watched: tuple[Server, socket.socket],
) -> None:
    server, _ = watched
    first, other = server.worker_pids()
    os.kill(first, signal.SIGKILL)

    def stopped() -> int:
        for pid in children(server.pid):
            if pid not in (first, other):
                os.kill(pid, signal.SIGSTOP)
                return pid
        return 0

    hung = until("there is another one", stopped)
    server.await_log(f"worker {hung} was killed by signal 9")
    assert server.count(f"worker {hung} has hung") == 1


def test_systemd_gets_signs_of_life(watched: tuple[Server, socket.socket]) -> None:
    server, told = watched
    for _ in range(3):
        await_state(told, "WATCHDOG=1")
    assert server.count("hung") == 0


def test_all_are_stopped_and_go_on(watched: tuple[Server, socket.socket]) -> None:
    """As by systemctl freeze: nobody has hung."""
    server, told = watched
    pids = server.worker_pids()
    for pid in (server.pid, *pids):
        os.kill(pid, signal.SIGSTOP)
    until("all are stopped", lambda: {state(pid) for pid in (server.pid, *pids)} == {"T"})
    time.sleep(1.5 * WATCHDOG)  # that is the point
    told.setblocking(False)
    try:
        while told.recv(4096):
            pass
    except BlockingIOError:
        told.settimeout(SECONDS)
    os.kill(server.pid, signal.SIGCONT)
    for _ in range(2):
        await_state(told, "WATCHDOG=1")  # it has looked, before they could say anything
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    for _ in range(3):
        await_state(told, "WATCHDOG=1")
    assert server.count("hung") == 0
    assert server.worker_pids() == pids


def test_who_waits_sleeps() -> None:
    with running(workers=2) as server:
        for pid in (server.pid, *server.worker_pids()):
            assert asleep(pid, 0.3) > 0.9
