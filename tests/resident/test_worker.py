"""A worker in a loop of its own, with a service that sends back what it gets."""

import _socket
import errno
import os
import resource
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ends import PATIENCE, CountedRounds, Lines, no_garbage, nothing_left_behind
from places import in_child
from senders import Front, pass_on

from muonsocks.net import pipes
from muonsocks.net.entrance import Intake, Listener
from muonsocks.net.inherit import Peer
from muonsocks.net.listen import SocketFile, listen_on, receive_at
from muonsocks.net.loop import Loop
from muonsocks.net.passing import receive_first
from muonsocks.net.stream import Stream
from muonsocks.resident import shortage
from muonsocks.resident import worker as worker_module
from muonsocks.resident.board import _FIELDS, CUT, FULL, OPEN, REFUSED, SERVED, SHORT, Board
from muonsocks.resident.plan import Capacity
from muonsocks.resident.repeats import MOST
from muonsocks.resident.worker import Worker

LOOPBACK = bytes([127, 0, 0, 1])


class Echo:
    """A service. A client that says `!NAME` has it fail in that way."""

    def __init__(self) -> None:
        self.peers: list[str] = []

    async def serve(self, loop: Loop, sock: _socket.socket, peer: Peer) -> int:
        self.peers.append(peer.text)
        stream = Stream(loop, sock)
        try:
            while data := await stream.receive(100):
                if data == b"!out of ports":
                    return errno.EADDRNOTAVAIL
                if data == b"!out of descriptors":
                    raise OSError(errno.EMFILE, "Too many open files")
                if data == b"!bug":
                    raise ValueError("wrong")
                await stream.send(data)
        finally:
            stream.close()
        return 0


class FaultyListener:
    """A listener at which accept(2) fails so many times, in this way."""

    def __init__(self, listener: Listener, number: int, times: int) -> None:
        self._listener = listener
        self._number = number
        self.times = times
        self.calls = 0

    def take(self) -> tuple[_socket.socket, Peer]:
        self.calls += 1
        if self.calls <= self.times:
            raise OSError(self._number, os.strerror(self._number))
        return self._listener.take()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listener, name)


class Bench:
    """A worker, its surroundings and its clients."""

    def __init__(self, capacity: Capacity, workers: int, fault: tuple[int, int] | None) -> None:
        self.loop = Loop()
        self.rounds = CountedRounds(self.loop)
        self.board = Board(workers)
        self.log = Lines()
        self.echo = Echo()
        listener = listen_on(LOOPBACK, 0)
        self.address = listener.getsockname()
        entrance = Listener(listener)
        self.listener: Any = FaultyListener(entrance, *fault) if fault else entrance
        self.worker = Worker(self.loop, [self.listener], self.echo, capacity, self.board, self.log)
        self.clients: list[Stream] = []

    def client(self, source: str = "127.0.0.1") -> Stream:
        sock = _socket.socket()
        sock.bind((source, 0))
        sock.connect(self.address)
        sock.setblocking(False)
        self.clients.append(Stream(self.loop, sock))
        return self.clients[-1]

    async def is_served(self, client: Stream) -> bool:
        """Say whether a client gets an echo; False if it is closed. There is no third way."""
        try:
            await client.send(b"ping")
            return await client.receive(100) == b"ping"
        except ConnectionError:
            return False

    async def served(self, source: str = "127.0.0.1") -> Stream:
        client = self.client(source)
        assert await self.is_served(client)
        return client

    async def until(self, holds: Callable[[], Any]) -> None:
        while not holds():
            await self.loop.sleep(0.002)

    async def gone(self, client: Stream) -> None:
        """Leave, and wait until the worker has noticed."""
        left = self.total(OPEN)
        client.close()
        await self.until(lambda: self.total(OPEN) < left)

    def total(self, field: int) -> int:
        return self.board.total(field)

    def accepts(self) -> bool:
        """Whether the worker would be woken for a connection."""
        return self.listener.fileno() in self.loop.handlers


