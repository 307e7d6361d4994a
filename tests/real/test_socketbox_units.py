"""The units of socketbox's receivers, sandbox and all, under a real systemd as PID 1."""

import contextlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from booted import PROBE, WEB, WEB_6, serving
from nspawn import Machine, assert_is_confined
from test_systemd_resident import await_output, show

pytestmark = pytest.mark.xdist_group("systemd-socketbox")

SOCKET, SERVICE = "socketbox-inetd@hello.socket", "socketbox-inetd@hello.service"
BOX_SOCKET, BOX = "socketbox.socket", "socketbox.service"
PORT = 8023  # there is a web server on port 80 of this machine

# Accepts a connection on an address of the machine, passes it on, and prints what the client gets.
PASS = """
import array, socket, sys
address, path, words = sys.argv[1], sys.argv[2], sys.argv[3].encode()
sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
with socket.create_server((address, 0)) as front:
    client = socket.create_connection(front.getsockname(), 60, (address, 0))
    with front.accept()[0] as conn:
        fds = array.array("i", [conn.fileno()])
        sender.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)], 0, path)
client.sendall(words)
client.shutdown(socket.SHUT_WR)
print(b"".join(iter(lambda: client.recv(65536), b"")).decode(), end="")
"""

HELLO = """\
#!/bin/sh
read words
echo "hello $REMOTE_ADDR, you said $words to $TCPLOCALIP, and I was given $*"
ls /sys/class/net
"""


@pytest.fixture(scope="module")
def machine(installed: Path) -> Iterator[Machine]:
    with serving(installed, SOCKET) as machine:
        machine.put("/opt/hello", HELLO, mode=0o755)
        machine.put("/opt/probe", f"#!/usr/bin/python3\n{PROBE}", mode=0o755)
        machine.put("/opt/status", "#!/bin/sh\nread words\ncat /proc/self/status\n", mode=0o755)
        yield machine


def ask(machine: Machine, words: str = "what\n", name: str = "hello") -> str:
    command = ["python3", "-c", PASS, WEB, f"/run/socketbox/{name}", words]
    return machine.run(shlex.join(command)).stdout


def configure(machine: Machine, program: str, options: str = "") -> None:
    names = ("SOCKETBOX_INETD_PROGRAM", "SOCKETBOX_INETD_OPTIONS")
    lines = zip(names, (program, options), strict=True)
    machine.put("/etc/socketbox/hello", "".join(f"{name}={text}\n" for name, text in lines))
    machine.run(f"systemctl stop {SERVICE}")


def test_a_program_that_has_no_network(machine: Machine) -> None:
    configure(machine, "/opt/hello one two", "--max=10 -v")
    said = ask(machine).splitlines()
    assert said == [f"hello {WEB}, you said what to {WEB}, and I was given one two", "lo"]
    log = f"journalctl -o cat -u {SERVICE}"
    await_output(machine, log, rf"^started client={re.escape(WEB)}:[0-9]+ pid=[0-9]+$")
    await_output(machine, log, rf"^ended client={re.escape(WEB)}:[0-9]+ pid=[0-9]+ status=0 ")
    assert "connections: " in show(machine, "StatusText", SERVICE)
    assert machine.run("stat -c '%a %U' /run/socketbox/hello").stdout == "660 root\n"


def test_connections_that_come_while_it_restarts(machine: Machine) -> None:
    """They wait in the socket, which systemd has."""
    configure(machine, "/opt/hello")
    assert ask(machine).startswith("hello")
    for _ in range(3):
        machine.run(f"systemctl restart {SERVICE}")
        assert ask(machine).startswith("hello")


def test_what_a_program_may_do(machine: Machine) -> None:
    configure(machine, "/opt/status")
    assert_is_confined(ask(machine))
    configure(machine, "/opt/probe")
    machine.put("/dev/probe", "")
    allowed, _ = json.loads(ask(machine))
    assert allowed == []


def test_a_program_that_is_not_there(machine: Machine) -> None:
    """It is not tried again and again."""
    configure(machine, "/opt/nothing")
    machine.run(f"systemctl start {SERVICE}", check=False)
    log = f"journalctl -o cat -u {SERVICE}"
    await_output(machine, log, "/opt/nothing cannot be executed: there is no such program")
    assert show(machine, "ExecMainStatus", SERVICE) == "127"
    assert show(machine, "NRestarts", SERVICE) == "0"
    machine.run(f"systemctl reset-failed {SERVICE}; systemctl restart {SOCKET}")
    configure(machine, "/opt/hello")
    assert ask(machine).startswith("hello")


# Both together: what socketbox.socket accepts is served by the program of the template


@pytest.fixture
def box(machine: Machine) -> Iterator[None]:
    """The server, configured as its units say, with receivers that let in a group."""
    configure(machine, "/opt/hello")
    machine.put("/etc/socketbox.conf", f"rule-set:0\nport:{PORT} jump-unix:/run/socketbox/hello\n")
    machine.put("/etc/default/socketbox", "SOCKETBOX_OPTIONS=--queue-timeout=60\n")
    group = "[Socket]\nSocketGroup=www-data\n"
    port = f"[Socket]\nListenStream=\nListenStream=[::]:{PORT}\n"
    member = "[Service]\nSupplementaryGroups=www-data\n"
    with contextlib.ExitStack() as stack:
        for unit, text in ((SOCKET, group), (BOX_SOCKET, port), (BOX, member)):
            path = f"/etc/systemd/system/{unit}.d/override.conf"
            machine.put(path, text)
            stack.callback(machine.run, f"rm {path}; systemctl daemon-reload")
        machine.run(f"systemctl daemon-reload; systemctl restart {SOCKET}")
        stack.callback(machine.run, f"systemctl restart {SOCKET}")
        machine.run(f"systemctl enable --now {BOX_SOCKET}")
        stack.callback(machine.run, f"systemctl disable --now {BOX_SOCKET}; systemctl stop {BOX}")
        yield


