"""Where a program believes that its sockets are connected to, where that is not so.

A socket is known by its cookie (socket(7)), which no other one gets.
"""

from __future__ import annotations

from _socket import socket

from muonsocks.intercept.cookies import cookie_of
from muonsocks.intercept.notify import Call, Refused

MOST = 1 << 16  # sockets


class Peers:
    """A table of addresses as the kernel has them. When it is full the oldest is forgotten, and
    the program told the truth of it.
    """

    __slots__ = ("_most", "_names", "_with_streams")

    def __init__(self, with_streams: bool = False, most: int = MOST) -> None:
        """`with_streams` has sockets for TCP seem to be connected to where they were to go."""
        self._with_streams = with_streams
        self._most = most
        self._names: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._names)

    def remember(self, sock: socket, name: bytes) -> None:
        """Let a socket seem to be connected to an address."""
        self._names[cookie_of(sock)] = name
        if len(self._names) > self._most:
            del self._names[next(iter(self._names))]

    def remember_stream(self, sock: socket, name: bytes) -> None:
        """The same for a socket that is connected to a proxy, if that is asked for."""
        if self._with_streams:
            self.remember(sock, name)

    def forget(self, sock: socket) -> None:
        """Let it be connected to what it is connected to."""
        self._names.pop(cookie_of(sock), None)

    def name_of(self, sock: socket) -> bytes | None:
        """Give the address that a socket seems to be connected to; None if that is the true one."""
        return self._names.get(cookie_of(sock)) if self._names else None

    async def getpeername(self, call: Call) -> None:
        """Answer getpeername(2)."""
        if not self._names:
            call.go_on()
            return
        sock = call.duplicate()
        try:
            name = self.name_of(sock)
            if name is not None:
                try:
                    sock.getpeername()
                except OSError as error:  # it has been disconnected since
                    raise Refused(error.errno or 0) from None
        finally:
            sock.close()
        if name is None:
            call.go_on()
        else:
            call.write_address(call.arguments[1], call.arguments[2], name)
            call.succeed()
