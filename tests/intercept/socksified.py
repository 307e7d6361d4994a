"""Programs under socksify, as a user without any rights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from programs import PATH, PYTHON, SECONDS

ROOT = Path(__file__).resolve().parents[2]
SOCKSIFY = str(ROOT / "bin" / "socksify")
NOBODY = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
NO_PROXY = "socks5h://127.0.0.1:1"  # where nobody listens


def user() -> tuple[str, ...]:
    """What makes a command be run by one who is not root. Skips where nobody may read this tree."""
    if os.geteuid():
        return ()
    if subprocess.run([*NOBODY, "test", "-r", SOCKSIFY]).returncode:
        pytest.skip(f"the user nobody cannot read {ROOT}")
    return NOBODY


def socksified(
    *command: str,
    proxy: str = NO_PROXY,
    mode: str = "async",
    options: tuple[str, ...] = (),
    **environ: str,
) -> str:
    """Run a command; give what it prints. It has to succeed, and nothing may be wrong with us."""
    options = (f"--mode={mode}", *options)
    if proxy:
        options = (f"--proxy={proxy}", *options)
    done = subprocess.run(
        [*user(), SOCKSIFY, *options, "--", *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd="/",
        env={"PATH": PATH, **environ},
        timeout=SECONDS,
    )
    print(done.stderr, file=sys.stderr)
    assert "socksify[" not in done.stderr, done.stderr
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return done.stdout


def python(code: str, *arguments: str, **more: object) -> str:
    """Run Python code under socksify."""
    return socksified(PYTHON, "-c", code, *arguments, **more)  # type: ignore[arg-type]
