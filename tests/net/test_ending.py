"""Connections of which only the end is of interest: what is said there, and what is told of it."""

import socket
from collections.abc import Iterator

import pytest
from ends import PATIENCE, no_garbage, tcp_pair

from muonsocks.net.ending import Ending
from muonsocks.net.loop import Loop
from muonsocks.net.stream import RESET_ON_CLOSE, Stream


class Stage:
    """A stream whose end is waited for; the test has the other side."""

    def __init__(self, loop: Loop) -> None:
        ours, self.peer = tcp_pair()
        ours.setblocking(False)
        self.stream = Stream(loop, ours)
        self.ends: list[str] = []

    def await_end(self) -> str:
        async def wait() -> None:
            with loop.deadline(PATIENCE):
                while not self.ends:
                    await loop.sleep(0.001)

        loop = self.stream.loop
        loop.run(wait())
        [end] = self.ends
        return end

    def close(self) -> None:
        self.stream.close()
        self.peer.close()


@pytest.fixture
def stage(loop: Loop) -> Iterator[Stage]:
    made = Stage(loop)
    yield made
    made.close()
    assert not loop.handlers


def test_much_is_dropped_up_to_the_end(stage: Stage) -> None:
    Ending(stage.stream, stage.ends.append)
    assert not stage.ends
    stage.peer.sendall(bytes(200_000))
    stage.peer.shutdown(socket.SHUT_WR)
    assert stage.await_end() == "closed"


def test_a_reset(stage: Stage) -> None:
    Ending(stage.stream, stage.ends.append)
    stage.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    stage.peer.close()
    assert stage.await_end() == "reset"


def test_an_end_that_has_come_already_is_told_at_once(stage: Stage) -> None:
    stage.peer.close()
    Ending(stage.stream, stage.ends.append)
    assert stage.ends == ["closed"]


def test_more_than_may_be_said_is_an_end(stage: Stage) -> None:
    """Whoever floods it does not keep the loop busy; what is said little by little counts, too."""
    Ending(stage.stream, stage.ends.append, 10_000)
    for _ in range(3):
        stage.peer.sendall(bytes(4000))
    assert stage.await_end() == "flooded"


def test_as_much_as_may_be_said_is_none(stage: Stage) -> None:
    Ending(stage.stream, stage.ends.append, 10_000)
    stage.peer.sendall(bytes(10_000))
    stage.peer.shutdown(socket.SHUT_WR)
    assert stage.await_end() == "closed"


def test_stopped(stage: Stage) -> None:
    """Somebody else reads what comes then, and is alone with it."""
    Ending(stage.stream, stage.ends.append).stop()
    stage.peer.sendall(b"more")

    async def receive() -> bytes:
        with stage.stream.loop.deadline(PATIENCE):
            return await stage.stream.receive(9)

    assert stage.stream.loop.run(receive()) == b"more"
    assert stage.ends == []


def test_nothing_is_garbage(loop: Loop) -> None:
    with no_garbage():
        for _ in range(2):
            stage = Stage(loop)
            ending = Ending(stage.stream, stage.ends.append)
            stage.peer.close()
            assert stage.await_end() == "closed"
            ending.stop()
            stage.close()
        del stage, ending
