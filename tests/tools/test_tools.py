"""What all programs have in common: how they end, and what they give back."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import termios
import time
from pathlib import Path

import pytest
from programs import (
    GREETING,
    INETD,
    KINDS,
    PYTHON,
    REJECTED,
    ROOT,
    SECONDS,
    accept,
    closed_port,
    environment,
    failure,
    listener,
    run,
    serving,
    socks4,
    socks5,
)

LOCAL = [INETD, "--allow-local"]
RAW = [kind for kind in KINDS if kind != "canonical pty"]

# Time limits


def test_a_silent_client() -> None:
    with serving(INETD, "--handshake-timeout=0.2", over="tcp") as program:
        assert program.client.rest() == b""
        assert program.status == 0
    assert program.end == "handshake-timeout"


def test_a_trickling_client() -> None:
    """A byte every now and then does not move the deadline."""
    with serving(INETD, "--handshake-timeout=0.4", over="tcp") as program:
        started = time.monotonic()
        with contextlib.suppress(ConnectionError, BrokenPipeError):
            for byte in b"\5\xff" + b"\x80" * 255:
                program.client.send(bytes([byte]))
                if program.process.poll() is not None:
                    break
                time.sleep(0.05)
        assert time.monotonic() - started < 5
        assert program.status == 0
    assert program.end == "handshake-timeout"


@pytest.mark.parametrize(
    ("option", "half_close"),
    [("--idle-timeout=0.2", False), ("--half-close-timeout=0.2", True)],
    ids=["idle", "half-close"],
)
def test_a_connection_in_which_nothing_moves(option: str, half_close: bool) -> None:
    with listener() as far, serving(*LOCAL, option, over="tcp") as program:
        program.client.send(GREETING + socks5(*far.getsockname()))
        with accept(far) as conn:
            assert program.client.read(12)[:4] == b"\5\0\5\0"
            if half_close:
                program.client.end()
                assert conn.recv(1) == b""
            with pytest.raises(ConnectionResetError):
                program.client.read(1)
            assert program.status == 0
    assert program.end == ("half-close-timeout" if half_close else "idle-timeout")


def test_a_target_that_does_not_answer() -> None:
    """A full backlog drops what comes: the time limits of the dialler end that."""
    with contextlib.ExitStack() as stack:
        far = stack.enter_context(socket.socket())
        far.bind(("127.0.0.1", 0))
        far.listen(0)
        for _ in range(3):  # more than the backlog takes
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(far.getsockname())
        for option in ("--connect-timeout=0.2", "--dial-timeout=0.2"):
            with serving(*LOCAL, option) as program:
                program.client.send(GREETING + socks5(*far.getsockname()))
                program.client.end()
                assert program.client.rest() == b"\5\0" + failure(6)
                assert program.status == 0
            assert program.end == "dial-failed"


# Signals, and what is given back


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("stage", ["handshake", "relay"])
def test_a_signal_ends_it(stage: str, number: signal.Signals) -> None:
    with listener() as far, serving(*LOCAL, over="tcp") as program:
        program.client.send(GREETING)
        assert program.client.read(2) == b"\5\0"
        if stage == "relay":
            program.client.send(socks5(*far.getsockname()) + b"data")
            program.await_log("connected ")
        program.process.send_signal(number)
        assert program.status == 0
        program.client.close()
    assert program.end == "terminated"
    assert ("reply=0 " in program.log) == (stage == "relay")


@pytest.mark.parametrize("how", ["terminated", "refused", "garbage", "done"])
@pytest.mark.parametrize("over", RAW)
def test_descriptors_are_blocking_again(over: str, how: str) -> None:
    """Others may have the same terminal or pipe open, and expect it to be as it was."""
    kept: list[int] = []
    with listener() as far, serving(*LOCAL, over=over, keep=kept) as program:
        client = program.client
        if how == "garbage":
            client.send(b"GET / HTTP/1.0\r\n\r\n")
        elif how == "refused":
            client.send(socks4("127.0.0.1", closed_port()))
            assert client.read(8) == REJECTED
        else:
            client.send(socks4(*far.getsockname()))
            assert client.read(8)[1] == 0x5A
            accept(far).close()
        if how == "terminated":
            program.process.send_signal(signal.SIGTERM)
        if over != "pty":
            client.end()
        elif how == "done":
            program.process.send_signal(signal.SIGTERM)  # a terminal has no other end
        assert program.status == 0
        assert [os.get_blocking(fd) for fd in kept] == [True, True]
        for fd in kept:
            os.close(fd)


def test_a_terminal_keeps_its_settings() -> None:
    kept: list[int] = []
    with serving(INETD, over="canonical pty", keep=kept) as program:
        before = termios.tcgetattr(kept[0])
        program.client.send(b"GET /\n")
        assert program.status == 0
        assert termios.tcgetattr(kept[0]) == before
        for fd in kept:
            os.close(fd)


# Statuses

# root reads everything, unless it has no capabilities
POWERLESS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text("alice:secret\n")
    users.chmod(0)
    for option in ("users", "rules"):
        ended = run(*POWERLESS, INETD, f"--{option}={users}", stdin=GREETING)
        assert (ended.status, ended.output) == (111, b"")
        assert ended.log == f"socks-inetd: {users}: Permission denied\n"
        ended = run(INETD, f"--{option}={tmp_path}", stdin=GREETING)
        assert (ended.status, ended.log) == (111, f"socks-inetd: {tmp_path}: Is a directory\n")
        ended = run(INETD, f"--{option}=/no/such", stdin=GREETING)
        assert (ended.status, ended.log) == (
            111,
            "socks-inetd: /no/such: No such file or directory\n",
        )
    environ = environment(CREDENTIALS_DIRECTORY=str(tmp_path))
    assert run(*POWERLESS, INETD, stdin=GREETING, env=environ).status == 111


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-", "<&- 2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors(closed: str) -> None:
    ended = run("/bin/sh", "-c", f"exec {INETD} {closed}", stdin=GREETING)
    assert (ended.status, ended.output) == (111, b"")
    if "2>" not in closed:
        [line] = ended.log.splitlines()
        assert "Invalid argument" not in line  # says what is the matter


def test_too_few_descriptors_for_options() -> None:
    """Here not even docopt can be loaded."""
    ended = run("prlimit", "--nofile=4", *LOCAL, stdin=GREETING)
    assert (ended.status, ended.output) == (111, b"")


def test_an_output_that_is_full() -> None:
    with open("/dev/full", "wb") as full, listener() as far:
        process = subprocess.Popen(
            LOCAL, stdin=subprocess.PIPE, stdout=full, stderr=subprocess.PIPE, env=environment()
        )
        _, log = process.communicate(GREETING + socks5(*far.getsockname()), SECONDS)
    assert process.returncode == 111
    assert b"Traceback" not in log and b"No space left" in log


def test_an_input_that_is_a_listening_socket() -> None:
    """Accept=no by mistake: the status says so."""
    with listener() as far, socket.create_connection(far.getsockname()):
        ended = run(INETD, stdin=far.fileno())
    assert (ended.status, ended.output) == (111, b"")


# How main ends, and what becomes of it

AS_A_TOOL = """
import sys, types
sys.path.insert(0, sys.argv.pop(1))
from muonsocks import tools
from muonsocks.errors import UsageError
tool = types.ModuleType("muonsocks.tools.the_tool")
def main(arguments, log):
    assert arguments == ["argument"]
    {}
