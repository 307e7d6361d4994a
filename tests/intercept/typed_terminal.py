"""A shell with job control at a terminal, and who types there."""

import contextlib
import os
import pty
import re
import select
import signal
import time
from collections.abc import Iterator

from programs import SECONDS, environment
from socksified import NOWHERE, SOCKSIFY, as_user


class Terminal:
    """It, and what it says."""

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
    terminal = Terminal(*as_user(), "bash", "--norc", "--noediting", "-i")
    try:
        terminal.type(f"s='{SOCKSIFY} --proxy={NOWHERE}'; stty -echo; echo re''ady\n")
        terminal.await_text("ready\r\n")
        yield terminal
    finally:
        terminal.close()