CONNECT = """
import socket, sys
client = socket.create_connection((sys.argv[1], int(sys.argv[2])), 60, (sys.argv[1], 0))
try:
    client.sendall(b"what\\n")
    print(b"".join(iter(lambda: client.recv(65536), b"")).decode(), end="")
except ConnectionError:
    pass  # the end of one that is closed may be a reset
"""


def served(machine: Machine, address: str = WEB) -> str:
    """The first line that a client of the port gets."""
    command = ["python3", "-c", CONNECT, address, str(PORT)]
    return machine.run(shlex.join(command)).stdout.partition("\n")[0]


def greeting(address: str = WEB) -> str:
    return f"hello {address}, you said what to {address}, and I was given "


def main_pid(machine: Machine, unit: str) -> str:
    return show(machine, "MainPID", unit)


def test_what_comes_to_a_port_is_served_without_a_network(machine: Machine, box: None) -> None:
    for address in (WEB, WEB_6):
        assert served(machine, address) == greeting(address)
    log = f"journalctl -o cat -u {BOX}"
    line = rf"^passed client={re.escape(WEB)}:[0-9]+ local={re.escape(WEB)}:{PORT} "
    await_output(machine, log, f"{line}to=/run/socketbox/hello waited=0.000$")
    for unit in (BOX, SERVICE):
        there = machine.run(f"nsenter -n -t {main_pid(machine, unit)} ip -o address").stdout
        found = [line.split()[1:4:2] for line in there.splitlines()]
        assert found == [["lo", "127.0.0.1/8"], ["lo", "::1/128"]]


def test_what_socketbox_may_do(machine: Machine, box: None) -> None:
    served(machine)
    pid = main_pid(machine, BOX)
    children = machine.run(f"cat /proc/{pid}/task/{pid}/children").stdout.split()
    assert children
    for one in (pid, *children):
        assert_is_confined(machine.run(f"cat /proc/{one}/status").stdout)


def test_receivers_that_do_not_let_it_in(machine: Machine, box: None) -> None:
    """Without the group: the connection waits, as it may be let in soon; then it is said why."""
    machine.put(f"/etc/systemd/system/{BOX}.d/override.conf", "")
    machine.put("/etc/default/socketbox", "SOCKETBOX_OPTIONS=--queue-timeout=0.5\n")
    machine.run(f"systemctl daemon-reload; systemctl stop {BOX}")
    assert served(machine) == ""
    log = f"journalctl -o cat -u {BOX}"
    reason = "Permission denied after 0.5 s; "
    await_output(machine, log, f'reason="jump-unix:/run/socketbox/hello: {reason}')


def test_restarts_of_both(machine: Machine, box: None) -> None:
    """Nobody is turned away: who comes meanwhile waits, in sockets that systemd has."""
    for unit in (BOX, SERVICE) * 3:
        machine.run(f"systemctl restart {unit}")
        assert served(machine) == greeting()
    machine.run(f"systemctl kill --signal=KILL {SERVICE}")
    assert served(machine) == greeting()


def test_a_receiver_that_is_away(machine: Machine, box: None) -> None:
    """Who comes waits, until it is there; and this is counted."""
    machine.run(f"systemctl stop {SOCKET} {SERVICE}")
    client = machine.start("python3", "-c", CONNECT, WEB, str(PORT))
    waits = r"connections: 1 open, "
    await_output(machine, f"systemctl show --property=StatusText {BOX}", waits)
    machine.run(f"systemctl start {SOCKET}")
    said = client.communicate(timeout=60)[0].decode()
    assert said.startswith(greeting()), machine.run(f"journalctl -o cat -u {BOX}").stdout
    state = "passed on: 1, after a wait: 1, not passed on: 0"
    await_output(machine, f"systemctl show --property=StatusText {BOX}", state)


def test_rules_that_are_read_again(machine: Machine, box: None) -> None:
    assert served(machine) == greeting()
    machine.put("/etc/socketbox.conf", "rule-set:0\nport:no fail\n")
    machine.run(f"systemctl reload {BOX}")
    log = f"journalctl -o cat -u {BOX}"
    await_output(machine, log, "not reloaded, all stays as it was: /etc/socketbox.conf:2: near ")
    assert served(machine) == greeting()
    machine.put("/etc/socketbox.conf", f"rule-set:0\nport:{PORT} fail\n")
    machine.run(f"systemctl reload {BOX}")
    await_output(machine, log, "^reloaded$")
    assert served(machine) == ""


def test_rules_that_are_no_good(machine: Machine, box: None) -> None:
    """Whoever starts it is told, and it is not tried again and again."""
    rules = machine.run("cat /etc/socketbox.conf").stdout
    machine.put("/etc/socketbox.conf", "rule-set:0\nport:no fail\n")
    assert served(machine) == ""
    assert machine.run(f"systemctl start {BOX}", check=False).returncode != 0
    assert show(machine, "ExecMainStatus", BOX) == "100"
    assert show(machine, "ActiveState", BOX) == "failed"
    machine.put("/etc/socketbox.conf", rules)
    machine.run("systemctl reset-failed; systemctl start socketbox")
    assert served(machine) == greeting()