tool.main = main
sys.modules[tool.__name__] = tool
tools.run("the_tool")
"""
ENDS: dict[str, tuple[str, int, str]] = {
    "a status": ("return 42", 42, ""),
    "wrong usage": ("raise UsageError('so not', 'but so')", 100, "the-tool: so not; but so\n"),
    "wrong usage, no hint": ("raise UsageError('so not')", 100, "the-tool: so not\n"),
    "a file": (
        "open('/no/such')",
        111,
        "the-tool: /no/such: No such file or directory\n",
    ),
    "no file": ("raise OSError(24, 'Too many')", 111, "the-tool: Too many\n"),
    "a signal": ("import os; os.kill(os.getpid(), 15)", 0, ""),
    "an error in two lines": ("raise OSError('a\\nb')", 111, "the-tool: a b\n"),
}


@pytest.mark.parametrize("what", ENDS)
def test_how_a_tool_ends(what: str) -> None:
    code, status, log = ENDS[what]
    ended = run(PYTHON, "-IS", "-c", AS_A_TOOL.format(code), str(ROOT / "lib"), "argument")
    assert (ended.status, ended.log, ended.output) == (status, log, b"")


@pytest.mark.parametrize("code", ["raise ValueError('x')", "{}['x']", "assert 0", "1 / 0"])
def test_a_bug_is_one_line(code: str) -> None:
    """It names the place, and there is no traceback."""
    done = subprocess.run(
        [PYTHON, "-IS", "-c", AS_A_TOOL.format(code), str(ROOT / "lib"), "argument"],
        capture_output=True,
        env=environment(),
        text=True,
    )
    assert (done.returncode, done.stdout) == (111, "")
    pattern = r"the-tool: this is a bug, please report it: \w+Error: .* at .+:\d+\n"
    assert re.fullmatch(pattern, done.stderr)


def test_a_signal_that_was_ignored_stays_so() -> None:
    """As nohup wants it."""
    code = "import os; os.kill(os.getpid(), 1); return 42"
    program = [PYTHON, "-IS", "-c", AS_A_TOOL.format(code), str(ROOT / "lib"), "argument"]
    assert run("sh", "-c", 'trap "" HUP; exec "$@"', "sh", *program).status == 42
