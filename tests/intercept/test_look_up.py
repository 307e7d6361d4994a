"""Names that are looked up in a process of its own."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from places import in_child
from programs import SECONDS
from real_server import children

from muonsocks.errors import NameNotResolved
from muonsocks.intercept.look_up import LookUp
from muonsocks.net.loop import Loop

LOCALHOST = (b"\x7f\0\0\1", 0)


@contextmanager
def looking_up() -> Iterator[tuple[Loop, LookUp]]:
    loop = Loop()
    look_up = LookUp(loop)
    try:
        yield loop, look_up
    finally:
        look_up.close()
        loop.close()


def test_it_is_started_for_the_first_name_and_ends_with_us() -> None:
    def story() -> None:
        with looking_up() as (loop, look_up):
            assert children(os.getpid()) == []
            for _ in range(2):
                assert LOCALHOST in loop.run(look_up("localhost"))
                assert len(children(os.getpid())) == 1
            with pytest.raises(NameNotResolved):
                loop.run(look_up("a b"))
        assert children(os.getpid()) == []

    in_child(story)


def test_nobody_waits_for_the_end_of_the_errors_that_it_could_write() -> None:
    def story() -> None:
        reader, writer = os.pipe()
        os.dup2(writer, 2)
        os.close(writer)
        with looking_up() as (loop, look_up):
            loop.run(look_up("localhost"))
            os.dup2(os.open(os.devnull, os.O_RDWR), 2)
            assert os.read(reader, 9) == b""

    in_child(story)


async def death_is_heard_of(loop: Loop, pid: int) -> None:
    """Wait until it has been reaped, which is by who goes on then."""
    with loop.deadline(SECONDS):
        while pid in children(os.getpid()):
            await loop.sleep(0.005)


def test_it_is_started_anew_when_it_has_died() -> None:
    def story() -> None:
        with looking_up() as (loop, look_up):
            loop.run(look_up("localhost"))
            (pid,) = children(os.getpid())
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(OSError):
                loop.run(look_up("localhost"))
            loop.run(death_is_heard_of(loop, pid))
            assert LOCALHOST in loop.run(look_up("localhost"))
            assert children(os.getpid()) not in ([], [pid])

    in_child(story)


def test_sockets_of_ours_are_not_those_of_that_process() -> None:
    def story() -> None:
        here, there = socket.socketpair()
        with looking_up() as (loop, look_up):
            loop.run(look_up("localhost"))
            there.close()
            assert here.recv(1) == b""

    in_child(story)
