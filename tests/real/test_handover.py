"""Both kinds of units together: a process for each handshake, a resident relay for the rest."""

import contextlib
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from booted import MANY, PAGE, PROBE, PROXY, SECONDS, WEB, WEB_6, curl, fetches, start
from nspawn import Machine, assert_is_confined
from test_systemd import (  # the fixtures too
    booted,  # noqa: F401
    drop_in,
    instances,
    machine,  # noqa: F401
    options,
)

pytestmark = pytest.mark.xdist_group("systemd")

# Holds connections through the proxy, to a target of its own that echoes. Each line it reads makes
# it use them all, and say how many gave back what they were sent; the first is said unasked.
HOLD = f"""
import contextlib, ipaddress, socket, sys, threading
with socket.create_server(("{WEB}", 0)) as far:
    port = far.getsockname()[1].to_bytes(2, "big")
    def serve():
        while True:
            threading.Thread(target=echo, args=far.accept()[:1], daemon=True).start()
    def echo(sock):
        with sock, contextlib.suppress(ConnectionError):
            while data := sock.recv(1 << 16):
                sock.sendall(data)
    threading.Thread(target=serve, daemon=True).start()
    clients = []
    for _ in range(int(sys.argv[1])):
        clients.append(socket.create_connection(("127.0.0.1", 1080)))
        target = ipaddress.ip_address("{WEB}").packed + port
        clients[-1].sendall(b"\\5\\1\\0" + b"\\5\\1\\0\\1" + target)
        assert clients[-1].recv(12, socket.MSG_WAITALL)[:4] == b"\\5\\0\\5\\0"
    line = "begin"
    while line:
        alive = 0
        for number, client in enumerate(clients):
            try:
                client.sendall(b"%8d" % number)
                alive += client.recv(8, socket.MSG_WAITALL) == b"%8d" % number
            except OSError:
                pass
        print(alive, flush=True)
        line = sys.stdin.readline()
"""

# What may be reached at all from within the relay's unit, and what it can do with a connection that
# it was given: bytes, also by way of a pipe, names and options.
REACH = f"""
import json, os, socket, sys
attempts = {{
    "connect to the web": lambda: socket.create_connection(("{WEB}", 80), 5),
    "look a name up": lambda: socket.getaddrinfo("web.example.invalid", 80),
    "make an internet socket": lambda: socket.socket(),
    "read a users file": lambda: open("/etc/shadow"),
    "have a second descriptor 200001": lambda: os.dup2(0, 200001),
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


@contextlib.contextmanager
def resident(machine: Machine, *lines: str) -> Iterator[None]:  # noqa: F811
    """Have the socket started, and maybe lines of one's own in the service's unit."""
    place = "/run/systemd/system/muonsocks-relay.service.d/test.conf"
    if lines:
        machine.put(place, "\n".join(("[Service]", *lines, "")))
        machine.run("systemctl daemon-reload")
    machine.run("systemctl start muonsocks-relay.socket")
    try:
        yield
    finally:
        machine.run("systemctl stop muonsocks-relay.socket muonsocks-relay.service")
        if lines:
            machine.run(f"rm {place}; systemctl daemon-reload")


class Holder:
    """Connections that are held, and can be tried."""

    def __init__(self, machine: Machine, count: int) -> None:  # noqa: F811
        command = ("/usr/bin/python3", "-c", HOLD, str(count))
        self.process = start(machine, str(count), *command)

    def alive(self) -> int:
        """Try them all; say how many are there."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(b"again\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(SECONDS)


@contextlib.contextmanager
def held(machine: Machine, count: int) -> Iterator[Holder]:  # noqa: F811
    holder = Holder(machine, count)
    yield holder
    holder.close()


def await_no_instances(machine: Machine) -> None:  # noqa: F811
    for _ in range(200):
        if not instances(machine):
            return
        machine.run("sleep 0.05")
    raise AssertionError(instances(machine))


def relay_pid(machine: Machine) -> str:  # noqa: F811
    show = "systemctl show --property=MainPID --value muonsocks-relay.service"
    return machine.run(show).stdout.strip()


def worker_pids(machine: Machine) -> list[str]:  # noqa: F811
    pid = relay_pid(machine)
    return machine.run(f"cat /proc/{pid}/task/{pid}/children").stdout.split()


def descriptors(machine: Machine, kind: str) -> int:  # noqa: F811
    """Count descriptors of a kind in all workers."""
    places = " ".join(f"/proc/{pid}/fd" for pid in worker_pids(machine))
    return machine.run(f"ls -l {places}").stdout.count(f"{kind}:")


def relay_line(machine: Machine, pattern: str) -> str:  # noqa: F811
    """Wait for a line of the relay in the journal, which does not know the unit of a process that
    has ended before its line is read.
    """
    follow = "journalctl --boot --follow --lines=all --output=cat --identifier=socks-relay"
    find = f"timeout {SECONDS} grep --max-count=1 --extended-regexp {shlex.quote(pattern)}"
    return machine.run(f"exec bash -c {shlex.quote(f'{find} < <({follow})')}").stdout


