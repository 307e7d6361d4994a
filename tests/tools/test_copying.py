"""What socks-connect copies, over what it is given for standard input and output, and how it ends.

There is no proxy here: what a connection goes through changes nothing of this.
"""

import contextlib
import errno
import os
import re
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from ends import at_once, noise
from programs import (
    KINDS,
    ROOT,
    SECONDS,
    Client,
    Ends,
    Program,
    accept,
    environment,
    listener,
    read_all,
    run,
    serving,
)
from real_server import RESET_ON_CLOSE, reset, until

CONNECT = str(ROOT / "bin" / "socks-connect")
MUCH = 3 << 20  # bytes
TERMINALS = ("pty", "canonical pty")


def direct(far: socket.socket, *options: str) -> list[str]:
    """The words of a connection to there."""
    host, port = far.getsockname()[:2]
    return [CONNECT, *options, host, str(port)]


def said(program: Program) -> str:
    """The line on standard error, without the program's name."""
    program.process.wait(SECONDS)
    lines = program.log.splitlines()
    assert len(lines) == 1, lines
    return lines[0].removeprefix("socks-connect: ")


def name(far: socket.socket) -> str:
    return "{}:{}".format(*far.getsockname()[:2])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in TERMINALS])
def test_both_ways_at_once(kind: str) -> None:
    up, down = noise(MUCH, 1), noise(MUCH, 2)
    with listener() as far, serving(*direct(far), over=kind) as program:
        with accept(far) as conn:

            def ask() -> None:
                program.client.send(up)
                program.client.end()

            def answer() -> None:
                conn.sendall(down)
                conn.shutdown(socket.SHUT_WR)

            results = at_once(ask, answer, program.client.rest, lambda: read_all(conn))
            assert results[2] == down and results[3] == up
        assert program.status == 0
    assert program.log == ""


@pytest.mark.parametrize("kind", TERMINALS)
def test_a_terminal(kind: str) -> None:
    """It ends with the far end, and the terminal blocks as before."""
    kept: list[int] = []
    with listener() as far, serving(*direct(far), over=kind, keep=kept) as program:
        with accept(far) as conn:
            program.client.send(b"question\n")
            assert read_all(conn, 9) == b"question\n"
            conn.sendall(b"answer")
            assert program.client.read(6) == b"answer"
            conn.shutdown(socket.SHUT_WR)
            assert program.status == 0
        for fd in kept:
            assert os.get_blocking(fd)
            os.close(fd)


def test_standard_input_ends_first() -> None:
    with listener() as far, serving(*direct(far), over="pipes") as program:
        with accept(far) as conn:
            program.client.send(b"question")
            program.client.end()
            assert read_all(conn) == b"question"
            conn.sendall(b"answer")
            assert program.client.read(6) == b"answer"
            conn.sendall(b", and more")
        assert program.client.rest() == b", and more"
        assert program.status == 0


@pytest.mark.parametrize("kind", ["pipes", "unix"])
def test_the_far_end_ends_first(kind: str) -> None:
    """Nothing that standard input still has is lost."""
    with listener() as far, serving(*direct(far), over=kind) as program:
        with accept(far) as conn:
            conn.sendall(b"answer")
            conn.shutdown(socket.SHUT_WR)
            assert program.client.rest() == b"answer"
            much = noise(MUCH)
            sent, got = at_once(lambda: program.client.send(much), lambda: read_all(conn, MUCH))
            assert (sent, got) == (None, much)
            program.client.end()
            assert read_all(conn) == b""
        assert program.status == 0


def test_the_far_end_has_gone_when_more_comes() -> None:
    """It has said all that it had to: git, say, takes leave of who is gone, and all is well."""
    with listener() as far, serving(*direct(far), over="pipes") as program:
        with accept(far) as conn:
            conn.sendall(b"answer")
        assert program.client.rest() == b"answer"
        with contextlib.suppress(BrokenPipeError):
            while True:  # it ends when the far end's reset has come
                program.client.send(b"good-bye")
        assert program.status == 0
    assert program.log == ""


def test_files() -> None:
    up, down = noise(MUCH, 1), noise(MUCH, 2)
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as sink, listener() as far:
        source.write(up)
        source.seek(0)
        with subprocess.Popen(direct(far), stdin=source, stdout=sink, env=environment()) as process:
            with accept(far) as conn:
                assert read_all(conn) == up
                conn.sendall(down)
            assert process.wait(SECONDS) == 0
        sink.seek(0)
        assert sink.read() == down


def test_nothing_to_say() -> None:
    """/dev/null is neither a pipe nor a file, and has no events."""
    with listener() as far:
        command = direct(far)
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment()
        ) as process:
            with accept(far) as conn:
                assert read_all(conn) == b""
                conn.sendall(b"answer")
            assert process.communicate(timeout=SECONDS) == (b"answer", None)
        assert process.returncode == 0


