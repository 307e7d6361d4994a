"""What tests/run leaves behind on the machine that it installs something on."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run")

# As apt-get would in a package's script: ask for a service to be enabled, and to be started.
APT_GET = """\
#!/bin/sh
test "$1" = update && exit
systemctl --root=/ --preset-mode=enable-only preset trial.service
test -x /usr/sbin/policy-rc.d && /usr/sbin/policy-rc.d trial start
echo "policy: $?"
exit 7
"""
UNIT = "[Service]\nExecStart=true\n[Install]\nWantedBy=multi-user.target\n"

# In mounts of its own, as the machine's are not to be touched.
SCRIPT = """\
set -e
mount --make-rprivate /
for place in /run /etc/systemd/system; do mount -t tmpfs tmpfs $place; done
mkdir /run/up /run/work
mount -t overlay overlay -o lowerdir=/usr/sbin,upperdir=/run/up,workdir=/run/work /usr/sbin
rm -f /usr/sbin/policy-rc.d
cp trial.service /etc/systemd/system
set +e
say() { echo "$*" >&2; }
eval "$(sed -n '/^as_root() {/,/^}/p; /^apt_install() {/,/^}/p' "$1")"
PATH=$PWD:$PATH
apt_install trial; echo "status: $?"
find /run/systemd /etc/systemd/system -not -type d -not -name trial.service -o -type l
ls /usr/sbin/policy-rc.d
"""


def test_what_is_installed_neither_starts_nor_is_enabled(tmp_path: Path) -> None:
    if os.geteuid() != 0 or not shutil.which("systemctl"):
        pytest.skip("needs root, and a systemctl (Debian package systemd)")
    (tmp_path / "apt-get").write_text(APT_GET)
    (tmp_path / "apt-get").chmod(0o755)
    (tmp_path / "trial.service").write_text(UNIT)
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", SCRIPT, "bash", str(RUN)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode == 32:
        pytest.skip(f"no such mounts here: {done.stderr}")
    assert done.stdout.splitlines() == ["policy: 101", "status: 7"], done.stdout + done.stderr