def test_no_process_stays_for_a_connection(machine: Machine) -> None:  # noqa: F811
    with resident(machine), held(machine, 20) as holder:
        await_no_instances(machine)
        assert holder.alive() == 20
        log = "journalctl --boot --output=cat --unit='muonsocks@*'"
        assert "not handed over" not in machine.run(log).stdout
        pids = (relay_pid(machine), *worker_pids(machine))
        assert len(pids) > 1
        statuses = [machine.run(f"cat /proc/{pid}/status").stdout for pid in pids]
        sockets = descriptors(machine, "socket")
    assert sockets >= 2 * 20
    for status in statuses:
        assert_is_confined(status)


@pytest.mark.parametrize("url", [f"http://{WEB}/page", f"http://[{WEB_6}]/page"])
@pytest.mark.parametrize("listener", ["127.0.0.1:1080", "[::1]:1080"])
def test_addresses(machine: Machine, listener: str, url: str) -> None:  # noqa: F811
    with resident(machine):
        assert fetches(curl(machine, url, proxy=f"socks5h://{listener}"))
        target = re.escape(url.removeprefix("http://").removesuffix("/page"))
        relay_line(machine, rf"closed client=\S+ user=- target={target}:80 reply=0 .*end=closed")


def test_much_through_a_pipe(machine: Machine) -> None:  # noqa: F811
    """What is bulk is spliced, from the sandbox too."""
    machine.run("head -c 50M /dev/urandom > /srv/www/much")
    with resident(machine):
        fetch = f"curl -sS --max-time 60 --proxy {PROXY} http://{WEB}/much | cmp - /srv/www/much"
        machine.run(f"bash -c {shlex.quote(f'set -o pipefail; {fetch}')}")
        relay_line(machine, r"closed .* out=5242[0-9]{4} .*end=closed")
        pipes, workers = descriptors(machine, "pipe"), len(worker_pids(machine))
    assert pipes > 2 * workers  # those of the signals, and one at least for splice


def test_the_log_line_is_whole(machine: Machine) -> None:  # noqa: F811
    with resident(machine):
        done = curl(machine)
        assert fetches(done)
        port = done.stdout.split()[-1]
        line = relay_line(machine, f"closed client=127.0.0.1:{port} ")
        entry = json.loads(
            machine.run(
                "journalctl --boot --output=json --unit=muonsocks-relay.service --grep=closed "
                "--lines=1"
            ).stdout
        )
    out = re.search(r" out=(\d+) ", line)
    assert out and int(out[1]) > len(PAGE)
    assert (entry["SYSLOG_IDENTIFIER"], entry["PRIORITY"]) == ("socks-relay", "6")
    assert entry["_TRANSPORT"] == "journal"  # with fields
    assert (entry["SOCKS_CLIENT"], entry["SOCKS_END"]) == (f"127.0.0.1:{port}", "closed")


def test_the_relay_is_stopped_and_away(machine: Machine) -> None:  # noqa: F811
    with resident(machine, "Environment=MUONSOCKS_RELAY_OPTIONS=--drain-timeout=0.5"):
        with held(machine, 3) as holder:
            await_no_instances(machine)
            machine.run("systemctl stop muonsocks-relay.service")
            assert holder.alive() == 0
        relay_line(machine, "closed .*end=terminated")
        assert fetches(curl(machine))  # the socket is there, and starts it again
        assert relay_pid(machine) != "0"
        machine.run("systemctl stop muonsocks-relay.socket muonsocks-relay.service")
        assert machine.run("ls -A /run/muonsocks /run/user").stdout.split(":\n")[1][:1] == "\n"
        with held(machine, 3) as holder:
            assert holder.alive() == 3
            assert len(instances(machine)) == 3


def test_the_relay_drains(machine: Machine) -> None:  # noqa: F811
    with resident(machine), held(machine, 3) as holder:
        await_no_instances(machine)
        before = relay_pid(machine)
        machine.run("systemctl stop --no-block muonsocks-relay.service")
        state = "systemctl show --property=ActiveState --value muonsocks-relay.service"
        machine.run(f"until [ $({state}) = deactivating ]; do sleep 0.02; done", timeout=20)
        assert fetches(curl(machine))  # who comes meanwhile is relayed by its own process
        assert holder.alive() == 3
        assert relay_pid(machine) == before
    relay_line(machine, rf"^(.*\b{before}\b.*)?stopped, connections that were cut: 0")


