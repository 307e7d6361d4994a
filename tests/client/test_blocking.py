"""Errands in the thread that waits for them; and a real interrupt in the middle of one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ends import PATIENCE, no_garbage
from relays import Proxy

from muonsocks.client.blocking import run
from muonsocks.net.loop import Loop

LIB = Path(__file__).resolve().parents[2] / "lib"
pytestmark = pytest.mark.usefixtures("clean")


async def answer(loop: Loop) -> int:
    await loop.sleep(0.001)
    return 42


async def failure(loop: Loop) -> int:
    await loop.sleep(0.001)
    raise OSError(5, "it has failed")


def test_the_loop_is_closed() -> None:
    """With its threads, which have a descriptor."""

    async def in_thread(loop: Loop) -> int:
        return await loop.in_thread(int, "42")

    assert run(in_thread) == 42


def test_results_and_failures() -> None:
    with no_garbage():
        assert run(answer) == 42
        with pytest.raises(OSError, match="it has failed"):
            run(failure)


INTERRUPTED = """
import os, signal, socket, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from muonsocks.client import SocksSocket, create_connection
url, way = sys.argv[1:]
before = sorted(os.listdir("/proc/self/fd"))
kind = socket.SOCK_DGRAM if way == "datagrams" else socket.SOCK_STREAM
sock = SocksSocket(socket.AF_INET, kind, proxy=url)
try:
    if way == "create_connection":
        create_connection(("192.0.2.1", 80), proxy=url)
    elif way == "listen":
        sock.listen()
    else:
        sock.connect(("192.0.2.1", 80))
except KeyboardInterrupt:
    print("interrupted")
sock.close()
if way != "datagrams":
    assert sorted(os.listdir("/proc/self/fd")) == before
"""


@pytest.mark.parametrize("way", ["create_connection", "connect", "listen", "datagrams"])
def test_an_interrupt(way: str) -> None:
    with Proxy() as proxy:
        proxy.may_answer.clear()
        process = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED, proxy.url, way],
            env={"PYTHONPATH": str(LIB), "PATH": os.defpath},
            stdout=subprocess.PIPE,
        )
        connection = proxy.connection()
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=PATIENCE)
        assert (out, process.returncode) == (b"interrupted\n", 0)
        assert connection.recv(1) == b""
