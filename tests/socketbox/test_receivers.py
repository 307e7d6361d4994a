"""Those who receive: in their turn, when there is room, or not at all; and nothing stays open."""

import contextlib
import errno
import os
import resource
import socket
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from box import Receiver, new_receiver, queue_length, receiver, waiting_room
from ends import nothing_left_behind
from places import descriptor_limit, in_child, root_only

from muonsocks.net.loop import Loop
from muonsocks.socketbox import receivers
from muonsocks.socketbox.receivers import AtPath, Group, OverSocket
from muonsocks.socketbox.waiting import LATE, SOON, Refused
from muonsocks.socketbox.waiting_room import WaitingRoom


class Bench:
    """A loop, one that sends, and connections to be passed: what became of them, in order."""

    def __init__(self, room: WaitingRoom) -> None:
        self.loop = Loop()
        self.room = room
        self.sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.taken: list[int] = []
        self.refused: list[str] = []

    def at(self, path: Path | str) -> AtPath:
        return AtPath(self.loop, self.room, self.sender, str(path))

    def pass_on(self, to: Any, count: int = 1) -> None:
        """Start to pass so many connections on; they are all the same one."""
        for number in range(len(self.taken) + self.room.waiting, count):
            self.loop.spawn(self._one(to, number), pytest.fail)

    async def _one(self, to: Any, number: int) -> None:
        fd = os.dup(0)
        try:
            await to.take(fd)
        except Refused as error:
            self.refused.append(str(error))
        else:
            self.taken.append(number)
        finally:
            os.close(fd)

    async def until(self, holds: Callable[[], Any]) -> None:
        with self.loop.deadline(15):
            while not holds():
                await self.loop.sleep(0.002)


def run(
    story: Callable[[Bench], Coroutine[Any, None, None]], room: WaitingRoom | None = None
) -> None:
    """Run a story; nothing may stay open, be registered or be timed behind it."""
    with nothing_left_behind():
        bench = Bench(room or waiting_room(10, 1000))
        try:
            bench.loop.run(story(bench))
            assert bench.loop.handlers == {}
            assert [item for item in bench.loop.timers if item[2].callback is not None] == []
            assert bench.room.waiting == 0
        finally:
            bench.sender.close()
            bench.loop.close()


def taken_by(there: Receiver, count: int = 1000) -> int:
    """How many are in a receiver's queue, which is emptied of so many at most."""
    there.socket.setblocking(False)
    found = 0
    while found < count:
        try:
            there.take().close()
        except BlockingIOError:
            break
        found += 1
    return found


@pytest.fixture(autouse=True)
def standard_input() -> Iterator[None]:
    """Pass a connection, as that is what the receiver expects."""
    kept = os.dup(0)
    ours, client = socket.socketpair()
    with ours, client:
        os.dup2(ours.fileno(), 0)
        yield
    os.dup2(kept, 0)
    os.close(kept)


