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


def image(place: Path, *, systemd: bool = False) -> qemu.Image:
    """What a virtual machine boots from, with the checkout's programs in /usr/local."""
    if reason := qemu.missing(systemd=systemd):
        pytest.skip(reason)
    trees = {ROOT / "bin": "/usr/local/bin", ROOT / "lib": "/usr/local/lib"}
    return qemu.build(place, trees, systemd=systemd)


def boot(guest: qemu.Guest) -> None:
    try:
        guest.restart()
    except qemu.BootError as error:
        if "CI" in os.environ:
            raise  # there it is known to boot, and this is what it is all for
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def guest_image(tmp_path_factory: pytest.TempPathFactory) -> qemu.Image:
    return image(tmp_path_factory.mktemp("guest"))


@pytest.fixture(scope="session")
def shared_guest(guest_image: qemu.Image) -> Iterator[qemu.Guest]:
    """The virtual machine of all tests that have no other; it may be off."""
    with contextlib.closing(qemu.Guest(guest_image)) as guest:
        yield guest


@pytest.fixture
def guest(shared_guest: qemu.Guest) -> Iterator[qemu.Guest]:
    """The shared virtual machine, on, and with a port that is new and listens.

    Tests that use it are marked `qemu` and xdist_group("qemu"): there is one at a time.
    """
    if shared_guest.is_running():
        shared_guest.replug(calls=False)
    else:
        boot(shared_guest)
    yield shared_guest
    try:
        shared_guest.resume()
        shared_guest.end_programs()
    except GuestGone:
        pass  # which was what the test is about
    except (TimeoutError, subprocess.TimeoutExpired):
        shared_guest.kill()  # the next test gets another
        raise


@pytest.fixture(scope="module")
def systemd_guest(
    shared_guest: qemu.Guest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[qemu.Guest]:
    """A virtual machine with systemd, for a module that does not use the shared one."""
    shared_guest.close()  # one at a time
    guest = qemu.Guest(image(tmp_path_factory.mktemp("systemd"), systemd=True))
    with contextlib.closing(guest):
        boot(guest)
        yield guest
