"""Programs under socketbox-preload: as real processes, by an ordinary user.

with preloaded(WHERE.format(path), code=SERVER) as server, Front(path) as front:
    client = front.client()
    server.line()
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from attended import AS_NOBODY, Attended, attended
from programs import PYTHON, ROOT, environment

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


def needs(*names: str) -> str:
    """Name the programs that are not there, or ""."""
    return ", ".join(name for name in names if shutil.which(name, path=PATH) is None)


PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
HERE = Path(__file__).parent
