"""A machine that serves as proxy: booted, the project installed, with targets and clients in it."""

import contextlib
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nspawn
import pytest
from nspawn import Machine

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


@contextlib.contextmanager
def serving(installed: Path, socket: str) -> Iterator[Machine]:
    """A machine with the project installed below /usr/local, a socket unit enabled and targets."""
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
        machine.run(f"systemctl enable --now {socket}")
        yield machine


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


@contextlib.contextmanager
def file(machine: Machine, path: str, text: str, mode: int = 0o644) -> Iterator[None]:
    machine.put(path, text, mode)
    try:
        yield
    finally:
        machine.run(f"rm {path}")


@contextlib.contextmanager
def held(machine: Machine) -> Iterator[None]:
    """One connection through the proxy."""
    client = start(machine, "ready", "/usr/bin/python3", "-c", HOLD)
    yield
    assert client.stdin
    client.stdin.close()
    client.wait(SECONDS)
