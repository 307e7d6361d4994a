"""Programs under socksify: as real processes, by an ordinary user, also at a terminal.

with started("sh", "-c", "read x") as launched:
    launched.supervisor, launched.program   # pids
"""

import contextlib
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from programs import PYTHON, ROOT, SECONDS, environment
from real_server import children, is_alive, until

SOCKSIFY = str(ROOT / "bin" / "socksify")
NOWHERE = "--proxy=socks5://127.0.0.1:1"  # for programs that do not connect
AS_NOBODY = (
    ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
    if os.geteuid() == 0 and shutil.which("setpriv")
    else ()
)  # an ordinary user without capabilities, as others are already
__all__ = ["AS_NOBODY", "NOWHERE", "PYTHON", "SOCKSIFY", "Launched", "Terminal", "run", "started"]


def run(*program: str, options: tuple[str, ...] = (NOWHERE,), **popen: Any) -> Any:
    """Run a program under socksify to its end: what `subprocess.run` gives, with text."""
    popen.setdefault("env", environment())
    popen.setdefault("stdin", subprocess.DEVNULL)
    popen.setdefault("stdout", subprocess.PIPE)
    popen.setdefault("stderr", subprocess.PIPE)
    before = popen.pop("before", AS_NOBODY)
    done = subprocess.run(
        [*before, SOCKSIFY, *options, *program], text=True, timeout=SECONDS, **popen
    )
    assert "Traceback" not in (done.stderr or "") and "this is a bug" not in (done.stderr or "")
    return done


class Launched:
    """A program under socksify, and the two processes that are there for it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.front = process.pid
        [self.supervisor] = until("there is a supervisor", lambda: children(self.front))
        [self.program] = until("there is a program", lambda: children(self.supervisor))
        words = _command(self.front)
        until("it has been executed", lambda: _command(self.program) != words)

    def line(self) -> str:
        """Give the next line that the program says."""
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], SECONDS)[0], "it says nothing"
        return self.process.stdout.readline().rstrip("\n")

    def tell(self, line: str) -> None:
        """Give the program a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    @property
    def status(self) -> int:
        return self.process.wait(SECONDS)


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@contextlib.contextmanager
def started(
    *program: str, options: tuple[str, ...] = (NOWHERE,), **popen: Any
) -> Iterator[Launched]:
    """Start a program that stays, with pipes; it is killed in the end. No process may be left."""
    popen.setdefault("env", environment())
    before = popen.pop("before", AS_NOBODY)
    process = subprocess.Popen(
        [*before, SOCKSIFY, *options, *program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
        **popen,
    )
    pids = [process.pid]
    try:
        launched = Launched(process)
        pids += [launched.supervisor, launched.program]
        yield launched
    finally:
        for pid in reversed(pids):
            if pid != process.pid or process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    if is_alive(pid):
                        os.kill(pid, signal.SIGKILL)
        process.wait(SECONDS)
        for file in (process.stdin, process.stdout, process.stderr):
            assert file is not None
            with contextlib.suppress(BrokenPipeError):
                file.close()
    until("nothing is left", lambda: not any(map(is_alive, pids)))


class Terminal:
    """A shell with job control at a terminal, and who types there."""

    def __init__(self, *command: str) -> None:
        self.pid, self.fd = pty.fork()
        if not self.pid:
            environ = environment(PS1="$ ", TERM="dumb", HOME="/")
            with contextlib.suppress(OSError):
                os.execvpe(command[0], command, environ)
            os._exit(127)
        self.said = ""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def await_text(self, pattern: str) -> str:
        """Wait for what is said next, and forget it and all before it."""
        deadline = time.monotonic() + SECONDS
        while not (found := re.search(pattern, self.said)):
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self.fd], [], [], left)[0], (
                f"no {pattern!r} in {self.said!r}"
            )
            try:
                self.said += os.read(self.fd, 4096).decode()
            except OSError:
                raise AssertionError(f"no {pattern!r} before the end: {self.said!r}") from None
        self.said = self.said[found.end() :]
        return found[1] if found.groups() else found[0]

    def close(self) -> None:
        os.close(self.fd)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@contextlib.contextmanager
def shell() -> Iterator[Terminal]:
    """An interactive bash, by an ordinary user."""
    terminal = Terminal(*AS_NOBODY, "bash", "--norc", "--noediting", "-i")
    try:
        terminal.type(f"s='{SOCKSIFY} {NOWHERE}'; stty -echo; echo re''ady\n")
        terminal.await_text("ready\r\n")
        yield terminal
    finally:
        terminal.close()
