"""The units as they are shipped, sandbox and all, under a real systemd as PID 1."""

import base64
import contextlib
import hashlib
import json
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from booted import (
    BESIDE,
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
)
from nspawn import Machine

pytestmark = pytest.mark.xdist_group("systemd")

# More connections than systemd lets through by default, 200 in 2 s: how many are answered?
AT_ONCE = """
import contextlib, socket
with contextlib.ExitStack() as clients:
    made = [socket.create_connection(("127.0.0.1", 1080), timeout=60) for _ in range(220)]
    for client in made:
        clients.enter_context(client).sendall(b"\\5\\1\\0")
    print(sum(client.recv(2) == b"\\5\\0" for client in made))
"""


@pytest.fixture(scope="module")
def booted(installed: Path) -> Iterator[Machine]:
    with serving(installed, "muonsocks.socket") as machine:
        yield machine


@pytest.fixture
def machine(booted: Machine) -> Iterator[Machine]:
    """The machine; whatever a test does may leave no failed unit and no instance behind."""
    yield booted
    deadline = time.monotonic() + SECONDS
    left = instances(booted)
    while any("failed" not in line for line in left) and time.monotonic() < deadline:
        time.sleep(0.05)
        left = instances(booted)
    socket = booted.run("systemctl is-active muonsocks.socket", check=False).stdout.strip()
    booted.run("systemctl reset-failed; systemctl start muonsocks.socket")  # for the tests to come
    assert (left, socket) == ([], "active")


def instances(machine: Machine) -> list[str]:
    """What systemctl lists: names and states of those that run and of those that have failed."""
    command = "systemctl list-units --all --plain --no-legend 'muonsocks@*'"
    return machine.run(command).stdout.splitlines()


def journal_line(machine: Machine, pattern: str) -> str:
    """Wait for a line of the instances in the journal."""
    follow = "journalctl --boot --follow --lines=all --output=cat --unit='muonsocks@*'"
    find = f"timeout {SECONDS} grep --max-count=1 --extended-regexp {shlex.quote(pattern)}"
    return machine.run(f"exec bash -c {shlex.quote(f'{find} < <({follow})')}").stdout


@contextlib.contextmanager
def options(machine: Machine, text: str) -> Iterator[None]:
    with file(machine, "/etc/default/muonsocks", f"MUONSOCKS_OPTIONS={text}\n"):
        yield


@contextlib.contextmanager
def drop_in(machine: Machine, text: str) -> Iterator[None]:
    with file(machine, "/etc/systemd/system/muonsocks@.service.d/test.conf", text):
        machine.run("systemctl daemon-reload")
        yield
    machine.run("systemctl daemon-reload")


def test_socket_is_enabled(machine: Machine) -> None:
    assert machine.run("systemctl is-enabled muonsocks.socket").stdout == "enabled\n"
    listening = machine.run("systemctl show --property=Listen muonsocks.socket").stdout
    assert set(re.findall(r"Listen=(\S+)", listening)) == {"127.0.0.1:1080", "[::1]:1080"}


def test_many_connections_at_once(machine: Machine) -> None:
    assert machine.run("/usr/bin/python3 -", input=AT_ONCE, timeout=100).stdout == "220\n"


@pytest.mark.parametrize("protocol", ["socks4", "socks4a", "socks5", "socks5h"])
def test_protocols(machine: Machine, protocol: str) -> None:
    assert fetches(curl(machine, proxy=f"{protocol}://127.0.0.1:1080"))


@pytest.mark.parametrize("url", [f"http://{WEB}/page", f"http://[{WEB_6}]/page"])
@pytest.mark.parametrize("listener", ["127.0.0.1:1080", "[::1]:1080"])
def test_addresses(machine: Machine, listener: str, url: str) -> None:
    assert fetches(curl(machine, url, proxy=f"socks5h://{listener}"))


@pytest.mark.parametrize("name", ["web.example", "web6.example", "found.by.dns.example"])
def test_names_are_looked_up(machine: Machine, name: str) -> None:
    assert fetches(curl(machine, f"http://{name}/page"))


@pytest.mark.parametrize("listener", ["127.0.0.1", "[::1]"])
def test_log(machine: Machine, listener: str) -> None:
    done = curl(machine, proxy=f"socks5h://{listener}:1080")
    assert fetches(done)
    address, port = done.stdout.splitlines()[-1].split()
    client = f"{listener}:{port}"
    assert address == listener.strip("[]")
    facts = rf"client={re.escape(client)} user=- target={re.escape(WEB)}:80"
    journal_line(machine, facts)
    assert re.search(r"reply=0 in=\d+ out=\d+ ", journal_line(machine, rf"{facts} .*end="))

    read = "journalctl --boot --output=json --unit='muonsocks@*' --grep="
    entries = machine.run(read + shlex.quote(facts)).stdout.splitlines()
    assert len(entries) == 2  # one when it is up, one when it is over
    for entry in map(json.loads, entries):
        assert entry["_TRANSPORT"] == "stdout"  # and not by way of syslog
        assert entry["PRIORITY"] == "6"
        assert entry["SYSLOG_IDENTIFIER"] == "socks-inetd"
        assert re.match(r"[a-z]+ client=", entry["MESSAGE"])  # no level, no time


def test_own_side_is_refused_by_default(machine: Machine) -> None:
    assert refused(curl(machine, "http://127.0.0.1/page"), 2)
    assert refused(curl(machine, "http://localhost/page"), 2)
    journal_line(machine, r"target=127\.0\.0\.1:80 reply=2 ")


def test_options_from_the_default_file(machine: Machine) -> None:
    with options(machine, "--allow-local"):
        assert fetches(curl(machine, "http://127.0.0.1/page"))


