"""Programs that tests compile, to where any user can run them."""

import os
import subprocess
from pathlib import Path

import pytest
from clients import which

# Go compiles its library for each new cache, which takes longer than all that a test does.
_CACHE = os.environ.get("MUONSOCKS_TEST_CACHE") or Path.home() / ".cache" / "muonsocks-tests"
_ENVIRON = {"CGO_ENABLED": "0", "GO111MODULE": "off", "GOCACHE": f"{_CACHE}/go-build"}


def compiled(place: str | Path, source: Path, *words: str, libraries: tuple[str, ...] = ()) -> str:
    """Compile a program into a directory; give where it is. Skips without that compiler."""
    if not which(words[0]):
        pytest.skip(f"no {words[0]} here: tests/run installs it")
    result = Path(place) / source.stem
    done = subprocess.run(
        [*words, "-o", str(result), str(source), *libraries],
        env={**os.environ, **_ENVIRON},
        capture_output=True,
        text=True,
        timeout=110,
    )
    if "ares.h" in done.stderr:
        pytest.skip("no c-ares to compile with: tests/run installs libc-ares-dev")
    assert done.returncode == 0, done.stderr
    result.chmod(0o755)
    return str(result)


GO = ("go", "build")
