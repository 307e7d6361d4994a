"""A SOCKS5 proxy that a test has in its hands: it grants all that it is asked for, and the test has
the connections to it, and its relay for datagrams.
"""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from associated import endpoint, header
from programs import SECONDS, address_bytes, read_all

from muonsocks.client.background import Thread

CONNECT = 1


class Proxy:
    """`url` leads to it, `relay` is where datagrams go; `reply` is what it answers to requests."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        """Be at an address, or at the path of a unix socket."""
        is_path = "/" in host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.relay = socket.socket(family, socket.SOCK_DGRAM)
        self.relay.bind(("127.0.0.1" if is_path else host, 0))
        self.relay.settimeout(SECONDS)
        if is_path:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(host)
            self._listener.listen()
            self.place = f"unix:{host}"
        else:
            self._listener = socket.create_server((host, 0), family=family)
            address, port = self._listener.getsockname()[:2]
            self.place = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        self.url = f"socks5h://{self.place}"
        self.reply = b"\5\0\0" + self.endpoint_of(self.relay)
        self.may_answer = threading.Event()
        self.may_answer.set()
        self._there = threading.Condition()
        self._connections: list[socket.socket] = []
        self._all: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._serve)]

    @staticmethod
    def endpoint_of(sock: socket.socket) -> bytes:
        host, port = sock.getsockname()[:2]
        return address_bytes(host) + port.to_bytes(2, "big")

    def __enter__(self) -> "Proxy":
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: object, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self.may_answer.set()
        for one in self._all:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for one in (*self._all, self._listener, self.relay):
            one.close()

    def _serve(self) -> None:
        while True:
            try:
                one, _ = self._listener.accept()
            except OSError:
                return
            self._all.append(one)
            one.settimeout(SECONDS)
            thread = threading.Thread(target=self._grant_all, args=(one,))
            thread.start()
            self._threads.append(thread)

    def _grant_all(self, one: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while one.recv(1, socket.MSG_PEEK) == b"\5":  # at first, or of the next proxy
                if self._grant(one) != CONNECT:
                    return

    def _grant(self, one: socket.socket) -> int:
        if not read_all(one, 3):
            return 0
        one.sendall(b"\5\0")
        head = read_all(one, 5)
        if len(head) < 5:
            return 0
        read_all(one, {1: 5, 4: 17, 3: head[4] + 2}[head[3]])
        with self._there:
            if one not in self._connections:
                self._connections.append(one)
            self._there.notify_all()
        self.may_answer.wait(SECONDS)
        one.sendall(self.reply)
        return head[1]

    def connection(self, number: int = 0) -> socket.socket:
        """Give a connection to it, once something has been asked for there."""
        with self._there:
            assert self._there.wait_for(lambda: len(self._connections) > number, SECONDS)
            return self._connections[number]

    @property
    def count(self) -> int:
        """How many have asked for something."""
        return len(self._connections)

    # The relay

    def heard(self) -> tuple[tuple[str, int], bytes, Any]:
        """Give where the next datagram is to go, its data, and where it has come from."""
        datagram, source = self.relay.recvfrom(1 << 17)
        assert datagram[:3] == b"\0\0\0"
        return *endpoint(datagram[3:]), source

    def say(self, data: bytes, to: Any, host: str = "192.0.2.1", port: int = 53) -> None:
        """Send data on to a client, as if they came from somewhere."""
        self.relay.sendto(header(host, port) + data, to)


def settle() -> None:
    """Wait until the background thread has done what it has been told so far."""
    for _ in range(2):  # what it has been told then, too
        done = threading.Event()
        Thread.of_this_process().call(done.set)
        assert done.wait(SECONDS)


def in_child(story: Callable[[], object]) -> None:
    """Run something in a forked process, and hold that it comes to its end without an error."""
    pid = os.fork()
    if not pid:
        status = 1
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)  # or it would outlive the test, if it hangs
        try:
            story()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