def run(
    story: Callable[[Bench], Awaitable[None]],
    capacity: Capacity | None = None,
    workers: int = 1,
    fault: tuple[int, int] | None = None,
) -> Bench:
    """Let a worker work while the story goes on; in the end all is closed."""
    bench = Bench(capacity or Capacity(0), workers, fault)

    async def main() -> None:
        with bench.loop.deadline(PATIENCE):
            bench.worker.start()
            await story(bench)
            for client in bench.clients:
                client.close()
            await bench.worker.drain(PATIENCE)
        assert bench.total(OPEN) == 0
        assert not bench.loop.handlers

    bench.loop.run(main())
    bench.loop.close()
    return bench


@pytest.fixture(autouse=True)
def leaks_nothing() -> Iterator[None]:
    with nothing_left_behind():
        yield
        pipes.limit(1 << 20)


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_PATIENCE", 0.02)
    monkeypatch.setattr(shortage, "_QUIET", 0.05)


def test_clients_are_served_and_counted() -> None:
    async def story(bench: Bench) -> None:
        clients = [await bench.served() for _ in range(3)]
        assert (bench.total(OPEN), bench.total(SERVED)) == (3, 3)
        for client in clients:
            assert await bench.is_served(client)
        await bench.gone(clients[0])
        assert (bench.total(OPEN), bench.total(SERVED)) == (2, 3)

    with no_garbage():
        bench = run(story)
    assert all(peer.startswith("127.0.0.1:") for peer in bench.echo.peers)
    assert bench.log.lines == []


# What accept(2) may say


@pytest.mark.parametrize(
    "number",
    [
        errno.EAGAIN,
        errno.ECONNABORTED,
        errno.EPROTO,
        errno.EPERM,
        errno.ENETDOWN,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ETIMEDOUT,
    ],
    ids=os.strerror,
)
def test_an_error_of_one_connection_is_none_of_the_listener_s(number: int) -> None:
    async def story(bench: Bench) -> None:
        assert await bench.is_served(bench.client())
        assert bench.listener.calls >= 4

    bench = run(story, fault=(number, 3))
    assert bench.log.lines == []
    assert (bench.total(SERVED), bench.total(SHORT)) == (1, 0)


SHORTAGES = [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EINVAL]


@pytest.mark.parametrize("number", SHORTAGES, ids=os.strerror)
def test_a_shortage_is_waited_out(number: int) -> None:
    """Said once; those that are there are served on; then it is said that it is over."""

    async def story(bench: Bench) -> None:
        first = await bench.served()
        bench.listener.calls = 0
        second = bench.client()
        await bench.until(lambda: bench.listener.calls >= 3)
        assert await bench.is_served(first)
        assert bench.total(SHORT) == 1
        assert bench.log.lines == [f"cannot accept: {os.strerror(number)}"]
        bench.listener.times = 0
        assert await bench.is_served(second)
        await bench.until(lambda: len(bench.log.lines) > 1)
        assert bench.total(SHORT) == 0

    bench = run(with_fault_later(story), fault=(number, 1 << 30))
    assert bench.log.lines[1:] == ["the shortage is over"]


def with_fault_later(
    story: Callable[[Bench], Awaitable[None]],
) -> Callable[[Bench], Awaitable[None]]:
    """Let the listener work until the story sets `calls` back to 0."""

    async def prepared(bench: Bench) -> None:
        bench.listener.calls = bench.listener.times
        await story(bench)

    return prepared


