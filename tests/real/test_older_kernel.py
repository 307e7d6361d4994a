"""socksify and socketbox-preload where the kernel is Debian 12's, and the machine a virtual one.

That kernel, 6.1, lacks what a later one may have: descriptors of threads (6.9), Landlock's rules
for TCP (6.7), and to be woken where the other one has stopped (6.6).
"""

import json
import shlex
import textwrap
from collections.abc import Iterator

import pytest
from guest_link import Process
from qemu import Guest

pytestmark = [pytest.mark.qemu, pytest.mark.xdist_group("qemu")]

HERE, FAR = "127.0.0.1", "198.51.100.1"  # of the proxy and the web server
PROXY = f"socks5h://{HERE}:1080"
AS_NOBODY = """
import os, sys
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
os.execvp(sys.argv[1], sys.argv[1:])
"""
# Connections of all kinds: by a thread that leads its process and by others, by one that waits and
# by a loop, of a process that has been forked; and one to a name that only the proxy would know.
PROGRAM = f"""
import asyncio, errno, json, os, socket, threading
def fetch():
    with socket.create_connection(("{FAR}", 80), 60) as sock:
        sock.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        return sock.makefile().read().split("\\n")[-2]
async def fetch_in_loop():
    reader, writer = await asyncio.open_connection("{FAR}", 80)
    writer.write(b"GET / HTTP/1.0\\r\\n\\r\\n")
    page = await reader.read()
    writer.close()
    return page.decode().split("\\n")[-2]
async def several():
    return await asyncio.gather(*(fetch_in_loop() for _ in range(3)))
def thread():
    found["threads"].append(fetch())
found = {{"leader": fetch(), "threads": [], "loop": asyncio.run(several())}}
threads = [threading.Thread(target=thread) for _ in range(3)]
[one.start() for one in threads]; [one.join() for one in threads]
child = os.fork()
if not child:
    os._exit(fetch() != found["leader"])
found["child"] = os.waitpid(child, 0)[1]
try:
    socket.create_connection(("nowhere.example", 80), 60)
except OSError as error:
    found["name"] = errno.errorcode[error.errno]
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    try:
        sock.connect(("{FAR}", 9)); sock.send(b"x"); sock.settimeout(60); sock.recv(9)
    except OSError as error:
        found["datagram"] = errno.errorcode[error.errno]
print(json.dumps(found))
"""


def as_nobody(*words: str) -> tuple[str, ...]:
    return ("python3", "-c", AS_NOBODY, *words)


def run_python(program: str) -> str:
    return f"python3 -c {shlex.quote(textwrap.dedent(program))}"


@pytest.fixture
def web(guest: Guest) -> str:
    """A web server in the guest, at an address of its own; give the page."""
    guest.run(f"ip link set lo up; ip addr add {FAR}/32 dev lo 2>/dev/null || true")
    guest.put("/tmp/web/index.html", b"hello\n")
    server = guest.start("python3", "-u", "-m", "http.server", "-b", FAR, "-d", "/tmp/web", "80")
    server.wait_for(b"Serving HTTP")
    return "hello"


@pytest.fixture
def proxy(guest: Guest) -> Iterator[Process]:
    process = guest.start("muonsocks", "-i", HERE, "--workers=1")
    process.wait_for(b"listening on")
    yield process
    assert b"Traceback" not in process.stderr


def test_it_is_that_kernel(guest: Guest) -> None:
    assert guest.run("uname -r").stdout.startswith("6.1.")


@pytest.mark.parametrize("mode", ["isolate", "async", "hold"])
def test_socksify(guest: Guest, web: str, proxy: Process, mode: str) -> None:
    guest.put("/tmp/program.py", PROGRAM.encode())
    command = ("socksify", "-v", f"--mode={mode}", f"--proxy={PROXY}", "python3", "/tmp/program.py")
    done = guest.run(shlex.join(as_nobody(*command)), timeout=120)
    found = json.loads(done.stdout)
    assert found == {
        "leader": web,
        "threads": [web] * 3,
        "loop": [web] * 3,
        "child": 0,
        "name": "EHOSTUNREACH",
        "datagram": "ECONNREFUSED" if mode == "isolate" else "ENETUNREACH",
    }
    assert f"mode={mode}\n" in done.stderr
    assert done.stderr.count(f"connected target={FAR}:80 via={PROXY} ") == 8
    assert b"target=nowhere.example:80" in proxy.stderr
    assert proxy.stderr.count(b"connected client=") == 8


def test_it_chooses_the_safest(guest: Guest, web: str, proxy: Process) -> None:
    words = ("socksify", "-v", f"--proxy={PROXY}", "curl", "-sS", f"http://{FAR}/")
    done = guest.run(shlex.join(as_nobody(*words)))
    assert (done.stdout, "mode=isolate\n" in done.stderr) == (f"{web}\n", True)


def test_socketbox_preload(guest: Guest) -> None:
    guest.run("mkdir -p -m 777 /tmp/box; ip link set lo up")
    guest.put("/tmp/web/index.html", b"from inside\n")
    listen = "--listen=127.0.0.1:8000=/tmp/box/server"
    server = ("python3", "-u", "-m", "http.server", "-b", "127.0.0.1", "-d", "/tmp/web", "8000")
    inside = guest.start(*as_nobody("socketbox-preload", listen, *server))
    inside.wait_for(b"Serving HTTP")
    words = ("-l", "127.0.0.1", "-p", "8080", "--workers=1", "-S", "/tmp/box/server")
    outside = guest.start("socketbox", *words)
    outside.wait_for(b"listening on")
    for _ in range(3):
        done = guest.run("curl -sS --interface 127.9.8.7 http://127.0.0.1:8080/")
        assert done.stdout == "from inside\n"
    assert inside.stderr.count(b"127.9.8.7 - - ") == 3, inside
    assert guest.run("curl -sS http://127.0.0.1:8000/", check=False).returncode == 7
