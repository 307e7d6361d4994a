"""Names are looked up by another process: for one in a chroot, in any order, until it is gone."""

import errno
import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ends import PATIENCE, descriptors, no_garbage, nothing_left_behind
from nameserver import Gate, nameserver, own_files, resolv_conf, wait_until
from places import in_child, in_own_network, root_only

from muonsocks.address import Endpoint
from muonsocks.errors import NameNotResolved
from muonsocks.net import resolver, resolver_process
from muonsocks.net.dial import Dialler
from muonsocks.net.identity import Identity
from muonsocks.net.loop import Loop
from muonsocks.net.names import addresses_of
from muonsocks.net.privileges import give_up
from muonsocks.net.resolver import Resolver
from muonsocks.net.resolver_process import failure, found
from muonsocks.net.signals import Signals
from muonsocks.net.task import Mailbox
from muonsocks.net.threads import MOST

NOBODY = Identity(65534, 65534)


@pytest.fixture(autouse=True)
def leaks_nothing() -> Iterator[None]:
    with nothing_left_behind():
        yield


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate(tmp_path)
    monkeypatch.setattr(resolver_process, "addresses_of", gate.addresses_of)
    return gate


class Server:
    """What a server has: a loop, a resolver; and tasks that look names up."""

    def __init__(self, identity: Identity | None = None) -> None:
        self.loop = Loop()
        self.deaths: list[str] = []
        self.resolver = Resolver.start(self.loop, identity, self.deaths.append)
        self.pid = self.resolver._pid
        self.over = Mailbox()

    def ask(self, host: str, seconds: float = PATIENCE) -> None:
        """Look a name up in a task of its own; what comes of it is posted to `over`."""

        async def one() -> None:
            try:
                with self.loop.deadline(seconds):
                    self.over.post((host, await self.resolver.lookup(host)))
            except OSError as error:
                self.over.post((host, type(error), error.errno))

        self.loop.spawn(one(), pytest.fail)

    async def until(self, condition: Callable[[], object]) -> None:
        with self.loop.deadline(PATIENCE):
            while not condition():
                await self.loop.sleep(0.001)

    async def addresses(self, host: str) -> list[str]:
        with self.loop.deadline(PATIENCE):
            return [".".join(map(str, packed)) for packed, _ in await self.resolver.lookup(host)]

    def close(self) -> None:
        self.resolver.close()
        assert not self.loop.handlers.keys() - {self.loop._threads and self.loop._threads._signal}
        self.loop.close()
        with pytest.raises(ChildProcessError):
            os.waitpid(self.pid, 0)


@pytest.fixture
def server(gate: Gate) -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


# What is looked up


def test_real_look_ups() -> None:
    server = Server()

    async def main() -> None:
        assert await server.addresses("127.1") == ["127.0.0.1"]
        assert await server.resolver.lookup("fe80::1%lo") == [(b"\xfe\x80" + bytes(13) + b"\1", 1)]
        for host in ("no..name", "b\u00fccher.example", "", "x" * 300):
            with pytest.raises(NameNotResolved) as told:
                await server.resolver.lookup(host)
            assert str(told.value.strerror).startswith(host)

    server.loop.run(main())
    server.close()
    assert not server.deaths


def test_real_look_ups_of_names() -> None:
    server = Server()

    async def main() -> None:
        assert await server.resolver.name_lookup(bytes((127, 0, 0, 1))) == "localhost"

    server.loop.run(main())
    server.close()
    assert not server.deaths


def test_failure_of_the_system_is_no_verdict_on_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise OSError(errno.EMFILE, "no descriptor is free")

    monkeypatch.setattr(resolver_process, "addresses_of", fail)
    server = Server()

    async def main() -> None:
        with pytest.raises(OSError) as told:
            await server.resolver.lookup("name")
        assert type(told.value) is OSError
        assert told.value.errno == errno.EMFILE
        assert told.value.strerror == "no descriptor is free"

    server.loop.run(main())
    server.close()


def test_answers_in_any_order(server: Server, gate: Gate) -> None:
    async def main() -> None:
        server.ask("slow1111")
        server.ask("fast2222")
        assert await server.over.take() == ("fast2222", [(b"2222", 0)])
        server.ask("slow3333")
        await server.until(lambda: len(gate.begun()) == 3)
        with gate.opened():
            rest = [await server.over.take(), await server.over.take()]
        assert sorted(rest) == [("slow1111", [(b"1111", 0)]), ("slow3333", [(b"3333", 0)])]

    server.loop.run(main())


