"""The units of the server that stays, sandbox and all, under a real systemd as PID 1."""

import contextlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from booted import (
    BESIDE,
    MANY,
    PAGE,
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

pytestmark = pytest.mark.xdist_group("systemd-resident")

UNITS = Path(__file__).parents[2] / "units"
SOCKET, SERVICE = "muonsocks-resident.socket", "muonsocks-resident.service"
BY_NAME = "http://web.example/page"
RULES = "/etc/muonsocks/rules"
USERS = "/etc/muonsocks/users"

# Fetches the page until its standard input ends, one connection after the other, and says how many
# have worked. The first that has not is its end.
FETCH_ON = f"""
import ipaddress, select, socket, sys
target = ipaddress.ip_address("{WEB}").packed + (80).to_bytes(2, "big")
print("ready", flush=True)
count = 0
while not select.select([0], [], [], 0)[0]:
    with socket.create_connection(("127.0.0.1", 1080), timeout=60) as client:
        client.sendall(b"\\5\\1\\0" + b"\\5\\1\\0\\1" + target + b"GET /page HTTP/1.0\\r\\n\\r\\n")
        answer = b"".join(iter(lambda: client.recv(65536), b""))
        assert answer.endswith(b"the page\\n"), answer
    count += 1
print(count)
"""


@pytest.fixture(scope="module")
def booted(installed: Path) -> Iterator[Machine]:
    with serving(installed, SOCKET) as machine:
        yield machine


@pytest.fixture
def machine(booted: Machine) -> Iterator[Machine]:
    """The machine; whatever a test does, nothing may be in the failed state behind it."""
    booted.run(f"systemctl start {SOCKET}")
    yield booted
    failed = booted.run("systemctl --failed --plain --no-legend").stdout
    booted.run(f"systemctl stop {SOCKET} {SERVICE}; systemctl reset-failed")
    assert failed == ""


def show(machine: Machine, name: str, unit: str = SERVICE) -> str:
    return machine.run(f"systemctl show --property={name} --value {unit}").stdout.strip()


def main_pid(machine: Machine) -> str:
    return show(machine, "MainPID")


def workers(machine: Machine) -> list[str]:
    return machine.run(f"pgrep --parent {main_pid(machine)}").stdout.split()


def await_output(machine: Machine, command: str, pattern: str) -> str:
    """Run a command until it prints a line with this pattern."""
    loop = (
        f"until {command} | grep --extended-regexp -- {shlex.quote(pattern)}; do sleep 0.05; done"
    )
    return machine.run(f"timeout {SECONDS} sh -c {shlex.quote(loop)}").stdout


def now(machine: Machine) -> str:
    """The time, to read the journal from here."""
    return "@" + machine.run("date +%s.%6N").stdout.strip()


def read_journal(since: str, options: str = "") -> str:
    return f"journalctl --boot --since={since} --output=cat --unit={SERVICE} {options}"


def journal(machine: Machine, since: str, options: str = "") -> str:
    """What systemd and the programs have said of the service since then."""
    return machine.run(f"journalctl --sync && {read_journal(since, options)}").stdout


def journal_line(machine: Machine, since: str, pattern: str) -> str:
    """Wait for a line of the journal."""
    return await_output(machine, read_journal(since), pattern)


def reload(machine: Machine) -> None:
    """Have it reload, and wait until it has: systemd 252 does not."""
    since = now(machine)
    machine.run(f"systemctl reload {SERVICE}")
    journal_line(machine, since, "^reloaded$")


@contextlib.contextmanager
def options(machine: Machine, text: str) -> Iterator[None]:
    with file(machine, "/etc/default/muonsocks-resident", f"MUONSOCKS_OPTIONS={text}\n"):
        yield


@contextlib.contextmanager
def drop_in(machine: Machine, text: str) -> Iterator[None]:
    with file(machine, f"/etc/systemd/system/{SERVICE}.d/test.conf", text):
        machine.run("systemctl daemon-reload")
        yield
    machine.run("systemctl daemon-reload")


@contextlib.contextmanager
def users(machine: Machine, text: str) -> Iterator[None]:
    sample = (UNITS / "muonsocks-users.conf").read_text()
    with file(machine, USERS, text, 0o600), drop_in(machine, sample):
        yield


# It serves


def test_socket_is_enabled(machine: Machine) -> None:
    assert machine.run(f"systemctl is-enabled {SOCKET}").stdout == "enabled\n"
    listening = show(machine, "Listen", SOCKET)
    assert set(re.findall(r"(\S+) \(Stream\)", listening)) == {"127.0.0.1:1080", "[::1]:1080"}


@pytest.mark.parametrize("listener", ["127.0.0.1:1080", "[::1]:1080"])
def test_it_starts_with_the_first_connection(machine: Machine, listener: str) -> None:
    assert show(machine, "ActiveState") == "inactive"
    assert fetches(curl(machine, BY_NAME, proxy=f"socks5h://{listener}"))
    await_output(machine, f"systemctl is-active {SERVICE}", "^active$")


def test_it_can_be_started_before(machine: Machine) -> None:
    machine.run(f"systemctl stop {SOCKET}; systemctl start {SERVICE}")
    assert show(machine, "ActiveState", SOCKET) == "active"
    assert fetches(curl(machine))


@pytest.mark.parametrize("protocol", ["socks4", "socks4a", "socks5", "socks5h"])
def test_protocols(machine: Machine, protocol: str) -> None:
    assert fetches(curl(machine, proxy=f"{protocol}://127.0.0.1:1080"))


@pytest.mark.parametrize(
    "url",
    ["http://web6.example/page", "http://found.by.dns.example/page", f"http://[{WEB_6}]/page"],
)
def test_destinations(machine: Machine, url: str) -> None:
    assert fetches(curl(machine, url))


def test_many_quick_connections(machine: Machine) -> None:
    assert machine.run("/usr/bin/python3 -", input=MANY, timeout=100).stdout == "400\n"


def test_own_side_is_refused_by_default(machine: Machine) -> None:
    assert refused(curl(machine, "http://127.0.0.1/page"), 2)
    assert refused(curl(machine, "http://localhost/page"), 2)


def test_it_takes_the_place_of_the_other_socket(machine: Machine) -> None:
    assert fetches(curl(machine))
    machine.run("systemctl start muonsocks.socket")
    assert show(machine, "ActiveState", SOCKET) == show(machine, "ActiveState") == "inactive"
    assert fetches(curl(machine))
    machine.run(f"systemctl start {SOCKET}")
    assert show(machine, "ActiveState", "muonsocks.socket") == "inactive"
    assert fetches(curl(machine))


# It is configured


def test_options_of_its_own_go_first(machine: Machine) -> None:
    with file(machine, "/etc/default/muonsocks", "MUONSOCKS_OPTIONS=--allow-local\n"):
        assert fetches(curl(machine, "http://127.0.0.1/page"))
        with options(machine, "--workers=1"):
            machine.run(f"systemctl restart {SERVICE}")
            assert refused(curl(machine, "http://127.0.0.1/page"), 2)
            assert len(workers(machine)) == 1


def test_bind_address(machine: Machine) -> None:
    with options(machine, f"-b {BESIDE}"):
        assert fetches(curl(machine))


def test_mark_takes_a_privilege(machine: Machine) -> None:
    capability = "AmbientCapabilities=CAP_NET_ADMIN\nCapabilityBoundingSet=CAP_NET_ADMIN\n"
    with options(machine, "-m 7"):
        assert curl(machine).returncode == 97
        with drop_in(machine, f"[Service]\n{capability}PrivateUsers=no\n"):
            machine.run(f"systemctl restart {SERVICE}")
            with held(machine):
                connections = machine.run(f"ss -Hetn dst {WEB} dport = :80").stdout
    assert "fwmark:0x7 " in connections


def test_systemd_has_the_sockets(machine: Machine) -> None:
    since = now(machine)
    with options(machine, "-i 127.0.0.2"):
        assert machine.run(f"systemctl start {SERVICE}", check=False).returncode != 0
    assert "systemd has the sockets; leave -i and -p out\n" in journal(machine, since)
    machine.run("systemctl reset-failed")


def test_without_ipv6(machine: Machine) -> None:
    machine.run("sysctl -w net.ipv6.conf.all.disable_ipv6=1")
    try:
        machine.run(f"systemctl restart {SOCKET}")
        assert fetches(curl(machine))
    finally:
        machine.run(f"sysctl -w net.ipv6.conf.all.disable_ipv6=0; ip addr add {WEB_6}/128 dev lo")


ALICE, BOB = (f"socks5h://{name}:secret@127.0.0.1:1080" for name in ("alice", "bob"))


def test_users(machine: Machine) -> None:
    with users(machine, "alice:secret\n"):
        assert fetches(curl(machine, proxy=ALICE))
        for proxy in (
            PROXY,
            BOB,
            "socks5h://alice:guess@127.0.0.1:1080",
            "socks4://127.0.0.1:1080",
        ):
            assert curl(machine, proxy=proxy).returncode == 97

        # a credential is what it was at the start
        machine.put(USERS, "bob:secret\n", 0o600)
        reload(machine)
        assert fetches(curl(machine, proxy=ALICE))
        machine.run(f"systemctl restart {SERVICE}")
        assert fetches(curl(machine, proxy=BOB))
        assert curl(machine, proxy=ALICE).returncode == 97


def test_users_that_are_reloaded(machine: Machine) -> None:
    """As the comment in the unit says."""
    machine.run("groupadd --system proxy-users")
    group = "[Unit]\nAssertPathExists=\n[Service]\nSupplementaryGroups=proxy-users\n"
    own = f"chgrp proxy-users {USERS} && chmod 640 {USERS}"
    with (
        file(machine, USERS, "alice:secret\n"),
        drop_in(machine, group),
        options(machine, f"--users={USERS}"),
    ):
        machine.run(own)
        assert fetches(curl(machine, proxy=ALICE))
        assert curl(machine).returncode == 97
        machine.put(USERS, "bob:secret\n")
        machine.run(own)
        reload(machine)
        assert fetches(curl(machine, proxy=BOB))
        assert curl(machine, proxy=ALICE).returncode == 97


def test_users_without_the_drop_in_let_nobody_in(machine: Machine) -> None:
    with file(machine, USERS, "alice:secret\n", 0o600):
        assert machine.run(f"systemctl start {SERVICE}", check=False).returncode != 0
        assert "AssertPathExists" in machine.run(f"systemctl status {SERVICE}", check=False).stdout
        for proxy in (PROXY, ALICE):
            assert curl(machine, proxy=proxy).returncode in (7, 97)
    machine.run(f"systemctl reset-failed; systemctl start {SERVICE}")
    assert fetches(curl(machine))


def test_drop_in_without_users_lets_nobody_in(machine: Machine) -> None:
    with users(machine, "alice:secret\n"):
        machine.run(f"mv {USERS} /etc/muonsocks/nobody")
        assert machine.run(f"systemctl start {SERVICE}", check=False).returncode != 0
        assert curl(machine).returncode in (7, 97)
        machine.run(f"mv /etc/muonsocks/nobody {USERS}")
    machine.run("systemctl reset-failed")


# It tells


def test_status_tells_how_many_there_are(machine: Machine) -> None:
    with options(machine, "--workers=3"), held(machine):
        show_status = f"systemctl show --property=StatusText --value {SERVICE}"
        await_output(machine, show_status, "^connections: 1 open, 1 served, 0 refused; workers: 3$")


def test_what_systemd_is_told(machine: Machine) -> None:
    since = now(machine)
    machine.run("systemctl log-level debug")
    try:
        machine.run(f"systemctl start {SERVICE}")
        pid = main_pid(machine)
        machine.run(f"systemctl reload {SERVICE}")
        journal_line(machine, since, rf"Got notification message from PID {pid} \(STATUS=conn")
        machine.run(f"systemctl stop {SERVICE}")
    finally:
        machine.run("systemctl log-level info")
    got = re.findall(r"Got notification message from PID (\d+) \((\w+)=", journal(machine, since))
    assert {sender for sender, _ in got} == {pid}
    told = [what for _, what in got if what not in ("WATCHDOG", "STATUS")]
    assert told == ["READY", "RELOADING", "READY", "STOPPING"]


def test_a_connection_is_found_by_its_fields(machine: Machine) -> None:
    done = curl(machine, BY_NAME)
    assert fetches(done)
    address, port = done.stdout.splitlines()[-1].split()
    facts = {"SOCKS_CLIENT": f"{address}:{port}", "SOCKS_TARGET": "web.example:80"}
    find = f"journalctl --boot SOCKS_TARGET=web.example:80 SOCKS_CLIENT={address}:{port}"
    await_output(machine, f"{find} --output=cat", "^closed ")
    first, last = map(json.loads, machine.run(f"{find} --output=json").stdout.splitlines())
    for entry in (first, last):
        assert entry["_TRANSPORT"] == "journal"
        assert entry["_SYSTEMD_UNIT"] == SERVICE
        assert (entry["SYSLOG_IDENTIFIER"], entry["PRIORITY"]) == ("muonsocks", "6")
        assert "SOCKS_USER" not in entry
    text = f"client={address}:{port} user=- target=web.example:80"
    assert first["MESSAGE"] == f"connected {text} address={WEB}:80"
    assert ours(first) == facts | {"SOCKS_ADDRESS": f"{WEB}:80"}
    known = re.fullmatch(
        rf"closed {re.escape(text)} reply=0 in=(\d+) out=(\d+) secs=(\d+\.\d+) end=closed",
        last["MESSAGE"],
    )
    assert known
    assert ours(last) == facts | {
        "SOCKS_REPLY": "0",
        "SOCKS_BYTES_IN": known[1],
        "SOCKS_BYTES_OUT": known[2],
        "SOCKS_SECS": known[3],
        "SOCKS_END": "closed",
    }


def ours(entry: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in entry.items() if name.startswith("SOCKS_")}


def test_a_refused_connection_is_found_by_its_fields(machine: Machine) -> None:
    with users(machine, "alice:secret\n"):
        assert refused(curl(machine, "http://localhost:81/page", proxy=ALICE), 2)
    find = "journalctl --boot SOCKS_USER=alice SOCKS_REPLY=2 SOCKS_END=refused-by-rule"
    await_output(machine, f"{find} --output=cat", r'^closed .* target=localhost:81 .* detail="')


def test_quiet(machine: Machine) -> None:
    since = now(machine)
    with options(machine, "-q"):
        assert fetches(curl(machine))
        machine.run(f"systemctl restart {SERVICE}")
        assert fetches(curl(machine))
    assert "client=" not in journal(machine, since)


def test_a_journal_that_hangs_holds_nothing_up(machine: Machine) -> None:
    assert fetches(curl(machine))
    machine.run("systemctl kill --kill-whom=main --signal=STOP systemd-journald.service")
    try:
        for _ in range(2):  # 1600 lines, where the socket takes 512
            assert machine.run("/usr/bin/python3 -", input=MANY, timeout=100).stdout == "400\n"
    finally:
        machine.run("systemctl kill --kill-whom=main --signal=CONT systemd-journald.service")
    since = now(machine)
    assert fetches(curl(machine, BY_NAME))
    journal_line(machine, since, "^closed .*target=web.example:80 ")


# It is reloaded


def test_reload(machine: Machine) -> None:
    with file(machine, RULES, "deny * 81\n"), options(machine, f"--rules={RULES}"), held(machine):
        assert fetches(curl(machine))
        machine.put(RULES, "deny web.example\n")
        reload(machine)
        assert refused(curl(machine, BY_NAME), 2)
        assert fetches(curl(machine))

        since = now(machine)
        machine.put(RULES, "bogus\n")
        machine.run(f"systemctl reload {SERVICE}")
        fault = (
            r"^not reloaded, all stays as it was: /etc/muonsocks/rules:1: the line is not a rule"
        )
        journal_line(machine, since, fault)
        assert refused(curl(machine, BY_NAME), 2)
        assert fetches(curl(machine))
        assert show(machine, "ActiveState") == "active"


def test_wrong_rules_at_the_start(machine: Machine) -> None:
    since = now(machine)
    with file(machine, RULES, "bogus\n"), options(machine, f"--rules={RULES}"):
        assert machine.run(f"systemctl start {SERVICE}", check=False).returncode != 0
        fault = (
            f"{RULES}:1: the line is not a rule; write allow|deny|via URL [COMMAND] [DEST [PORTS]]"
        )
        assert fault in machine.run(f"systemctl status {SERVICE}", check=False).stdout
        assert journal(machine, since, "--identifier=muonsocks") == f"{fault}\n"
        assert SERVICE in machine.run("systemctl --failed --plain --no-legend").stdout

        # with a client there it is tried some times, and then given up
        assert curl(machine).returncode in (7, 97)
        await_output(machine, "systemctl --failed --plain --no-legend", re.escape(SOCKET))
        machine.put(RULES, "deny * 81\n")
        machine.run(f"systemctl reset-failed; systemctl start {SERVICE}")
        assert fetches(curl(machine))


# It is restarted, and looks after itself


def test_nobody_is_refused_while_it_is_restarted(machine: Machine) -> None:
    client = start(machine, "ready", "/usr/bin/python3", "-c", FETCH_ON)
    for _ in range(10):
        machine.run(f"systemctl restart {SERVICE}")
    output, _ = client.communicate()
    assert client.returncode == 0, output
    assert int(output) > 10


def test_a_restart_waits_for_who_is_connected(machine: Machine) -> None:
    with options(machine, "--drain-timeout=60"):
        with held(machine):
            machine.run(f"systemctl restart --no-block {SERVICE}")
            await_output(machine, f"systemctl is-active {SERVICE}", "^deactivating$")
            late = machine.start(
                "curl", "-sS", "--max-time", "60", "-x", PROXY, f"http://{WEB}/page"
            )
            await_output(machine, "ss -Hlnt src 127.0.0.1:1080", "^LISTEN +1 ")  # one is waiting
        output, _ = late.communicate()
        assert output == PAGE.encode()


def test_a_restart_does_not_wait_for_ever(machine: Machine) -> None:
    since = now(machine)
    with options(machine, "--drain-timeout=1"), held(machine):
        machine.run(f"systemctl restart {SERVICE}")
        journal_line(machine, since, "^stopped, connections that were cut: 1$")
        journal_line(machine, since, "^closed .* end=terminated$")
        assert fetches(curl(machine))


def test_systemd_is_told_how_long_a_stop_may_take(machine: Machine) -> None:
    since = now(machine)
    with (
        options(machine, "--drain-timeout=3"),
        drop_in(machine, "[Service]\nTimeoutStopSec=1\n"),
        held(machine),
    ):
        machine.run(f"systemctl stop {SERVICE}")
    said = journal(machine, since)
    assert "stopped, connections that were cut: 1\n" in said
    assert "timed out" not in said


WATCHDOG = "[Service]\nWatchdogSec=2\n"


def test_a_worker_that_hangs_is_replaced(machine: Machine) -> None:
    with drop_in(machine, WATCHDOG), options(machine, "--workers=2"):
        assert fetches(curl(machine))
        since = now(machine)
        hung, well = workers(machine)
        machine.run(f"kill -STOP {hung}")
        journal_line(machine, since, f"^worker {hung} has hung ")
        journal_line(machine, since, f"^worker {hung} was killed by signal 9; ")
        await_output(machine, f"pgrep --parent {main_pid(machine)} --count", "^2$")
        assert hung not in workers(machine) and well in workers(machine)
        assert all(fetches(curl(machine)) for _ in range(10))


def test_a_supervisor_that_hangs_is_replaced(machine: Machine) -> None:
    with drop_in(machine, WATCHDOG):
        assert fetches(curl(machine))
        since, pid = now(machine), main_pid(machine)
        machine.run(f"kill -STOP {pid}")
        journal_line(machine, since, "Watchdog timeout")
        journal_line(machine, since, "^listening on ")
        assert fetches(curl(machine))
        assert main_pid(machine) != pid


@pytest.mark.parametrize("signal", ["KILL", "SEGV"])
def test_a_supervisor_that_dies_is_replaced(machine: Machine, signal: str) -> None:
    assert fetches(curl(machine))
    since, pid = now(machine), main_pid(machine)
    machine.run(f"kill -{signal} {pid}")
    journal_line(machine, since, "^listening on ")
    assert fetches(curl(machine))
    assert main_pid(machine) != pid


# It is confined


def test_all_its_processes_are_confined(machine: Machine) -> None:
    machine.run(f"systemctl start {SERVICE}")
    most = machine.run("ulimit -Hn").stdout.strip()
    for pid in [main_pid(machine), *workers(machine)]:
        status = machine.run(f"cat /proc/{pid}/status").stdout
        assert_is_confined(status)
        limits = machine.run(f"cat /proc/{pid}/limits").stdout
        files = re.search(r"^Max open files +(\d+) +(\d+) ", limits, re.M)
        assert files and files[1] == files[2]
        assert files[1] in ("524288", most)  # systemd gives what it can
        assert re.search(r"^Max core file size +0 +0 ", limits, re.M)


def test_sandbox_prevents(machine: Machine) -> None:
    probe = ["/usr/bin/python3", "-I", "/srv/probe.py"]
    machine.put("/srv/probe.py", PROBE)
    machine.put("/dev/probe", "")
    done, prevented = json.loads(machine.run(shlex.join(probe)).stdout)
    assert prevented == []  # without a sandbox all of it can be done
    since = now(machine)
    with drop_in(machine, f"[Service]\nType=oneshot\nExecStart=\nExecStart={shlex.join(probe)}\n"):
        machine.run(f"systemctl start {SERVICE}")
    assert json.loads(journal_line(machine, since, r"^\[")) == [[], done]


def test_it_has_a_place_for_its_state(machine: Machine) -> None:
    machine.run(f"systemctl start {SERVICE}")
    mode, owner = machine.run(
        "stat --dereference --format='%a %u' /var/lib/muonsocks/"
    ).stdout.split()
    assert mode == "700"
    status = machine.run(f"cat /proc/{main_pid(machine)}/status").stdout
    assert f"\nUid:\t{owner}\t" in status
