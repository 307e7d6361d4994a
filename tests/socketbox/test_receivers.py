"""Those who receive: in their turn, when there is room, or not at all; and nothing stays open."""

import errno
import os
import socket
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from box import Receiver, new_receiver, queue_length, receiver
from ends import nothing_left_behind
from places import descriptor_limit, in_child, root_only

from muonsocks.net.loop import Loop
from muonsocks.socketbox import receivers
from muonsocks.socketbox.limits import Limits
from muonsocks.socketbox.receivers import (
    AtPath,
    OverSocket,
    Refused,
    Registered,
)


class Bench:
    """A loop, one that sends, and connections to be passed: what became of them, in order."""

    def __init__(self, limits: Limits) -> None:
        self.loop = Loop()
        self.limits = limits
        self.sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.taken: list[int] = []
        self.refused: list[str] = []

    def at(self, path: Path | str) -> AtPath:
        return AtPath(self.loop, self.limits, self.sender, str(path))

    def pass_on(self, to: Any, count: int = 1) -> None:
        """Start to pass so many connections on; they are all the same one."""
        for number in range(len(self.taken) + self.limits.waiting, count):
            self.loop.spawn(self._one(to, number), pytest.fail)

    async def _one(self, to: Any, number: int) -> None:
        try:
            await to.take(0)
        except Refused as error:
            self.refused.append(str(error))
        else:
            self.taken.append(number)

    async def until(self, holds: Callable[[], Any]) -> None:
        with self.loop.deadline(15):
            while not holds():
                await self.loop.sleep(0.002)


def run(story: Callable[[Bench], Coroutine[Any, None, None]], limits: Limits | None = None) -> None:
    """Run a story; nothing may stay open, be registered or be timed behind it."""
    with nothing_left_behind():
        bench = Bench(limits or Limits(10, 1000))
        try:
            bench.loop.run(story(bench))
            assert bench.loop.handlers == {}
            assert [item for item in bench.loop.timers if item[2].callback is not None] == []
            assert bench.limits.waiting == 0
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
    """Pass a socket, as that is what the receiver expects."""
    kept = os.dup(0)
    with socket.socket() as sock:
        os.dup2(sock.fileno(), 0)
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
            assert bench.limits.waiting == 100 - queue_length()
            assert not to.is_idle
            since = bench.loop.now
            got = 0
            while got < 100:
                got += taken_by(there, 3)
                await bench.loop.sleep(0)
            assert bench.loop.now - since < receivers._MOVED
            assert bench.taken == list(range(100))

    run(story)


def test_nobody_is_there_yet(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        bench.pass_on(bench.at(tmp_path / "r"), 3)
        assert bench.limits.waiting == 3
        await bench.loop.sleep(receivers._AGAIN)
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
        assert bench.refused == ["it was full, or not there, for 0.05 s"]

    run(story, Limits(0.05, 1000))


def test_too_many_wait(tmp_path: Path) -> None:
    """But who need not wait is no matter for that."""

    async def story(bench: Bench) -> None:
        to = bench.at(tmp_path / "r")
        bench.pass_on(to, 3)
        assert bench.refused == ["it is full, or not there, and 2 connections wait already"]
        with receiver(tmp_path / "other"):
            bench.pass_on(bench.at(tmp_path / "other"), 3)
            assert bench.taken == [2]
        with receiver(tmp_path / "r"):
            await bench.until(lambda: len(bench.taken) == 3)

    run(story, Limits(10, 2))


@root_only()
def test_one_that_is_back_and_has_yet_to_let_us_in() -> None:
    """As systemd makes one: bound first, and then given to a group. Who comes for one that lets
    nobody in, and has not waited yet, is told so.
    """
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
            bench.pass_on(bench.at(place / "r"), 3)
            assert bench.refused == [os.strerror(errno.EACCES)]
            assert bench.taken == []
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
        with descriptor_limit(0):
            bench.pass_on(bench.at(tmp_path / "r"))
            await bench.loop.sleep(0.01)
            assert bench.limits.waiting == 1
        with receiver(tmp_path / "r"):
            await bench.until(lambda: bench.taken)

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
        assert bench.limits.waiting == 2
        with receiver(tmp_path / "r") as there:
            await bench.until(lambda: len(bench.taken) == 2)
            assert taken_by(there) == 2

    run(story)


# Over a connected socket


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_STREAM])
def test_over_a_socket(kind: int) -> None:
    """With room again, and when the other end has gone."""

    async def story(bench: Bench) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        there = Receiver(theirs)
        with ours, theirs:
            to = OverSocket(bench.loop, bench.limits, ours)
            bench.pass_on(to, 900)
            assert bench.limits.waiting
            got = 0
            while got < 900:
                got += taken_by(there, 7)
                await bench.loop.sleep(0)
            assert bench.taken == list(range(900))
            bench.pass_on(to, 1800)
            theirs.close()
            await bench.until(lambda: not bench.limits.waiting)
            assert set(bench.refused) == {"it has gone"}
            assert to.has_gone
            bench.refused.clear()
            bench.loop.spawn(bench._one(to, 0), pytest.fail)
            assert bench.refused == ["it has gone"]

    run(story)


@pytest.mark.parametrize("how", ["it closes", "it says something"])
def test_one_that_has_registered(how: str) -> None:
    async def story(bench: Bench) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        there = Receiver(theirs)
        ended: list[Registered] = []
        with theirs:
            to = Registered(bench.loop, bench.limits, ours, ended.append)
            bench.pass_on(to)
            got = there.message()
            got.socket.close()
            assert (got.data, got.count) == (b"\3\0\0\0", 1)
            bench.pass_on(to, 900)
            assert bench.limits.waiting
            received = 1
            while received < 900:
                received += taken_by(there, 7)
                await bench.loop.sleep(0)
            bench.pass_on(to, 1800)
            if how == "it closes":
                theirs.close()
            else:
                theirs.send(b"?")
            await bench.until(lambda: ended)
            assert ended == [to] and to.has_gone
            assert set(bench.refused) == {"it has gone"}
            assert ours.fileno() == -1

    run(story)
