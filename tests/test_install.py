"""`pip install --prefix` gives a prefix that works: programs, library, units and pages."""

import importlib.util
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import muonsocks

ROOT = Path(__file__).resolve().parents[1]
PYTHON = "/usr/bin/python3"
pytestmark = pytest.mark.xdist_group("install")  # one installation serves them all


class Installed(NamedTuple):
    home: Path  # what holds bin/, lib/ and share/
    files: frozenset[Path]  # below home, as pip left them
    checkout: Path  # the copy that was installed from


def git(*arguments: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """An installation from a copy of the checkout, which is left as clean as it is."""
    for module in ("pip", "setuptools", "wheel"):
        if subprocess.run([PYTHON, "-c", f"import {module}"], capture_output=True).returncode:
            pytest.skip(f"{PYTHON} has no {module}")
    try:
        names = git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not a git checkout, so it is not known which files are ours: {error}")
    place = tmp_path_factory.mktemp("install")
    checkout, prefix = place / "checkout", place / "prefix"
    for name in names.rstrip("\0").split("\0"):
        if (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, checkout / name)
    git("init", "-q", cwd=checkout)
    git("add", "-A", cwd=checkout)

    pip = [PYTHON, "-m", "pip", "--isolated", "install", "--no-deps", "--no-build-isolation"]
    pip += ["--no-index", "--prefix", str(prefix), "."]
    done = subprocess.run(pip, cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    [program] = prefix.rglob("bin/socks-inetd")  # Debian's pip installs below prefix/local
    home = program.parents[1]
    files = frozenset(p.relative_to(home) for p in home.rglob("*") if p.is_file())
    yield Installed(home, files, checkout)
    shutil.rmtree(place)


def greet(program: Path) -> None:
    """Offer "no authentication" to a program of one connection, and be accepted (RFC 1928)."""
    ours, theirs = socket.socketpair()
    with ours:
        ours.settimeout(30)
        with theirs:
            process = subprocess.Popen(
                [program], stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, cwd="/", text=True
            )
        with process:
            ours.sendall(b"\x05\x01\x00")
            try:
                answer = ours.recv(100)
            except ConnectionResetError:  # it died; its last words say more
                answer = b""
            ours.close()
            log = process.communicate(timeout=30)[1]
    assert answer == b"\x05\x00", log
    assert process.returncode == 0, log


def test_programs_are_installed_as_they_are(installed: Installed) -> None:
    for stub in (ROOT / "bin").iterdir():
        copy = installed.home / "bin" / stub.name
        assert copy.read_text() == stub.read_text()
        assert copy.read_text().startswith("#!/usr/bin/python3 -IS\n")
        assert os.access(copy, os.X_OK)


def test_every_module_is_installed_and_compiled(installed: Installed) -> None:
    python = {file for file in installed.files if file.suffix == ".py"}
    below = {str(file).partition("-packages/")[2] for file in python}
    lib = ROOT / "lib"
    assert below == {str(path.relative_to(lib)) for path in lib.rglob("*.py")}
    compiled = {Path(importlib.util.cache_from_source(str(file))) for file in python}
    assert compiled <= installed.files


def test_pages_are_installed(installed: Installed) -> None:
    pages = {f"share/man/man{p.suffix[1:]}/{p.name}" for p in (ROOT / "man").iterdir()}
    assert pages
    assert pages == {str(file) for file in installed.files if "share/man" in str(file)}


def test_units_are_installed(installed: Installed) -> None:
    units = {path.name: path for path in (ROOT / "units").iterdir()}
    assert {"muonsocks.socket", "muonsocks@.service"} <= units.keys()
    assert {"muonsocks-relay.socket", "muonsocks-relay.service"} <= units.keys()
    assert {"muonsocks-resident.socket", "muonsocks-resident.service"} <= units.keys()
    for name, path in units.items():
        unit = path.suffix in (".service", ".socket")
        there = Path("lib/systemd/system" if unit else "share/doc/muonsocks", name)
        assert there in installed.files
        assert (installed.home / there).read_bytes() == path.read_bytes()


def test_the_checkout_is_left_as_it_was(installed: Installed) -> None:
    changes = git("status", "--porcelain", cwd=installed.checkout).splitlines()
    assert [line for line in changes if not line.startswith("A  ")] == []


def test_version(installed: Installed) -> None:
    for stub in (ROOT / "bin").iterdir():
        program = installed.home / "bin" / stub.name
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"{stub.name} {muonsocks.__version__}\n"


def test_an_installed_program_serves(installed: Installed) -> None:
    greet(installed.home / "bin/socks-inetd")


def test_it_serves_through_a_symlink(installed: Installed, tmp_path: Path) -> None:
    link = tmp_path / "proxy"
    link.symlink_to(installed.home / "bin/socks-inetd")
    greet(link)


def test_the_checkout_serves_through_a_symlink(tmp_path: Path) -> None:
    link = tmp_path / "proxy"
    link.symlink_to(ROOT / "bin/socks-inetd")
    greet(link)
