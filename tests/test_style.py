"""The linters are clean, the stubs are one stub, and no file names the place it was written in."""

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = sorted(path.name for path in (ROOT / "bin").iterdir())

STUB = """\
#!/usr/bin/python3 -IS
import os, sys
home = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
python = "%s/lib/python%d.%d/" % (home, *sys.version_info[:2])
sys.path += (home + "/lib", python + "site-packages", python + "dist-packages")
from muonsocks.tools import run
run("{module}"{more})
"""
SERVERS = {
    "muonsocks",
    "socketbox",
    "socketbox-inetd",
    "socketbox-preload",
    "socksify",
}  # their standard input and output are nobody's


def lint(program: str, *arguments: str) -> None:
    """Run one of the linters that tests/run installs; what it says is the failure."""
    usual = Path.home() / ".cache/muonsocks-tests/linters/bin"
    place = os.environ.get("MUONSOCKS_LINTERS", str(usual))
    binary = shutil.which(program, path=place)
    if not binary:
        pytest.skip(f"no {program} here: tests/run installs the right one")
    done = subprocess.run([binary, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_check() -> None:
    lint("ruff", "check", "--output-format=concise", ".")


def test_ruff_format() -> None:
    lint("ruff", "format", "--check", "--diff", ".")


def test_mypy_strict() -> None:
    lint("mypy")  # pyproject.toml says of what, and how strictly


@pytest.mark.parametrize("program", PROGRAMS)
def test_program(program: str) -> None:
    stub = ROOT / "bin" / program
    module = program.replace("-", "_")
    more = ", has_peer=False" if program in SERVERS else ""
    assert stub.read_text() == STUB.format(module=module, more=more)
    assert stub.stat().st_mode & 0o111 == 0o111
    assert (ROOT / f"lib/muonsocks/tools/{module}.py").is_file()
    assert [page.suffix for page in (ROOT / "man").glob(f"{program}.[18]")], "no manual page"


def test_every_tool_has_a_program() -> None:
    modules = (ROOT / "lib/muonsocks/tools").glob("[!_]*.py")
    tools = {path.stem for path in modules if "\ndef main(" in path.read_text()}
    assert tools == {name.replace("-", "_") for name in PROGRAMS}


@functools.cache
def our_files() -> dict[str, str]:
    """The text of everything that is tracked, or would be by `git add -A`."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not a git checkout, so it is not known which files are ours: {error}")
    names = listed.stdout.rstrip("\0").split("\0")
    return {n: (ROOT / n).read_text("utf-8", "replace") for n in names if (ROOT / n).is_file()}


def found(words: set[str]) -> list[str]:
    """Where one of these stands in a file of ours, as `file:line: word`."""
    pattern = re.compile("|".join(map(re.escape, sorted(words))))
    return [
        f"{name}:{number}: {match[0]}"
        for name, text in our_files().items()
        for number, line in enumerate(text.splitlines(), 1)
        if (match := pattern.search(line))
    ]


def test_no_file_names_the_place_it_was_written_in() -> None:
    shared = {"", "tmp", "usr", "var", "opt", "srv", "mnt", "run"}  # a path there may be meant
    places = {f"/{path.parts[1]}/" for path in (ROOT, Path.home()) if path.parts[1:]}
    places -= {f"/{name}/" for name in shared}
    assert not places or not found(places | {str(ROOT)})


def test_no_file_names_a_package_registry() -> None:
    hosts = {".".join(name) for name in (("pypi", "org"), ("pythonhosted", "org"))}
    hosts |= {".".join(name) for name in (("deb", "debian", "org"), ("npmjs", "org"))}
    settings = [Path("/etc/pip.conf"), *Path("/etc/apt").glob("sources.list*")]
    settings += [*Path("/etc/apt/sources.list.d").glob("*"), Path.home() / ".config/pip/pip.conf"]
    for path in settings:
        if path.is_file() and os.access(path, os.R_OK):
            hosts |= set(re.findall(r"https?://(?:[^/@\s]*@)?([\w.-]+\.[\w.-]+)", path.read_text()))
    assert not found(hosts)
