"""What the process list shows of this process: its command line, and no secrets in that."""

from __future__ import annotations

import os

from muonsocks.errors import UsageError


def hide_argument(value: str, secret: str, hint: str) -> None:
    """Overwrite a secret in the value of an option where ps and /proc/PID/cmdline show it.
    UsageError where that fails, with the hint of where else to put it.
    """
    try:
        _overwrite(os.fsencode(value), os.fsencode(secret))
    except OSError as error:
        problem = f"a password cannot be hidden from the process list: {error.strerror}"
        raise UsageError(problem, hint) from None


def hide_password(url: str, hint: str) -> None:
    """Overwrite the password in a URL, if it has one, in the same way."""
    secret = url.rpartition("@")[0].partition("://")[2].partition(":")[2]
    if secret:
        hide_argument(url, secret, hint)


def _overwrite(value: bytes, secret: bytes) -> None:
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, proc(5)
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(start)
        line = memory.read(end - start)
        shown = line.split(b"\0")
        hidden = [
            word.replace(secret, b"*" * len(secret)) if word.endswith(value) else word
            for word in shown
        ]
        memory.seek(start)
        memory.write(b"\0".join(hidden))
