"""The units of virtio-mux's guest, sandbox and all, under a real systemd as PID 1.

A container has no virtio port, and no devices that systemd would know: the service is without the
two lines that are about the device, and in its place is a terminal, which leads to the host's units
in the same machine. What only a virtual machine can show is in test_virtio_mux_device.py.
"""

import contextlib
import json
import re
import shlex
import time
from collections.abc import Iterator

import pytest
from booted import (
    MANY,
    PROBE,
    PROXY,
    WEB,
    curl,
    fetches,
    file,
    held,
    refused,
    start,
)
from nspawn import Machine, assert_is_confined
from test_systemd_resident import await_output, now, show
from test_virtio_mux_units import (  # the fixtures too
    HOST,
    INSTANCES,
    SOCKET,
    UNITS,
    booted,  # noqa: F401
    drop_in,
    journal_line,
    machine,  # noqa: F401
)

pytestmark = pytest.mark.xdist_group("systemd-virtio-mux")

GUEST, GUEST_SOCKET = "virtio-mux-guest.service", "virtio-mux-guest.socket"
START = "virtio-mux-guest-start.service"
PORT = "/dev/virtio-ports/org.muonsocks.0"
USERS = "/etc/muonsocks/users"

# A virtio port and QEMU, as far as a terminal can be one: what the guest writes goes to the host,
# and the other way round. While there is no host it is tried again and again, as reconnect=1 does.
QEMU = f"""
import contextlib, os, select, socket, time, tty
master, slave = os.openpty()
tty.setraw(slave)
os.makedirs(os.path.dirname("{PORT}"), exist_ok=True)
with contextlib.suppress(FileNotFoundError):
    os.unlink("{PORT}")
os.symlink(os.ttyname(slave), "{PORT}")
print("ready", flush=True)
while True:
    with socket.socket(socket.AF_UNIX) as host, contextlib.suppress(OSError):
        host.connect("{SOCKET}")
        while True:
            readable, _, _ = select.select([host, master], [], [])
            if master in readable:
                host.sendall(os.read(master, 65536))
            if host in readable:
                data = host.recv(65536)
                if not data:
                    break
                while data:
                    data = data[os.write(master, data):]
    time.sleep(0.2)
"""

# What may be reached at all from within the guest's unit.
REACH = f"""
import json, os, socket, sys
attempts = {{
    "connect to the web": lambda: socket.create_connection(("{WEB}", 80), 5),
    "look a name up": lambda: socket.getaddrinfo("web.example.invalid", 80),
    "make an internet socket": lambda: socket.socket(),
    "read a users file": lambda: open("/etc/shadow"),
    "have another virtio port": lambda: os.listdir("/dev/virtio-ports"),
}}
done = []
for name, attempt in attempts.items():
    try:
        attempt()
        done.append(name)
    except OSError:
        pass
print(json.dumps(done), file=sys.stderr)
"""


def without_device() -> str:
    """The service without the lines that are about the device's unit."""
    shipped = (UNITS / GUEST).read_text()
    text, count = re.subn(r"^(BindsTo|After)=dev-.*\n", "", shipped, flags=re.M)
    assert count == 2
    return text


@pytest.fixture(scope="module")
def with_port(booted: Machine) -> Machine:  # noqa: F811
    """The machine, with a port in it that leads to itself as the host."""
    booted.put(f"/etc/systemd/system/{GUEST}", without_device())
    booted.run("systemctl daemon-reload")
    start(booted, "ready", "/usr/bin/python3", "-c", QEMU)
    return booted


@pytest.fixture
def both(with_port: Machine, machine: Machine) -> Iterator[Machine]:  # noqa: F811
    """The same, ready to be connected to: the host and its guest."""
    machine.run(f"systemctl start {GUEST_SOCKET}")
    yield machine
    failed = machine.run("systemctl --failed --plain --no-legend").stdout
    machine.run(f"systemctl stop {GUEST_SOCKET} {GUEST}")
    # how often they were started, too; those that are not loaded any more have forgotten that
    machine.run(f"systemctl reset-failed {GUEST_SOCKET} {GUEST}", check=False)
    assert failed == ""


def guest_pids(both: Machine) -> list[str]:
    """The supervisor and its worker."""
    main = show(both, "MainPID", GUEST)
    return [main, *both.run(f"pgrep --parent {main}").stdout.split()]


