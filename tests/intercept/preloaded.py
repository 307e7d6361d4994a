"""Programs under socketbox-preload: as real processes, by an ordinary user.

with preloaded(WHERE.format(path), code=SERVER) as server, Front(path) as front:
    client = front.client()
    server.line()
"""

import contextlib
import os
import pwd
import select
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launched import AS_NOBODY
from programs import PYTHON, ROOT, SECONDS, environment

PRELOAD = str(ROOT / "bin" / "socketbox-preload")
# What the programs of tests begin with.
START = """
import errno, os, select, signal, socket, struct, sys, threading
from socket import *
def say(*words): print(*words, flush=True)
def listener(host="127.0.0.1", port=8000, **options):
    sock = socket.socket(AF_INET6 if ":" in host else AF_INET)
    sock.bind((host, port)); sock.listen(5)
    return sock
def failure(call, *arguments):
    try: call(*arguments)
    except OSError as error: return errno.errorcode[error.errno]
"""
START = START.replace("socket.socket(", "socket(")


@contextlib.contextmanager
def directory() -> Iterator[str]:
    """A directory that the programs may write to."""
    with tempfile.TemporaryDirectory() as place:
        if AS_NOBODY:
            os.chown(place, pwd.getpwnam("nobody").pw_uid, -1)
        os.chmod(place, 0o755)
        yield place


class Preloaded:
    """A program under socketbox-preload."""

    def __init__(self, process: subprocess.Popen[str], log: Any) -> None:
        self.process = process
        self._log = log
        self._said = ""

    @property
    def log(self) -> str:
        return os.pread(self._log.fileno(), 1 << 24, 0).decode()

    def line(self) -> str:
        """Give the next line that the program says; "" at its end."""
        assert self.process.stdout is not None
        out = self.process.stdout.fileno()
        while "\n" not in self._said:
            assert select.select([out], [], [], SECONDS)[0], self.log
            data = os.read(out, 1 << 16)
            if not data:
                break
            self._said += data.decode()
        line, _, self._said = self._said.partition("\n")
        return line

    def tell(self, line: str = "") -> None:
        """Give the program a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    @property
    def status(self) -> int:
        return self.process.wait(SECONDS)


@contextlib.contextmanager
def preloaded(
    *options: str,
    code: str = "",
    program: tuple[str, ...] = (),
    before: tuple[str, ...] = AS_NOBODY,
    variables: dict[str, str] | None = None,
) -> Iterator[Preloaded]:
    """Run a program, or some Python, until the end of the block; it is killed if it has not ended
    then. What it says on standard error is the log.
    """
    program = program or (PYTHON, "-c", START + code)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*before, PRELOAD, *options, *program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            bufsize=1,
            env=environment(**(variables or {})),
        )
        server = Preloaded(process, log)
        try:
            yield server
        finally:
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            print(server.log)  # pytest shows it with a failure
        assert "this is a bug" not in server.log
        # Of ours, if any: Python programs that are killed have some of their own.
        assert "lib/muonsocks" not in server.log


def needs(*names: str) -> str:
    """Name the programs that are not there, or ""."""
    return ", ".join(name for name in names if shutil.which(name, path=PATH) is None)


PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
HERE = Path(__file__).parent
