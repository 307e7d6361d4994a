"""Servers of others, unmodified, that get their connections from socketbox: in a network namespace
that has no interface, as an ordinary user, and with the client's address in their logs.
"""

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from attended import AS_NOBODY, directory
from box import boxed
from compiled import GO, compiled
from preloaded import PATH, Preloaded, needs, preloaded
from programs import PYTHON, ROOT, SECONDS
from real_server import ADDRESS, Server, children, free_port, until

NGINX = """
daemon {daemon}; worker_processes 2; pid {place}/nginx.pid; error_log {place}/error.log notice;
events {{ worker_connections 256; }}
http {{
    access_log {place}/access.log; client_body_temp_path {place}/a; proxy_temp_path {place}/b;
    fastcgi_temp_path {place}/c; uwsgi_temp_path {place}/d; scgi_temp_path {place}/e;
    server {{
        listen {listen};
        location / {{ return 200 "$remote_addr $server_addr $server_port {text}"; }}
    }}
}}
"""
NODE = """
const server = require('http').createServer((q, r) => r.end(q.socket.remoteAddress));
server.listen(8000, HOST, () => console.log('ready', JSON.stringify(server.address())));
"""
# A server that has all of it: a process for each connection, threads, and a loop.
FORKING = """
import http.server, socketserver
class Server(socketserver.MIXIN, http.server.HTTPServer): pass
server = Server(("127.0.0.1", 8000), http.server.SimpleHTTPRequestHandler)
print("ready", flush=True); server.serve_forever()
"""
ASYNC = """
import asyncio
async def serve(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n"); peer = writer.get_extra_info("peername")[0]
    writer.write(b"HTTP/1.0 200 OK\\r\\n\\r\\n" + peer.encode()); await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(serve, ["127.0.0.1", "::1"], 8000)
    print("ready", flush=True); await server.serve_forever()
asyncio.run(main())
"""
CLIENT = "127.98.7.6"  # where clients come from
NO_NETWORK = ("unshare", "--net") if os.geteuid() == 0 else ("unshare", "--net", "--map-root-user")

WITH_RUN_SSHD = (
    *("unshare", "--mount", "sh", "-c"),
    *('mount -t tmpfs none /run && mkdir /run/sshd && exec "$@"', "sh"),
)


@pytest.fixture
def place() -> Iterator[str]:
    with directory() as path:
        yield path


@contextlib.contextmanager
def front(path: str, host: str = ADDRESS) -> Iterator[Server]:
    """A socketbox of this host's own network, that passes all on to a path."""
    with boxed("-S", path, host=host) as box:
        yield box


@contextlib.contextmanager
def serving(
    place: str,
    *program: str,
    is_ready: str = "ready",
    before: tuple[str, ...] = (*NO_NETWORK, *AS_NOBODY),
    host: str = ADDRESS,
) -> Iterator[tuple[Preloaded, Server]]:
    """A program that listens at port 8000, in no network, and a socketbox in front of it."""
    path = f"{place}/socket"
    with (
        preloaded(f"--listen=*:8000={path}", program=program, before=before) as there,
        front(path, host) as box,
    ):
        if is_ready:
            assert is_ready in there.line(), there.log
        until("it listens", lambda: os.path.exists(path))
        yield there, box


def get(box: Server, client: str = CLIENT) -> str:
    host = "::1" if ":" in client else ADDRESS
    connection = http.client.HTTPConnection(host, box.address[1], SECONDS, (client, 0))
    with contextlib.closing(connection):
        connection.request("GET", "/")
        return connection.getresponse().read().decode()


def test_http_server(place: str) -> None:
    program = (PYTHON, "-u", "-m", "http.server", "8000", "--bind", "127.0.0.1", "-d", place)
    with serving(place, *program, is_ready="Serving HTTP") as (there, box):
        for _ in range(5):
            assert "Directory listing" in get(box)
        assert there.log.count(f"{CLIENT} - -") == 5


