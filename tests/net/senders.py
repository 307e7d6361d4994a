"""Programs that accept connections and pass them on: the sender's side of what socketbox does."""

import socket
from array import array
from collections.abc import Iterator
from contextlib import contextmanager


def pass_on(path: str, *fds: int, word: bytes = b"\0") -> None:
    """Send descriptors to a path, as the C program does. BlockingIOError if there is no room."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.sendmsg([word], rights, 0, f"\0{path[1:]}" if path.startswith("@") else path)


@contextmanager
def accepted(host: str = "127.0.0.1") -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client, and its connection as another program has accepted it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with (
        socket.create_server((host, 0), family=family) as front,
        socket.create_connection(front.getsockname()[:2], 20) as client,
        front.accept()[0] as conn,
    ):
        yield client, conn


class Front:
    """A port from which clients are passed on to a path.

    with Front(path) as front:
        client = front.client()
    """

    def __init__(self, path: str, host: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._path = path
        self._listener = socket.create_server((host, 0), family=family, backlog=512)
        self._listener.settimeout(20)
        self.address = self._listener.getsockname()[:2]

    def client(self, source: str = "") -> socket.socket:
        """Come as a client, and be passed on."""
        here = (source, 0) if source else None
        client = socket.create_connection(self.address, 20, here)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.pass_next()
        return client

    def pass_next(self) -> None:
        """Accept the next client, and pass it on."""
        with self._listener.accept()[0] as conn:
            pass_on(self._path, conn.fileno())

    def __enter__(self) -> "Front":
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
