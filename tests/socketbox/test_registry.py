"""Who registers, with sockets and a loop: tests/tools/test_socketbox_json.py has whole programs."""

import os
import socket
import struct
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from box import Receiver, waiting_room
from ends import nothing_left_behind
from places import descriptor_limit, root_only

from muonsocks.net.listen import listen_at
from muonsocks.net.loop import Loop
from muonsocks.net.stream import unix_address
from muonsocks.resident.repeats import MOST
from muonsocks.socketbox import registry as registry_module
from muonsocks.socketbox.json_configuration import Slot
from muonsocks.socketbox.json_value import Node
from muonsocks.socketbox.registry import MOST_OF_A_USER, Registry

ACCEPTED = b"\x80\0\0\0"


class Bench:
    def __init__(self, path: str) -> None:
        self.path = path
        self.loop = Loop()
        self.notes: list[str] = []
        self.listener = listen_at(self.path)
        slots = [Slot(Node({"uid": os.getuid(), "path_nr": 0}, "test")) for _ in range(3)]
        self.registry = Registry(
            self.loop, waiting_room(5, 100), slots, [self.listener], self.notes.append
        )

    def client(self, data: bytes = b"") -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(self.path)
        sock.setblocking(False)
        if data:
            sock.send(data)
        return sock

    async def answer(self, sock: socket.socket) -> bytes:
        with self.loop.deadline(15):
            while True:
                try:
                    return sock.recv(100)
                except BlockingIOError:
                    await self.loop.sleep(0.002)
                except ConnectionResetError:
                    return b""

    async def until(self, holds: Callable[[], Any]) -> None:
        with self.loop.deadline(15):
            while not holds():
                await self.loop.sleep(0.002)


def request(group: int) -> bytes:
    return struct.pack("!BxxxI", 1, group)


def run(place: Path | str, story: Callable[[Bench], Coroutine[Any, None, None]]) -> Bench:
    """Run a story at a path below a directory, or at an abstract name."""
    with nothing_left_behind():
        bench = Bench(place if isinstance(place, str) else str(place / "ctl"))
        try:
            bench.loop.run(story(bench))
            bench.registry.close()
            bench.loop.unregister(bench.listener.fileno())
            assert bench.loop.handlers == {}
            assert bench.registry._open == {}
        finally:
            bench.listener.close()
            bench.loop.close()
    return bench


