"""The units of virtio-mux's guest as shipped, in a virtual machine: with udev, and a real port."""

import contextlib
import hashlib
import http.server
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import qemu
from nspawn import assert_is_confined
from qemu import Guest

pytestmark = [pytest.mark.qemu, pytest.mark.xdist_group("qemu")]

ROOT = Path(__file__).parents[2]
SERVICE, SOCKET = "virtio-mux-guest.service", "virtio-mux-guest.socket"
START = "virtio-mux-guest-start.service"
DEVICE = r"dev-virtio\x2dports-org.muonsocks.0.device"
PROXY = "socks5h://127.0.0.1:1080"
MUCH = os.urandom(5 << 20)
SECONDS = 30

# The program, and who takes his time when systemd stops the service: it has a stop job then.
SLOW_SERVICE = b"""
[Service]
Type=exec
NotifyAccess=none
WatchdogSec=0
ExecStart=
ExecStart=sh /run/slow.sh
"""
SLOW = b"""
trap : TERM
sh -c 'LISTEN_PID=$$ exec virtio-mux guest -'
until [ -e /run/may-stop ]; do sleep 0.1; done
"""


class Pages(http.server.BaseHTTPRequestHandler):
    """Gives what is much for every page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(MUCH)

    def log_message(self, format: str, *values: object) -> None:
        """Nobody reads it."""


class Port:
    """The port that can be taken out of the guest, and put in."""

    def __init__(self, guest: Guest) -> None:
        chardevs = guest.monitor("query-chardev")
        assert isinstance(chardevs, list)
        [self._chardev] = [one["label"] for one in chardevs if one["label"].startswith("port")]
        self._device, self._number = self._chardev, int(self._chardev.removeprefix("port"))
        self._guest = guest

    def unplug(self) -> None:
        self._guest.monitor("device_del", id=self._device)

    def plug(self) -> None:
        """Put it in, with another number, as soon as QEMU has taken it out."""
        self._number = 5 - self._number
        self._device = f"{self._chardev}-{time.monotonic_ns()}"
        device = {"nr": self._number, "chardev": self._chardev, "name": qemu.PORT}
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                self._guest.monitor(
                    "device_add", driver="virtserialport", id=self._device, **device
                )
                return
            except RuntimeError as error:
                if "in use" not in str(error) or time.monotonic() > deadline:
                    raise


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A page on this host."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def enabled(systemd_guest: Guest) -> Guest:
    """The guest, with the units enabled; its port was there before."""
    for unit in (SERVICE, SOCKET, START):
        text = (ROOT / "units" / unit).read_bytes()
        systemd_guest.put(f"/usr/local/lib/systemd/system/{unit}", text)
    systemd_guest.run(f"systemctl daemon-reload && systemctl enable --now {SERVICE}")
    return systemd_guest


@pytest.fixture
def vm(enabled: Guest) -> Iterator[Guest]:
    """The same, where nothing may have failed in the end."""
    yield enabled
    assert enabled.run("systemctl --failed --no-legend").stdout == ""
    enabled.run(f"systemctl reset-failed {SERVICE}")  # how often it was started


@pytest.fixture(scope="module")
def port(enabled: Guest) -> Port:
    return Port(enabled)


@contextlib.contextmanager
def hosting(vm: Guest) -> Iterator[None]:
    """The program on the host, at the port there is now."""
    program = [ROOT / "bin/virtio-mux", "host", "--allow-local", "--quiet", vm.port]
    process = subprocess.Popen(program, stdin=subprocess.DEVNULL, stderr=sys.stderr)
    try:
        yield
    finally:
        process.terminate()
        assert process.wait(SECONDS) == 0


def fetch(vm: Guest, url: str) -> bool:
    """Have the guest get the page."""
    command = f"curl -sS --max-time {SECONDS} --proxy {PROXY} {url} | sha256sum"
    return vm.run(command).stdout.split()[0] == hashlib.sha256(MUCH).hexdigest()


def show(vm: Guest, name: str) -> str:
    return vm.run(f"systemctl show --property={name} --value {SERVICE}").stdout.strip()


def await_state(vm: Guest, unit: str, state: str) -> None:
    ask = f"systemctl show --property=ActiveState --value {shlex.quote(unit)}"
    vm.run(f'until [ "$({ask})" = {state} ]; do sleep 0.1; done', timeout=SECONDS)


def test_systemd_knows_the_port(vm: Guest) -> None:
    assert vm.run(f"systemctl is-active '{DEVICE}'").stdout == "active\n"
    assert show(vm, "ActiveState") == "active"


def test_it_starts_and_stops_with_the_port(vm: Guest, port: Port, url: str) -> None:
    for _ in range(2):
        port.unplug()
        await_state(vm, DEVICE, "inactive")
        await_state(vm, SERVICE, "inactive")
        assert vm.run(f"systemctl is-active {SOCKET}").stdout == "active\n"
        port.plug()
        await_state(vm, SERVICE, "active")  # and nobody has connected
    with hosting(vm):
        assert fetch(vm, url)


def test_clients_wait_for_the_port(vm: Guest, port: Port, url: str) -> None:
    port.unplug()
    await_state(vm, DEVICE, "inactive")
    await_state(vm, SERVICE, "inactive")
    command = f"curl -sS --max-time {SECONDS} --proxy {PROXY} --output /dev/null {url}"
    client = vm.start("/bin/sh", "-c", command)
    vm.run(f"until systemctl list-jobs | grep -q {SERVICE}; do sleep 0.1; done", timeout=SECONDS)
    port.plug()
    with hosting(vm):
        assert client.wait(SECONDS) == 0, client


def test_it_comes_back_while_the_service_is_stopped(vm: Guest, port: Port, url: str) -> None:
    drop_in = f"/run/systemd/system/{SERVICE}.d/slow.conf"
    vm.put("/run/slow.sh", SLOW)
    vm.put(drop_in, SLOW_SERVICE)
    vm.run(f"systemctl daemon-reload && systemctl restart {SERVICE}")
    try:
        port.unplug()
        await_state(vm, DEVICE, "inactive")
        vm.run(f"until systemctl list-jobs | grep '{SERVICE} *stop'; do sleep 0.1; done")
        port.plug()
        await_state(vm, DEVICE, "active")
        vm.run(f"until systemctl list-jobs | grep '{SERVICE} *start'; do sleep 0.1; done")
    finally:
        vm.run(f"rm {drop_in}; systemctl daemon-reload; touch /run/may-stop")
    await_state(vm, SERVICE, "active")
    with hosting(vm):
        assert fetch(vm, url)


def test_another_port_at_once(vm: Guest, port: Port, url: str) -> None:
    """It may be so fast that systemd does not stop the service."""
    before = show(vm, "MainPID")
    port.unplug()
    port.plug()
    pid = f"systemctl show --property=MainPID --value {SERVICE}"
    other = f'case "$({pid})" in 0 | {before}) false ;; esac'
    vm.run(f"until {other}; do sleep 0.1; done", timeout=SECONDS)
    with hosting(vm):
        assert fetch(vm, url)


def test_the_host_goes_and_comes(vm: Guest, url: str) -> None:
    with hosting(vm):
        assert fetch(vm, url)
    before = show(vm, "MainPID")
    began = time.monotonic()
    refused = vm.run(f"curl -sS --max-time {SECONDS} --proxy {PROXY} {url}", check=False)
    assert refused.returncode == 97 and "(1)" in refused.stderr
    assert time.monotonic() - began > 4
    with hosting(vm):
        assert fetch(vm, url)
    assert show(vm, "MainPID") == before


def test_users_can_be_read_again(vm: Guest, url: str) -> None:
    main = show(vm, "MainPID")
    vm.run(f"systemctl kill --kill-whom=main --signal=HUP {SERVICE}")
    vm.run(f"until journalctl _PID={main} | grep reloaded; do sleep 0.1; done")
    with hosting(vm):
        assert fetch(vm, url)
    assert show(vm, "MainPID") == main


def test_another_worker_goes_on_with_the_port(vm: Guest, url: str) -> None:
    with hosting(vm):
        assert fetch(vm, url)
        main = show(vm, "MainPID")
        vm.run(f"kill -KILL $(cat /proc/{main}/task/{main}/children)")
        assert fetch(vm, url)
        assert show(vm, "MainPID") == main


def test_all_its_processes_are_confined(vm: Guest) -> None:
    main = show(vm, "MainPID")
    worker = vm.run(f"cat /proc/{main}/task/{main}/children").stdout.strip()
    own = vm.run("readlink /proc/1/ns/net").stdout
    for pid in (main, worker):
        assert_is_confined(vm.run(f"cat /proc/{pid}/status").stdout)
        assert vm.run(f"readlink /proc/{pid}/fd/0").stdout.startswith("/dev/vport")
        assert vm.run(f"readlink /proc/{pid}/ns/net").stdout != own
        assert "vport" not in vm.run(f"cd /proc/{pid}/root; ls dev").stdout  # nor any other port
