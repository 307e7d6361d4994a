"""Programs under socksify: as real processes, by an ordinary user.

done = run("curl", url, proxy=one.url, mode="hold", options=("-v",))
done.status, done.output, done.log

with started("sh", "-c", "read x", proxy=one.url) as program:
    program.supervisor, program.program   # pids
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from attended import AS_NOBODY, Attended, as_user, attended, expect_nothing_wrong_with_us
from programs import PYTHON, ROOT, SECONDS, environment
from real_server import children, is_alive, until

SOCKSIFY = str(ROOT / "bin" / "socksify")
NOWHERE = "socks5h://127.0.0.1:1"  # a proxy that nobody is
__all__ = ["AS_NOBODY", "NOWHERE", "SOCKSIFY", "Done", "Started", "as_user", "run", "started"]


class Done(NamedTuple):
    """What came of a program."""

    status: int
    output: str
    log: str

    @property
    def said(self) -> str:
        """What it has printed, if it has succeeded, and we have said nothing."""
        assert self.status == 0 and "socksify[" not in self.log, self
        return self.output


def command(
    *program: str,
    proxy: str = NOWHERE,
    mode: str = "",
    options: tuple[str, ...] = (),
    before: tuple[str, ...] | None = None,
) -> list[str]:
    """Give the words that run a program by way of a proxy. `before` makes it an ordinary user's."""
    words = [*(as_user() if before is None else before), SOCKSIFY]
    words += [f"--proxy={proxy}"] if proxy else []
    words += [f"--mode={mode}"] if mode else []
    return [*words, *options, "--", *program]


def run(*program: str, seconds: float = SECONDS, **named: Any) -> Done:
    """Run a program to its end; `named` is for `command`, or for `Popen`."""
    words, popen = _split(named)
    popen.setdefault("env", environment())
    popen.setdefault("stdin", subprocess.DEVNULL)
    # In files: a daemon of the program may have them for longer than the program.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as log:
        whole = command(*program, **words)
        process = subprocess.Popen(whole, stdout=output, stderr=log, **popen)
        try:
            status = process.wait(seconds)
        finally:
            process.kill()
            process.wait()
            said = [os.pread(file.fileno(), 1 << 24, 0) for file in (output, log)]
            sys.stderr.write(said[1].decode(errors="backslashreplace"))
    done = Done(status, said[0].decode(errors="surrogateescape"), said[1].decode())
    expect_nothing_wrong_with_us(done.log)
    return done


class Started(Attended):
    """A program under socksify, and the two processes that are there for it."""

    def find(self) -> None:
        """Wait until the program is there."""
        self.front = self.process.pid
        [self.supervisor] = until("there is a supervisor", lambda: children(self.front))
        [self.program] = until("there is a program", lambda: children(self.supervisor))
        words = _command_of(self.front)
        until("it has been executed", lambda: _command_of(self.program) != words)

    @property
    def pids(self) -> list[int]:
        return [self.front, self.supervisor, self.program]


@contextlib.contextmanager
def started(*program: str, **named: Any) -> Iterator[Started]:
    """Start a program that stays; it is killed in the end. No process may be left."""
    words, popen = _split(named)
    pids = []
    with attended(Started, *command(*program, **words), **popen) as one:
        try:
            one.find()
            pids = one.pids
            yield one
        finally:
            for pid in reversed(pids[1:]):
                if is_alive(pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
    until("nothing is left", lambda: not any(map(is_alive, pids)))


def _split(named: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part what is for `command` from what is for `Popen`."""
    ours = {name: named.pop(name) for name in command.__kwdefaults__ if name in named}
    return ours, named


def _command_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def python(code: str, *arguments: str) -> tuple[str, ...]:
    """Give the words that run a program of Python's."""
    return (PYTHON, "-IS", "-c", code, *arguments)


# What such a program may begin with: the name of what a call fails with, "" if it does not.
NUMBER = """
import errno
def number(function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return ""
"""


def expect_isolation() -> None:
    """Skip where no user can have a network of its own."""
    done = subprocess.run([*as_user(), "unshare", "--user", "--net", "true"], capture_output=True)
    if done.returncode:
        pytest.skip(f"no user namespaces: {done.stderr.decode().strip()}")
