"""The descriptors of who calls are those of the process that has the number now."""

import subprocess
from pathlib import Path

import pytest

PROGRAM = str(Path(__file__).with_name("other_process.py"))
APART = ["unshare", "--map-root-user", "--pid", "--fork", "--mount-proc"]


def test_a_number_that_another_process_gets() -> None:
    """What is kept of the first one does not lead to it, nor to the second one by mistake."""
    if subprocess.run([*APART, "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here: another process cannot be given a number")
    words = [*APART, "/usr/bin/python3", PROGRAM]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    assert not done.stderr
    assert done.stdout.split("\n")[:-2] == ["fir", "st", "gone", "sec", "ond", "gone"]
    assert done.stdout.endswith("\n[]\n"), "all is closed"
