"""The commands beside CONNECT, and proxies before and behind, from within the units' sandboxes."""

import contextlib
import shlex
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import commands
import pytest
from booted import WEB, WEB_6, file, serving, start
from nspawn import Machine
from programs import SECONDS, VERSIONS
from test_systemd_resident import await_output, now

pytestmark = pytest.mark.xdist_group("systemd-commands")

# What serves, by the socket unit: systemd's name for what logs.
UNITS = {
    "muonsocks.socket": "muonsocks@*.service",
    "muonsocks-resident.socket": "muonsocks-resident.service",
}
NAME = "web.example"
UPSTREAM = "127.0.0.1:1081"
RULES = "/etc/muonsocks/rules"
VIA = [f"{scheme}://{UPSTREAM}" for scheme in ("socks5", "socks5h")]


@pytest.fixture(scope="module")
def booted(installed: Path) -> Iterator[Machine]:
    with serving(installed, "muonsocks.socket") as machine:
        upstream = "muonsocks --workers=1 --resolve-commands -i 127.0.0.1 -p 1081"
        start(machine, "listening", *upstream.split())
        yield machine


@pytest.fixture(params=UNITS)
def unit(request: pytest.FixtureRequest) -> str:
    """A socket unit; the other one gives way to it."""
    name: str = request.param
    return name


@pytest.fixture
def machine(booted: Machine, unit: str) -> Iterator[Machine]:
    """The machine; whatever a test does, nothing may be in the failed state behind it."""
    booted.run(f"systemctl start {unit}")
    yield booted
    await_output(booted, "echo; systemctl list-jobs --no-legend | wc -l", "^0$")
    failed = booted.run("systemctl --failed --plain --no-legend").stdout
    services = " ".join(map(shlex.quote, UNITS.values()))
    booted.run(f"systemctl stop {unit} {services}; systemctl reset-failed")
    assert failed == ""


@contextlib.contextmanager
def options(machine: Machine, text: str) -> Iterator[None]:
    """For both; the one that stays is not there yet."""
    with file(machine, "/etc/default/muonsocks", f"MUONSOCKS_OPTIONS={text}\n"):
        yield


def connect(host: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection((host, 1080), SECONDS)


def journal_line(machine: Machine, unit: str, since: str, pattern: str) -> str:
    """Wait for a line of what serves in the journal."""
    read = f"journalctl --boot --since={since} --output=cat --unit={shlex.quote(UNITS[unit])}"
    return await_output(machine, read, pattern)


@pytest.mark.parametrize("via", ["", *VIA])
def test_bind(machine: Machine, unit: str, via: str) -> None:
    since = now(machine)
    with options(machine, f"--via={via}" if via else ""):
        for version in VERSIONS.values():
            machine.inside(lambda: commands.binds(connect, version, WEB))  # noqa: B023
        machine.inside(lambda: commands.binds(lambda: connect("::1"), VERSIONS["5"], WEB_6))
        journal_line(machine, unit, since, r"^bound .* listen=\[")
        journal_line(machine, unit, since, r"^closed .* reply=0 in=8 out=6 ")


@pytest.mark.parametrize("via", ["", *VIA])
def test_associate(machine: Machine, unit: str, via: str) -> None:
    since = now(machine)
    with options(machine, f"--via={via}" if via else ""):
        for host, listens in ((WEB, "127.0.0.1"), (WEB_6, "::1"), (WEB, "::1")):
            name = NAME if host == WEB else "web6.example"
            machine.inside(lambda: commands.associates(lambda: connect(listens), host, name))
        for _ in range(3):
            journal_line(machine, unit, since, "^closed .* datagrams-in=2 .* dropped=0 ")


@pytest.mark.parametrize("via", ["", VIA[1]])
def test_look_ups(machine: Machine, via: str) -> None:
    with options(machine, f"--resolve-commands {f'--via={via}' if via else ''}"):
        machine.inside(lambda: commands.resolves(connect, NAME, WEB))


@pytest.mark.parametrize("via", VIA)
def test_connect_through_a_proxy(machine: Machine, unit: str, via: str) -> None:
    since = now(machine)
    with options(machine, f"--via={via}"):
        machine.inside(lambda: commands.connects(connect, WEB))
        journal_line(machine, unit, since, "^connected ")


def test_behind_a_proxy(machine: Machine, unit: str) -> None:
    since = now(machine)
    with options(machine, "--proxy-protocol=required --proxy-from=127.0.0.0/8"):
        machine.inside(lambda: commands.connects(connect, WEB, front=commands.FRONT))
        journal_line(machine, unit, since, f"^closed client={commands.CLIENT} .* reply=0 ")


def test_who_is_connected_to_is_told_of_the_client(machine: Machine) -> None:
    with options(machine, "--send-proxy"):
        machine.inside(lambda: commands.connects(connect, WEB, is_told=True))
