"""A program that stays, which is told lines and says some: as an ordinary user."""

import contextlib
import os
import pwd
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import IO, Any, TypeVar

import pytest
from programs import ROOT, SECONDS, environment

# An ordinary user without capabilities, as others than root are already.
AS_NOBODY = (
    ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
    if os.geteuid() == 0 and shutil.which("setpriv")
    else ()
)


def as_user() -> tuple[str, ...]:
    """Give the words before those of a program that is to be an ordinary user's. Skips where nobody
    but root may read this tree.
    """
    if (
        AS_NOBODY
        and subprocess.run([*AS_NOBODY, "test", "-x", ROOT / "bin" / "socksify"]).returncode
    ):
        pytest.skip(f"an ordinary user cannot read {ROOT}")
    return AS_NOBODY


def expect_nothing_wrong_with_us(log: str) -> None:
    """Hold that what has been said on standard error has no fault of ours in it."""
    assert "this is a bug" not in log
    assert "Error(" not in log
    assert "lib/muonsocks" not in log  # as in a traceback of ours; programs may have theirs


@contextlib.contextmanager
def directory() -> Iterator[str]:
    """A directory that the programs may write to."""
    with tempfile.TemporaryDirectory() as place:
        if AS_NOBODY:
            os.chown(place, pwd.getpwnam("nobody").pw_uid, -1)
        os.chmod(place, 0o755)
        yield place


class Attended:
    """It, and what it says."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self.process = process
        self._log = log
        self._whole_log: str | None = None
        self._said = b""

    @property
    def log(self) -> str:
        """What has been said on standard error."""
        if self._whole_log is not None:
            return self._whole_log
        return os.pread(self._log.fileno(), 1 << 24, 0).decode(errors="backslashreplace")

    def log_is_complete(self) -> None:
        """Keep the log: its file is about to be closed."""
        self._whole_log = self.log

    def line(self) -> str:
        """Give the next line that it says; "" at its end."""
        while b"\n" not in self._said and self._hear():
            pass
        line, _, self._said = self._said.partition(b"\n")
        return line.decode()

    def rest(self) -> str:
        """Give what it says up to the end."""
        while self._hear():
            pass
        rest, self._said = self._said.decode(), b""
        return rest

    def _hear(self) -> bytes:
        assert self.process.stdout is not None
        out = self.process.stdout.fileno()
        assert select.select([out], [], [], SECONDS)[0], f"it says nothing; its log: {self.log}"
        data = os.read(out, 1 << 16)
        self._said += data
        return data

    def tell(self, line: str = "") -> None:
        """Give it a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    @property
    def status(self) -> int:
        """Wait for its end, which it may have to be told."""
        return self.process.wait(SECONDS)

    def end(self) -> int:
        """Close its input, and wait for its end: give the status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.status


A = TypeVar("A", bound=Attended)


@contextlib.contextmanager
def attended(kind: type[A], *command: str, patience: float = 0, **popen: Any) -> Iterator[A]:
    """Start a program with pipes to its input and from its output.

    One that has not ended with the block is told to, and killed when it has not done so in
    `patience` seconds.
    """
    popen.setdefault("env", environment())
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, **popen
        )
        one = kind(process, log)
        try:
            yield one
        finally:
            for file in (process.stdin, process.stdout):
                assert file is not None
                with contextlib.suppress(BrokenPipeError):
                    file.close()
            if process.poll() is None:
                process.send_signal(signal.SIGTERM if patience else signal.SIGKILL)
            try:
                process.wait(patience or SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            one.log_is_complete()
            sys.stderr.write(one.log)  # pytest shows it with a failure
    expect_nothing_wrong_with_us(one.log)
