"""Rrcmd: a command on another host by the protocol of rsh, as rcmd(3) and rshd(8) have it.

    us                                  the host
    PORT NUL, or NUL alone              connects to that port, for standard error
    LOCAL-USER NUL REMOTE-USER NUL COMMAND NUL
                                        NUL, and what the command says; or 1, a line, and the end

PORT is decimal. The host wants our ports to be from 512 to 1023, which are not for every user, and
its own one for standard error is to be such a one. Through proxies ours are those of the last one.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from contextlib import ExitStack

from muonsocks.client.classic_socket import program
from muonsocks.client.errand import endpoint_of, way_to
from muonsocks.client.errors import timed_out
from muonsocks.client.rsocks import Raccept, Rbind, Rconnect, Rgetsockname, Rlisten, Rselect
from muonsocks.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

_RESERVED = range(512, 1024)
_IN_USE = (errno.EADDRINUSE, errno.EADDRNOTAVAIL)
_LONGEST_LINE = 1024  # bytes


class CommandRefused(PermissionError):
    """The host will not run the command; `strerror` has its words (EACCES)."""

    side = "destination"


def rcmd(
    host: str, port: int, words: tuple[str, str, str], with_stderr: bool, timeout: float | None
) -> tuple[socket.socket, socket.socket | None]:
    """Do what `rsocks.Rrcmd` does; the words are the two users and the command."""
    said = b"".join(os.fsencode(word) + b"\0" for word in words)
    if said.count(0) != len(words):
        raise UsageError("neither a user nor a command can have a NUL in it")
    clock = _Clock(timeout)
    stderr = None
    with ExitStack() as opened:
        call = _Call(host, port, clock)
        opened.callback(call.sock.close)
        if with_stderr:
            stderr = call.meet()
            opened.callback(stderr.close)
        else:
            call.say(b"\0")
        call.say(said)
        call.expect_start()
        opened.pop_all()
    for sock in (call.sock, stderr):
        if sock is not None:
            sock.settimeout(timeout)
    return call.sock, stderr


class _Clock:
    """The time that there is for all of it."""

    def __init__(self, timeout: float | None) -> None:
        self._deadline = None if timeout is None else time.monotonic() + timeout

    def left(self) -> float | None:
        """Give the seconds that are left. TimeoutError if there are none."""
        if self._deadline is None:
            return None
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise timed_out()
        return left


class _Call:
    """A connection to the host, on which it is told what to do."""

    def __init__(self, host: str, port: int, clock: _Clock) -> None:
        """Connect, by a proxy or to the first of the host's addresses that answers."""
        self._host = host
        self._clock = clock
        destination = endpoint_of(host, port)
        self._is_direct = not way_to(destination, program.proxies)
        addresses: Iterable[tuple[int, tuple[Any, ...]]] = [(socket.AF_INET, (host, port))]
        if self._is_direct:
            found = socket.getaddrinfo(destination.host, port, type=socket.SOCK_STREAM)
            addresses = [(family, address) for family, _, _, _, address in found]
        failure: OSError | None = None
        try:
            for self._family, self._address in addresses:
                try:
                    self.sock = self._made(self._connect)
                    return
                except OSError as error:
                    failure = error
            assert failure is not None
            raise failure
        finally:
            failure = None  # or it would keep itself alive, through this frame

    def _connect(self, sock: socket.socket, port: int) -> None:
        if port:
            try:
                sock.bind(("", port))
            except PermissionError as error:
                reason = "ports below 1024, which rsh wants, are not for this user"
                raise PermissionError(error.errno, reason) from None
        Rconnect(sock, self._address)

    def _made(self, join: Callable[[socket.socket, int], None]) -> socket.socket:
        """Make a socket and join it to a port of ours, where that is for us to choose."""
        ports = list(reversed(_RESERVED)) if self._is_direct else [0]
        for port in ports:
            sock = socket.socket(self._family)
            try:
                sock.settimeout(self._clock.left())
                join(sock, port)
                return sock
            except BaseException as error:
                sock.close()
                in_use = isinstance(error, OSError) and error.errno in _IN_USE
                if not in_use or port == ports[-1]:
                    raise
        raise AssertionError("there is always a port to try")

    def meet(self) -> socket.socket:
        """Have the host connect to us for standard error."""
        host = self._address[0]
        with self._made(lambda sock, port: Rbind(sock, ("", port), host)) as listener:
            _, port = Rgetsockname(listener)[:2]
            Rlisten(listener, 1)
            self.say(b"%d\0" % port)
            ready, _, _ = Rselect([self.sock, listener], [], [], self._clock.left())
            if listener not in ready:
                self.expect_start()
                raise OSError(errno.EPROTO, f"{self._host} does not connect for standard error")
            listener.settimeout(self._clock.left())
            sock, peer = Raccept(listener)
        try:
            self._expect_host(peer)
        except BaseException:
            sock.close()
            raise
        return sock

    def _expect_host(self, peer: tuple[Any, ...]) -> None:
        """Hold that it is the host's root who has come; a proxy has seen to it that it is the host,
        and may not say from which port it came.
        """
        is_host = not self._is_direct or peer[0] == self.sock.getpeername()[0]
        if not is_host or (peer[1] not in _RESERVED and (peer[1] or self._is_direct)):
            raise OSError(errno.EPROTO, f"not {self._host} has connected but {peer[0]}:{peer[1]}")

    def say(self, data: bytes) -> None:
        """Tell the host; if it does not listen, raise what it says instead."""
        self.sock.settimeout(self._clock.left())
        try:
            self.sock.sendall(data)
        except ConnectionError:
            self.expect_start()
            raise

    def expect_start(self) -> None:
        """Hold that the host says that it begins."""
        first = self._receive(1)
        if first == b"\0":
            return
        if not first:
            reason = f"{self._host} has closed the connection without an answer"
            raise ConnectionResetError(errno.ECONNRESET, reason)
        line = first  # which is printed no more than 1 is, unless it is of who stands before rshd
        while b"\n" not in line and len(line) < _LONGEST_LINE:
            more = self._receive(_LONGEST_LINE)
            if not more:
                break
            line += more
        text = line.partition(b"\n")[0].decode("utf-8", "replace")
        text = "".join(one if one.isprintable() else " " for one in text).strip()
        raise CommandRefused(errno.EACCES, f"{self._host}: {text or 'it says no'}")

    def _receive(self, size: int) -> bytes:
        self.sock.settimeout(self._clock.left())
        return self.sock.recv(size)