def test_a_worker_is_killed(machine: Machine) -> None:  # noqa: F811
    with resident(machine):
        with held(machine, 3):
            await_no_instances(machine)
            supervisor = relay_pid(machine)
            for pid in worker_pids(machine):
                machine.run(f"kill -KILL {pid}")
                relay_line(machine, f"worker {pid} was killed by signal 9")
        with held(machine, 3) as holder:
            assert holder.alive() == 3
            await_no_instances(machine)
        assert relay_pid(machine) == supervisor


def test_the_relay_hangs(machine: Machine) -> None:  # noqa: F811
    with resident(machine):
        assert fetches(curl(machine))
        machine.run("systemctl kill --signal=STOP muonsocks-relay.service")
        with held(machine, 2) as holder:
            assert len(instances(machine)) == 2
            machine.run("systemctl kill --signal=CONT muonsocks-relay.service")
            assert holder.alive() == 2
        with held(machine, 2) as holder:
            await_no_instances(machine)
            assert holder.alive() == 2


def test_the_relay_is_full(machine: Machine) -> None:  # noqa: F811
    lines = ("LimitNOFILE=40", "Environment=MUONSOCKS_RELAY_OPTIONS=--workers=1")
    with resident(machine, *lines), held(machine, 20) as holder:
        assert holder.alive() == 20
        left = len(instances(machine))
        assert 10 < left < 20
        log = "journalctl --boot --output=cat --unit=muonsocks-relay.service"
        said = machine.run(log).stdout.count("limit on descriptors, 40, allows no more connections")
        assert said == 1


def test_many_quick_connections(machine: Machine) -> None:  # noqa: F811
    with resident(machine):
        assert machine.run("/usr/bin/python3 -", input=MANY, timeout=100).stdout == "400\n"
        relay_line(machine, "closed ")


def test_it_can_be_switched_off(machine: Machine) -> None:  # noqa: F811
    with resident(machine), options(machine, "--relay="), held(machine, 1):
        assert len(instances(machine)) == 1


def test_not_everybody_gets_to_the_relay(machine: Machine) -> None:  # noqa: F811
    """Who does is the user of an instance, from within it."""
    script = (
        "import socket, sys\n"
        "sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "print(sock.connect_ex(sys.argv[1]))\n"
    )
    ask = ["/usr/bin/python3", "-c", script]
    with resident(machine):
        nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *ask]
        outside = machine.run(shlex.join([*nobody, "/run/muonsocks/relay"])).stdout
        assert outside == "13\n"  # EACCES
        machine.put("/srv/ask.py", script)
        command = "/usr/bin/python3 -I /srv/ask.py /run/user/muonsocks-relay"
        with drop_in(machine, f"[Service]\nExecStart=\nExecStart={command}\n"):
            assert machine.run("nc -N 127.0.0.1 1080 </dev/null").stdout == "0\n"


def confined(machine: Machine, script: str) -> str:  # noqa: F811
    """Run a script in the relay's unit, in its place; give what it says."""
    machine.put("/srv/probe.py", script)
    place = "/run/systemd/system/muonsocks-relay.service.d/probe.conf"
    probe = "/usr/bin/python3 -I /srv/probe.py"
    text = f"[Service]\nType=oneshot\nRestart=no\nExecStart=\nExecStart={probe}\n"
    machine.put(place, f"{text}StandardInput=null\n")
    machine.run("systemctl daemon-reload")
    try:
        machine.run("systemctl start muonsocks-relay.service")
        said = "journalctl --boot --output=cat --unit=muonsocks-relay.service --lines=20"
        lines = machine.run(said).stdout.splitlines()
        return next(line for line in lines[::-1] if line.startswith("["))
    finally:
        machine.run("systemctl stop muonsocks-relay.socket muonsocks-relay.service")
        machine.run(f"rm {place}; systemctl daemon-reload")


def test_the_sandbox_prevents(machine: Machine) -> None:  # noqa: F811
    machine.put("/dev/probe", "")
    machine.put("/srv/outside.py", PROBE)
    done, prevented = json.loads(machine.run("/usr/bin/python3 -I /srv/outside.py").stdout)
    assert done and prevented == []
    probe = PROBE.replace("sys.stdin.readline()\nprint(json.dumps([done[True], done[False]]))", "")
    assert probe != PROBE
    probe += "print(json.dumps([done[True], done[False]]), file=sys.stderr)\n"
    assert json.loads(confined(machine, probe)) == [[], done]
    assert json.loads(confined(machine, REACH)) == []


def test_the_units_are_as_secure_as_they_say(installed: Path) -> None:
    """The figure in the comment is the one that systemd gives."""
    unit = installed / "lib/systemd/system/muonsocks-relay.service"
    said = re.search(r"The exposure is (\d+\.\d)\.", unit.read_text())
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    shown = subprocess.run(command, capture_output=True, text=True).stdout
    measured = re.search(r"Overall exposure level .*: (\d+\.\d) ", shown)
    assert said and measured and said[1] == measured[1]
