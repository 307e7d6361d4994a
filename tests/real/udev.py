"""udev for the virtual machine: it gives virtio ports their names, and systemd units for them.

It is this host's, or where there is none (in a container, say) the one that tests/run unpacks.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from initramfs import Tree

UNPACKED = Path(os.environ.get("MUONSOCKS_UDEV", str(Path.home() / ".cache/muonsocks-tests/udev")))
# The second is systemd's own; the others have to do with hardware that is not there.
RULES = ("50-udev-default.rules", "99-systemd.rules")
WANTED = (
    "sysinit.target.wants/systemd-udevd.service",
    "sysinit.target.wants/systemd-udev-trigger.service",
    "sockets.target.wants/systemd-udevd-control.socket",
    "sockets.target.wants/systemd-udevd-kernel.socket",
)


def missing() -> str | None:
    """Why there is no udev, or None."""
    try:
        _file("bin/udevadm")
    except FileNotFoundError:
        return f"no udev here, nor in {UNPACKED}: tests/run unpacks it (Debian package udev)"
    return None


def add(tree: Tree) -> None:
    """Have it started with systemd."""
    tree.file("/usr/bin/udevadm", _file("bin/udevadm").read_bytes(), 0o755)
    tree.link("/usr/lib/systemd/systemd-udevd", "/usr/bin/udevadm")
    tree.needs(_file("bin/udevadm"))
    for wants in WANTED:
        unit = os.path.basename(wants)
        tree.file(
            f"/usr/lib/systemd/system/{unit}", _file(f"lib/systemd/system/{unit}").read_bytes()
        )
        tree.link(f"/etc/systemd/system/{wants}", f"/usr/lib/systemd/system/{unit}")
    for rules in RULES:
        tree.file(f"/usr/lib/udev/rules.d/{rules}", _file(f"lib/udev/rules.d/{rules}").read_bytes())


def _file(name: str) -> Path:
    for top in (Path("/"), UNPACKED):
        for path in (top / name, top / "usr" / name):  # the second since Debian 13
            if path.exists():
                return path
    raise FileNotFoundError(name)
