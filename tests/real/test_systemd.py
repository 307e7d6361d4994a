"""The units as they are shipped, sandbox and all, under a real systemd as PID 1."""

import base64
import contextlib
import hashlib
import json
import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import nspawn
import pytest
from nspawn import Machine

pytestmark = pytest.mark.xdist_group("systemd")

SECONDS = 20  # for what takes milliseconds on a machine that is not busy
PROXY = "socks5h://127.0.0.1:1080"  # h: the proxy looks names up
WEB, WEB_6 = "198.51.100.1", "2001:db8::1"  # RFC 5737, RFC 3849
BESIDE = "198.51.100.2"  # another address to come from
PAGE = "the page\n"

# Answers every question for an IPv4 address with WEB, and says that there is no other kind.
NAME_SERVER = f"""
import ipaddress, socket, struct
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
print("ready", flush=True)
while True:
    query, client = server.recvfrom(512)
    question = query[12 : query.index(0, 12) + 5]
    kind = struct.unpack("!H", question[-4:-2])[0]
    answer = b"\\xc0\\x0c" + struct.pack("!HHIH", 1, 1, 60, 4)
    answer += ipaddress.ip_address("{WEB}").packed
    header = query[:2] + struct.pack("!HHHHH", 0x8180, 1, kind == 1, 0, 0)
    server.sendto(header + question + answer * (kind == 1), client)
"""

# Many short connections, some at a time: how many got the page?
MANY = f"""
import concurrent.futures, ipaddress, socket
target = ipaddress.ip_address("{WEB}").packed + (80).to_bytes(2, "big")
def fetch(number):
    with socket.create_connection(("127.0.0.1", 1080), timeout=60) as client:
        client.sendall(b"\\5\\1\\0" + b"\\5\\1\\0\\1" + target + b"GET /page HTTP/1.0\\r\\n\\r\\n")
        return b"".join(iter(lambda: client.recv(65536), b"")).endswith(b"the page\\n")
with concurrent.futures.ThreadPoolExecutor(16) as pool:
    print(sum(pool.map(fetch, range(400))))
"""

# More connections than systemd lets through by default, 200 in 2 s: how many are answered?
AT_ONCE = """
import contextlib, socket
with contextlib.ExitStack() as clients:
    made = [socket.create_connection(("127.0.0.1", 1080), timeout=60) for _ in range(220)]
    for client in made:
        clients.enter_context(client).sendall(b"\\5\\1\\0")
    print(sum(client.recv(2) == b"\\5\\0" for client in made))
"""

# Goes through the proxy, says so, and stays connected until its standard input ends.
HOLD = f"""
import ipaddress, socket, sys
client = socket.create_connection(("127.0.0.1", 1080))
target = ipaddress.ip_address("{WEB}").packed + (80).to_bytes(2, "big")
client.sendall(b"\\5\\1\\0" + b"\\5\\1\\0\\1" + target)
assert client.recv(12, socket.MSG_WAITALL)[:4] == b"\\5\\0\\5\\0"
print("ready", flush=True)
sys.stdin.read()
"""

# Tries what the sandbox is to prevent, and says what could be done and what could not.
PROBE = """
import ctypes, json, mmap, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(function, *arguments):
    if function(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "")
NEW_NAMESPACES = 0x40000000, 0x10000000  # of the network, of users
attempts = {
    "be root": lambda: os.setuid(0),
    "read /etc/shadow": lambda: open("/etc/shadow"),
    "write to /etc": lambda: open("/etc/probe", "w"),
    "write to /var": lambda: open("/var/probe", "w"),
    "see a home": lambda: os.stat("/home/somebody"),
    "see a device": lambda: os.stat("/dev/probe"),
    "see process 1": lambda: os.stat("/proc/1/status"),
    "see the system's /proc": lambda: os.stat("/proc/meminfo"),
    "write to a control group": lambda: os.mkdir("/sys/fs/cgroup/probe"),
    "make a packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "make a netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "make a network namespace": lambda: call(libc.unshare, NEW_NAMESPACES[0]),
    "make a user namespace": lambda: call(libc.unshare, NEW_NAMESPACES[1]),
    "map memory to write and execute": lambda: mmap.mmap(-1, 4096, prot=7),
    "ask for the clock's state": lambda: call(libc.adjtimex, bytes(512)),
    "make a set-uid file": lambda: os.chmod(os.open("/tmp/probe", os.O_CREAT), 0o4755),
    "be traced": lambda: call(libc.ptrace, 0, 0, 0, 0),
}
done = {True: [], False: []}
for name, attempt in attempts.items():
    try:
        attempt()
        done[True].append(name)
    except OSError:
        done[False].append(name)
sys.stdin.readline()
print(json.dumps([done[True], done[False]]))
"""


