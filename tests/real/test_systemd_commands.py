"""The commands beside CONNECT, and proxies before and behind, from within the units' sandboxes."""

import contextlib
import shlex
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import commands
import pytest
from associated import far_end
from booted import BESIDE, WEB, WEB_6, file, serving, start
from nameserver import nameserver, resolv_conf
from nspawn import Machine
from programs import SECONDS, VERSIONS
from real_server import until
from test_systemd_resident import await_output, now, show

pytestmark = pytest.mark.xdist_group("systemd-commands")

UNIT_FILES = Path(__file__).parents[2] / "units"

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
            machine.inside(partial(commands.binds, connect, version, WEB))
        machine.inside(lambda: commands.binds(lambda: connect("::1"), VERSIONS["5"], WEB_6))
        journal_line(machine, unit, since, r"^bound .* listen=\[")
        journal_line(machine, unit, since, r"^closed .* reply=0 in=8 out=6 ")


@pytest.mark.parametrize("via", ["", *VIA])
def test_associate(machine: Machine, unit: str, via: str) -> None:
    since = now(machine)
    with options(machine, f"--via={via}" if via else ""):
        machine.inside(lambda: commands.associates(connect, WEB, NAME))
        machine.inside(lambda: commands.associates(lambda: connect("::1"), WEB_6, "web6.example"))
        for client in (r"127\.0\.0\.1", r"\[::1\]"):
            end = rf"^closed client={client}:.* datagrams-in=2 datagrams-out=1 dropped=0 "
            journal_line(machine, unit, since, end)


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
        machine.inside(lambda: commands.connects(connect, WEB, told_of="the client"))


# What the sandbox could have in the way


@pytest.mark.parametrize("option", [f"-b {BESIDE}", "-B lo"])
def test_from_an_address_and_an_interface(machine: Machine, option: str) -> None:
    ours = BESIDE if BESIDE in option else WEB
    with options(machine, option):
        machine.inside(lambda: commands.binds(connect, VERSIONS["5"], WEB, ours))
        machine.inside(lambda: commands.associates(connect, WEB))


def test_as_many_names_at_once_as_there_may_be(machine: Machine, unit: str) -> None:
    """Each is looked up by a thread. What TasksMax= says is held with LimitNPROC=, too: here there
    may be no cgroup for it.
    """
    service = UNITS[unit].replace("*", "")
    most = (UNIT_FILES / service).read_text().partition("TasksMax=")[2].split()[0]
    names = {f"{number}.example" for number in range(16)}

    def check() -> None:
        table = dict.fromkeys(names, WEB)
        with (
            nameserver("127.0.0.2", table, frozenset(names)) as server,
            far_end(WEB) as far,
            commands.association(connect) as made,
        ):
            for name in names:
                made.send(name, far.getsockname()[1], name.encode())
            until("all are asked for", lambda: names <= set(server.asked))
            server.release()
            assert {far.recv(100).decode() for _ in names} == names

    machine.put("/etc/resolv.conf", resolv_conf("127.0.0.2"))
    try:
        with drop_in(machine, service, f"[Service]\nLimitNPROC={most}\n"):
            machine.inside(check)
    finally:
        machine.put("/etc/resolv.conf", resolv_conf("127.0.0.1"))


def test_where_the_kernel_lets_nothing_go(machine: Machine, unit: str) -> None:
    """As the comments in the units say."""
    with drop_in(machine, UNITS[unit].replace("*", ""), f"[Service]\nIPAddressDeny={BESIDE}\n"):
        machine.inside(lambda: check_all_but(BESIDE))
        machine.inside(lambda: commands.associates(connect, WEB))


def check_all_but(host: str) -> None:
    with commands.association(connect) as made:
        assert commands.sends(made, WEB, host)


@contextlib.contextmanager
def drop_in(machine: Machine, unit: str, text: str) -> Iterator[None]:
    with file(machine, f"/etc/systemd/system/{unit}.d/test.conf", text):
        machine.run("systemctl daemon-reload")
        yield
    machine.run("systemctl daemon-reload")


# An association is a connection


def instances(machine: Machine) -> list[str]:
    command = "systemctl list-units --all --plain --no-legend 'muonsocks@*'"
    return [line.split()[0] for line in machine.run(command).stdout.splitlines()]


