"""Standard input whose peer calls again: who knows of whom, and for how long."""

import os
import socket
from collections.abc import Callable, Iterator

import pytest
from hand import Clock, play, rounds, until
from places import in_child

from muonsocks.errors import UsageError
from muonsocks.mux.caller import Caller
from muonsocks.net.listen import listen_at
from muonsocks.net.loop import Loop


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection: the peer's end, and the one that is to be standard input and output."""
    peer, ours = socket.socketpair()
    with peer, ours:
        yield peer, ours


def called(ours: socket.socket, check: Callable[[Loop], None]) -> None:
    """Run a check in a child, as each call may have a process of its own."""
    in_child(lambda: check(Loop()), fd0=ours.fileno(), fd1=ours.fileno())


def is_refused() -> None:
    with pytest.raises(UsageError, match="are not a unix socket"):
        Caller()


def test_it_is_a_unix_socket(pair: tuple[socket.socket, socket.socket]) -> None:
    reader, writer = os.pipe()
    with socket.socket() as tcp, socket.socketpair(type=socket.SOCK_SEQPACKET)[0] as messages:
        for one in (tcp, messages):
            in_child(is_refused, fd0=one.fileno(), fd1=one.fileno())
    in_child(is_refused, fd0=reader, fd1=writer)
    in_child(is_refused, fd0=reader, fd1=reader)
    in_child(is_refused, fd0=pair[0].fileno(), fd1=pair[1].fileno())
    os.close(reader)
    os.close(writer)

    def check() -> None:
        with pytest.raises(OSError, match="standard output is not open"):
            Caller()

    in_child(check, fd0=pair[1].fileno(), fd1=-1)


def test_one_is_hung_up_on_once(pair: tuple[socket.socket, socket.socket]) -> None:
    """The process that has hung up ends when the peer has called another one."""
    peer, ours = pair

    def check(loop: Loop) -> None:
        async def story() -> None:
            over: list[None] = []
            first = Caller()
            assert not first.has_come_again and not Caller().has_come_again
            loop.spawn(first.hang_up(loop), pytest.fail, over.append)
            assert peer.recv(1) == b"", "its connection has ended"
            await rounds(loop)
            assert not over
            assert Caller().has_come_again
            await until(loop, lambda: over)
            assert not Caller().has_come_again, "it has been a while"

        play(loop, story)

    called(ours, check)


def test_one_that_does_not_call_is_not_waited_for(
    pair: tuple[socket.socket, socket.socket], clock: Clock
) -> None:
    peer, ours = pair

    def check(loop: Loop) -> None:
        async def story() -> None:
            over: list[None] = []
            loop.spawn(Caller().hang_up(loop), pytest.fail, over.append)
            await clock.passes(loop, 9)
            assert not over
            await clock.passes(loop, 2)
            assert over == [None]
            assert not Caller().has_come_again
            assert peer.recv(1) == b""

        play(loop, story, 600)

    called(ours, check)


def test_one_with_two_ports(pair: tuple[socket.socket, socket.socket]) -> None:
    """Both are hung up on, and one is waited for."""
    peer, ours = pair

    def check(loop: Loop) -> None:
        async def story() -> None:
            caller = Caller()
            listener = listen_at(f"@virtio-mux/{os.getuid()}/{os.getppid()}")
            await caller.hang_up(loop)
            assert peer.recv(1) == b""
            listener.close()

        play(loop, story)

    called(ours, check)


def test_others_are_not_taken_for_it(pair: tuple[socket.socket, socket.socket]) -> None:
    def check(loop: Loop) -> None:
        async def story() -> None:
            waits = loop.spawn(Caller().hang_up(loop), pytest.fail)
            mine, other = socket.socketpair()  # its peer is this process
            for fd in (0, 1):
                os.dup2(mine.fileno(), fd)
            assert not Caller().has_come_again
            assert not waits.is_over
            mine.close()
            other.close()

        play(loop, story)

    called(pair[1], check)
