"""The units of socketbox's receivers, sandbox and all, under a real systemd as PID 1."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from booted import PROBE, WEB, serving
from nspawn import Machine, assert_is_confined
from test_systemd_resident import await_output, show

pytestmark = pytest.mark.xdist_group("systemd-socketbox")

SOCKET, SERVICE = "socketbox-inetd@hello.socket", "socketbox-inetd@hello.service"

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
