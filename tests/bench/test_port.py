"""port.py measures a real port, in all the ways that it compares."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import qemu

pytestmark = [pytest.mark.qemu, pytest.mark.xdist_group("qemu")]

PORT = Path(__file__).with_name("port.py")


def test_all_ways() -> None:
    if reason := qemu.missing():
        pytest.skip(reason)
    command = [PORT, "--rounds=1", "--megabytes=2", "--trips=20"]
    environment = os.environ | {"MUONSOCKS_KERNEL": str(qemu.KERNEL)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = [re.split(r" *\| *", line)[1:-1] for line in done.stdout.splitlines()]
    assert rows[0][1:4] == ["raw", "plain", "mux"]
    for row in rows[2:]:
        raw, plain, mux, to_plain, to_raw = map(float, row[1:6])
        assert min(raw, plain, mux) > 0
        assert to_plain == pytest.approx(mux / plain, rel=0.05, abs=0.01)
        assert to_raw == pytest.approx(mux / raw, rel=0.05, abs=0.01)
    assert [row[0] for row in rows[2:]] == ["down, MB/s", "up, MB/s", "64-byte round trip, ms"]
