"""A SOCKS5 proxy that answers when it is told to, and is the far end, too: it gives back what it
gets.

with proxy(greeting=b"220 hello") as one:
    one.may_answer.clear()
    ...
    one.wait_for(asked=1)
    assert one.asked == [("192.0.2.1", 80)]
    one.may_answer.set()
"""

import contextlib
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

from programs import SECONDS, failure, read_all

SUCCESS = bytes([5, 0, 0, 1]) + bytes(6)


class Gate:
    """An event that can be waited for together with descriptors."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def set(self) -> None:
        """Whoever waits goes on."""
        os.eventfd_write(self.fd, 1)

    def clear(self) -> None:
        """Whoever comes waits."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)


class Proxy:
    """Answers each request with `code` after `delay` seconds, and not before it `may_answer`; then
    it says `greeting`, and echoes.
    """

    def __init__(
        self,
        server: socket.socket | None = None,
        *,
        delay: float = 0.0,
        code: int = 0,
        greeting: bytes = b"",
    ) -> None:
        self.server = server or socket.create_server(("127.0.0.1", 0), backlog=1000)
        self.delay = delay
        self.code = code
        self.greeting = greeting
        self.echoes = True
        self.may_answer = Gate()
        self.may_answer.set()
        self.begun = 0  # connections that have come
        self.asked: list[tuple[str, int]] = []  # in the order of the requests
        self.left = 0  # connections that were over before there was an answer
        self.received: list[bytes] = []  # what has come up to an end, on those that were granted
        self.ended = 0  # connections that are over
        self._changed = threading.Condition()
        self._conns: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    @property
    def url(self) -> str:
        name: Any = self.server.getsockname()
        if isinstance(name, str):
            return f"socks5h://unix:{name}"
        host = f"[{name[0]}]" if ":" in name[0] else name[0]
        return f"socks5h://{host}:{name[1]}"

    def wait_for(self, **counts: int) -> None:
        """Wait until something has happened so many times: wait_for(asked=2, left=1)."""

        def is_so() -> bool:
            return all(self._count(name) >= number for name, number in counts.items())

        with self._changed:
            assert self._changed.wait_for(is_so, SECONDS), {one: self._count(one) for one in counts}

    def close(self) -> None:
        """End all connections."""
        self.may_answer.set()
        with contextlib.suppress(OSError):
            self.server.shutdown(socket.SHUT_RDWR)
        self._threads.pop(0).join(SECONDS)
        self.server.close()
        for conn in self._conns:
            with contextlib.suppress(OSError):
                conn.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(SECONDS)
            assert not thread.is_alive()
        os.close(self.may_answer.fd)

    def _count(self, name: str) -> int:
        value: Any = getattr(self, name)
        return value if isinstance(value, int) else len(value)

    def _note(self, name: str, what: object = None) -> None:
        with self._changed:
            value = getattr(self, name)
            if isinstance(value, int):
                setattr(self, name, value + 1)
            else:
                value.append(what)
            self._changed.notify_all()

    def _start(self, target: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                conn = self.server.accept()[0]
                conn.settimeout(SECONDS)
                self._note("begun")
                self._conns.append(conn)
                self._start(self._serve, conn)

    def _serve(self, conn: socket.socket) -> None:
        try:
            with conn, contextlib.suppress(OSError):
                if not self._hear(conn) or self._is_left(conn):
                    self._note("left")
                elif self.code:
                    conn.sendall(failure(self.code))
                else:
                    conn.sendall(SUCCESS + self.greeting)
                    self._note("received", self._echo(conn))
        finally:
            self._note("ended")

    def _hear(self, conn: socket.socket) -> bool:
        """Read a request; False if there is none."""
        try:
            read_all(conn, read_all(conn, 2)[1])
            conn.sendall(b"\5\0")
            kind = read_all(conn, 4)[3]
            raw = read_all(conn, {1: 4, 4: 16}.get(kind) or read_all(conn, 1)[0])
            families = {1: socket.AF_INET, 4: socket.AF_INET6}
            host = socket.inet_ntop(families[kind], raw) if kind in families else raw.decode()
            [port] = struct.unpack("!H", read_all(conn, 2))
        except (OSError, IndexError, ValueError, struct.error):
            return False
        self._note("asked", (host, port))
        return True

    def _is_left(self, conn: socket.socket) -> bool:
        """Wait until there may be an answer: True if nobody waits for it any more."""
        poll = select.poll()
        poll.register(conn, select.POLLIN)
        if self.delay and poll.poll(self.delay * 1000):
            return True
        poll.register(self.may_answer.fd, select.POLLIN)
        return any(fd == conn.fileno() for fd, _ in poll.poll(SECONDS * 1000))

    def _echo(self, conn: socket.socket) -> bytes:
        data = b""
        while piece := conn.recv(1 << 16):
            data += piece
            if self.echoes:
                conn.sendall(piece)
        return data


@contextlib.contextmanager
def proxy(server: socket.socket | None = None, **named: Any) -> Iterator[Proxy]:
    """Run one until the end of the block."""
    one = Proxy(server, **named)
    try:
        yield one
    finally:
        one.close()


welcoming = partial(proxy, greeting=b"welcome\n")
