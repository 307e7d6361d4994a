"""Programs under socketbox-preload: as real processes, by an ordinary user.

with preloaded(WHERE.format(path), code=SERVER) as server, Front(path) as front:
    client = front.client()
    server.line()
"""

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from attended import AS_NOBODY, Attended, attended
from programs import PYTHON, ROOT, SECONDS, environment

PRELOAD = str(ROOT / "bin" / "socketbox-preload")
# What the programs of tests begin with.
START = """
import errno, os, select, signal, socket, struct, sys, threading
from socket import *
def say(*words): print(*words, flush=True)
def listener(host="127.0.0.1", port=8000, **options):
    sock = socket.socket(AF_INET6 if ":" in host else AF_INET)
    sock.bind((host, port)); sock.listen(5)
    return sock
def failure(call, *arguments):
    try: call(*arguments)
    except OSError as error: return errno.errorcode[error.errno]
"""
START = START.replace("socket.socket(", "socket(")
# One that says what it sees of a connection, and says hello.
SERVER = """
s = listener(sys.argv[1] if len(sys.argv) > 1 else HOST, 80)
say(s.getsockname()[:2]); c, a = s.accept()
say(a[0], c.getpeername() == a); c.sendall(b"hello")
"""


# Says so before each accept, and whom it has got.
LOOP = """
s = listener()
while True: say("accepting"); c, a = s.accept(); say(a[1]); c.sendall(b"hello"); c.close()
"""

Preloaded = Attended


@contextlib.contextmanager
def preloaded(
    *options: str,
    code: str = "",
    program: tuple[str, ...] = (),
    before: tuple[str, ...] = AS_NOBODY,
    variables: dict[str, str] | None = None,
) -> Iterator[Preloaded]:
    """Run a program, or some Python, until the end of the block; it is told to end if it has not
    ended then, and killed if it does not. What it says on standard error is the log.
    """
    words = (*before, PRELOAD, *options, *(program or (PYTHON, "-c", START + code)))
    env = environment(**(variables or {}))
    with attended(Attended, *words, patience=5, env=env) as server:
        yield server


@contextlib.contextmanager
def server(path: str, code: str, *options: str, words: tuple[str, ...] = ()) -> Iterator[Preloaded]:
    """A program that has said something, and listens at port 8000, which is at a path."""
    program = (PYTHON, "-c", START + code, *words)
    with preloaded(f"--listen=*:8000={path}", *options, program=program) as started:
        yield started


def hears(client: socket.socket) -> bool:
    client.settimeout(SECONDS)
    with contextlib.suppress(ConnectionResetError):
        return client.recv(5, socket.MSG_WAITALL) == b"hello"
    return False


PORTS = ("IPV6", "IPV4", "IPV6_WILDCARD", "IPV4_WILDCARD")


def variables(root: str, **more: str) -> dict[str, str]:
    both = {"SKBOX_DIRECTORY_ROOT": root, "SKBOX_DIRECTORY_ROOT2": root}
    return both | {f"SKBOX_PORT_FILTER_{name}": "1024" for name in PORTS} | more


@contextlib.contextmanager
def by_variables(root: str, code: str, host: str = "", **more: str) -> Iterator[Preloaded]:
    """Run some Python that goes by the variables and addresses; what it connects to is HOST."""
    timeout = f"TIMEOUT = {SECONDS}\n"
    with preloaded(
        code=f"HOST = {host!r}\n{timeout}{code}", variables=variables(root, **more)
    ) as one:
        yield one


def needs(*names: str) -> str:
    """Name the programs that are not there, or ""."""
    return ", ".join(name for name in names if shutil.which(name, path=PATH) is None)


PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
HERE = Path(__file__).parent
