"""Clients that do everything that clients do, and should not: seeded, and many at once.

    Crowd(connect, seed=1).come(2000)

Each brings its own far end, and both ends send, half-close, close, reset or do nothing, in each
stage of a connection. In the end nobody of them is left.
"""

import contextlib
import errno
import random
import socket
import threading
from collections import Counter
from collections.abc import Callable

from programs import (
    GREETING,
    PASSWORD_GREETING,
    SECONDS,
    accept,
    closed_port,
    listener,
    read_all,
    socks4,
    socks4a,
    socks5,
)
from real_server import reset

THREADS = 8

# What cannot become a connection, and is answered or not.
HOPELESS: dict[str, bytes] = {
    "nothing": b"",
    "half a greeting": b"\5\2\0",
    "http": b"GET / HTTP/1.0\r\n\r\n",
    "no method": b"\5\0",
    "only a password": PASSWORD_GREETING,
    "half a request": GREETING + b"\5\1\0\1\1",
    "address type": GREETING + b"\5\1\0\2",
    "bind": GREETING + socks5("0.0.0.0", 0, command=2),
    "SOCKS4 command": socks4("1.2.3.4", 80, command=3),
    "SOCKS4 user id": b"\4\1\0\x50\1\2\3\4" + b"u" * 300,
    "no such name": socks4a("no-such-name.invalid", 80),
    "no such name in version 5": GREETING + socks5("no-such-name.invalid", 80),
}


class Crowd:
    """Clients of one server."""

    def __init__(self, connect: Callable[[], socket.socket], seed: int) -> None:
        """`connect` gives a new connection to the server."""
        self._connect = connect
        self._seed = seed
        self.seen = Counter[str]()  # how many did what

    def come(self, count: int) -> None:
        """Come, all of them, and go."""
        failures: list[BaseException] = []

        def work(number: int) -> None:
            try:
                _Guest(self._connect, self._seed * THREADS + number, self.seen).come(
                    count // THREADS
                )
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]


class _Guest:
    """One who comes again and again, with a far end, a port that refuses and one that is deaf."""

    def __init__(self, connect: Callable[[], socket.socket], seed: int, seen: Counter[str]) -> None:
        self.connect = connect
        self.random = random.Random(seed)
        self.seen = seen
        self.closed = closed_port()
        self.left_open: list[socket.socket] = []

    def come(self, count: int) -> None:
        with listener() as self.far, socket.socket() as self.deaf, contextlib.ExitStack() as stack:
            self.deaf.bind(("127.0.0.1", 0))
            self.deaf.listen(0)
            for _ in range(2):  # its backlog is full: it does not answer
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(self.deaf.getsockname())
            ways = [self.be_joined] * 6 + [self.be_hopeless] * 3
            ways += [self.ask_and_go, self.be_refused, self.go_while_dialled]
            for number in range(count):
                way = self.random.choice(ways)
                if number % 50 == 0:
                    way = self.random.choice([self.be_slow, self.be_idle, self.be_half_closed])
                self.seen[way.__name__] += 1
                try:
                    way()
                except ConnectionError:
                    continue  # the server, or the other end, was faster
                except OSError as error:
                    if error.errno != errno.ENOTCONN:  # as shutdown(2) says it
                        raise
            for sock in self.left_open:  # these, the server has to end
                with contextlib.suppress(ConnectionError):
                    read_all(sock)
                sock.close()

    # Ways to go

    def leave(self, *socks: socket.socket) -> None:
        """Close or reset, in any order; perhaps with something sent at the last moment."""
        for sock in self.random.sample(socks, len(socks)):
            with contextlib.suppress(ConnectionError):
                if self.random.random() < 0.3:
                    sock.sendall(bytes(self.random.choice([1, 1000, 100_000])))
            if self.random.random() < 0.5:
                sock.close()
            else:
                reset(sock)

    def greeted(self) -> socket.socket:
        """A client that has asked for the far end, in some version, whole or in pieces."""
        client = self.connect()
        host, port = self.far.getsockname()
        request = self.random.choice(
            [socks4(host, port), GREETING + socks5(host, port), socks4a("localhost", port)]
        )
        if self.random.random() < 0.2:
            client.sendall(request[:3])
            request = request[3:]
        client.sendall(request)
        return client

    def joined(self) -> tuple[socket.socket, socket.socket]:
        client = self.greeted()
        return client, accept(self.far)

    # Ways to come

    def be_hopeless(self) -> None:
        client = self.connect()
        try:
            client.sendall(self.random.choice(list(HOPELESS.values())))
            if self.random.random() < 0.5:
                client.shutdown(socket.SHUT_WR)
                read_all(client)
        finally:
            self.leave(client)

    def be_refused(self) -> None:
        client = self.connect()
        try:
            client.sendall(socks4("127.0.0.1", self.closed))
            assert read_all(client, 8)[1:2] == b"\x5b"
        finally:
            self.leave(client)

    def ask_and_go(self) -> None:
        self.leave(self.greeted())
        with contextlib.suppress(TimeoutError):
            self.far.settimeout(0.02)
            accept(self.far).close()  # it may have been dialled before the client was missed
        self.far.settimeout(SECONDS)

    def go_while_dialled(self) -> None:
        client = self.connect()
        client.sendall(socks4(*self.deaf.getsockname()))
        if self.random.random() < 0.5:
            self.random.choice([client.close, lambda: reset(client)])()
        else:
            self.left_open.append(client)  # the dial times out

    def be_joined(self) -> None:
        client, conn = self.joined()
        try:
            ends = self.random.sample([client, conn], 2)
            for sender, reader in (ends, ends[::-1]):
                size = self.random.choice([0, 1, 100, 5000])
                sender.sendall(bytes(size))
                if reader is client and sender is conn:
                    read_all(client, 1)  # some of the reply
                else:
                    read_all(reader, size)
            what = self.random.randrange(4)
            if what == 0:
                ends[0].shutdown(socket.SHUT_WR)
                read_all(ends[1])
                ends[1].sendall(b"answer")
                ends[1].shutdown(socket.SHUT_WR)
                read_all(ends[0])
            elif what == 1:
                ends[0].setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        ends[0].send(bytes(1 << 18))  # and nobody reads it
                ends[0].setblocking(True)
        finally:
            self.leave(client, conn)

    # Those that the server has to end, by its time limits

    def be_slow(self) -> None:
        client = self.connect()
        client.sendall(b"\5")
        self.left_open.append(client)

    def be_idle(self) -> None:
        self.left_open += self.joined()

    def be_half_closed(self) -> None:
        client, conn = self.joined()
        self.random.choice([client, conn]).shutdown(socket.SHUT_WR)
        self.left_open += [client, conn]
