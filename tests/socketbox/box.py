"""socketbox as a real process, and receivers that the test holds.

with receiver(path) as there, boxed("-S", path) as box:
    client = box.connect()
    served = there.take()
"""

import contextlib
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from programs import SECONDS, environment
from real_server import Server, running

from muonsocks.resident.board import Board
from muonsocks.socketbox.waiting_room import WaitingRoom

SOCKETBOX = str(Path(__file__).resolve().parents[2] / "bin" / "socketbox")


_TURN = os.memfd_create("turn")


def waiting_room(
    patience: float, places: int, here: int | None = None, board: Board | None = None
) -> WaitingRoom:
    """Make one, which is for this process alone if it has a board of its own."""
    return WaitingRoom(patience, places, board or Board(1), _TURN, here)


def boxed(*options: str, **how: Any) -> contextlib.AbstractContextManager[Server]:
    """Run a socketbox, as `running` does."""
    return running(*options, program=(SOCKETBOX,), **how)


@contextlib.contextmanager
def served_by(
    *options: str, program: tuple[str, ...] = (SOCKETBOX,), **popen: Any
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run it as the options say, without any of ours but one; give the process."""
    ready, tell = os.pipe()
    fds = (tell, *popen.pop("pass_fds", ()))
    popen.setdefault("env", environment())
    popen.setdefault("stderr", subprocess.PIPE)
    process = subprocess.Popen(
        [*program, f"--notify-fd={tell}", *options],
        stdin=subprocess.DEVNULL,
        pass_fds=fds,
        **popen,
    )
    os.close(tell)
    try:
        with open(ready, "rb") as told:
            assert told.readline() == b"\n"
        yield process
    finally:
        process.terminate()
        log = (process.communicate(timeout=SECONDS)[1] or b"").decode()
        print(log)  # pytest shows it with a failure
    assert process.returncode in (0, 11)  # 11: what -i leads to has gone
    assert "Traceback" not in log and "this is a bug" not in log


def status_of(pid: int, *names: str) -> list[str]:
    """Fields of /proc/PID/status."""
    text = Path(f"/proc/{pid}/status").read_text()
    return [" ".join(re.findall(rf"^{name}:(.*)", text, re.M)[0].split()) for name in names]


class Received:
    """A message that a receiver got."""

    def __init__(self, data: bytes, fds: list[int], flags: int, sender: Any) -> None:
        self.data = data
        self.count = len(fds)
        self.flags = flags
        self.sender = sender
        [fd] = fds
        self.blocking = os.get_blocking(fd)
        self.socket = socket.socket(fileno=fd)
        self.socket.settimeout(SECONDS)


class Receiver:
    """A socket that connections are passed to."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.settimeout(SECONDS)

    def message(self) -> Received:
        """Receive a message, whole."""
        data, fds, flags, sender = socket.recv_fds(self.socket, 100, 5)
        return Received(data, fds, flags & ~socket.MSG_CMSG_CLOEXEC, sender)

    def take(self) -> socket.socket:
        """Receive a connection."""
        return self.message().socket

    def serve(self) -> None:
        """Serve a client: say hello, and with which path."""
        with self.take() as conn:
            conn.sendall(b"hello")


def new_receiver(path: str | Path) -> Receiver:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    name = str(path)
    if name.startswith("@"):
        sock.bind("\0" + name[1:])
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        sock.bind(name)
        os.chmod(name, 0o666)
    return Receiver(sock)


@contextlib.contextmanager
def receiver(path: str | Path) -> Iterator[Receiver]:
    """A receiver of datagrams at a path."""
    there = new_receiver(path)
    with there.socket:
        yield there


def is_served(client: socket.socket) -> bool:
    """Say whether a client is greeted, or finds the connection closed."""
    try:
        return client.recv(5) == b"hello"
    except ConnectionResetError:
        return False


def queue_length() -> int:
    """How many datagrams a receiver's queue takes: one more than the kernel says."""
    return int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text()) + 1