def test_a_mass_of_look_ups(server: Server, gate: Gate) -> None:
    """So many are under way, the others wait; those that nobody waits for are never begun."""
    hosts = [f"slow{number:04}" for number in range(5 * MOST)]

    async def main() -> None:
        for place, host in enumerate(hosts):
            server.ask(host, 0.05 if place % 2 else 3 * PATIENCE)
        impatient = set(hosts[1::2])
        late = {(await server.over.take())[0] for _ in impatient}
        assert late == impatient
        await server.until(lambda: len(gate.begun()) == MOST)
        status = Path(f"/proc/{server.pid}/status").read_text()
        assert f"Threads:\t{MOST + 1}\n" in status
        with gate.opened():
            for _ in range(len(hosts) - len(impatient)):
                host, answer = await server.over.take()
                assert answer == [(host[-4:].encode(), 0)]

    server.loop.run(main())
    assert sorted(gate.begun()) == sorted(hosts[:MOST] + hosts[MOST::2])
    assert not server.deaths


def test_late_answer_is_no_other_s(server: Server, gate: Gate) -> None:
    async def main() -> None:
        server.ask("slow1111", 0.01)
        assert await server.over.take() == ("slow1111", TimeoutError, errno.ETIMEDOUT)
        server.ask("slow2222")
        with gate.opened():
            assert await server.over.take() == ("slow2222", [(b"2222", 0)])
        await server.until(lambda: not server.resolver._pending)

    server.loop.run(main())


def test_no_cycles(gate: Gate) -> None:
    with no_garbage():
        server = Server()

        async def main() -> None:
            for number in range(20):
                server.ask("fast")
                server.ask("slow", 0.001)
                await server.over.take()
                await server.over.take()
                with pytest.raises(NameNotResolved):
                    await server.resolver.lookup("\u00e4")
                if number == 10:
                    server.ask("slow")
                    os.kill(server.pid, signal.SIGKILL)
                    await server.over.take()

        server.loop.run(main())
        server.close()


# Its life


def test_killed(server: Server, gate: Gate) -> None:
    """All that wait are told, in the queue as well, then the server; and there is no zombie."""
    count = 2 * MOST
    told: list[object] = []

    async def main() -> None:
        for _ in range(count):
            server.ask("slow")
        await server.until(lambda: len(gate.begun()) == MOST)
        os.kill(server.pid, signal.SIGKILL)
        told.extend([await server.over.take() for _ in range(count)])
        with pytest.raises(OSError) as later:
            await server.resolver.lookup("fast")
        assert later.value.errno == errno.EIO
        assert not server.resolver._pending
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(resolver, "_end", pytest.fail)  # of process 0, which is a whole group
            server.resolver.close()

    server.loop.run(main())
    assert told == [("slow", OSError, errno.EIO)] * count
    assert server.deaths == ["the process that looks names up was ended by signal 9"]


def test_killed_before_it_is_asked(server: Server) -> None:
    """And before the loop has heard of it."""
    pidfd = os.pidfd_open(server.pid)
    os.kill(server.pid, signal.SIGKILL)
    assert select.select([pidfd], [], [], PATIENCE)[0]
    os.close(pidfd)

    async def main() -> None:
        server.ask("fast")
        assert await server.over.take() == ("fast", OSError, errno.EIO)
        await server.until(lambda: server.deaths)

    server.loop.run(main())
    assert len(server.deaths) == 1
    assert server.resolver._turns._free == MOST


def test_is_gone_with_requests_unread(server: Server) -> None:
    """That is a reset, and no end of file."""
    os.kill(server.pid, signal.SIGSTOP)

    async def main() -> None:
        server.ask("fast")
        os.kill(server.pid, signal.SIGKILL)
        assert await server.over.take() == ("fast", OSError, errno.EIO)

    server.loop.run(main())
    assert len(server.deaths) == 1


def test_somebody_else_has_waited_for_it(server: Server) -> None:
    os.kill(server.pid, signal.SIGKILL)
    os.waitpid(server.pid, 0)
    server.loop.run(server.until(lambda: server.deaths))
    assert server.deaths == ["the process that looks names up has ended"]


def test_closed_while_look_ups_hang(server: Server, gate: Gate) -> None:
    """Even if it is stopped."""

    async def main() -> None:
        server.ask("slow")
        await server.until(gate.begun)
        os.kill(server.pid, signal.SIGSTOP)
        server.resolver.close()
        assert await server.over.take() == ("slow", OSError, errno.EIO)

    server.loop.run(main())
    assert not server.deaths