def test_at_once(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        to = bench.at(tmp_path / "r")
        with receiver(tmp_path / "r") as there:
            bench.pass_on(to, queue_length())
            assert len(bench.taken) == queue_length()
            assert to.is_idle
            assert taken_by(there) == queue_length()

    run(story)


def test_in_their_turn(tmp_path: Path) -> None:
    """When there is room the kernel says so, and nobody is late by a timer."""

    async def story(bench: Bench) -> None:
        with receiver(tmp_path / "r") as there:
            to = bench.at(tmp_path / "r")
            bench.pass_on(to, 100)
            assert len(bench.taken) == queue_length()
            assert bench.room.waiting == 100 - queue_length()
            assert not to.is_idle
            since = bench.loop.now
            got = 0
            while got < 100:
                got += taken_by(there, 3)
                await bench.loop.sleep(0)
            assert bench.loop.now - since < LATE
            assert bench.taken == list(range(100))

    run(story)


def test_nobody_is_there_yet(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        bench.pass_on(bench.at(tmp_path / "r"), 3)
        assert bench.room.waiting == 3
        await bench.loop.sleep(SOON)
        with receiver(tmp_path / "r") as there:
            await bench.until(lambda: len(bench.taken) == 3)
            assert taken_by(there) == 3

    run(story)


def test_a_new_one_comes_while_others_wait_for_the_old_one(tmp_path: Path) -> None:
    """The old one has gone, or is still there and full, and nobody finds it any more."""

    async def story(bench: Bench) -> None:
        for closes in (True, False):
            bench.taken.clear()
            count = queue_length() + 3
            old = new_receiver(tmp_path / "r")
            bench.pass_on(bench.at(tmp_path / "r"), count)
            if closes:
                old.socket.close()
            with receiver(tmp_path / "r") as there:
                await bench.until(lambda: len(bench.taken) == count)  # noqa: B023
                assert taken_by(there) == 3
            old.socket.close()

    run(story)


def test_an_abstract_name() -> None:
    async def story(bench: Bench) -> None:
        with receiver(f"@receivers-{os.getpid()}") as there:
            bench.pass_on(bench.at(f"@receivers-{os.getpid()}"))
            assert taken_by(there) == 1

    run(story)


def test_time_is_up(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        bench.pass_on(bench.at(tmp_path / "r"))
        await bench.until(lambda: bench.refused)
        assert bench.refused == ["it is not there after 0.05 s"]

    run(story, waiting_room(0.05, 1000))


def test_too_many_wait(tmp_path: Path) -> None:
    """But who need not wait is no matter for that."""

    async def story(bench: Bench) -> None:
        to = bench.at(tmp_path / "r")
        bench.pass_on(to, 3)
        assert bench.refused == ["it is not there, and 2 connections wait already"]
        with receiver(tmp_path / "other"):
            bench.pass_on(bench.at(tmp_path / "other"), 3)
            assert bench.taken == [2]
        with receiver(tmp_path / "r"):
            await bench.until(lambda: len(bench.taken) == 3)

    run(story, waiting_room(10, 2))


@root_only()
def test_one_that_is_back_and_has_yet_to_let_us_in() -> None:
    """As systemd makes one: bound first, and then given to a group."""
    place = Path(tempfile.mkdtemp())  # where others may go
    place.chmod(0o777)

    async def story(bench: Bench) -> None:
        to = bench.at(place / "r")
        bench.pass_on(to, 2)
        with receiver(place / "r") as there:
            (place / "r").chmod(0)
            looks = 0

            def send(*arguments: Any) -> None:
                nonlocal looks
                looks += 1
                original(*arguments)

            original, receivers.send = receivers.send, send
            try:
                await bench.until(lambda: looks > 1)
            finally:
                receivers.send = original
            assert bench.taken == bench.refused == []
            (place / "r").chmod(0o600)
            await bench.until(lambda: len(bench.taken) == 2)
            assert taken_by(there) == 2
        (place / "r").unlink()

    def as_another_user() -> None:
        os.setresuid(4321, 4321, 4321)
        run(story)

    in_child(as_another_user)
    place.rmdir()


def test_what_can_never_be(tmp_path: Path) -> None:
    """Is said at once, also to those that wait; what may be otherwise soon is waited for."""

    async def story(bench: Bench) -> None:
        with socket.socket(socket.AF_UNIX) as stream:
            stream.bind(str(tmp_path / "stream"))
            stream.listen()
            bench.pass_on(bench.at(tmp_path / "stream"))
            assert bench.refused == [os.strerror(errno.EPROTOTYPE)]
            to = bench.at(tmp_path / "r")
            bench.refused.clear()
            bench.pass_on(to, 2)
            os.rename(tmp_path / "stream", tmp_path / "r")
            await bench.until(lambda: len(bench.refused) == 2)
        assert set(bench.refused) == {os.strerror(errno.EPROTOTYPE)}

    run(story)


def test_no_descriptor_for_a_look(tmp_path: Path) -> None:
    """Then it is looked again."""

    async def story(bench: Bench) -> None:
        to = bench.at(tmp_path / "r")
        ends: list[None] = []
        with receiver(tmp_path / "r") as there:
            bench.pass_on(to, queue_length())
            with descriptor_limit(0):
                bench.loop.spawn(to.take(0), pytest.fail, ends.append)
                assert bench.room.waiting == 1
            taken_by(there)
            await bench.until(lambda: ends)
            assert taken_by(there) == 1

    run(story)


def test_one_that_waits_is_interrupted(tmp_path: Path) -> None:
    """The others keep their place."""

    class Cut(BaseException):
        pass

    async def story(bench: Bench) -> None:
        to = bench.at(tmp_path / "r")
        ends: list[BaseException] = []
        task = bench.loop.spawn(to.take(0), ends.append)
        bench.pass_on(to, 3)
        task.interrupt(Cut())
        assert [type(end) for end in ends] == [Cut]
        assert bench.room.waiting == 2
        with receiver(tmp_path / "r") as there:
            await bench.until(lambda: len(bench.taken) == 2)
            assert taken_by(there) == 2

    run(story)


def test_a_client_that_has_gone(tmp_path: Path) -> None:
    """Makes room for others, and is passed to nobody; what others have said last may be read."""

    async def story(bench: Bench) -> None:
        to = bench.at(tmp_path / "r")
        pairs = [socket.socketpair() for _ in range(4)]
        pairs[1][0].send(b"not read")  # so that its end is a reset
        pairs[2][1].send(b"last words")
        ends: list[BaseException] = []
        tasks = [bench.loop.spawn(to.take(ours.fileno()), ends.append) for ours, _ in pairs]
        pairs[0][1].shutdown(socket.SHUT_WR)
        pairs[1][1].close()
        pairs[2][1].close()
        await bench.until(lambda: ends)
        assert [str(end) for end in ends] == ["the client has gone"]
        assert [task.is_over for task in tasks] == [False, True, False, False]
        assert bench.room.waiting == 3
        with receiver(tmp_path / "r") as there:
            await bench.until(lambda: all(task.is_over for task in tasks))
            assert taken_by(there) == 3
        assert len(ends) == 1
        for pair in pairs:
            for sock in pair:
                sock.close()

    run(story)


# Over a connected socket


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_STREAM])
def test_over_a_socket(kind: int) -> None:
    """With room again, and when the other end has gone."""

    async def story(bench: Bench) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        there = Receiver(theirs)
        with ours, theirs:
            to = OverSocket(bench.loop, bench.room, ours)
            bench.pass_on(to, 900)
            assert bench.room.waiting
            got = 0
            while got < 900:
                got += taken_by(there, 7)
                await bench.loop.sleep(0)
            assert bench.taken == list(range(900))
            bench.pass_on(to, 1800)
            theirs.close()
            await bench.until(lambda: not bench.room.waiting)
            assert set(bench.refused) == {"it has gone"}
            assert to.has_gone
            bench.refused.clear()
            bench.loop.spawn(bench._one(to, 0), pytest.fail)
            assert bench.refused == ["it has gone"]

    run(story)


def test_over_a_socket_with_a_little_room() -> None:
    """The kernel says that there is room once three quarters are free; nobody waits for that."""

    async def story(bench: Bench) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        there = Receiver(theirs)
        with ours, theirs:
            to = OverSocket(bench.loop, bench.room, ours)
            bench.pass_on(to, 400)
            room = len(bench.taken)
            assert room < 300
            assert taken_by(there, room // 2) == room // 2
            since = bench.loop.now
            await bench.until(lambda: len(bench.taken) == 400)
            assert bench.loop.now - since < 2 * LATE

    run(story)


def group_socket() -> tuple[socket.socket, Receiver]:
    """Who registers has a queue for a few, as the registry sees to."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 0)
    return ours, Receiver(theirs)


@pytest.mark.parametrize("how", ["it closes", "it says something", "it reads no more"])
def test_a_group(how: str) -> None:
    """Who waits, waits for the next one that registers."""

    async def story(bench: Bench) -> None:
        to = Group(bench.loop, bench.room)
        bench.pass_on(to, 100)
        assert bench.room.waiting == 100 and not to.is_there
        ended: list[str] = []
        ours, there = group_socket()
        with there.socket as theirs:
            to.register(ours, lambda: ended.append("first"))
            assert to.is_there and 2 <= len(bench.taken) < 20
            got = there.message()
            got.socket.close()
            assert (got.data, got.count) == (b"\3\0\0\0", 1)
            received = 1
            while received < 50:
                received += taken_by(there, 1)
                await bench.loop.sleep(0)
            if how == "it closes":
                theirs.close()
            elif how == "it says something":
                theirs.send(b"?")
            else:
                theirs.shutdown(socket.SHUT_RD)
            await bench.until(lambda: ended)
            assert ours.fileno() == -1 and not to.is_there
        assert 30 < bench.room.waiting < 50
        ours, there = group_socket()
        with there.socket:
            to.register(ours, lambda: ended.append("second"))
            while bench.room.waiting:
                taken_by(there)
                await bench.loop.sleep(0)
            to.leave()
            to.leave()
        assert ended == ["first", "second"]
        assert bench.taken == list(range(100))
        assert not bench.refused

    run(story)


def test_a_group_whose_receiver_reads_no_more() -> None:
    """Is free at once, though nobody waits: it would be refused for ever."""

    async def story(bench: Bench) -> None:
        ended: list[int] = []
        to = Group(bench.loop, bench.room)
        ours, there = group_socket()
        to.register(ours, lambda: ended.append(1))
        there.socket.shutdown(socket.SHUT_RD)
        bench.pass_on(to)
        assert ended == [1] and not to.is_there
        ours, other = group_socket()
        with there.socket, other.socket:
            to.register(ours, lambda: ended.append(2))
            assert taken_by(other) == 1
            to.leave()

    run(story)


# What makes it senseless to listen to the kernel


@contextlib.contextmanager
def too_many_on_their_way() -> Iterator[None]:
    """Have so many descriptors on their way that this user may send no more (unix(7))."""
    most = 40
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        # Who is root may send as many as it likes. They are counted by the real user, of whom there
        # may be other processes.
        os.setresuid(100_000 + os.getpid(), 100_000 + os.getpid(), 0)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, limits[1]))
            ours.setblocking(False)
            with pytest.raises(OSError) as caught:
                for _ in range(100):
                    socket.send_fds(ours, [b"x"], [ours.fileno()])
            assert caught.value.errno == errno.ETOOMANYREFS
            yield
        finally:
            os.setresuid(0, 0, 0)
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@root_only()
@pytest.mark.parametrize("kind", ["at a path", "over a socket", "in a group"])
def test_too_many_descriptors_on_their_way(tmp_path: Path, kind: str) -> None:
    """Each attempt makes room that the kernel tells of: nobody goes by that."""

    async def story(bench: Bench) -> None:
        ours, there = group_socket()
        with ours, there.socket, receiver(tmp_path / "r") as other:
            to: Any = bench.at(tmp_path / "r")
            if kind == "over a socket":
                to = OverSocket(bench.loop, bench.room, ours)
            elif kind == "in a group":
                to = Group(bench.loop, bench.room)
                to.register(ours, lambda: None)
            bench.pass_on(to, queue_length() + 3)  # some wait already
            assert bench.taken and bench.room.waiting
            taken_by(other if kind == "at a path" else there)
            with too_many_on_their_way():
                tried = count_attempts(to)
                await bench.loop.sleep(0.3)
                assert tried() < 10
            while bench.room.waiting:
                await bench.loop.sleep(0.002)
                taken_by(other if kind == "at a path" else there)
            if kind == "in a group":
                to.leave()

    run(story)


def count_attempts(to: Any) -> Callable[[], int]:
    """Count those from now on."""
    count = [0]
    send, kind = to._send, type(to)

    class Counting(kind):  # type: ignore[misc, valid-type]
        __slots__ = ()

        def _send(self, fd: int) -> None:
            count[0] += 1
            send(fd)

    to.__class__ = Counting
    return lambda: count[0]


@root_only()
def test_a_path_that_is_not_ours_yet(tmp_path: Path) -> None:
    """Programs bind, and then say who may send. Until then they are waited for."""

    async def story(bench: Bench) -> None:
        to = bench.at(tmp_path / "r")
        with receiver(tmp_path / "r") as there:
            os.chmod(tmp_path / "r", 0o600)
            tmp_path.chmod(0o755)
            os.setresuid(-1, 64321, -1)
            try:
                bench.pass_on(to, 2)
                assert bench.room.waiting == 2
            finally:
                os.setresuid(-1, 0, -1)
            await bench.until(lambda: len(bench.taken) == 2)
            assert taken_by(there) == 2

    run(story)


@pytest.mark.parametrize(("places", "reason"), [(10, " after 0.02 s"), (0, ", and none may wait")])
def test_what_is_in_the_way_is_said(tmp_path: Path, places: int, reason: str) -> None:
    async def story(bench: Bench) -> None:
        with receiver(tmp_path / "full"):
            full = bench.at(tmp_path / "full")
            bench.pass_on(full, queue_length())
            for to in (full, bench.at(tmp_path / "r"), Group(bench.loop, bench.room)):
                bench.loop.spawn(bench._one(to, 0), pytest.fail)
            await bench.until(lambda: not bench.room.waiting)
        obstacles = ("it is full", "it is not there", "nobody has registered")
        assert bench.refused == [obstacle + reason for obstacle in obstacles]

    run(story, waiting_room(0.02, places))


def test_a_hindrance_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:

    def fail(*_: object) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    async def story(bench: Bench) -> None:
        monkeypatch.setattr(receivers, "send", fail)
        bench.pass_on(bench.at(tmp_path / "r"))
        await bench.until(lambda: bench.refused)
        assert bench.refused == ["Permission denied after 0.02 s"]

    run(story, waiting_room(0.02, 10))


def test_who_is_not_there_costs_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No socket is made for it, and it is looked more and more seldom."""
    times: list[float] = []
    send = receivers.send

    def count(*arguments: Any) -> int:
        times.append(bench.loop.now)
        return send(*arguments)

    monkeypatch.setattr(receivers, "send", count)
    monkeypatch.setattr(receivers, "socket", lambda *_: pytest.fail("a socket for nobody"))

    async def story(a_bench: Bench) -> None:
        nonlocal bench
        bench = a_bench
        bench.pass_on(bench.at(tmp_path / "r"))
        await bench.until(lambda: bench.refused)
        assert 4 <= len(times) < 7

    bench: Bench
    run(story, waiting_room(0.8, 10))


def test_the_last_look(tmp_path: Path) -> None:
    """When its time is up, a receiver may have come that nobody has looked for yet."""

    async def story(bench: Bench) -> None:
        bench.pass_on(bench.at(tmp_path / "r"), 3)
        with receiver(tmp_path / "r") as there:
            await bench.until(lambda: bench.taken)
            assert len(bench.taken) == taken_by(there) == 3

    run(story, waiting_room(SOON / 2, 10))
