"""The units of virtio-mux's host, sandbox and all, under a real systemd as PID 1.

They are as shipped, with guest programs in the place of QEMU and its machines.
"""

import contextlib
import json
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from booted import (
    BESIDE,
    HOLD,
    MANY,
    PROBE,
    PROXY,
    SECONDS,
    WEB,
    WEB_6,
    curl,
    fetches,
    file,
    held,
    refused,
    serving,
    start,
)
from nspawn import Machine, assert_is_confined
from test_systemd_resident import await_output, now, show

from muonsocks.mux.frames import MAGIC

pytestmark = pytest.mark.xdist_group("systemd-virtio-mux")

UNITS = Path(__file__).parents[2] / "units"
HOST, INSTANCES = "virtio-mux-host.socket", "virtio-mux-host@*.service"
SOCKET = "/run/virtio-mux-host"
SECOND = "socks5h://127.0.0.1:1081"
RULES = "/etc/muonsocks/rules"

# Connects as often as it is told, says how many of these connections are there after a while in
# which something was to be read, and holds them until its standard input ends. It answers, as one
# that says nothing is hung up on.
CONNECT = f"""
import socket, sys
made = [socket.socket(socket.AF_UNIX) for _ in range(int(sys.argv[1]))]
for sock in made:
    sock.connect("{SOCKET}")
there = 0
for sock in made:
    try:
        there += sock.recv(1) != b"" and sock.send(b"x")
    except ConnectionError:
        pass
print(there, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def booted(installed: Path) -> Iterator[Machine]:
    with serving(installed, HOST) as machine:
        yield machine


@pytest.fixture
def machine(booted: Machine) -> Iterator[Machine]:
    """The machine; whatever a test does, nothing may be in the failed state behind it."""
    yield booted
    await_output(booted, "echo; systemctl list-jobs --no-legend | wc -l", "^0$")
    failed = booted.run("systemctl --failed --plain --no-legend").stdout
    booted.run(f"systemctl stop {HOST} '{INSTANCES}'; systemctl reset-failed")
    booted.run(f"systemctl start {HOST}")  # for the tests to come
    assert failed == ""


def instances(machine: Machine) -> list[str]:
    """The names of the instances that run, or have failed and are not forgotten."""
    command = f"systemctl list-units --all --plain --no-legend '{INSTANCES}'"
    return [line.split()[0] for line in machine.run(command).stdout.splitlines()]


def await_instances(machine: Machine, count: int) -> list[str]:
    deadline = time.monotonic() + SECONDS
    while len(found := instances(machine)) != count and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(found) == count, found
    return found


def journal_line(machine: Machine, since: str, pattern: str, unit: str = INSTANCES) -> str:
    """Wait for a line of a unit in the journal."""
    read = f"journalctl --boot --since={since} --output=cat --unit={shlex.quote(unit)}"
    return await_output(machine, read, pattern)


@contextlib.contextmanager
def host_options(machine: Machine, text: str) -> Iterator[None]:
    with file(machine, "/etc/default/virtio-mux-host", f"VIRTIO_MUX_HOST_OPTIONS={text}\n"):
        yield


@contextlib.contextmanager
def drop_in(machine: Machine, unit: str, text: str) -> Iterator[None]:
    with file(machine, f"/etc/systemd/system/{unit}.d/test.conf", text):
        machine.run("systemctl daemon-reload")
        yield
    machine.run("systemctl daemon-reload")


@contextlib.contextmanager
def virtual(machine: Machine, port: int = 1080) -> Iterator[str]:
    """A virtual machine, at the socket as its QEMU would be; give the name of its unit.

    It has this port of the machine that it is said to be in.
    """
    unit, since = f"virtual-{port}.service", now(machine)
    program = f"/usr/local/bin/virtio-mux guest --port={port} --drain-timeout=0.1 {SOCKET}"
    machine.run(f"systemd-run --quiet --collect --unit={unit} {program}")
    try:
        journal_line(machine, since, "^the host is there$", unit)
        yield unit
    finally:
        machine.run(f"systemctl stop {unit}", check=False)  # it may have been killed


# The host serves


def test_socket_is_enabled(machine: Machine) -> None:
    assert machine.run(f"systemctl is-enabled {HOST}").stdout == "enabled\n"
    assert show(machine, "Listen", HOST) == f"{SOCKET} (Stream)"


@pytest.mark.parametrize(
    "url",
    [
        f"http://{WEB}/page",
        f"http://[{WEB_6}]/page",
        "http://web6.example/page",
        "http://found.by.dns.example/page",
    ],
)
def test_destinations(machine: Machine, url: str) -> None:
    with virtual(machine):
        assert fetches(curl(machine, url))


def test_much(machine: Machine) -> None:
    machine.run("head -c 20M /dev/urandom > /srv/www/much")
    fetch = f"curl -sS --max-time 60 --proxy {PROXY} http://{WEB}/much | cmp - /srv/www/much"
    with virtual(machine):
        machine.run(f"bash -c {shlex.quote(f'set -o pipefail; {fetch}')}")


def test_many_quick_connections(machine: Machine) -> None:
    with virtual(machine):
        assert machine.run("/usr/bin/python3 -", input=MANY, timeout=100).stdout == "400\n"


def test_own_side_is_refused_by_default(machine: Machine) -> None:
    with virtual(machine):
        assert refused(curl(machine, "http://127.0.0.1/page"), 2)
        assert refused(curl(machine, "http://localhost/page"), 2)


def test_an_instance_for_each_machine(machine: Machine) -> None:
    with virtual(machine), held(machine):
        [first] = await_instances(machine, 1)
        with virtual(machine, 1081):
            await_instances(machine, 2)
            assert fetches(curl(machine)) and fetches(curl(machine, proxy=SECOND))
        assert await_instances(machine, 1) == [first]
        assert fetches(curl(machine))


def test_an_instance_is_named_for_qemu(machine: Machine) -> None:
    with virtual(machine) as unit:
        pids = machine.run(f"cat /sys/fs/cgroup/system.slice/{unit}/cgroup.procs").stdout.split()
        [instance] = await_instances(machine, 1)
    name = re.fullmatch(r"virtio-mux-host@\d+-(\d+)-(\d+)\.service", instance)
    assert name and name[1] in pids and name[2] == "0"


# A machine goes, or the host does


@pytest.mark.parametrize(
    ("signal", "detail"), [("TERM", ' detail="the guest says: the program ends"'), ("KILL", "")]
)
def test_when_a_machine_ends_its_instance_does(machine: Machine, signal: str, detail: str) -> None:
    since = now(machine)
    with virtual(machine) as unit:
        client = start(machine, "ready", "/usr/bin/python3", "-c", HOLD)
        [instance] = await_instances(machine, 1)
        machine.run(f"systemctl kill --signal={signal} {unit}")
        await_instances(machine, 0)
        end = f"^{re.escape(instance)}: Deactivated successfully.$"
        journal_line(machine, since, end, instance)
        journal_line(machine, since, f"^closed .* end=reset{detail}$")
        client.communicate(timeout=SECONDS)
        machine.run(f"systemctl reset-failed {unit}", check=False)
    assert show(machine, "ActiveState", HOST) == "active"


def test_a_machine_without_a_guest_program(machine: Machine) -> None:
    """It may be booting, and what it sends be anything."""
    since = now(machine)
    connected = f"nc -U -N {SOCKET}"
    machine.run(f"head -c 100K /dev/urandom | {connected} >/dev/null")
    machine.run(f"{connected} >/dev/null </dev/null")
    await_instances(machine, 0)
    said = machine.run(f"journalctl --boot --since={since} --output=cat --unit='{INSTANCES}'")
    assert "failed" not in said.stdout.lower()
    with virtual(machine):
        assert fetches(curl(machine))


def test_a_machine_that_says_nothing(machine: Machine) -> None:
    """Its port may be stuck, so it is hung up on; but once only, as it may have nothing to say."""
    since = now(machine)
    script = (
        "import socket\n"
        "for times in range(2):\n"
        "    with socket.socket(socket.AF_UNIX) as sock:\n"
        f"        sock.connect('{SOCKET}')\n"
        "        came = b''\n"
        f"        while came.count({MAGIC}) < 4 and (data := sock.recv(65536)):\n"
        "            came += data\n"
        f"        print(came.count({MAGIC}))\n"
    )
    first, second = machine.run(shlex.join(["/usr/bin/python3", "-c", script])).stdout.split()
    assert 1 <= int(first) < 4 == int(second)
    journal_line(machine, since, "nothing has come from the guest")
    await_instances(machine, 0)


def test_instances_that_are_stopped(machine: Machine) -> None:
    """As the unit says to do after a change; the machine comes again."""
    with virtual(machine) as unit:
        client = start(machine, "ready", "/usr/bin/python3", "-c", HOLD)
        [before] = await_instances(machine, 1)
        since = now(machine)
        machine.run("systemctl stop 'virtio-mux-host@*.service'")
        journal_line(machine, since, "^the host is there$", unit)
        assert fetches(curl(machine))
        assert await_instances(machine, 1) != [before]
        client.communicate(timeout=SECONDS)


# The host is configured


def test_rules(machine: Machine) -> None:
    rules = file(machine, RULES, "deny web.example\nallow * 80\ndeny *\n")
    with rules, host_options(machine, f"--rules={RULES}"), virtual(machine) as unit:
        assert refused(curl(machine, "http://web.example/page"), 2)
        assert refused(curl(machine, f"http://{WEB}:81/page"), 2)
        assert fetches(curl(machine))

        machine.put(RULES, "deny *\n")
        assert fetches(curl(machine))
        since = now(machine)
        machine.run("systemctl stop 'virtio-mux-host@*.service'")
        journal_line(machine, since, "^the host is there$", unit)
        assert refused(curl(machine), 2)


def test_options_from_the_default_file(machine: Machine) -> None:
    with host_options(machine, "--allow-local"), virtual(machine):
        assert fetches(curl(machine, "http://127.0.0.1/page"))


@pytest.mark.parametrize("scheme", ["socks4a", "socks5", "socks5h"])
def test_through_a_proxy(machine: Machine, scheme: str) -> None:
    """One for everything, and one that rules name for something."""
    url = f"{scheme}://127.0.0.1:1082"
    with upstream(machine, 1082):
        with host_options(machine, f"--via={url}"), virtual(machine):
            assert goes_through(machine, url)
        await_instances(machine, 0)
        rules = file(machine, RULES, f"via {url} web.example\n")
        with rules, host_options(machine, f"--rules={RULES}"), virtual(machine):
            assert goes_through(machine, url)
            since = now(machine)
            assert fetches(curl(machine))
            assert " via=" not in journal_line(machine, since, f"^connected .*target={WEB}:80 ")


@contextlib.contextmanager
def upstream(machine: Machine, port: int) -> Iterator[None]:
    """A proxy to go through."""
    unit, since = "upstream.service", now(machine)
    program = f"/usr/local/bin/muonsocks --workers=1 -i 127.0.0.1 -p {port}"
    machine.run(f"systemd-run --quiet --collect --unit={unit} {program}")
    try:
        journal_line(machine, since, "^listening on ", unit)
        yield
    finally:
        machine.run(f"systemctl stop {unit}")


def goes_through(machine: Machine, url: str) -> bool:
    since = now(machine)
    done = fetches(curl(machine, "http://web.example/page"))
    way = re.escape(f'via="{url}"')
    journal_line(machine, since, f"^connected .*target=web.example:80 .*{way}$")
    return done


def test_commands_that_it_does_not_have(machine: Machine) -> None:
    """For its clients are beyond the port: neither they nor their peers could get here."""
    with virtual(machine):
        for command in (b"\5\2", b"\5\3"):
            request = b"\5\1\0" + command + b"\0\1\0\0\0\0\0\0"
            script = (
                "import socket\n"
                "with socket.create_connection(('127.0.0.1', 1080)) as client:\n"
                f"    client.sendall({request!r})\n"
                "    print(client.recv(4, socket.MSG_WAITALL))\n"
            )
            said = machine.run(shlex.join(["/usr/bin/python3", "-c", script])).stdout
            assert said == f"{bytes([5, 0, 5, 7])!r}\n"


def test_bind_address(machine: Machine) -> None:
    with host_options(machine, f"-b {BESIDE}"), virtual(machine), held(machine):
        assert machine.run(f"ss -Hetn src {BESIDE} dst {WEB} dport = :80").stdout


def test_mark_takes_a_privilege(machine: Machine) -> None:
    text = (UNITS / "virtio-mux-host@.service").read_text()
    advice = re.search(r"^#   \[Service\]\n(#   .+\n)+", text, re.M)
    assert advice
    with host_options(machine, "-m 7"):
        with virtual(machine):
            assert curl(machine).returncode == 97
        await_instances(machine, 0)
        with (
            drop_in(machine, "virtio-mux-host@.service", advice[0].replace("#   ", "")),
            virtual(machine),
            held(machine),
        ):
            connections = machine.run(f"ss -Hetn dst {WEB} dport = :80").stdout
    assert "fwmark:0x7 " in connections


def test_wrong_usage_leaves_nothing_behind(machine: Machine) -> None:
    since = now(machine)
    with host_options(machine, "--no-such-option"):
        machine.run(f"nc -U -N {SOCKET} </dev/null", check=False)
        journal_line(machine, since, "status=100")
        await_instances(machine, 0)


# Who may connect, and how many


def connects(machine: Machine, *who: str) -> bool:
    """Whether one who is run by setpriv with these options gets to the socket."""
    script = (
        "import socket\n"
        "with socket.socket(socket.AF_UNIX) as sock:\n"
        f"    print(sock.connect_ex('{SOCKET}'))\n"
    )
    command = ["setpriv", *who, "/usr/bin/python3", "-c", script]
    error = machine.run(shlex.join(command)).stdout
    assert error in ("0\n", "13\n")  # EACCES
    return error == "0\n"


def test_root_alone_may_connect(machine: Machine) -> None:
    nobody = ("--reuid=65534", "--regid=65534")
    assert not connects(machine, *nobody, "--clear-groups")
    assert connects(machine, "--reuid=0")


def test_a_group_may_connect(machine: Machine) -> None:
    """As the comment in the unit says, for libvirt."""
    text = (UNITS / HOST).read_text()
    advice = re.search(r"^#   \[Socket\]\n(#   .+\n)+", text, re.M)
    assert advice and "SocketGroup=libvirt-qemu\n" in advice[0]
    machine.run("groupadd --system libvirt-qemu")
    gid = machine.run("getent group libvirt-qemu | cut -d: -f3").stdout.strip()
    somebody = ("--reuid=65534", "--regid=65534")
    try:
        with drop_in(machine, HOST, advice[0].replace("#   ", "")):
            machine.run(f"systemctl restart {HOST}")
            assert connects(machine, *somebody, f"--groups={gid}")
            assert not connects(machine, *somebody, "--clear-groups")
    finally:
        machine.run("groupdel libvirt-qemu")


def test_it_is_not_in_the_way_of_the_relay(machine: Machine) -> None:
    """Which has a directory for root alone."""
    machine.run(f"systemctl stop {HOST}; rm -rf /run/muonsocks")
    machine.run(f"systemctl start {HOST} muonsocks-relay.socket")
    assert machine.run("stat --format=%a /run/muonsocks").stdout == "700\n"
    machine.run("systemctl stop muonsocks-relay.socket")
    assert machine.run(f"systemctl stop {HOST}; ls {SOCKET}", check=False).returncode != 0


def test_no_more_than_there_may_be(machine: Machine) -> None:
    assert int(show(machine, "MaxConnections", HOST)) >= 16
    since = now(machine)
    with drop_in(machine, HOST, "[Socket]\nMaxConnections=2\n"):
        machine.run(f"systemctl restart {HOST}")
        # 220 at a time are more than systemd takes by default: then the socket would be closed
        client = start(machine, "2\n", "/usr/bin/python3", "-c", CONNECT, "220")
        journal_line(machine, since, r"Too many incoming connections \(2\)", HOST)
        assert len(instances(machine)) == 2
        assert show(machine, "ActiveState", HOST) == "active"
        client.communicate(timeout=SECONDS)
        await_instances(machine, 0)
        with virtual(machine):
            assert fetches(curl(machine))
    machine.run(f"systemctl restart {HOST}")


# The host tells


def test_status_tells_how_many_there_are(machine: Machine) -> None:
    with virtual(machine), held(machine):
        [instance] = await_instances(machine, 1)
        show_status = f"systemctl show --property=StatusText --value {instance}"
        await_output(machine, show_status, "^guest: there; connections: 1 open, 1 served$")
        assert show(machine, "ActiveState", instance) == "active"


def test_an_instance_is_up_when_it_has_said_so(machine: Machine) -> None:
    since = now(machine)
    machine.run("systemctl log-level debug")
    try:
        with virtual(machine):
            [instance] = await_instances(machine, 1)
            pid = show(machine, "MainPID", instance)
            journal_line(machine, since, "^Started ", instance)
            read = f"journalctl --boot --output=cat --unit={instance}"
            said = machine.run(f"journalctl --sync && {read}").stdout
            ready = said.index(f"Got notification message from PID {pid} (READY=1)")
            assert ready < said.index("Started ")
    finally:
        machine.run("systemctl log-level info")


def test_a_connection_is_found_by_its_fields(machine: Machine) -> None:
    with virtual(machine):
        assert fetches(curl(machine, "http://web.example/page"))
        [instance] = await_instances(machine, 1)
    find = f"journalctl --boot SOCKS_TARGET=web.example:80 _SYSTEMD_UNIT={instance}"
    await_output(machine, f"{find} --output=cat", "^closed ")
    first, last = map(json.loads, machine.run(f"{find} --output=json").stdout.splitlines())
    for entry in (first, last):
        assert entry["_TRANSPORT"] == "journal"
        assert (entry["SYSLOG_IDENTIFIER"], entry["PRIORITY"]) == ("virtio-mux", "6")
    assert re.fullmatch(
        rf"connected client=mux:\d+ user=- target=web.example:80 address={WEB}:80",
        first["MESSAGE"],
    )
    assert re.fullmatch(
        r"closed client=mux:\d+ user=- target=web.example:80 reply=0 in=\d+ out=\d+ secs=\S+"
        r" end=closed",
        last["MESSAGE"],
    )


# The host is confined


def test_an_instance_is_confined(machine: Machine) -> None:
    with virtual(machine):
        [instance] = await_instances(machine, 1)
        pid = show(machine, "MainPID", instance)
        assert_is_confined(machine.run(f"cat /proc/{pid}/status").stdout)


def test_sandbox_prevents(machine: Machine) -> None:
    probe = shlex.join(["/usr/bin/python3", "-I", "/srv/probe.py"])
    machine.put("/srv/probe.py", PROBE)
    machine.put("/dev/probe", "")
    done, prevented = json.loads(machine.run(f"{probe}; rmdir /sys/fs/cgroup/probe").stdout)
    assert done and prevented == []  # without a sandbox all of it can be done
    text = f"[Service]\nType=exec\nExecStart=\nExecStart={probe}\n"
    with drop_in(machine, "virtio-mux-host@.service", text):
        answer = machine.run(f"echo | nc -U -N {SOCKET}").stdout
        await_instances(machine, 0)
    assert json.loads(answer) == [[], done]


@pytest.mark.parametrize(
    "service",
    ["virtio-mux-host@.service", "virtio-mux-guest.service", "virtio-mux-guest-start.service"],
)
def test_the_units_are_as_secure_as_they_say(service: str) -> None:
    """The figure in the comment is the one that systemd gives."""
    said = re.search(r"The exposure is (\d+\.\d)\.", (UNITS / service).read_text())
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNITS / service)]
    shown = subprocess.run(command, capture_output=True, text=True).stdout
    measured = re.search(r"Overall exposure level .*: (\d+\.\d) ", shown)
    assert said and measured and said[1] == measured[1]