def test_rules(machine: Machine) -> None:
    rules = file(machine, "/etc/muonsocks/rules", "deny web.example\nallow * 80\ndeny *\n")
    with rules, options(machine, "--rules=/etc/muonsocks/rules"):
        assert refused(curl(machine, "http://web.example/page"), 2)
        assert refused(curl(machine, f"http://{WEB}:81/page"), 2)
        assert fetches(curl(machine))


@contextlib.contextmanager
def users(machine: Machine, text: str) -> Iterator[None]:
    sample = (Path(__file__).parents[2] / "units" / "muonsocks-users.conf").read_text()
    with file(machine, "/etc/muonsocks/users", text, 0o600), drop_in(machine, sample):
        yield


def test_users(machine: Machine) -> None:
    with users(machine, "alice:secret\n"):
        assert fetches(curl(machine, proxy="socks5h://alice:secret@127.0.0.1:1080"))
        journal_line(machine, f"user=alice target={WEB}:80 .*end=")
        for proxy in (PROXY, "socks5h://alice:guess@127.0.0.1:1080", "socks4://127.0.0.1:1080"):
            assert curl(machine, proxy=proxy).returncode == 97
        with options(machine, "--trust=127.0.0.0/8"):
            assert fetches(curl(machine))
    assert fetches(curl(machine))


def test_user_with_a_hashed_password(machine: Machine) -> None:
    salt = b"sixteen of these"
    digest = hashlib.scrypt(b"secret", salt=salt, n=1 << 16, r=8, p=1, maxmem=1 << 27, dklen=32)
    fields = "$".join(base64.b64encode(field).decode().rstrip("=") for field in (salt, digest))
    # ln=16 takes 64 MiB, which is the most
    with users(machine, f"alice:$scrypt$ln=16,r=8,p=1${fields}\n"):
        assert fetches(curl(machine, proxy="socks5h://alice:secret@127.0.0.1:1080"))
        assert curl(machine, proxy="socks5h://alice:guess@127.0.0.1:1080").returncode == 97


def test_users_without_the_drop_in_let_nobody_in(machine: Machine) -> None:
    with file(machine, "/etc/muonsocks/users", "alice:secret\n", 0o600):
        assert curl(machine).returncode == 97
        assert curl(machine, proxy="socks5h://alice:secret@127.0.0.1:1080").returncode == 97
    assert fetches(curl(machine))


def test_drop_in_without_users_lets_nobody_in(machine: Machine) -> None:
    with users(machine, "alice:secret\n"):
        machine.run("mv /etc/muonsocks/users /etc/muonsocks/nobody")
        assert curl(machine).returncode == 97
        machine.run("mv /etc/muonsocks/nobody /etc/muonsocks/users")


def test_garbage(machine: Machine) -> None:
    direct = ["curl", "-sS", "--max-time", "60", "http://127.0.0.1:1080/"]
    assert machine.run(shlex.join(direct), check=False).returncode == 52  # an empty answer
    journal_line(machine, "client=127.0.0.1:.* end=protocol-error")


def test_wrong_usage_leaves_nothing_behind(machine: Machine) -> None:
    with options(machine, "--no-such-option"):
        assert curl(machine).returncode == 97


def test_many_quick_connections(machine: Machine) -> None:
    assert machine.run("/usr/bin/python3 -", input=MANY, timeout=100).stdout == "400\n"


def test_instance_is_confined(machine: Machine) -> None:
    with held(machine):
        [unit] = (line.split()[0] for line in instances(machine))
        pid = machine.run(f"systemctl show --property=MainPID --value {unit}").stdout.strip()
        status = machine.run(f"cat /proc/{pid}/status").stdout
    found = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
    assert 0 not in map(int, found["Uid"].split() + found["Gid"].split())
    assert {int(found[f"Cap{which}"], 16) for which in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"  # a filter


def test_sandbox_prevents(machine: Machine) -> None:
    probe = ["/usr/bin/python3", "-I", "/srv/probe.py"]
    machine.put("/srv/probe.py", PROBE)
    machine.put("/dev/probe", "")
    done, prevented = json.loads(machine.run(shlex.join(probe)).stdout)
    assert done
    assert prevented == []  # without a sandbox all of it can be done
    with drop_in(machine, f"[Service]\nExecStart=\nExecStart={shlex.join(probe)}\n"):
        answer = machine.run("echo | nc -N 127.0.0.1 1080").stdout
    assert json.loads(answer) == [[], done]


def test_bind_address(machine: Machine) -> None:
    with options(machine, f"-b {BESIDE}"):
        assert fetches(curl(machine))
    journal_line(machine, f"target={WEB}:80 .*end=")


def test_bind_interface(machine: Machine) -> None:
    with options(machine, "-B lo"):
        assert fetches(curl(machine))


def test_mark_takes_a_privilege(machine: Machine) -> None:
    capability = "AmbientCapabilities=CAP_NET_ADMIN\nCapabilityBoundingSet=CAP_NET_ADMIN\n"
    with options(machine, "-m 7"):
        assert curl(machine).returncode == 97
        journal_line(machine, "end=dial-failed .*not permitted")
        with drop_in(machine, f"[Service]\n{capability}PrivateUsers=no\n"), held(machine):
            connections = machine.run(f"ss -Hetn dst {WEB} dport = :80").stdout
    assert "fwmark:0x7 " in connections


def test_without_ipv6(machine: Machine) -> None:
    machine.run("sysctl -w net.ipv6.conf.all.disable_ipv6=1")
    try:
        machine.run("systemctl restart muonsocks.socket")
        assert fetches(curl(machine))
    finally:
        machine.run(f"sysctl -w net.ipv6.conf.all.disable_ipv6=0; ip addr add {WEB_6}/128 dev lo")