def test_a_shortage_is_no_busy_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection waits all the time, and is looked at now and then."""
    monkeypatch.setattr(worker_module, "_PATIENCE", 0.1)

    async def story(bench: Bench) -> None:
        bench.client()
        await bench.loop.sleep(0.01)
        rounds, calls = bench.rounds.count, bench.listener.calls
        await bench.loop.sleep(0.55)
        assert 1 <= bench.listener.calls - calls <= 6
        assert bench.rounds.count - rounds <= 40
        bench.listener.times = 0

    run(story, fault=(errno.EMFILE, 1 << 30))


# Several at a time


@pytest.mark.parametrize("busy, taken", [(1, 1), (5, 1), (6, 16), (100, 16)])
def test_a_busy_worker_accepts_several_at_a_time(busy: int, taken: int) -> None:
    async def story(bench: Bench) -> None:
        newcomers = [bench.client() for _ in range(20)]
        bench.loop.busy = busy
        bench.worker._accept_some(bench.listener)
        assert bench.total(OPEN) == taken
        for client in newcomers:
            assert await bench.is_served(client)
        bench.loop.busy = busy
        bench.worker._accept_some(bench.listener)  # there is none
        assert (bench.total(OPEN), bench.log.lines) == (20, [])

    run(story)


def test_a_busy_worker_takes_no_more_than_may_come() -> None:
    """It says so only when somebody has to wait."""

    async def story(bench: Bench) -> None:
        for _ in range(8):
            await bench.served()
        for expected in ([], ["all 10 connections of --max-connections are in use"]):
            for _ in range(2):
                bench.client()
            bench.loop.busy = 100
            bench.worker._accept_some(bench.listener)
            assert (bench.total(OPEN), bench.log.lines) == (10, expected)

    run(story, Capacity(10))


# Limits


def test_the_others_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """And have their turn as soon as one of the worker's own has ended."""
    monkeypatch.setattr(worker_module, "_PATIENCE", 1000)

    async def story(bench: Bench) -> None:
        clients = [await bench.served() for _ in range(2)]
        waiting = [bench.client() for _ in range(2)]
        for client in waiting:
            await client.send(b"ping")
        await bench.until(lambda: bench.log.lines)
        for leaving, client in zip(clients, waiting, strict=True):
            assert bench.total(OPEN) == 2
            leaving.close()
            assert await client.receive(100) == b"ping"
        assert (bench.total(OPEN), bench.total(REFUSED)) == (2, 0)

    bench = run(story, Capacity(2))
    assert bench.log.lines[0] == "all 2 connections of --max-connections are in use"


def test_a_limit_that_another_worker_uses_up() -> None:
    """Nothing tells when that one has room again, so it is looked at."""

    async def story(bench: Bench) -> None:
        bench.board.take_column(1)
        bench.board.add(OPEN, 2)
        bench.board.take_column(0)
        client = bench.client()
        await bench.until(lambda: bench.log.lines)
        bench.board.clear(1)
        assert await bench.is_served(client)

    run(story, Capacity(2), workers=2)


def test_a_worker_that_is_full_is_not_woken() -> None:
    """It would take the wake-up from another one, which has room: so it leaves the queue when the
    last place is taken, and not when the next connection comes.
    """

    async def story(bench: Bench) -> None:
        bench.worker._fits = 2
        first = await bench.served()
        assert bench.accepts()
        await bench.served()
        assert not bench.accepts()
        await bench.loop.sleep(0.1)  # several times as long as it pauses
        assert not bench.accepts()
        await bench.gone(first)
        assert bench.accepts()

    bench = run(story)
    assert len(bench.log.lines) == 1
    assert "allows no more connections" in bench.log.lines[0]


class Doorman:
    """Says no, to those that it does not hold."""

    def __init__(self) -> None:
        self.holds = False

    async def turn_away(self, loop: Loop, sock: _socket.socket) -> int:
        stream = Stream(loop, sock)
        try:
            await stream.send(b"no room")
            while self.holds and await stream.receive(100):
                pass
        finally:
            stream.close()
        return 0


async def says_no(bench: Bench) -> bool:
    """Whether a client is turned away; False if it is served."""
    client = bench.client()
    await client.send(b"ping")
    return await client.receive(100) == b"no room"


