"""Descriptors that others have too: files, terminals, and the mode they are left in."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from ends import KINDS, PATIENCE, End, Ours, made, run

from muonsocks.net.loop import Loop

BIN = Path(__file__).resolve().parents[2] / "bin"


# Regular files


def test_regular_file_is_always_ready(loop: Loop, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"content")
    reader, writer = tmp_path / "in", tmp_path / "out"
    stream = Ours(os.open(reader, os.O_RDONLY), os.open(writer, os.O_CREAT | os.O_WRONLY)).stream(
        loop
    )

    async def story() -> None:
        assert await stream.receive(3) == b"con"
        assert await stream.receive(100) == b"tent"
        assert await stream.receive(100) == b""
        await stream.send(b"answer")
        stream.end_output()
        stream.end_output()

    run(loop, story, stream)
    assert writer.read_bytes() == b"answer"


@pytest.mark.parametrize("which", ["reader", "writer"])
def test_only_one_side_is_a_regular_file(loop: Loop, tmp_path: Path, which: str) -> None:
    (tmp_path / "file").write_bytes(b"content")
    file, (reader, writer) = os.open(tmp_path / "file", os.O_RDWR), os.pipe()
    ours = Ours(file, writer) if which == "reader" else Ours(reader, file)
    stream, end = ours.stream(loop), End(reader if which == "reader" else writer)

    async def story() -> None:
        await stream.send(b"sent")
        if which == "reader":
            assert end.read_exactly(4) == b"sent"
            assert await stream.receive(100) == b"content"
        else:
            end.send(b"received")
            assert await stream.receive(100) == b"received"
            assert (tmp_path / "file").read_bytes() == b"sentent"

    run(loop, story, stream, end)


# Terminals


def test_terminal_ends_when_nobody_has_its_other_side_open(loop: Loop) -> None:
    stream, end = made(loop, "master")

    async def story() -> None:
        end.send(b"all")
        end.close()
        assert await stream.receive(100) == b"all"
        assert await stream.receive(100) == b""

    run(loop, story, stream, end)


def test_terminal_gives_a_line_at_a_time(loop: Loop) -> None:
    """Canonical mode: a short read does not mean that there is no second line."""
    master, slave = os.openpty()
    stream, end = Ours(slave, os.dup(slave)).stream(loop), End(master, is_pty=True)

    async def story() -> None:
        end.send(b"one\ntwo\n")
        await loop.sleep(0.001)
        assert await stream.receive(100) == b"one\n"
        assert await stream.receive(100) == b"two\n"
        end.send(b"\4")  # the end of file, on a line of its own
        assert await stream.receive(100) == b""

    run(loop, story, stream, end)


# The mode they are left in


@pytest.mark.parametrize("kind", ["tcp", "unix", "pipes", "fifos", "pty"])
@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("way", ["done", "terminated"])
def test_descriptors_are_left_as_they_were(
    tmp_path: Path, kind: str, blocking: bool, way: str
) -> None:
    """Others have them too (a shell, its terminal), and do not expect EAGAIN."""
    ours, client = KINDS[kind].make(tmp_path)
    mine = {ours.reader, ours.writer}
    for fd in mine:
        os.set_blocking(fd, blocking)
    program = subprocess.Popen(
        [BIN / "socks-inetd"], stdin=ours.reader, stdout=ours.writer, stderr=subprocess.PIPE
    )
    client.send(b"\5\1\0")
    assert client.read_exactly(2) == b"\5\0"
    assert not any(os.get_blocking(fd) for fd in mine)
    if way == "done":
        client.send(b"\5\1\0\1\x7f\0\0\1\0\1")  # is refused: it is local
        assert client.read_exactly(10)[:2] == b"\5\2"
        if kind != "pty":
            client.end_output()
    else:
        program.send_signal(signal.SIGTERM)
    said = program.communicate(timeout=PATIENCE)[1].decode()
    assert program.returncode == (1 if way == "done" else 0), said
    assert [os.get_blocking(fd) for fd in mine] == [blocking] * len(mine)
    ours.close()
    client.close()