def test_what_was_blocking_blocks_again() -> None:
    kept: list[int] = []
    with listener() as far, serving(*direct(far), over="unix", keep=kept) as program:
        with accept(far):
            until("it is borrowed", lambda: not os.get_blocking(kept[0]))
        program.client.end()
        assert program.status == 0
        for fd in kept:
            assert os.get_blocking(fd)
            os.close(fd)


# What goes wrong


def test_the_far_end_resets() -> None:
    with listener() as far, serving(*direct(far), over="pipes") as program:
        conn = accept(far)
        program.client.send(b"question")
        assert read_all(conn, 8) == b"question"
        reset(conn)
        assert program.status == 111
        assert said(program) == f"{name(far)}: Connection reset by peer"


def test_the_far_end_takes_no_more() -> None:
    """What it has said is delivered, and that not all is taken is told."""
    with listener() as far, serving(*direct(far), over="pipes") as program:
        accept(far).close()
        assert program.client.rest() == b""
        program.client.send(b"question")
        assert program.status == 111
        assert re.fullmatch(rf"{name(far)}: (Broken pipe|Connection reset .*)", said(program))


def test_a_full_disk() -> None:
    """It ends, though standard input has not; and who sends is told by a reset."""
    with listener() as far, open("/dev/full", "wb") as full:

        def to_full_disk() -> Ends:
            client, stdin, stdout = KINDS["pipes"]()
            os.close(stdout)
            return client, stdin, os.dup(full.fileno())

        with serving(*direct(far), over=to_full_disk) as program, accept(far) as conn:
            conn.sendall(b"answer")
            assert program.status == 111
            assert said(program) == "standard output: No space left on device"
            with pytest.raises(ConnectionResetError):
                read_all(conn)


def test_nobody_reads_any_more() -> None:
    """As in `| head -1`: no line about that."""
    with listener() as far, serving(*direct(far), over="pipes") as program, accept(far) as conn:
        conn.sendall(b"answer")
        assert program.client.read(6) == b"answer"
        os.close(program.client.reader)
        program.client.reader = -1
        assert program.status == 111
    assert program.log == ""


def test_standard_input_that_cannot_be_read(tmp_path: Path) -> None:
    with listener() as far:

        def for_writing() -> Ends:
            client, stdin, stdout = KINDS["pipes"]()
            os.close(stdin)
            return client, os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT), stdout

        with serving(*direct(far), over=for_writing) as program, accept(far) as conn:
            with pytest.raises(ConnectionResetError):
                read_all(conn)
            assert program.status == 111
            assert said(program) == "standard input: Bad file descriptor"


@pytest.mark.parametrize(("fd", "what"), [(0, "input"), (1, "output")])
def test_one_that_is_closed(fd: int, what: str) -> None:
    """Nothing is connected to: its socket would be standard input, or output."""
    with listener() as far:
        done = run(*direct(far), preexec_fn=lambda: os.close(fd))
        assert (done.status, done.output) == (111, b"")
        assert done.log == f"socks-connect: standard {what} is not open\n"
        far.settimeout(0)
        with pytest.raises(BlockingIOError):
            far.accept()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal(number: signal.Signals) -> None:
    """It dies of it, says nothing, and leaves the descriptors as they were."""
    kept: list[int] = []
    with listener() as far, serving(*direct(far), over="unix", keep=kept) as program:
        with accept(far) as conn:
            program.client.send(b"question")
            assert read_all(conn, 8) == b"question"
            program.process.send_signal(number)
            assert program.status == -number
            with pytest.raises(ConnectionResetError):
                read_all(conn)
        for fd in kept:
            assert os.get_blocking(fd)
            os.close(fd)
    assert program.log == ""


# Time limits


def silent(_: Client, __: socket.socket) -> None:
    """Say nothing."""


def client_ends(client: Client, _: socket.socket) -> None:
    client.end()


def far_end_ends(_: Client, conn: socket.socket) -> None:
    conn.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize(
    ("option", "before"),
    [
        ("--idle-timeout", silent),
        ("--half-close-timeout", client_ends),
        ("--half-close-timeout", far_end_ends),
    ],
)
def test_time_limits(option: str, before: Callable[[Client, socket.socket], None]) -> None:
    with listener() as far:
        command = direct(far, f"{option}=0.2")
        with serving(*command, over="pipes") as program, accept(far) as conn:
            before(program.client, conn)
            assert program.status == 111
            assert said(program) == f"{name(far)}: nothing has moved for 0.2 s"
            with pytest.raises(OSError) as caught:
                while True:
                    conn.sendall(b"anybody?")
            assert caught.value.errno in (errno.EPIPE, errno.ECONNRESET)


def test_what_has_no_limit() -> None:
    """A limit for when one side has ended is none for both sides."""
    with listener() as far:
        command = direct(far, "--half-close-timeout=0.1")
        with serving(*command, over="pipes") as program, accept(far) as conn:
            with pytest.raises(subprocess.TimeoutExpired):
                program.process.wait(0.5)
            conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
