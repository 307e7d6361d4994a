"""A stream joined with another through a mux: the conformance suite, and what is its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from both import Both
from conformance import Conformance, Thread
from ends import KINDS, PATIENCE, End, Lines, Ours, Outcome

from muonsocks.mux.carriage import Carriage
from muonsocks.net.dial import Dialler
from muonsocks.net.inherit import Peer
from muonsocks.net.loop import Loop
from muonsocks.socks.policy import Access, Limits, Policy
from muonsocks.socks.rules import Rules
from muonsocks.socks.session import Session


class _Session(Session):
    __slots__ = ()
    kind_of_relay = Carriage


def carried(client: Ours, far: Ours, early: bytes = b"") -> Callable[[], Outcome]:
    """Join two descriptors through a mux, in a thread; give what waits for the outcome."""
    log = Lines()

    async def story(loop: Loop, streams: tuple[Any, Any]) -> None:
        both = Both(loop)
        await both.meet()
        ours, theirs = await both.channels()
        policy = Policy(Access(), Rules(), Dialler(), Limits(PATIENCE, PATIENCE, PATIENCE))
        guest = _Session(streams[0], Peer("guest"), policy, log)
        host = _Session(theirs, Peer("host"), policy, Lines())
        over = [
            loop.spawn(guest.logged(lambda: relay(guest, ours, early)), pytest.fail),
            loop.spawn(host.logged(lambda: relay(host, streams[1])), pytest.fail),
        ]
        with loop.deadline(3 * PATIENCE):
            while not all(task.is_over for task in over) or both.has_connections:
                await loop.sleep(0.001)
        both.close()
        await loop.sleep(0.001)

    async def relay(session: Session, far: Any, early: bytes = b"") -> Any:
        return session.join(far, early)

    def run() -> None:
        loop = Loop()
        streams = client.stream(loop), far.stream(loop)
        loop.run(story(loop, streams))
        assert not loop.handlers
        assert not any(timer.callback for _, _, timer in loop.timers)
        loop.close()

    thread = Thread(run)

    def over() -> Outcome:
        thread.join()
        return Outcome.of("\n".join(log.lines))

    return over


class TestConformance(Conformance):
    """Two sessions, a guest's and a host's, between two ends of any kind."""

    kinds = ("tcp-tcp", "unix-unix", "pipes-pipes", "fifos-unix", "pty-tcp", "tcp-pty")

    def start(
        self, ours: Ours, theirs: End, kind: str, place: Path, early: bytes
    ) -> tuple[End, Callable[[], Outcome]]:
        (place / "far").mkdir()
        our_far, far = KINDS[kind.partition("-")[2]].make(place / "far")
        return far, carried(ours, our_far, early)
