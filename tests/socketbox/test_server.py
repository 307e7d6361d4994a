"""The service of passing connections on, in a loop; whole programs are in tests/tools."""

import _pickle
import errno
import os
import re
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from box import receiver
from ends import Lines, nothing_left_behind

from muonsocks.errors import UsageError
from muonsocks.log import WARNING
from muonsocks.net.loop import Loop
from muonsocks.resident.board import OPEN, SERVED, Board
from muonsocks.socketbox import server
from muonsocks.socketbox.actions import ToDescriptor, ToPath
from muonsocks.socketbox.entrances import Arrival
from muonsocks.socketbox.rulebook import File, OneAction
from muonsocks.socketbox.server import Box, PassingOptions


class Bench:
    """A box that passes on what the test says has come."""

    def __init__(self, book: Any, passing: PassingOptions) -> None:
        self.loop = Loop()
        self.log = Lines()
        self.retired: list[bool] = []
        self.box = Box(book, passing, self.log)
        self.box.board = Board(1)
        # It is this process that would give up privileges.
        gain, server.gain_no_privileges = server.gain_no_privileges, lambda: None  # type: ignore[attr-defined]
        try:
            self.box.settle(self.loop, lambda for_good: self.retired.append(for_good))
        finally:
            server.gain_no_privileges = gain  # type: ignore[attr-defined]

    def come(
        self, failures: list[BaseException] | None = None, unread: bytes = b""
    ) -> socket.socket:
        """Be a client of a unix socket, who has not read all that it was told."""
        ours, theirs = socket.socketpair()
        theirs.send(unread)
        self.box.board.add(OPEN, 1)
        self.box.board.add(SERVED, 1)

        def over(_: object) -> None:
            self.box.board.add(OPEN, -1)

        self.loop.spawn(
            self.box.serve(self.loop, theirs, Arrival(None, 0)),
            pytest.fail if failures is None else failures.append,
            over,
        )
        ours.settimeout(15)
        return ours


def run(book: Any, story: Callable[[Bench], Coroutine[Any, None, None]], **changes: Any) -> Bench:
    passing = PassingOptions(0.02, 100)
    for name, value in changes.items():
        setattr(passing, name, value)
    with nothing_left_behind():
        bench = Bench(book, passing)
        bench.loop.run(story(bench))
        bench.box.finish()
        assert bench.loop.handlers == {}
        bench.box._sender.close()
        bench.box._gone.close()
        os.close(bench.box._turn)
        bench.loop.close()
    return bench


