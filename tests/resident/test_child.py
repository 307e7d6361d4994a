"""What a supervisor tells a worker, and when."""

import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from ends import nothing_left_behind

from muonsocks.net.loop import Loop
from muonsocks.net.stream import Stream
from muonsocks.resident.child import Child
from muonsocks.resident.process import CUT_NOW, DRAIN, FINISH, READY, take_order

Story = Callable[[Child, socket.socket, list[str], Loop], Coroutine[Any, None, None]]


def run(story: Story) -> None:
    """Be the worker, at the other end of the channel."""
    with nothing_left_behind():
        loop, notes = Loop(), list[str]()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)

        async def main() -> None:
            child = Child(0, 1, Stream(loop, ours), lambda: notes.append("ready"))
            with loop.deadline(15):
                await story(child, theirs, notes, loop)

        loop.run(main())
        theirs.close()
        loop.close()


def told(worker: socket.socket) -> bytes:
    try:
        return worker.recv(1 << 20)
    except BlockingIOError:
        return b""


def test_orders_wait_until_it_is_ready() -> None:
    async def story(child: Child, worker: socket.socket, notes: list[str], loop: Loop) -> None:
        child.tell(FINISH)
        child.tell(DRAIN)
        await loop.sleep(0.01)
        assert (told(worker), notes, child.is_ready) == (b"", [], False)
        worker.send(READY)
        await loop.sleep(0.01)
        assert (told(worker), notes, child.is_ready) == (FINISH + DRAIN, ["ready"], True)
        child.tell(CUT_NOW)
        assert told(worker) == CUT_NOW
        child.bury()

    run(story)


def test_of_configurations_that_wait_the_last_counts() -> None:
    async def story(child: Child, worker: socket.socket, notes: list[str], loop: Loop) -> None:
        for number in range(3):
            child.have_take(take_order(number))
        child.tell(DRAIN)
        worker.send(READY)
        await loop.sleep(0.01)
        assert told(worker) == take_order(2) + DRAIN
        child.have_take(take_order(3))
        child.have_take(take_order(4))
        assert told(worker) == take_order(3) + take_order(4), "none of them had to wait"
        child.bury()

    run(story)


@pytest.mark.parametrize("is_ready", [False, True])
@pytest.mark.parametrize("has_gone", [False, True])
def test_one_that_has_ended(is_ready: bool, has_gone: bool) -> None:
    """Nobody minds what it is told then."""

    async def story(child: Child, worker: socket.socket, notes: list[str], loop: Loop) -> None:
        if is_ready:
            worker.send(READY)
            await loop.sleep(0.01)
        if has_gone:
            worker.close()
            child.tell(DRAIN)
            await loop.sleep(0.01)
        child.tell(DRAIN)
        child.bury()

    run(story)