def test_one_registers(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        with bench.client(request(2)) as sock:
            assert await bench.answer(sock) == ACCEPTED
            groups = bench.registry.groups
            assert [group.is_there for group in groups] == [False, False, True]
            with socket.socket() as passed:
                await groups[2].take(passed.fileno())
            got = Receiver(sock).message()
            got.socket.close()
            assert got.data == b"\3\0\0\0"
        await bench.until(lambda: not groups[2].is_there)
        with bench.client(request(2)) as sock:
            assert await bench.answer(sock) == ACCEPTED
            bench.registry.close()
            assert await bench.answer(sock) == b""

    bench = run(tmp_path, story)
    us = os.getuid()
    assert (
        bench.notes
        == [
            f"group 2: a receiver of user {us} has registered",
            f"group 2: the receiver of user {us} has gone",
        ]
        * 2
    )


def test_one_that_has_gone_before_the_answer(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        for _ in range(20):
            bench.client(request(0)).close()
            await bench.loop.sleep(0.002)
        await bench.until(lambda: not bench.registry._open)
        with bench.client(request(0)) as sock:
            assert await bench.answer(sock) == ACCEPTED

    run(tmp_path, story)


def test_one_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "_PATIENCE", 0.05)

    async def story(bench: Bench) -> None:
        with bench.client() as sock:
            assert await bench.answer(sock) == b""

    assert "time limit" in run(tmp_path, story).notes[0]


def test_too_many(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        clients = [bench.client() for _ in range(MOST_OF_A_USER)]
        with bench.client(request(0)) as sock:
            assert await bench.answer(sock) == b""
        for sock in clients:
            sock.close()
        await bench.until(lambda: not bench.registry._open)
        with bench.client(request(0)) as sock:
            assert await bench.answer(sock) == ACCEPTED

    assert "has 5 connections already" in run(tmp_path, story).notes[0]


@root_only()
def test_too_many_of_others(tmp_path: Path) -> None:
    """They do not keep those away for whom there are groups; and are few lines in the log."""
    name = f"@registry-{os.getpid()}"

    def client_of(uid: int) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.setblocking(False)
        os.seteuid(uid)
        try:
            sock.connect(unix_address(name))
        finally:
            os.seteuid(0)
        return sock

    async def story(bench: Bench) -> None:
        others = [client_of(10_000 + number // 4) for number in range(100)]
        for _ in range(20):
            with client_of(20_000) as sock:
                assert await bench.answer(sock) == b""
        with client_of(os.getuid()) as sock:
            sock.send(request(0))
            assert await bench.answer(sock) == ACCEPTED
        for sock in others:
            sock.close()
        await bench.until(lambda: set(bench.registry._open) <= {os.getuid()})

    notes = run(name, story).notes
    assert notes[0] == "not registered: users who have no group have 100 connections already"
    assert len(notes) <= 2 * (MOST + 1) + 2


def test_the_log_is_not_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one who comes and goes: a few lines, and then a count."""
    said: list[str] = []
    say = Registry._say

    def note(registry: Registry, uid: int, text: str) -> None:
        said.append(text)
        say(registry, uid, text)

    monkeypatch.setattr(Registry, "_say", note)

    async def story(bench: Bench) -> None:
        for count in range(200):
            bench.client().close()
            await bench.until(lambda: len(said) > count)  # noqa: B023

    notes = run(tmp_path, story).notes
    assert len(notes) <= 5 * (MOST + 1)
    more = [int(note.split()[2]) for note in notes if note.endswith("more of that in a second")]
    assert sum(more) + len(notes) - len(more) == 200


def test_no_descriptor_for_one(tmp_path: Path) -> None:
    """It waits for a moment, and there is no busy loop meanwhile."""

    async def story(bench: Bench) -> None:
        with bench.client(request(0)) as sock:
            with descriptor_limit(0):
                await bench.until(lambda: bench.listener.fileno() not in bench.loop.handlers)
            assert await bench.answer(sock) == ACCEPTED

    run(tmp_path, story)


def test_two_that_ask_at_once(tmp_path: Path) -> None:
    """For the same group: one gets it, and keeps it when the other one has gone."""

    async def story(bench: Bench) -> None:
        clients = [bench.client(request(1)) for _ in range(2)]
        answers = [await bench.answer(sock) for sock in clients]
        assert sorted(answers) == [b"", ACCEPTED]
        clients.pop(answers.index(b"")).close()
        await bench.until(lambda: sum(bench.registry._open.values()) == 1)
        assert bench.registry.groups[1].is_there
        clients.pop().close()
        await bench.until(lambda: not bench.registry._open)

    run(tmp_path, story)


def test_how_many_a_receiver_hoards(tmp_path: Path) -> None:
    """One that takes nothing has a few in its queue, and the others wait."""

    async def story(bench: Bench) -> None:
        pairs = [socket.socketpair() for _ in range(20)]
        with bench.client(request(0)) as sock:
            assert await bench.answer(sock) == ACCEPTED
            taken: list[None] = []
            for ours, _ in pairs:
                to = bench.registry.groups[0]
                bench.loop.spawn(to.take(ours.fileno()), pytest.fail, taken.append)
            assert 2 <= len(taken) <= 12
            while len(taken) < 20:
                Receiver(sock).take().close()
                await bench.loop.sleep(0)
        for pair in pairs:
            for sock in pair:
                sock.close()
        await bench.until(lambda: not bench.registry._open)

    run(tmp_path, story)
