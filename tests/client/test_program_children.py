"""What multiprocessing starts goes through the proxies as well."""

from pathlib import Path

import pytest
from test_program import LIB, outcome, run

PROGRAM = """\
import os, socket, sys
{before}
def ask(name):
    return socket.socket.__name__, socket.gethostbyname(name)

if __name__ == "__main__":
    import multiprocessing
    os.environ.clear()
    os.chdir("/")
    with multiprocessing.get_context({way!r}).Pool(1) as pool:
        print(*pool.map(ask, ["a.example"]))
"""
FOUND = "('ProgramSocket', '198.18.0.1')\n"


@pytest.mark.parametrize("before", ["", "import multiprocessing.spawn"])
@pytest.mark.parametrize("way", ["fork", "spawn", "forkserver"])
def test_processes(tmp_path: Path, way: str, before: str) -> None:
    (tmp_path / "p.py").write_text(PROGRAM.format(way=way, before=before))
    assert outcome(run(tmp_path, "p.py")) == (0, FOUND, "")


def test_multiprocessing_has_been_loaded_before(tmp_path: Path) -> None:
    """By site, or a .pth file of its; and the children have it, too."""
    (tmp_path / "sitecustomize.py").write_text("import multiprocessing.spawn\n")
    (tmp_path / "p.py").write_text(PROGRAM.format(way="spawn", before=""))
    done = run(tmp_path, "p.py", PYTHONPATH=f"{LIB}:{tmp_path}")
    assert outcome(done) == (0, FOUND, "")


def test_processes_of_processes(tmp_path: Path) -> None:
    program = PROGRAM.format(way="spawn", before="").replace(
        '.Pool(1) as pool:\n        print(*pool.map(ask, ["a.example"]))',
        ".Manager() as manager:\n"
        "        process = multiprocessing.get_context('spawn').Process(target=again)\n"
        "        process.start(); process.join(); print(process.exitcode)",
    )
    program = program.replace(
        "if __name__",
        "def again():\n"
        "    import multiprocessing\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(*pool.map(ask, ['a.example']), flush=True)\n\n"
        "if __name__",
    )
    (tmp_path / "p.py").write_text(program)
    assert outcome(run(tmp_path, "p.py")) == (0, f"{FOUND}0\n", "")