def test_passed_and_not_passed(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        with receiver(tmp_path / "r") as there, bench.come() as client, there.take() as served:
            served.sendall(b"hello")
            assert client.recv(5) == b"hello"
        client = bench.come()
        await bench.loop.sleep(0.1)
        assert client.recv(1) == b""
        client.close()
        assert bench.box.state() == "passed on: 1, after a wait: 1, not passed on: 1"

    log = run(OneAction(ToPath(str(tmp_path / "r")), "-S"), story).log.lines
    assert log[0] == f"passed client=unix local=unix to={tmp_path}/r waited=0.000"
    assert log[1].startswith("closed client=unix local=unix waited=0.0")
    reason = f"jump-unix:{tmp_path}/r: it is not there after 0.02 s; "
    assert log[1].endswith(f'reason="{reason}there is no other receiver"')


def test_a_client_that_goes_while_it_waits(tmp_path: Path) -> None:
    """No other receiver is asked."""

    async def story(bench: Bench) -> None:
        bench.come(unread=b"word").close()
        await bench.loop.sleep(0.01)

    rules = tmp_path / "rules"
    rules.write_text(f"rule-set:0\njump-unix:{tmp_path}/none else jump-unix:{tmp_path}/other\n")
    [line] = run(File(str(rules)), story, patience=10).log.lines
    assert line.startswith("closed ") and line.endswith('reason="the client has gone"')


def test_quiet(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        bench.log.level = WARNING
        with receiver(tmp_path / "r") as there, bench.come(), there.take():
            pass

    assert run(OneAction(ToPath(str(tmp_path / "r")), "-S"), story).log.lines == []


def test_as_many_receivers_as_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer cannot make those grow that are remembered; who is waited for is kept."""
    monkeypatch.setattr(server, "_MOST_RECEIVERS", 10)

    async def story(bench: Bench) -> None:
        box, action = bench.box, ToPath
        waiting = bench.come()
        [kept] = box._at_paths.values()
        for number in range(500):
            box._receiver(action(f"/{number}"))
            assert len(box._at_paths) <= 11
        assert kept in box._at_paths.values()
        await bench.loop.sleep(0.05)
        for number in range(20):
            box._receiver(action(f"/{number}"))
        assert kept not in box._at_paths.values()
        waiting.close()

    run(OneAction(ToPath(str(tmp_path / "r")), "-S"), story)


@pytest.mark.parametrize("is_alone", [True, False])
def test_how_many_wait_for_the_same(tmp_path: Path, is_alone: bool) -> None:
    """All that may, if there is no other receiver; or else there is room for those of others."""

    async def story(bench: Bench) -> None:
        clients = [bench.come() for _ in range(5)]
        assert bench.box._room.waiting == (4 if is_alone else 2)
        await bench.loop.sleep(0.05)
        for client in clients:
            client.close()

    run(OneAction(ToPath(f"{tmp_path}/r"), "-S"), story, most_waiting=4, has_one_receiver=is_alone)


def test_one_wait_for_all_receivers(tmp_path: Path) -> None:
    """And the last one takes it still if there is room; `else` that leads back tries none twice."""
    path = tmp_path / "rules"
    nobody = f"jump-unix:{tmp_path}/nobody"
    path.write_text(
        f"rule-set:0\n{nobody} else {nobody}2 else jump-unix:{tmp_path}/r else jump-rule:0\n"
    )

    async def story(bench: Bench) -> None:
        client = bench.come()
        await bench.loop.sleep(0.05)
        assert client.recv(1) == b""
        client.close()
        with receiver(tmp_path / "r") as there, bench.come():
            await bench.loop.sleep(0.05)
            there.take().close()

    log = run(File(str(path)), story, patience=0.04).log.lines
    assert re.match(r"closed client=unix local=unix waited=0\.04", log[0])
    assert log[0].count("nobody:") == 1
    assert "nobody2: it is not there, and there is no time left to wait" in log[0]
    assert "the way does not end within 100 sets" in log[0]
    assert re.match(rf"passed .* to={tmp_path}/r waited=0\.04", log[1])


def test_the_one_that_all_depends_on() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    number = theirs.detach()

    async def story(bench: Bench) -> None:
        ours.close()
        with bench.come() as client:
            await bench.loop.sleep(0.01)
            assert client.recv(1) == b""
        assert bench.box.has_lost_its_receiver
        assert bench.retired == [True]
        bench.box._over.clear()

    inherited = frozenset((number,))
    book = OneAction(ToDescriptor(number), "-i")
    run(book, story, inherited=inherited, ends_with=number)


def test_a_socket_that_stays_transparent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Is not passed on."""

    def refuse(_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(server, "clear_transparent", refuse)

    async def story(bench: Bench) -> None:
        with bench.come() as client:
            assert client.recv(1) == b""

    log = run(OneAction(ToPath(str(tmp_path / "r")), "-S"), story, clears_transparent=True).log
    assert 'reason="it stays transparent: Operation not permitted"' in log.lines[0]


def test_rules_are_passed_to_workers(tmp_path: Path) -> None:
    """As they are pickled, and not as the same objects."""
    path = tmp_path / "rules"
    path.write_text("rule-set:0\nport:0-9 ip:::/0 jump-map:1\nmap-set:1\njump-unix:/a else fail\n")

    async def story(bench: Bench) -> None:
        path.write_text(f"rule-set:0\nport:0,7-9 jump-unix:{tmp_path}/r\njump-rule:7\n")
        read = bench.box.reread()
        there_and_back = _pickle.loads(_pickle.dumps(read))
        assert there_and_back.text() == read.text()
        assert read.text().startswith("rule-set:0\nport:0,7-9 jump-unix:")
        bench.box.take(there_and_back)
        with receiver(tmp_path / "r") as there, bench.come(), there.take():
            pass
        path.write_text("x")
        with pytest.raises(UsageError):
            bench.box.reread()

    log = run(File(str(path)), story).log.lines
    assert "there is no rule-set:7" in log[0]


def test_rules_that_are_no_good(tmp_path: Path) -> None:
    with nothing_left_behind(), pytest.raises(FileNotFoundError):
        Box(File(str(tmp_path / "none")), PassingOptions(1, 1), Lines())