@pytest.fixture(scope="module")
def booted(installed: Path) -> Iterator[Machine]:
    """A machine with the project installed below /usr/local, the socket enabled and targets."""
    if reason := nspawn.missing():
        pytest.skip(reason)
    machine = Machine({str(installed): "/usr/local"})
    try:
        machine.__enter__()
    except nspawn.BootError as error:
        if "CI" in os.environ:
            raise  # there it is known to boot, and this is what it is all for
        pytest.skip(str(error))
    with contextlib.closing(machine):
        for address in (f"{WEB}/32", f"{BESIDE}/32", f"{WEB_6}/128"):
            machine.run(f"ip address add {address} dev lo")
        machine.put("/srv/www/page", PAGE)
        machine.put("/home/somebody/file", "")
        machine.put("/etc/hosts", f"127.0.0.1 localhost\n{WEB} web.example\n{WEB_6} web6.example\n")
        machine.put("/etc/resolv.conf", "nameserver 127.0.0.1\n")
        web = "/usr/bin/python3 -u -m http.server --bind :: --directory /srv/www 80"
        start(machine, "Serving", "/bin/sh", "-c", f"exec {web} 2>/dev/null")  # no log of requests
        start(machine, "ready", "/usr/bin/python3", "-c", NAME_SERVER)
        machine.run("systemctl enable --now muonsocks.socket")
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


def start(machine: Machine, word: str, *command: str) -> subprocess.Popen[bytes]:
    """Start a program in the machine and wait until it says that it is ready."""
    process = machine.start(*command)
    assert process.stdout
    line = process.stdout.readline().decode()
    assert word in line, line + process.stdout.read().decode()
    return process


def curl(
    machine: Machine, url: str = f"http://{WEB}/page", *options: str, proxy: str = PROXY
) -> subprocess.CompletedProcess[str]:
    """Fetch a page through the proxy; the last line of the output is curl's own end."""
    own_end = ["--write-out", "%{local_ip} %{local_port}\n"]
    command = ["curl", "-sS", "--max-time", "60", *own_end, "--proxy", proxy, *options, url]
    return machine.run(shlex.join(command), check=False)


def fetches(done: subprocess.CompletedProcess[str]) -> bool:
    assert done.returncode == 0, done.stderr
    return done.stdout.startswith(PAGE)


def refused(done: subprocess.CompletedProcess[str], reply: int) -> bool:
    """Whether this is how curl ends (97) when a SOCKS5 proxy gives it this reply."""
    assert done.returncode == 97, done
    return f"({reply})" in done.stderr


def journal_line(machine: Machine, pattern: str) -> str:
    """Wait for a line of the instances in the journal."""
    follow = "journalctl --boot --follow --lines=all --output=cat --unit='muonsocks@*'"
    find = f"timeout {SECONDS} grep --max-count=1 --extended-regexp {shlex.quote(pattern)}"
    return machine.run(f"exec bash -c {shlex.quote(f'{find} < <({follow})')}").stdout


@contextlib.contextmanager
def file(machine: Machine, path: str, text: str, mode: int = 0o644) -> Iterator[None]:
    machine.put(path, text, mode)
    try:
        yield
    finally:
        machine.run(f"rm {path}")


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


@contextlib.contextmanager
def held(machine: Machine) -> Iterator[None]:
    """One connection through the proxy."""
    client = start(machine, "ready", "/usr/bin/python3", "-c", HOLD)
    yield
    assert client.stdin
    client.stdin.close()
    client.wait(SECONDS)


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