@contextlib.contextmanager
def options(both: Machine, text: str) -> Iterator[None]:
    with file(both, "/etc/default/virtio-mux-guest", f"VIRTIO_MUX_GUEST_OPTIONS={text}\n"):
        yield


@pytest.mark.parametrize("listener", ["127.0.0.1:1080", "[::1]:1080"])
def test_it_starts_with_the_first_connection(both: Machine, listener: str) -> None:
    assert show(both, "ActiveState", GUEST) == "inactive"
    url = "http://web.example/page"
    assert fetches(curl(both, url, proxy=f"socks5h://{listener}"))
    await_output(both, f"systemctl is-active {GUEST}", "^active$")


def test_it_is_enabled_with_its_port(both: Machine) -> None:
    """By way of a unit that the port wants, and the socket with it."""
    both.run(f"rm /etc/systemd/system/{GUEST}; systemctl daemon-reload")  # as it is shipped
    try:
        both.run(f"systemctl enable {GUEST}")
        device = both.run(f"systemd-escape --path --suffix=device {PORT}").stdout.strip()
        wanted = shlex.quote(f"/etc/systemd/system/{device}.wants/{START}")
        both.run(f"test -L {wanted}")
        assert both.run(f"systemctl is-enabled {GUEST_SOCKET}").stdout == "enabled\n"
        for name in ("BindsTo", "After"):
            assert json.dumps(device) in show(both, name, GUEST).split()
        assert show(both, "OnSuccess", START) == GUEST
        both.run(f"systemctl disable {GUEST}")
        both.run(f"test ! -L {wanted}")
    finally:
        both.put(f"/etc/systemd/system/{GUEST}", without_device())
        both.run("systemctl daemon-reload")


def test_much(both: Machine) -> None:
    both.run("head -c 20M /dev/urandom > /srv/www/much")
    fetch = f"curl -sS --max-time 60 --proxy {PROXY} http://{WEB}/much | cmp - /srv/www/much"
    both.run(f"bash -c {shlex.quote(f'set -o pipefail; {fetch}')}")


def test_many_quick_connections(both: Machine) -> None:
    since = now(both)
    got = both.run("/usr/bin/python3 -", input=MANY, timeout=100).stdout
    log = f"journalctl --sync; journalctl --boot --since={since}"
    assert got == "400\n", both.run(f"{log} | grep -v reply=0", check=False).stdout


def test_it_takes_the_place_of_other_sockets(both: Machine) -> None:
    for other in ("muonsocks.socket", "muonsocks-resident.socket"):
        both.run(f"systemctl start {other}")
        assert show(both, "ActiveState", GUEST_SOCKET) == "inactive"
        both.run(f"systemctl start {GUEST_SOCKET}")
        assert show(both, "ActiveState", other) == "inactive"
        assert fetches(curl(both))


def test_without_a_host(both: Machine) -> None:
    """Clients are told so after a while, and the guest waits for the next host."""
    assert fetches(curl(both))
    since, pid = now(both), show(both, "MainPID", GUEST)
    both.run(f"systemctl stop {HOST} '{INSTANCES}'")
    journal_line(both, since, "^the host is not there any more: ", GUEST)
    began = time.monotonic()
    assert refused(curl(both), 1)
    assert time.monotonic() - began > 4
    both.run(f"systemctl start {HOST}")
    journal_line(both, since, "^the host is there$", GUEST)
    assert fetches(curl(both))
    assert show(both, "MainPID", GUEST) == pid


def test_options_from_the_default_file(both: Machine) -> None:
    since = now(both)
    with options(both, "--quiet"):
        assert fetches(curl(both))
    log = f"journalctl --sync; journalctl --boot --since={since} --unit={GUEST}"
    assert "client=" not in both.run(log).stdout


def test_wrong_usage_is_not_tried_again(both: Machine) -> None:
    since = now(both)
    with options(both, "--no-such-option"):
        assert both.run(f"systemctl start {GUEST}", check=False).returncode != 0
        journal_line(both, since, "status=100", GUEST)
        await_output(both, f"systemctl is-active {GUEST}", "^failed$")
        assert show(both, "NRestarts", GUEST) == "0"
    both.run(f"systemctl reset-failed {GUEST}; systemctl start {GUEST}")
    assert fetches(curl(both))