def test_a_doorman_when_all_are_full() -> None:
    """The log says it once, and the clients count as refused."""

    async def story(bench: Bench) -> None:
        bench.worker._fits = 2
        first = await bench.served()
        await bench.served()
        assert bench.accepts() and bench.total(FULL) == 1
        for _ in range(50):
            assert await says_no(bench)
        await bench.until(lambda: bench.total(OPEN) == 2)
        assert (bench.total(SERVED), bench.total(REFUSED)) == (2, 50)
        await bench.gone(first)
        assert bench.accepts() and bench.total(FULL) == 0
        await bench.served()
        assert await says_no(bench)

    bench = run(story, Capacity(0, doorman=Doorman()))
    assert len(bench.log.lines) == 1
    assert "allows no more connections" in bench.log.lines[0]


def test_a_doorman_when_others_have_room() -> None:
    """What comes is for them. One that is there no more, or drains, has none."""

    async def story(bench: Bench) -> None:
        bench.worker._fits = 1
        await bench.served()
        assert bench.total(FULL) == 1
        await bench.loop.sleep(0.1)
        assert not bench.accepts()
        bench.board.clear(1)
        assert await says_no(bench)  # as soon as it looks again
        assert bench.accepts()

    run(story, Capacity(0, doorman=Doorman()), workers=2)


def test_a_doorman_looks_for_others_that_have_got_room() -> None:
    """All were full when it was last looked."""

    async def story(bench: Bench) -> None:
        bench.worker._fits = 1
        bench.board._counters[_FIELDS + FULL] = 1
        await bench.served()
        assert await says_no(bench)
        bench.board._counters[_FIELDS + FULL] = 0
        client = bench.client()
        with pytest.raises(TimeoutError), bench.loop.deadline(0.05):
            await client.receive(100)
        assert not bench.accepts()

    run(story, Capacity(0, doorman=Doorman()), workers=2)


def test_a_doorman_holds_no_more_than_some() -> None:
    """There are descriptors left for so many."""

    async def story(bench: Bench) -> None:
        bench.worker._fits = 1
        await bench.served()
        for _ in range(worker_module._TURNED_AWAY):
            assert bench.accepts()
            assert await says_no(bench)
        assert not bench.accepts()
        bench.clients[5].close()
        await bench.until(bench.accepts)
        assert await says_no(bench)
        assert not bench.accepts()

    doorman = Doorman()
    doorman.holds = True
    run(story, Capacity(0, doorman=doorman))
    assert worker_module._TURNED_AWAY + 2 < worker_module._RESERVE


@pytest.mark.parametrize(("limit", "least", "most"), [(64, 10, 20), (256, 80, 110), (20, 1, 1)])
def test_how_many_fit(limit: int, least: int, most: int) -> None:
    """Two descriptors each, and some are kept for pipes and look-ups."""

    def check() -> None:
        os.closerange(3, 100)
        os.closerange(101, 1 << 16)  # what others of these tests have left open; 100 is for the end
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        worker = Worker(Loop(), [], Echo(), Capacity(0), Board(1), Lines())
        assert least <= worker._fits <= most
        taken = 0
        while pipes.take() is not None:
            taken += 2
        assert 2 * worker._fits + taken < limit - 16 or limit == 20

    in_child(check)


# Sources


def test_connections_of_one_source() -> None:
    async def story(bench: Bench) -> None:
        ours = [await bench.served() for _ in range(2)]
        others = [await bench.served("127.0.0.2") for _ in range(2)]
        for source in ("127.0.0.1", "127.0.0.2"):
            assert not await bench.is_served(bench.client(source))
        assert (bench.total(OPEN), bench.total(SERVED), bench.total(REFUSED)) == (4, 4, 2)
        await bench.gone(ours[0])
        await bench.served()
        assert not await bench.is_served(bench.client())
        for client in (*ours[1:], *others):
            assert await bench.is_served(client)

    bench = run(story, Capacity(0, per_source=2))
    refusals = [line for line in bench.log.lines if "end=too-many-of-this-source" in line]
    assert len(refusals) == len(bench.log.lines) == 3
    assert refusals[0].startswith("refused client=127.0.0.1:")
    assert bench.board.connections_of(LOOPBACK) == 0


