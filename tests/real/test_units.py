"""What systemd-analyze says of the units, as they are shipped."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "units"
UNIT_FILES = sorted(path.name for path in UNITS.iterdir() if path.suffix in (".socket", ".service"))
MOST_EXPOSED = {
    "muonsocks@.service": 20,
    "muonsocks-relay.service": 3,
    "muonsocks-resident.service": 12,
    "socketbox-inetd@.service": 2,
    "socketbox.service": 2,
    "virtio-mux-guest.service": 2,
    "virtio-mux-guest-start.service": 4,
    "virtio-mux-host@.service": 11,
}  # tenths


@pytest.fixture(autouse=True)
def _systemd_analyze() -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze here (Debian package systemd)")


@pytest.mark.parametrize("unit", UNIT_FILES)
def test_verify(unit: str, installed: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("to see the installed programs where systemd looks for them takes root")
    there = "/usr/local"
    script = 'mount --bind "$1" "$2" && exec systemd-analyze verify --man=no "$3"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", str(installed), there]
        + [f"{there}/lib/systemd/system/{unit}"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("unit", MOST_EXPOSED)
def test_exposure(unit: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSED[unit]}"]
        + ["--no-pager", str(UNITS / unit)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_service_has_its_exposure_looked_at() -> None:
    assert {name for name in UNIT_FILES if name.endswith(".service")} == MOST_EXPOSED.keys()
