"""preload.py measures what it says."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PRELOAD = Path(__file__).with_name("preload.py")

pytestmark = pytest.mark.xdist_group("bench")  # one at a time: each keeps all the CPUs busy


def test_all_rows() -> None:
    if not shutil.which("cc"):
        pytest.skip("no cc here: tests/run installs it")
    command = [sys.executable, PRELOAD, "--connections=200", "--rounds=3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    _, *lines, verdict = done.stdout.splitlines()
    rows = {line[:30].strip(): [float(word) for word in line[30:].split()] for line in lines}
    senders, receivers = ("C", "socketbox"), ("a receiver in C", "socketbox-preload")
    assert rows.keys() == {"native", *(f"{one}, {two}" for one in senders for two in receivers)}
    native = rows["native"][0]
    for middle, least, most, ratio in rows.values():
        assert 0 < least <= middle <= most
        assert ratio == pytest.approx(middle / native, abs=0.02)
    assert min(rows, key=lambda name: rows[name][0]) == "native"
    ratio = rows["C, socketbox-preload"][3]
    reached = "reached" if ratio <= 2.2 else "short"
    assert verdict == f"C, socketbox-preload: 2.2 times native at most: {reached}"