def test_users(both: Machine) -> None:
    alice = "socks5h://alice:secret@127.0.0.1:1080"
    sample = (UNITS / "muonsocks-users.conf").read_text()
    with file(both, USERS, "alice:secret\n", 0o600), drop_in(both, GUEST, sample):
        assert fetches(curl(both, proxy=alice))
        for proxy in (PROXY, "socks5h://alice:guess@127.0.0.1:1080", "socks4://127.0.0.1:1080"):
            assert curl(both, proxy=proxy).returncode == 97


def test_users_without_the_drop_in_let_nobody_in(both: Machine) -> None:
    with file(both, USERS, "alice:secret\n", 0o600):
        assert both.run(f"systemctl start {GUEST}", check=False).returncode != 0
        for proxy in (PROXY, "socks5h://alice:secret@127.0.0.1:1080"):
            assert curl(both, proxy=proxy).returncode in (7, 97)
    both.run(f"systemctl reset-failed; systemctl start {GUEST}")
    assert fetches(curl(both))


def test_status(both: Machine) -> None:
    with held(both):
        show_status = f"systemctl show --property=StatusText --value {GUEST}"
        await_output(
            both, show_status, "^host: there; connections: 1 open, 1 served, 0 refused; workers: 1$"
        )


def test_it_stops_when_clients_have_finished(both: Machine) -> None:
    since = now(both)
    with held(both):
        both.run(f"systemctl stop --no-block {GUEST}")
        await_output(both, f"systemctl is-active {GUEST}", "^deactivating$")
    journal_line(both, since, "^stopped, connections that were cut: 0$", GUEST)
    journal_line(both, since, "^the guest is not there any more: ")  # says the host
    await_output(both, f"systemctl is-active {GUEST}", "^inactive$")
    assert fetches(curl(both))


def test_a_worker_dies(both: Machine) -> None:
    """The port is the supervisor's too, and the next worker goes on with it."""
    assert fetches(curl(both))
    since = now(both)
    main, worker = guest_pids(both)
    both.run(f"kill -KILL {worker}")
    journal_line(both, since, f"^worker {worker} was killed by signal 9; ", GUEST)
    assert fetches(curl(both))
    assert guest_pids(both)[0] == main


def test_it_is_looked_after(both: Machine) -> None:
    with drop_in(both, GUEST, "[Service]\nWatchdogSec=2\n"):
        assert fetches(curl(both))
        since, pids = now(both), guest_pids(both)
        both.run(f"kill -STOP {pids[0]}")
        journal_line(both, since, "Watchdog timeout", GUEST)
        journal_line(both, since, "^listening on ", GUEST)
        assert fetches(curl(both))
        assert not {*pids} & {*guest_pids(both)}


def test_all_its_processes_are_confined(both: Machine) -> None:
    assert fetches(curl(both))
    own, networks = both.run("readlink /proc/1/ns/net").stdout, set()
    for pid in guest_pids(both):
        assert_is_confined(both.run(f"cat /proc/{pid}/status").stdout)
        networks.add(both.run(f"readlink /proc/{pid}/ns/net").stdout)
    assert len(networks) == 1 and own not in networks  # none but its own, and yet it serves


def test_sandbox_prevents(both: Machine) -> None:
    both.put("/dev/probe", "")
    probe = PROBE.replace("sys.stdin.readline()\nprint(json.dumps([done[True], done[False]]))", "")
    assert probe != PROBE
    both.put("/srv/outside.py", PROBE)
    outside = "/usr/bin/python3 -I /srv/outside.py; rmdir /sys/fs/cgroup/probe"
    done, prevented = json.loads(both.run(outside).stdout)
    assert done and prevented == []
    probe += "print(json.dumps([done[True], done[False]]), file=sys.stderr)\n"
    assert json.loads(confined(both, probe)) == [[], done]
    assert json.loads(confined(both, REACH)) == []


def confined(both: Machine, script: str) -> str:
    """Run a script in the guest's unit, in its place; give what it says."""
    since = now(both)
    both.put("/srv/probe.py", script)
    command = "/usr/bin/python3 -I /srv/probe.py"
    text = f"[Service]\nType=oneshot\nRestart=no\nExecStart=\nExecStart={command}\n"
    with drop_in(both, GUEST, text):
        both.run(f"systemctl start {GUEST}")
        return journal_line(both, since, r"^\[", GUEST)
