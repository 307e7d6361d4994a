"""virtio-mux host where QEMU connects: a port that is stuck is set right by hanging up, once."""

import contextlib
import socket

import pytest
from programs import SECONDS, run
from sides import VIRTIO_MUX, Side, host

from muonsocks.mux.frames import MAGIC


def hellos(peer: socket.socket, most: int) -> int:
    """Read until so many have come, or the end: how many there were."""
    peer.settimeout(SECONDS)
    came = b""
    while came.count(MAGIC) < most and (data := peer.recv(1 << 16)):
        came += data
    return came.count(MAGIC)


def waits(side: Side) -> bool:
    return side.process.poll() is None


LONG = 4  # HELLOs: 1.75 s


def test_a_silent_machine_is_hung_up_on_once() -> None:
    """It may be that it has no guest program, so the next process stays."""
    (peer, ours), (again, others) = socket.socketpair(), socket.socketpair()
    with peer, ours, again, others, contextlib.ExitStack() as stack:
        first = stack.enter_context(host((ours.fileno(), ours.fileno()), "--peer-reconnects"))
        ours.close()
        assert 1 <= hellos(peer, LONG) < LONG
        first.await_log("nothing has come from the guest")
        assert waits(first)
        second = stack.enter_context(host((others.fileno(), others.fileno()), "--peer-reconnects"))
        assert first.status == 0
        assert hellos(again, LONG) == LONG
        assert waits(second) and "nothing has come" not in second.log


def test_one_that_says_anything_is_not() -> None:
    peer, ours = socket.socketpair()
    with peer, ours, host((ours.fileno(), ours.fileno()), "--peer-reconnects") as side:
        peer.send(b"x")
        assert hellos(peer, LONG) == LONG
        assert waits(side)


def test_nor_is_a_peer_of_whom_nothing_is_known() -> None:
    peer, ours = socket.socketpair()
    with peer, ours, host((ours.fileno(), ours.fileno())) as side:
        assert hellos(peer, LONG) == LONG
        assert waits(side)


def test_one_that_waits_for_a_call_may_be_told_to_stop() -> None:
    peer, ours = socket.socketpair()
    with peer, ours, host((ours.fileno(), ours.fileno()), "--peer-reconnects") as side:
        ours.close()
        hellos(peer, LONG)
        side.await_log("nothing has come from the guest")
        side.terminate()
        assert side.status == 0


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["host", "--peer-reconnects", "/x"], "it is for standard input; name no other PORT"),
        (["guest", "--peer-reconnects"], "--peer-reconnects is not for a guest"),
        (["host", "--peer-reconnects"], "are not a unix socket; leave --peer-reconnects out"),
        (["host", "--peer-reconnects", "-"], "are not a unix socket"),
    ],
)
def test_wrong_usage(words: list[str], problem: str) -> None:
    outcome = run(VIRTIO_MUX, *words)
    assert outcome.status == 100
    [line] = outcome.log.splitlines()
    assert problem in line
