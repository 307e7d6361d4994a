"""Thousands of connections, with all that goes wrong, leave nothing behind."""

import gc
import os
import socket
import threading
from collections import Counter
from pathlib import Path

import pytest
from crowd import Crowd
from ends import Lines, _description
from places import in_own_network, root_only
from programs import listener
from real_server import (
    ADDRESS,
    Server,
    free_port,
    kinds_of_descriptors,
    resident_memory,
    running,
    until,
    works,
)

from muonsocks.net.entrance import Listener
from muonsocks.net.listen import listen_on
from muonsocks.net.loop import Loop
from muonsocks.net.task import Mailbox
from muonsocks.resident.board import OPEN, SERVED, Board
from muonsocks.resident.plan import Capacity
from muonsocks.resident.worker import Worker
from muonsocks.tools.muonsocks import Socks
from muonsocks.tools.options import Options

LIMITS = {
    "--handshake-timeout": "1",
    "--connect-timeout": "1",
    "--idle-timeout": "1.5",
    "--half-close-timeout": "1",
}
COUNT = 2000
MORE_PIPES = 64  # descriptors: as many as a worker keeps in its pool
LESS_THAN_A_LEAK = 500  # bytes a connection that a process may grow by; no object is smaller

ESTABLISHED_AND_SO_ON = {"01", "02", "03", "04", "05", "08", "09", "0B"}  # proc(5): not TIME_WAIT
ORPHANED = 90  # s at most that the kernel keeps what is closed: tcp_fin_timeout, tcp(7), is 60

IDLERS = 250
IDLE_CONNECTION = 2500  # bytes in a worker, besides what the kernel has


def own_memory(pid: int) -> int:
    """Bytes of a process that it shares with no other one."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_Dirty:"))


def unfinished() -> list[str]:
    """The TCP connections of this network that are not over, as proc(5) has them."""
    table = Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]
    return [line for line in table if line.split()[3] in ESTABLISHED_AND_SO_ON]


def without_pipes(pid: int) -> Counter[str]:
    kinds = kinds_of_descriptors(pid)
    assert kinds.pop("pipe", 0) <= 2 + MORE_PIPES
    return kinds


def sockets(server: Server) -> list[int]:
    return [kinds_of_descriptors(pid)["socket"] for pid in server.worker_pids()]


@root_only()
@pytest.mark.parametrize("workers", [1, 3])
def test_a_crowd_leaves_nothing_behind(workers: int) -> None:
    """No descriptor, no TCP connection, no memory; the first crowd warms it up."""

    def run() -> None:
        options = [f"{name}={value}" for name, value in LIMITS.items()]
        with running(*options, workers=workers) as server:
            pids, at_rest = server.worker_pids(), sockets(server)
            Crowd(server.connect, 1).come(COUNT)
            until("all sockets are closed", lambda: sockets(server) == at_rest)
            before = [without_pipes(pid) for pid in pids]
            memory = [resident_memory(pid) for pid in pids]
            crowd = Crowd(server.connect, 2)
            crowd.come(COUNT)
            assert crowd.seen.total() == COUNT and len(crowd.seen) >= 8
            until("all sockets are closed", lambda: sockets(server) == at_rest)
            try:
                until("all connections are over", lambda: not unfinished(), ORPHANED)
            finally:
                print(*unfinished(), sep="\n")
            assert server.worker_pids() == pids
            assert [without_pipes(pid) for pid in pids] == before
            grown = sum(resident_memory(pid) for pid in pids) - sum(memory)
            assert grown * 1024 < LESS_THAN_A_LEAK * COUNT
            assert server.count("end=system-error") == 0

    in_own_network(run)


def test_a_connection_that_idles_is_small() -> None:
    """Once it has carried something; the first ones touch much that is the same for all."""
    with running(workers=1) as server, listener(ADDRESS) as far:
        [pid] = server.worker_pids()
        pairs = [server.joined(far) for _ in range(200)]
        before = own_memory(pid)
        pairs += [server.joined(far) for _ in range(IDLERS)]
        assert all(works(*pair) for pair in pairs)
        grown = own_memory(pid) - before
        for sock in sum(pairs, ()):
            sock.close()
    assert grown < IDLE_CONNECTION * IDLERS


def test_a_crowd_leaves_no_garbage() -> None:
    """Workers do without the collector of reference cycles, and so there must be none."""
    log, port, board, loop = Lines(), free_port(), Board(1), Loop()
    socks = Socks(Options({"--allow-local": True, **LIMITS}, []), log)
    listener = listen_on(socket.inet_aton(ADDRESS), port)
    worker = Worker(loop, [Listener(listener)], socks, Capacity(0, per_source=COUNT), board, log)
    reader, writer = os.pipe()
    os.set_blocking(reader, False)

    async def work() -> None:
        stop = Mailbox()
        loop.register(reader, stop.post)
        worker.start()
        await stop.take()
        await worker.drain(10)
        loop.unregister(reader)

    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        thread = threading.Thread(target=loop.run, args=(work(),))
        thread.start()
        try:
            Crowd(lambda: socket.create_connection((ADDRESS, port)), 3).come(COUNT // 2)
        finally:
            os.write(writer, b".")
            thread.join()
        gc.collect()
        garbage = Counter(filter(None, map(_description, gc.garbage)))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not garbage
    assert (board.total(SERVED), board.total(OPEN)) == (COUNT // 2, 0)
    assert board.connections_of(socket.inet_aton("127.0.0.1")) == 0
    assert not [line for line in log.lines if "bug" in line]
    assert set(loop.handlers) <= {loop._threads._signal if loop._threads else -1}
    loop.close()
    for fd in (reader, writer):
        os.close(fd)
