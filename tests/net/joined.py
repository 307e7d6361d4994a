"""Relays run in a thread, between ends that the tests hold."""

import socket
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from conformance import Thread
from ends import (
    KINDS,
    PATIENCE,
    Lines,
    Ours,
    Outcome,
    nothing_left_behind,
)

from muonsocks.net.dial import Dialler
from muonsocks.net.inherit import Peer
from muonsocks.net.loop import Loop
from muonsocks.net.relay import Ended, Relay
from muonsocks.net.task import Mailbox
from muonsocks.socks.policy import Access, Limits, Policy
from muonsocks.socks.rules import Rules
from muonsocks.socks.session import Session

MIB = 1 << 20


async def carried(relay: Relay, idle: float, half_close: float) -> Ended:
    """Run a relay, and wait for its end."""
    relay.start(idle, half_close)
    try:
        if not relay.reason:
            await relay
    finally:
        ended = relay.stop()
    return ended


async def finished(loop: Loop, coroutine: Coroutine[Any, None, Any]) -> Any:
    """Wait for a coroutine that may pause, in a task of its own."""
    over = Mailbox()
    task = loop.spawn(
        coroutine,
        lambda failure: over.post((failure, None)),
        lambda result: over.post((None, result)),
    )
    try:
        failure, result = await over.take()
    except BaseException as error:
        task.interrupt(error)
        raise
    if failure is not None:
        raise failure
    return result


async def as_a_server(loop: Loop, coroutine: Coroutine[Any, None, Any]) -> None:
    """Run a session as one task of many; what its event handlers raise is raised here."""
    with loop.deadline(3 * PATIENCE):
        await finished(loop, coroutine)
        await loop.sleep(0.001)


def relayed(
    client: Ours,
    far: Ours,
    early: bytes = b"",
    idle: float = PATIENCE,
    half_close: float = PATIENCE,
) -> Callable[[], Outcome]:
    """Join two descriptors by `Session.relay` in a thread; give what waits for the outcome."""
    log = Lines()

    def run() -> None:
        loop = Loop()
        client_stream, far_stream = client.stream(loop), far.stream(loop)
        limits = Limits(PATIENCE, idle, half_close)
        policy = Policy(Access(), Rules((), allow_local=True), Dialler(), limits)
        session = Session(client_stream, Peer("test"), policy, log)

        story = session.logged(lambda: session.relay(far_stream, early))
        loop.run(as_a_server(loop, story))
        assert not loop.handlers
        assert not any(timer.callback for _, _, timer in loop.timers)
        loop.close()

    thread = Thread(run)

    def over() -> Outcome:
        thread.join()
        return Outcome.of("\n".join(log.lines))

    return over


@pytest.fixture(autouse=True)
def leaks_nothing() -> Iterator[None]:
    with nothing_left_behind():
        yield


class Pair:
    """A relay between two ends of one kind each, for `with`; `sent` is there when it begins."""

    def __init__(
        self, client: str = "tcp", far: str = "tcp", sent: bytes = b"", **options: Any
    ) -> None:
        ours, self.client = KINDS[client].make(Path())
        our_far, self.far = KINDS[far].make(Path())
        if sent and self.client.sock and ours.sock:
            ours.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MIB)
            self.client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * len(sent))
            self.client.send(sent)
        self._start = lambda: relayed(ours, our_far, **options)

    def __enter__(self) -> "Pair":
        self.over = self._start()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.client.close()
        self.far.close()
        if kind is None:
            self.over()