def test_clients_of_a_unix_socket_have_no_source(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        clients = []
        for _ in range(3):
            sock = _socket.socket(_socket.AF_UNIX)
            sock.connect(str(tmp_path / "socket"))
            sock.setblocking(False)
            clients.append(Stream(bench.loop, sock))
        bench.clients += clients
        for client in clients:
            assert await bench.is_served(client)

    listener = _socket.socket(_socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    listener.listen()
    listener.setblocking(False)

    async def with_unix(bench: Bench) -> None:
        bench.worker._stop_accepting()
        bench.worker._entrances.append(Listener(listener))
        bench.worker.start()
        await story(bench)

    bench = run(with_unix, Capacity(0, per_source=1))
    assert bench.echo.peers == ["unix"] * 3
    assert bench.log.lines == []


# What happens to a session


def test_a_session_that_runs_short() -> None:
    """Others wait a moment, and those that are there go on."""

    async def story(bench: Bench) -> None:
        first = await bench.served()
        unlucky = await bench.served()
        await unlucky.send(b"!out of descriptors")
        assert await unlucky.receive(1) == b""
        assert not bench.accepts()
        assert await bench.is_served(first)
        await bench.until(bench.accepts)
        await bench.served()
        await bench.until(lambda: len(bench.log.lines) == 2)

    bench = run(story)
    assert bench.log.lines == [
        "a request could not be carried out: Too many open files",
        "the shortage is over",
    ]


def test_a_session_that_finds_no_port() -> None:
    """That is so for one destination only: nobody waits for it."""

    async def story(bench: Bench) -> None:
        for _ in range(3):
            unlucky = await bench.served()
            await unlucky.send(b"!out of ports")
            assert await unlucky.receive(1) == b""
            assert bench.accepts()

    bench = run(story)
    assert bench.log.lines == [
        "a request could not be carried out: Cannot assign requested address"
    ]


@pytest.mark.parametrize("when", ["it goes on", "it queues up again"])
def test_the_listener_cannot_be_watched(monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """Another worker has taken the last watch that epoll(7) allows a user."""

    async def story(bench: Bench) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Loop, "register_listener", no_room)
            if when == "it goes on":
                bench.worker._pause()
            else:
                clients = [await bench.served() for _ in range(9)]
            await bench.until(lambda: bench.log.lines)
            assert not bench.accepts()
        assert bench.log.lines == ["cannot watch for connections: No space left on device"]
        await bench.served()
        assert when == "it goes on" or all([await bench.is_served(client) for client in clients])

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run(story, workers=2)


def test_a_shortage_is_over_when_another_worker_has_served() -> None:
    """This one may not see a client for a long time; and the last worker says it."""

    async def story(bench: Bench) -> None:
        unlucky = await bench.served()
        await unlucky.send(b"!out of ports")
        assert await unlucky.receive(1) == b""
        bench.board.take_column(1)
        bench.board.set(SHORT, 1)
        bench.board.take_column(0)
        await bench.loop.sleep(0.15)
        assert bench.total(SHORT) == 2  # nobody was served since
        bench.board.take_column(1)
        bench.board.add(SERVED, 1)
        bench.board.take_column(0)
        await bench.until(lambda: bench.total(SHORT) == 1)
        assert len(bench.log.lines) == 1
        unlucky = await bench.served()
        await unlucky.send(b"!out of ports")
        assert await unlucky.receive(1) == b""
        bench.board.clear(1)
        await bench.served()
        await bench.until(lambda: bench.total(SHORT) == 0)

    bench = run(story, workers=2)
    assert [line[:20] for line in bench.log.lines] == [
        "a request could not ",
        "the shortage is over",
    ]


def test_a_session_with_a_bug() -> None:
    """It is said in a line, and the others do not suffer."""

    async def story(bench: Bench) -> None:
        first = await bench.served()
        unlucky = await bench.served()
        await unlucky.send(b"!bug")
        assert await unlucky.receive(1) == b""
        assert await bench.is_served(first)
        assert bench.total(OPEN) == 1
        await bench.served()

    with no_garbage():
        bench = run(story)
    assert bench.log.lines == ["this is a bug, please report it: ValueError: wrong"]


# The end


def test_a_drain_lets_connections_finish() -> None:
    async def story(bench: Bench) -> None:
        clients = [await bench.served() for _ in range(2)]
        ended = []

        async def drain() -> None:
            await bench.worker.drain(1000)
            ended.append(True)

        bench.loop.spawn(drain(), pytest.fail)
        with pytest.raises(ConnectionRefusedError):
            bench.client()
        for client in clients:
            assert await bench.is_served(client)
            assert not ended
            await bench.gone(client)
        await bench.until(lambda: ended)

    with no_garbage():
        bench = run(story)
    assert bench.total(CUT) == 0


def test_a_drain_takes_no_longer_than_it_may() -> None:
    async def story(bench: Bench) -> None:
        clients = [await bench.served() for _ in range(3)]
        await bench.worker.drain(0.05)
        assert bench.total(OPEN) == 0
        for client in clients:
            assert await client.receive(1) == b""

    with no_garbage():
        bench = run(story)
    assert bench.total(CUT) == 3
    assert bench.log.lines == []


def test_a_drain_of_nothing_is_over_at_once() -> None:
    async def story(bench: Bench) -> None:
        await bench.gone(await bench.served())

    assert run(story).total(CUT) == 0


def test_a_drain_while_it_pauses() -> None:
    """It does not begin to accept again when a connection ends."""

    async def story(bench: Bench) -> None:
        bench.worker._fits = 2
        clients = [await bench.served() for _ in range(2)]
        assert not bench.accepts()
        bench.loop.spawn(bench.worker.drain(1000), pytest.fail)
        await bench.gone(clients[0])
        await bench.loop.sleep(0.1)
        assert bench.listener.fileno() == -1
        await bench.gone(clients[1])

    run(story)


def test_a_shortage_while_it_drains() -> None:
    async def story(bench: Bench) -> None:
        unlucky, other = [await bench.served() for _ in range(2)]
        bench.loop.spawn(bench.worker.drain(1000), pytest.fail)
        await unlucky.send(b"!out of descriptors")
        assert await unlucky.receive(1) == b""
        await bench.loop.sleep(0.1)
        assert await bench.is_served(other)

    bench = run(story)
    assert bench.log.lines == ["a request could not be carried out: Too many open files"]


def test_a_drain_that_is_cut_short() -> None:
    async def story(bench: Bench) -> None:
        clients = [await bench.served() for _ in range(3)]
        ended = []

        async def drain() -> None:
            await bench.worker.drain(1000)
            ended.append(True)

        bench.loop.spawn(drain(), pytest.fail)
        await bench.gone(clients[0])
        bench.worker.cut()
        assert ended
        for client in clients[1:]:
            assert await client.receive(1) == b""

    bench = run(story)
    assert bench.total(CUT) == 2
    assert bench.log.lines == []


def test_many_at_once() -> None:
    """More than the limit come, in no order, and each has its turn."""

    async def story(bench: Bench) -> None:
        seen = []

        async def come() -> None:
            client = bench.client()
            assert await bench.is_served(client)
            seen.append(bench.total(OPEN))
            client.close()

        for _ in range(60):
            bench.loop.spawn(come(), pytest.fail)
        await bench.until(lambda: len(seen) == 60)
        assert max(seen) <= 7

    assert run(story, Capacity(7)).total(SERVED) == 60


def test_sockets_are_as_they_should_be() -> None:
    """Not blocking, closed on exec, of the listener's family."""
    seen = []

    class Look(Echo):
        async def serve(self, loop: Loop, sock: _socket.socket, peer: Peer) -> int:
            fd = sock.fileno()
            seen.append((sock.family, os.get_blocking(fd), os.get_inheritable(fd)))
            return await super().serve(loop, sock, peer)

    async def story(bench: Bench) -> None:
        bench.worker._service = Look()
        await bench.served()

    run(story)
    assert seen == [(socket.AF_INET, False, False)]


# Clients who are passed


def run_receiver(
    path: str, story: Callable[[Worker, Front, list[bool]], Awaitable[None]], capacity: Capacity
) -> tuple[Board, list[str]]:
    """The same for a worker to which clients are passed; `retired` is what it has asked for."""
    loop, board, log = Loop(), Board(1), Lines()
    retired: list[bool] = []
    sock = receive_at(path)
    receiver = Intake(sock, True, SocketFile(path))
    worker = Worker(
        loop, [receiver], Echo(), capacity, board, log, lambda for_good: retired.append(for_good)
    )

    async def main() -> None:
        with loop.deadline(PATIENCE), Front(path) as front:
            worker.start()
            await story(worker, front, retired)
            receiver.shut()
            await worker.drain(PATIENCE)
        assert sock.fileno() == -1 and not os.path.exists(path)
        assert not loop.handlers

    loop.run(main())
    loop.close()
    return board, log.lines


async def echoed(loop: Loop, client: socket.socket) -> bool:
    """Say hello, be answered, and leave."""
    client.setblocking(False)
    stream = Stream(loop, client)
    try:
        await stream.send(b"hello")
        return await stream.receive(100) == b"hello"
    finally:
        stream.close()


def test_what_is_passed_and_is_no_connection(tmp_path: Path) -> None:
    """It is logged, and who comes after it is served."""
    path = str(tmp_path / "receiver")

    async def story(worker: Worker, front: Front, _: list[bool]) -> None:
        pass_on(path)
        with open("/dev/null") as file:
            pass_on(path, file.fileno())
        assert await echoed(worker._loop, front.client())

    board, lines = run_receiver(path, story, Capacity(0))
    assert (board.total(SERVED), board.total(REFUSED), board.total(OPEN)) == (1, 2, 0)
    assert [line.replace('"', "") for line in lines] == [
        "refused client=- end=no-connection detail=a message without a descriptor",
        "refused client=- end=no-connection detail=a descriptor that is passed is no socket",
    ]


def test_messages_that_are_no_connections_do_not_fill_the_log(tmp_path: Path) -> None:
    path = str(tmp_path / "receiver")

    async def story(worker: Worker, front: Front, _: list[bool]) -> None:
        for count in range(MOST + 25):
            while worker._board.total(REFUSED) < count:
                await worker._loop.sleep(0.001)
            pass_on(path)
        await worker._loop.sleep(1.1)
        assert await echoed(worker._loop, front.client())

    board, lines = run_receiver(path, story, Capacity(0))
    assert board.total(REFUSED) == MOST + 25
    assert len(lines) == MOST + 1
    assert lines[-1].endswith('detail="25 more in a second"')


@pytest.mark.parametrize("busy", [1, 100])
def test_the_end_of_all_entrances(busy: int) -> None:
    """Who has come before is served to the end."""
    loop, board, log = Loop(), Board(4), Lines()  # it has more than its share
    retired: list[bool] = []
    server, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    receiver = Intake(ours, is_ours=True)
    worker = Worker(
        loop, [receiver], Echo(), Capacity(0), board, log, lambda for_good: retired.append(for_good)
    )
    clients = []

    async def main() -> None:
        with loop.deadline(PATIENCE):
            worker.start()
            for _ in range(6):
                client, conn = socket.socketpair()
                with conn:
                    socket.send_fds(server, [bytes.fromhex("03000000")], [conn.fileno()])
                clients.append(client)
            server.close()
            while not retired:
                loop.busy = busy
                await loop.sleep(0.002)
            for client in clients:
                assert await echoed(loop, client)
            await worker.drain(PATIENCE)

    loop.run(main())
    assert not loop.handlers
    loop.close()
    assert retired == [True]
    assert log.lines == ["who passed connections on has gone"]
    assert (board.total(SERVED), board.total(OPEN)) == (6, 0)
    assert ours.fileno() == -1


def test_an_entrance_that_ends_is_not_the_end_of_others() -> None:
    server, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    async def story(bench: Bench) -> None:
        bench.worker._stop_accepting()
        bench.worker._entrances.append(Intake(ours, is_ours=True))
        bench.worker._retire = lambda for_good: retired.append(for_good)
        bench.worker.start()
        server.close()
        await bench.until(lambda: bench.log.lines)
        assert await bench.is_served(bench.client())

    retired: list[bool] = []
    assert run(story).log.lines == ["who passed connections on has gone"]
    assert retired == []


def test_the_last_are_taken_in(tmp_path: Path) -> None:
    """Who has been passed before the end is served, however many there may be else."""
    path, clients = str(tmp_path / "receiver"), list[socket.socket]()

    async def story(worker: Worker, front: Front, _: list[bool]) -> None:
        for _ in range(6):
            clients.append(front.client())
        while worker._board.total(OPEN) < 2:
            await worker._loop.sleep(0.002)

        async def leave() -> None:
            while clients:
                assert await echoed(worker._loop, clients.pop())

        worker._loop.spawn(leave(), failures.append)

    failures: list[BaseException] = []
    board, lines = run_receiver(path, story, Capacity(2, option="--max"))
    assert (failures, clients) == ([], [])
    assert (board.total(SERVED), board.total(REFUSED)) == (6, 0)
    assert lines in ([], ["all 2 connections of --max are in use"])


def test_a_worker_that_is_replaced_leaves_them_to_others(tmp_path: Path) -> None:
    path, clients = str(tmp_path / "receiver"), list[socket.socket]()
    others = list[socket.socket]()

    async def story(worker: Worker, front: Front, _: list[bool]) -> None:
        others.append(socket.socket(fileno=os.dup(worker._entrances[0].fileno())))
        clients.append(front.client())
        while worker._board.total(OPEN) < 1:
            await worker._loop.sleep(0.002)
        clients.extend(front.client() for _ in range(4))
        assert await echoed(worker._loop, clients.pop(0))
        await worker.drain(PATIENCE, is_last=False)

    board, _ = run_receiver(path, story, Capacity(1, option="--max"))
    assert board.total(SERVED) == 1
    [queue] = others
    with queue:
        for client in clients:
            fd = receive_first(queue)
            assert fd is not None
            with socket.socket(fileno=fd) as conn, client:
                assert conn.getpeername() == client.getsockname()


def test_the_last_are_taken_in_by_a_worker_that_is_full(tmp_path: Path) -> None:
    path, clients = str(tmp_path / "receiver"), list[socket.socket]()

    async def story(worker: Worker, front: Front, _: list[bool]) -> None:
        worker._fits = 1
        clients.extend(front.client() for _ in range(4))
        while worker._board.total(OPEN) < 1:
            await worker._loop.sleep(0.002)
        worker._loop.spawn(leave(worker._loop), failures.append)

    async def leave(loop: Loop) -> None:
        while clients:
            assert await echoed(loop, clients.pop())

    failures: list[BaseException] = []
    board, _ = run_receiver(path, story, Capacity(0))
    assert (failures, clients) == ([], [])
    assert board.total(SERVED) == 4
