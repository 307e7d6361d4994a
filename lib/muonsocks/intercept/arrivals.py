"""Sockets of programs that are connected to us over loopback, and nobody else who comes there."""

from __future__ import annotations

import errno
import os
from _socket import SO_RCVBUF, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET, socket

from muonsocks.address import Endpoint
from muonsocks.net.loop import Loop
from muonsocks.net.task import Waitable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_BACKLOG = 1024
_PATIENCE = 2.0  # s until a connection within this host has come in; it takes none, mostly
_STRANGERS = 64  # who are turned away at once, then the others have their turn


class _Arrival(Waitable):
    """Who is to come in: `far` is our end then, or there is an `error`."""

    __slots__ = ("error", "far")

    def __init__(self) -> None:
        super().__init__()
        self.far: socket | None = None
        self.error: OSError | None = None


class Arrivals:
    """Listens on loopback, for sockets of one family, and lets none in but those."""

    __slots__ = ("_expected", "_loop", "_sock")

    def __init__(self, loop: Loop, family: int, host: str) -> None:
        """OSError if there is no loopback for that."""
        self._loop = loop
        self._expected: dict[Endpoint, _Arrival] = {}
        self._sock = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC)
        try:
            self._sock.setsockopt(SOL_SOCKET, SO_RCVBUF, 1)  # the least: of those who come, too
            self._sock.bind((host, 0))
            self._sock.listen(_BACKLOG)
            loop.register(self._sock.fileno(), lambda _: self._take_in())
        except OSError:
            self._sock.close()
            raise

    def address_for(self, sock: socket) -> tuple[Any, ...]:
        """Give where a socket is to connect to."""
        name: tuple[Any, ...] = self._sock.getsockname()
        if sock.family == self._sock.family:
            return name
        return (f"::ffff:{name[0]}", name[1])

    async def arrival_of(self, sock: socket) -> socket:
        """Give the other end of a socket that has just been connected: later it is turned away.
        OSError.
        """
        who = Endpoint.of_socket(sock.getsockname())
        arrival = self._expected[who] = _Arrival()
        try:
            self._take_in()
            if arrival.far is None and arrival.error is None:
                with self._loop.deadline(_PATIENCE):
                    await arrival
        except BaseException:
            if arrival.far is not None:
                arrival.far.close()
            raise
        finally:
            del self._expected[who]
        if arrival.far is None:
            raise arrival.error or OSError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED))
        return arrival.far

    def _take_in(self) -> None:
        for _ in range(_STRANGERS):
            try:
                fd, name = self._sock._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            except OSError as error:  # a shortage: nobody comes in now
                for arrival in tuple(self._expected.values()):
                    if arrival.far is None:
                        arrival.error = error
                        arrival.wake()
                return
            far = socket(self._sock.family, SOCK_STREAM, 0, fd)
            expected = self._expected.get(Endpoint.of_socket(name))
            if expected is None or expected.far is not None:
                far.close()
                continue
            far.setblocking(False)
            expected.far = far
            expected.wake()
        self._loop.call_soon(self._take_in)

    def close(self) -> None:
        """Let nobody in any more."""
        self._loop.unregister(self._sock.fileno())
        self._sock.close()
