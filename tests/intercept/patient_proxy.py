"""A SOCKS5 proxy that answers when it is told to, and is the far end itself.

with proxy() as one:
    run(..., options=(f"--proxy={one.url}",))
    assert one.asked == [("192.0.2.1", 80)]
"""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

from programs import SECONDS, failure
from real_server import until

SUCCESS = bytes([5, 0, 0, 1]) + bytes(6)


class Proxy:
    """Grants every request, unless `code` is another one; not before `may_answer` is set."""

    def __init__(self, server: socket.socket) -> None:
        self.server = server
        self.code = 0
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.asked: list[tuple[str, int]] = []  # in the order of the requests
        self.begun = 0  # connections that have come
        self.said: list[bytes] = []  # what has come on each after it was granted
        self.ended = 0  # connections that are over
        self.after = b"welcome\n"
        self._conns: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        name: Any = self.server.getsockname()
        if isinstance(name, str):
            return f"socks5h://unix:{name}"
        host = f"[{name[0]}]" if ":" in name[0] else name[0]
        return f"socks5h://{host}:{name[1]}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                conn = self.server.accept()[0]
                conn.settimeout(SECONDS)
                self.begun += 1
                self._conns.append(conn)
                threading.Thread(target=self._serve, args=[conn], daemon=True).start()

    def _serve(self, conn: socket.socket) -> None:
        with conn, contextlib.suppress(OSError):
            try:
                greeting = self._read(conn, 2)
                self._read(conn, greeting[1])
                conn.sendall(b"\5\0")
                kind = self._read(conn, 4)[3]
                size = {1: 4, 4: 16}.get(kind) or self._read(conn, 1)[0]
                raw = self._read(conn, size)
                families = {4: socket.AF_INET, 16: socket.AF_INET6}
                host = raw.decode() if kind == 3 else socket.inet_ntop(families[size], raw)
                self.asked.append((host, struct.unpack("!H", self._read(conn, 2))[0]))
                while not self.may_answer.wait(0.02):
                    conn.settimeout(0.001)
                    with contextlib.suppress(TimeoutError):
                        if not conn.recv(1, socket.MSG_PEEK):
                            return
                conn.settimeout(SECONDS)
                if self.code:
                    conn.sendall(failure(self.code))
                    return
                conn.sendall(SUCCESS + self.after)
                said = b""
                while data := conn.recv(4096):
                    said += data
                self.said.append(said)
            finally:
                self.ended += 1

    @staticmethod
    def _read(conn: socket.socket, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = conn.recv(count - len(data))
            if not piece:
                raise ConnectionError
            data += piece
        return data

    def await_requests(self, count: int) -> None:
        until(f"{count} requests have come", lambda: len(self.asked) >= count)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        for conn in self._conns:
            with contextlib.suppress(OSError):
                conn.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def proxy(server: socket.socket | None = None) -> Iterator[Proxy]:
    """Run one until the end of the block."""
    one = Proxy(server or socket.create_server(("127.0.0.1", 0)))
    try:
        yield one
    finally:
        one.may_answer.set()
        one.close()
