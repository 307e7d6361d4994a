"""Makes the modules beside the tests importable, and has what several of them use."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PYTHON = "/usr/bin/python3"
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))

import qemu  # noqa: E402
from guest_link import GuestGone  # noqa: E402


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


@pytest.fixture(scope="session")
def guest_image(tmp_path_factory: pytest.TempPathFactory) -> qemu.Image:
    """What a virtual machine boots from, with the checkout's programs in /usr/local."""
    if reason := qemu.missing():
        pytest.skip(reason)
    trees = {ROOT / "bin": "/usr/local/bin", ROOT / "lib": "/usr/local/lib"}
    return qemu.build(tmp_path_factory.mktemp("guest"), trees)


@pytest.fixture(scope="session")
def booted_guest(guest_image: qemu.Image) -> Iterator[qemu.Guest]:
    guest = qemu.Guest(guest_image)
    try:
        guest.__enter__()
    except qemu.BootError as error:
        if "CI" in os.environ:
            raise  # there it is known to boot, and this is what it is all for
        pytest.skip(str(error))
    with contextlib.closing(guest):
        yield guest


@pytest.fixture
def guest(booted_guest: qemu.Guest) -> Iterator[qemu.Guest]:
    """The virtual machine that all tests share, with a port that is new and listens."""
    if booted_guest.is_running():
        booted_guest.replug(calls=False)
    else:
        booted_guest.restart()
    yield booted_guest
    try:
        booted_guest.resume()
        booted_guest.end_programs()
    except GuestGone:
        pass  # which was what the test is about
    except (TimeoutError, subprocess.TimeoutExpired):
        booted_guest.kill()  # the next test gets another
        raise