@pytest.mark.parametrize("unit", ["muonsocks.socket"])
def test_a_process_stays_for_an_association(machine: Machine) -> None:
    """The relay has no place for one. What is bound goes there."""
    machine.run("systemctl start muonsocks-relay.socket")
    since = now(machine)

    def check() -> None:
        with commands.association(connect) as made:
            with commands.bound(connect, VERSIONS["5"], WEB) as (client, peer):
                until("one of two is left", lambda: len(instances(machine)) == 1)
                commands.exchange(client, peer)
            assert commands.sends(made, WEB)
            assert len(instances(machine)) == 1
        until("none is left", lambda: not instances(machine))

    try:
        machine.inside(check)
        read = f"journalctl --boot --since={since} --output=cat --unit=muonsocks-relay.service"
        await_output(machine, read, r"^closed .* target=\S+:21 reply=0 in=8 out=6 .* end=closed")
    finally:
        machine.run("systemctl stop muonsocks-relay.socket muonsocks-relay.service")


@pytest.mark.parametrize("unit", ["muonsocks.socket"])
def test_associations_count(machine: Machine, unit: str) -> None:
    since = now(machine)

    def check() -> None:
        with commands.association(connect), commands.association(connect):
            with connect() as client:
                assert client.recv(1) == b""
            assert len(instances(machine)) == 2

    with drop_in(machine, unit, "[Socket]\nMaxConnections=2\n"):
        machine.run(f"systemctl restart {unit}")
        machine.inside(check)
        read = f"journalctl --boot --since={since} --output=cat --unit={unit}"
        await_output(machine, read, "Too many incoming connections")
    machine.run(f"systemctl restart {unit}")


@pytest.mark.parametrize("unit", ["muonsocks.socket"])
def test_an_instance_is_stopped(machine: Machine, unit: str) -> None:
    since = now(machine)

    def check() -> None:
        with connect() as client, commands.association(lambda: client):
            machine.run("systemctl stop 'muonsocks@*.service'")
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""

    machine.inside(check)
    journal_line(machine, unit, since, "^closed .* end=terminated$")


RESIDENT = "muonsocks-resident.socket"


@pytest.mark.parametrize("unit", [RESIDENT])
def test_a_stop_waits_for_associations(machine: Machine, unit: str) -> None:
    since, service = now(machine), UNITS[unit]

    def check() -> None:
        with commands.association(connect) as made:
            machine.run(f"systemctl stop --no-block {service}")
            await_output(machine, f"systemctl is-active {service}", "^deactivating$")
            assert commands.sends(made, WEB)
        await_output(machine, f"systemctl is-active {service}", "^inactive$")

    with options(machine, "--drain-timeout=60"):
        machine.inside(check)
    journal_line(machine, unit, since, "^closed .* end=closed$")


@pytest.mark.parametrize("unit", [RESIDENT])
def test_a_stop_does_not_wait_for_ever(machine: Machine, unit: str) -> None:
    since = now(machine)

    def check() -> None:
        with commands.association(connect), commands.association(connect):
            machine.run(f"systemctl stop {UNITS[unit]}")

    with options(machine, "--drain-timeout=1"):
        machine.inside(check)
    journal_line(machine, unit, since, "^stopped, connections that were cut: 2$")
    assert show(machine, "Result", UNITS[unit]) == "success"


@pytest.mark.parametrize("unit", [RESIDENT])
def test_a_reload_is_for_what_is_new(machine: Machine, unit: str) -> None:
    """Associations, and destinations of those there are."""

    def check() -> None:
        with (
            commands.association(connect) as before,
            commands.association(connect) as after,
            far_end(BESIDE) as far,
        ):
            before.exchange(far)
            since = now(machine)
            machine.put(RULES, f"deny associate {BESIDE}\n")
            machine.run(f"systemctl reload {UNITS[unit]}")
            journal_line(machine, unit, since, "^reloaded$")
            before.exchange(far)
            assert commands.sends(before, WEB, BESIDE)
            assert commands.sends(after, WEB, BESIDE)
            machine.put(RULES, "deny associate\n")
            since = now(machine)
            machine.run(f"systemctl reload {UNITS[unit]}")
            journal_line(machine, unit, since, "^reloaded$")
            before.exchange(far)
            commands.refuses_to_associate(connect, 2)

    with file(machine, RULES, ""), options(machine, f"--rules={RULES}"):
        machine.inside(check)
