"""The virtual machine with systemd as process 1: a unit has the port, and nothing else."""

import pytest
import qemu
from qemu import Guest

pytestmark = [pytest.mark.qemu, pytest.mark.xdist_group("qemu")]

UNIT = f"""\
[Service]
DynamicUser=yes
PrivateDevices=yes
DeviceAllow=char-virtio-portsdev rw
PrivateUsers=yes
ProtectSystem=strict
ProtectHome=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_UNIX
SystemCallFilter=@system-service
StandardInput=file:/dev/virtio-ports/{qemu.PORT}
StandardOutput=file:/dev/virtio-ports/{qemu.PORT}
StandardError=journal
ExecStart=sh -c 'id -u >&2; exec cat'
"""


def test_it_has_booted(systemd_guest: Guest) -> None:
    assert systemd_guest.run("cat /proc/1/comm").stdout == "systemd\n"
    assert systemd_guest.run("systemctl is-active basic.target").stdout == "active\n"
    assert systemd_guest.run("systemctl --failed --no-legend").stdout == ""


def test_a_unit_serves_the_port_without_privilege(systemd_guest: Guest) -> None:
    systemd_guest.put("/etc/systemd/system/echo.service", UNIT.encode())
    with systemd_guest.connect() as host:
        systemd_guest.run("systemctl daemon-reload && systemctl start echo.service")
        host.sendall(b"hello")
        assert host.recv(5) == b"hello"
        systemd_guest.run("systemctl stop echo.service && journalctl --sync")
    said = systemd_guest.run("journalctl --unit=echo.service --output=cat").stdout
    [user] = [int(line) for line in said.splitlines() if line.isdigit()]
    assert user >= 61184  # systemd's range for such users


def test_it_boots_again(systemd_guest: Guest) -> None:
    systemd_guest.reset()
    assert systemd_guest.run("systemctl is-active basic.target").stdout == "active\n"
