"""Makes the modules beside the tests importable, and has what several of them use."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PYTHON = "/usr/bin/python3"
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prefix with everything in it as pip puts it there; it holds bin/, lib/ and share/."""
    for module in ("pip", "setuptools", "wheel"):
        if subprocess.run([PYTHON, "-c", f"import {module}"], capture_output=True).returncode:
            pytest.skip(f"{PYTHON} has no {module}")
    place = tmp_path_factory.mktemp("installed")
    source, prefix = place / "source", place / "prefix"
    # pip builds in the source tree, which is not ours to write into
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "tests")
    shutil.copytree(ROOT, source, ignore=ignored)
    pip = [PYTHON, "-m", "pip", "--isolated", "install", "--no-deps", "--no-index"]
    done = subprocess.run(
        [*pip, "--no-build-isolation", f"--prefix={prefix}", "."],
        cwd=source,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [program] = prefix.rglob("bin/socks-inetd")  # Debian's pip installs below prefix/local
    return program.parents[1]