def test_server_that_does_not_get_on_with_it(server: Server) -> None:
    """Its socket is full: the one look-up fails, and those before it are answered."""
    os.kill(server.pid, signal.SIGSTOP)
    server.resolver._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    async def main() -> None:
        for number in range(MOST):
            server.ask(f"fast{number:04}")
        _, kind, number = await server.over.take()
        assert (kind, number) == (BlockingIOError, errno.EAGAIN)
        os.kill(server.pid, signal.SIGCONT)
        answers = [await server.over.take() for _ in range(MOST - 1)]
        assert any(isinstance(answer[1], list) for answer in answers)

    server.loop.run(main())
    assert server.resolver._turns._free == MOST
    assert not server.resolver._pending


def someone() -> int:
    """A process that does nothing, and not for ever."""
    return os.posix_spawn("/bin/sleep", ["sleep", "60"], os.environ)


@pytest.mark.parametrize(
    "answer",
    [found(2, []), found(0, []), b"", b"short", found(1, [])[:8] + b"\7", b"x" * 5000],
    ids=["another number", "ready again", "end", "short", "verdict", "long"],
)
def test_answer_that_makes_no_sense(answer: bytes) -> None:
    """It is not trusted any more, and not alive."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid, deaths, loop = someone(), list[str](), Loop()
    it = Resolver(loop, pid, ours, deaths.append)

    async def main() -> None:
        loop.call_soon(lambda: theirs.send(answer) if answer else theirs.close())
        with pytest.raises(OSError) as told:
            await it.lookup("name")
        assert told.value.errno == errno.EIO

    loop.run(main())
    sense = "the process that looks names up gave an answer that makes no sense"
    assert deaths == [sense if answer else "the process that looks names up was ended by signal 9"]
    theirs.close()
    loop.close()
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, 0)


def test_last_words() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid, deaths, loop = someone(), list[str](), Loop()
    Resolver(loop, pid, ours, deaths.append)
    theirs.send(failure(0, OSError(errno.ENOMEM, "no memory")))
    loop.run(loop.sleep(0.01))
    assert deaths == ["no memory"]
    theirs.close()
    loop.close()


def test_ends_when_the_server_is_killed(gate: Gate) -> None:
    """Though its look-ups hang. Nobody has told it."""
    reader, writer = os.pipe()
    worker = os.fork()
    if worker == 0:
        try:
            server = Server()
            os.write(writer, server.pid.to_bytes(4, "big"))
            for _ in range(10):
                server.ask("slow")
            server.loop.run(server.loop.sleep(3 * PATIENCE))
        finally:
            os._exit(1)
    try:
        pidfd = os.pidfd_open(int.from_bytes(os.read(reader, 4), "big"))
        wait_until(lambda: len(gate.begun()) == 10)
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
        assert select.select([pidfd], [], [], PATIENCE)[0], "it lives on"
    finally:
        for fd in (reader, writer, pidfd):
            os.close(fd)


def test_many_lives_leave_nothing(gate: Gate) -> None:
    before = descriptors()
    for number in range(30):
        server = Server()
        if number % 3 == 0:
            os.kill(server.pid, signal.SIGKILL)
            server.loop.run(server.until(lambda server=server: server.deaths))  # type: ignore[misc]
        server.close()
    assert descriptors() == before


def test_handlers_of_the_server_do_not_run_there(gate: Gate) -> None:
    """Not even for a signal that comes just when it is made."""

    def run() -> None:
        server_pid = os.getpid()
        ran: list[int] = []

        def handle(*_: object) -> None:
            if os.getpid() != server_pid:
                os._exit(77)
            ran.append(1)

        signal.signal(signal.SIGUSR1, handle)
        os.register_at_fork(
            after_in_child=lambda: os.kill(os.getpid(), signal.SIGUSR1),
            after_in_parent=lambda: os.kill(os.getpid(), signal.SIGUSR1),
        )
        server = Server()
        assert ran == [1]
        assert "SigBlk:\t0000000000000000" in Path(f"/proc/{server.pid}/status").read_text()
        server.ask("fast1111")
        assert server.loop.run(server.over.take()) == ("fast1111", [(b"1111", 0)])
        Signals(server.loop)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert ran == [1, 1]

    in_child(run)


# Starting


@root_only()
def test_start_as_another_user_takes_root() -> None:
    def run() -> None:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        loop, before = Loop(), descriptors()
        with pytest.raises(OSError, match="the user cannot be changed to 1:1: Operation not"):
            Resolver.start(loop, Identity(1, 1), pytest.fail)
        assert descriptors() == before
        assert not loop.handlers
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, 0)
        Resolver.start(loop, NOBODY, pytest.fail).close()

    in_child(run)


@pytest.mark.parametrize("way", ["raises", "dies"])
def test_start_that_fails(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    def fail(*_: object) -> None:
        if way == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.EPERM, "not today")

    def run() -> None:
        loop = Loop()
        with pytest.raises(OSError) as told:
            Resolver.start(loop, None, pytest.fail)
        reason = "not today"
        if way == "dies":
            reason = "the process that looks names up has died"
        assert told.value.strerror == reason
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, 0)
        assert not loop.handlers
        loop.close()

    monkeypatch.setattr(resolver_process, "give_up", fail)
    in_child(run)


def test_no_process_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, "no process is free")

    monkeypatch.setattr(os, "fork", fork)
    loop, mask = Loop(), signal.pthread_sigmask(signal.SIG_BLOCK, [])
    before = descriptors()
    with pytest.raises(BlockingIOError) as told:
        Resolver.start(loop, None, pytest.fail)
    assert descriptors() == before, f"{told.tb} still has some open"
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
    loop.close()


# In a chroot, with files, a network and a name server of our own


def as_a_worker(
    directory: Path, story: Callable[[Server], None], identity: Identity | None = NOBODY
) -> None:
    """Run a story in a process that lives in a chroot, as another user."""

    def run() -> None:
        server = Server(identity)
        give_up(identity, str(directory))
        story(server)
        server.resolver.close()

    in_child(run)


@root_only()
def test_in_a_chroot(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    def run() -> None:
        own_files(tmp_path, "127.0.0.1 only-here\n")
        with nameserver("127.0.0.1", {}), socket.create_server(("127.0.0.1", 0)) as listener:
            there = Endpoint("only-here", listener.getsockname()[1])

            def story(server: Server) -> None:
                assert os.listdir("/") == []
                with pytest.raises(NameNotResolved):
                    addresses_of("only-here")

                async def main() -> None:
                    assert await server.addresses("only-here") == ["127.0.0.1"]
                    dialler = Dialler(lookup=server.resolver.lookup)
                    stream = await dialler.dial(server.loop, there)
                    assert stream.name == f"127.0.0.1:{there.port}"
                    stream.close()
                    with pytest.raises(NameNotResolved, match="nobody"):
                        await dialler.dial(server.loop, Endpoint("nobody.example", 80))

                server.loop.run(main())

            as_a_worker(tmp_path / "empty", story)

    in_own_network(run)


@root_only()
def test_a_name_server_that_takes_its_time(tmp_path: Path) -> None:
    """Nobody waits for another's answer: not other look-ups, not the loop."""
    (tmp_path / "empty").mkdir()
    names = {"slow.example": "192.0.2.1"} | {f"n{i}.example": f"192.0.2.{i}" for i in range(2, 40)}

    def run() -> None:
        own_files(tmp_path, "")
        with nameserver("127.0.0.1", names, frozenset({"slow.example"})) as dns:
            reader, writer = os.pipe()

            def story(server: Server) -> None:
                async def main() -> None:
                    server.ask("slow.example")
                    ticks = []
                    for host, address in names.items():
                        if host != "slow.example":
                            server.loop.call_soon(lambda: ticks.append(1))
                            assert await server.addresses(host) == [address]
                    await server.loop.sleep(0)  # several answers may have come in one round
                    assert len(ticks) == len(names) - 1
                    assert not server.over._items, "the slow one is to be the last"
                    os.write(writer, b"!")
                    assert await server.over.take() == ("slow.example", [(b"\xc0\0\2\1", 0)])

                server.loop.run(main())

            def release() -> None:
                os.read(reader, 1)
                dns.release()

            thread = threading.Thread(target=release)
            thread.start()
            try:
                as_a_worker(tmp_path / "empty", story)
            finally:
                os.write(writer, b"!")
                thread.join()
                os.close(reader)
                os.close(writer)
            assert set(dns.asked) == set(names)

    in_own_network(run)


@root_only()
def test_changes_of_the_files_are_seen(tmp_path: Path) -> None:
    def run() -> None:
        own_files(tmp_path, "192.0.2.1 moves\n")
        one, two = {"name.example": "192.0.2.11"}, {"name.example": "192.0.2.22"}
        with nameserver("127.0.0.1", one), nameserver("127.0.0.2", two):
            server = Server(NOBODY)

            async def main() -> None:
                assert await server.addresses("moves") == ["192.0.2.1"]
                assert await server.addresses("name.example") == ["192.0.2.11"]
                (tmp_path / "hosts").write_text("192.0.2.2 moves\n")
                (tmp_path / "resolv.conf").write_text(resolv_conf("127.0.0.2"))
                assert await server.addresses("moves") == ["192.0.2.2"]
                assert await server.addresses("name.example") == ["192.0.2.22"]

            server.loop.run(main())
            server.close()

    in_own_network(run)