@pytest.mark.parametrize("kind", ["ThreadingMixIn", "ForkingMixIn"])
def test_threads_and_forks(place: str, kind: str) -> None:
    with serving(place, PYTHON, "-c", FORKING.replace("MIXIN", kind)) as (there, box):
        got: list[str] = []
        threads = [threading.Thread(target=lambda: got.append(get(box))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 8
        until("all are logged", lambda: there.log.count(f"{CLIENT} - -") == 8)


def test_asyncio_with_two_families(place: str) -> None:
    with serving(place, PYTHON, "-c", ASYNC) as (_, box):
        assert {get(box) for _ in range(10)} == {CLIENT}


@pytest.mark.parametrize(("host", "prefix"), [("'127.0.0.1'", ""), ("'::'", "::ffff:")])
def test_node(place: str, host: str, prefix: str) -> None:
    if missing := needs("node"):
        pytest.skip(f"no {missing} here")
    with serving(place, "node", "-e", NODE.replace("HOST", host)) as (_, box):
        for _ in range(5):
            assert get(box) == f"{prefix}{CLIENT}"


@pytest.mark.parametrize("address", ["127.0.0.1:8000", "[::]:8000"])
def test_a_static_program_in_go(place: str, address: str) -> None:
    program = compiled(place, Path(__file__).with_name("go_server.go"), *GO)
    with serving(place, program, address) as (there, box):
        for _ in range(20):
            assert get(box) == "hello\n"
            assert f"client {CLIENT}:" in there.line()


@pytest.mark.parametrize("listen", ["8000", "127.0.0.1:8000", "[::]:8000", "8000 reuseport"])
def test_nginx_with_two_workers(place: str, listen: str) -> None:
    with nginx(place, listen) as (_, box):
        seen = {get(box) for _ in range(10)}
        shown = f"::ffff:{CLIENT}" if ":8000" in listen and "[" in listen else CLIENT
        assert {one.split()[0] for one in seen} <= {shown, CLIENT}
        log = Path(place, "access.log")
        line = re.compile(rf"^\S*{CLIENT} - - ", re.M)
        until("all are logged", lambda: len(line.findall(log.read_text())) == 10)


def test_nginx_as_debian_has_it(place: str) -> None:
    """For IPv4 and for IPv6: each listener gets the clients of its own, and these are logged."""
    with nginx(place, "8000; listen [::]:8000", host="::") as (_, box):
        for _ in range(5):
            for client in (CLIENT, "::1"):
                assert get(box, client).split()[0] == client
        log = Path(place, "access.log")
        until("all are logged", lambda: log.read_text().count("\n") == 10)
        lines = log.read_text().splitlines()
        assert sorted(line.split()[0] for line in lines) == [CLIENT] * 5 + ["::1"] * 5


def test_nginx_reloads_and_loses_nobody(place: str) -> None:
    with nginx(place, "8000") as (there, box):
        master = _pid(place)
        before = set(children(master))
        got: list[str] = []
        is_over = threading.Event()

        def come() -> None:
            while not is_over.is_set():
                got.append(get(box).split()[-1])

        clients = [threading.Thread(target=come) for _ in range(3)]
        for client in clients:
            client.start()
        until("some have come", lambda: len(got) > 20)
        configure(place, "8000", text="new")
        os.kill(master, signal.SIGHUP)
        until("others work", lambda: not before & set(children(master)))
        so_far = len(got)
        until("some more have come", lambda: len(got) > so_far + 20)
        is_over.set()
        for client in clients:
            client.join()
        assert got[0] == "old" and got[-1] == "new" and set(got) == {"old", "new"}
        assert there.process.poll() is None


def test_another_nginx_takes_over(place: str) -> None:
    # Its listeners are inherited by a new master, USR2, and the old one is told to end.
    with nginx(place, "8000", daemon="on") as (there, box):
        assert there.status == 0  # its daemon goes on
        master = _pid(place)
        os.kill(master, signal.SIGUSR2)
        until("there is another", lambda: Path(place, "nginx.pid.oldbin").exists())
        until("it works", lambda: _pid(place) not in (0, master) and children(_pid(place)))
        assert get(box).split()[0] == CLIENT
        os.kill(master, signal.SIGQUIT)
        until("the old one ends", lambda: not Path(place, "nginx.pid.oldbin").exists())
        for _ in range(5):
            assert get(box).split()[0] == CLIENT
        os.kill(_pid(place), signal.SIGQUIT)
        until("that one ends", lambda: not Path(place, "nginx.pid").exists())


def _pid(place: str) -> int:
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int(Path(place, "nginx.pid").read_text())
    return 0


def configure(place: str, listen: str, text: str = "old", daemon: str = "off") -> None:
    path = Path(place, "nginx.conf")
    path.write_text(NGINX.format(place=place, listen=listen, text=text, daemon=daemon))


@contextlib.contextmanager
def nginx(
    place: str, listen: str, daemon: str = "off", host: str = ADDRESS
) -> Iterator[tuple[Preloaded, Server]]:
    if missing := needs("nginx"):
        pytest.skip(f"no {missing} here")
    configure(place, listen, daemon=daemon)
    nginx = shutil.which("nginx", path=PATH) or ""  # which a new one is started by
    program = (nginx, "-c", f"{place}/nginx.conf", "-e", f"{place}/error.log", "-p", place)
    with serving(place, *program, is_ready="", host=host) as (there, box):
        until("it is there", lambda: children(_pid(place)) if _pid(place) else [])
        yield there, box


def test_sshd(place: str) -> None:
    """The client's address in its log; it has a process for each connection, by exec."""
    if missing := needs("sshd", "ssh-keygen", "ssh-keyscan"):
        pytest.skip(f"no {missing} here")
    key = f"{place}/key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    if AS_NOBODY:
        for name in (key, f"{key}.pub"):
            os.chown(name, os.stat(place).st_uid, -1)
    sshd = shutil.which("sshd", path=PATH) or ""
    options = ("-o", "UsePAM=no", "-o", "PidFile=none", "-o", "AddressFamily=any")
    program = (sshd, "-D", "-e", "-f", "/dev/null", "-p", "8000", "-h", key, *options)
    before = (*NO_NETWORK, *WITH_RUN_SSHD, *AS_NOBODY)
    with serving(place, *program, is_ready="", before=before) as (there, box):
        host, port = box.address
        found = subprocess.run(
            ["ssh-keyscan", "-T", str(SECONDS), "-t", "ed25519", "-p", str(port), host],
            capture_output=True,
            text=True,
            timeout=SECONDS * 2,
        )
        assert Path(f"{key}.pub").read_text().split()[1] in found.stdout, there.log
        until("it is logged", lambda: "127.0.0.1 port" in there.log)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may let others in")
def test_a_session_with_sshd(place: str) -> None:
    if missing := needs("sshd", "ssh-keygen", "ssh"):
        pytest.skip(f"no {missing} here")
    key = f"{place}/key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    sshd = shutil.which("sshd", path=PATH) or ""
    options = ("UsePAM=no", "PidFile=none", f"AuthorizedKeysFile={key}.pub", "StrictModes=no")
    words = [word for option in (*options, "PermitRootLogin=yes") for word in ("-o", option)]
    program = (sshd, "-D", "-e", "-f", "/dev/null", "-p", "8000", "-h", key, *words)
    before = (*NO_NETWORK, *WITH_RUN_SSHD)
    with serving(place, *program, is_ready="", before=before, host="::") as (there, box):
        for client, host in ((CLIENT, ADDRESS), ("::1", "::1")):
            known = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null")
            where = ("-p", str(box.address[1]), "-b", client, "-i", key, f"root@{host}")
            done = subprocess.run(
                ["ssh", "-F", "none", "-n", *known, *where, "echo $SSH_CLIENT; exit 42"],
                capture_output=True,
                text=True,
                timeout=SECONDS * 2,
            )
            assert done.returncode == 42, done.stderr + there.log
            assert done.stdout.split()[0] == client
            assert f"Accepted publickey for root from {client} port" in there.log


@pytest.mark.parametrize("server", ["nginx", "go", "node"])
def test_what_else_send_receive_fd_passes(place: str, server: str) -> None:
    """As a script would, to servers that are in no network."""
    if missing := needs(*({server} - {"go"})):
        pytest.skip(f"no {missing} here")
    programs = {"node": lambda: ("node", "-e", NODE.replace("HOST", "'127.0.0.1'"))}
    programs["go"] = lambda: (
        compiled(place, Path(__file__).with_name("go_server.go"), *GO),
        "127.0.0.1:8000",
    )
    made = nginx(place, "8000") if server == "nginx" else serving(place, *programs[server]())
    with made, socket.create_server((ADDRESS, 0)) as listener:
        for _ in range(3):
            client = socket.create_connection(listener.getsockname(), SECONDS, (CLIENT, 0))
            with client, listener.accept()[0] as conn:
                sender = [ROOT / "bin" / "send-receive-fd", "-s", "0", f"{place}/socket"]
                subprocess.run(sender, stdin=conn, timeout=SECONDS, check=True)
                conn.close()
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                answer = client.makefile("rb").read()
                assert b"hello" in answer if server == "go" else CLIENT.encode() in answer


def test_what_send_receive_fd_passes(place: str) -> None:
    """Fed by what accepts one connection, and sends it: as inetd or systemd would start it."""
    path = f"{place}/socket"
    program = (PYTHON, "-u", "-m", "http.server", "8000", "-d", place)
    with preloaded(f"--listen=*:8000={path}", program=program) as there:
        assert "Serving HTTP" in there.line()
        with socket.create_server((ADDRESS, 0)) as listener:
            client = socket.create_connection(listener.getsockname(), SECONDS, (CLIENT, 0))
            with client, listener.accept()[0] as conn:
                done = subprocess.run(
                    [ROOT / "bin" / "send-receive-fd", "-s", "0", path], stdin=conn, timeout=SECONDS
                )
                assert done.returncode == 0
                conn.close()
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                assert client.recv(12, socket.MSG_WAITALL) == b"HTTP/1.0 200"
        until("it is logged", lambda: f"{CLIENT} - -" in there.log)


def test_a_port_of_the_host_is_free(place: str) -> None:
    """Nothing of it is at the port that it listens at."""
    port = free_port()
    program = (PYTHON, "-u", "-m", "http.server", str(port), "--bind", ADDRESS, "-d", place)
    with preloaded(f"--listen=*:{port}={place}/socket", program=program) as there:
        assert "Serving HTTP" in there.line()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((ADDRESS, port))
