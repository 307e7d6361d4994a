"""socksify as it is run by an ordinary user, and by root, and what it is run on."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from programs import PYTHON, ROOT, SECONDS, Outcome, environment

SOCKSIFY = str(ROOT / "bin" / "socksify")
AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
NOWHERE = "socks5h://127.0.0.1:1"  # a proxy that nobody is


def expect_isolation() -> None:
    """Skip where no user can have a network of its own."""
    done = subprocess.run([*as_user(), "unshare", "--user", "--net", "true"], capture_output=True)
    if done.returncode:
        pytest.skip(f"no user namespaces: {done.stderr.decode().strip()}")


def as_user() -> tuple[str, ...]:
    """Give the words before those of a program that is to be an ordinary user's."""
    if os.geteuid():
        return ()
    if subprocess.run([*AS_NOBODY, "test", "-x", SOCKSIFY]).returncode:
        pytest.skip("an ordinary user cannot read this checkout")
    return AS_NOBODY


def socksify(*words: str, before: tuple[str, ...] = (), seconds: float = SECONDS) -> Outcome:
    """Run it to its end."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [*before, SOCKSIFY, *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env=environment(HOME="/"),
        )
        try:
            status = process.wait(seconds)
        finally:
            process.kill()
            process.wait()
            said = [os.pread(file.fileno(), 1 << 24, 0) for file in (output, errors)]
            sys.stderr.write(said[1].decode(errors="replace"))  # pytest shows it with a failure
    log = said[1].decode()
    assert "this is a bug" not in log
    return Outcome(status, said[0], log)


def python(program: str, *arguments: str) -> tuple[str, ...]:
    """Give the words that run a program of Python's."""
    return (PYTHON, "-IS", "-c", program, *arguments)


def network_of(process: str = "self") -> str:
    """Name the network namespace of a process."""
    return os.readlink(f"/proc/{process}/ns/net")


def networks() -> set[str]:
    """Name the network namespaces that there are processes in."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                found.add(network_of(entry.name))
            except OSError:
                continue  # it has ended
    return found
