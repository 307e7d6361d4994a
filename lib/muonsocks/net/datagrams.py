"""UDP sockets that never block, driven by the loop: no coroutine is resumed for a datagram."""

from __future__ import annotations

from _socket import (
    AF_INET,
    AF_INET6,
    IPPROTO_UDP,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    socket,
)

from muonsocks.address import Endpoint
from muonsocks.net.loop import Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


# One buffer for all: nothing stays in it when what has been received is dealt with. There is room
# for a header in front of the data, so that both are sent as they lie.
HEADROOM = 512
_LONGEST = 65535  # bytes of a datagram, by its length in an IP header
BUFFER = bytearray(HEADROOM + _LONGEST)
VIEW = memoryview(BUFFER)
_ROOM = VIEW[HEADROOM:]

_ROUNDS = 64  # datagrams received for one event, then the others have their turn


class Port:
    """A UDP socket. What it receives lies in VIEW from HEADROOM on when `take` is called, with the
    number of bytes and the address that it came from, as recvfrom(2) gives it.
    """

    __slots__ = ("_loop", "_receive", "_take", "send_to", "socket")

    _take: Callable[[int, tuple[Any, ...]], None]

    def __init__(
        self, loop: Loop, sock: socket, take: Callable[[int, tuple[Any, ...]], None]
    ) -> None:
        """Take over a non-blocking socket. OSError, and it is closed, if that is not to be."""
        self._loop = loop
        self._receive = sock.recvfrom_into
        self._take = take
        self.socket = sock
        self.send_to = sock.sendto
        try:
            loop.register(sock.fileno(), self._on_event)
        except OSError:
            sock.close()
            raise

    def _on_event(self, _: int) -> None:
        receive, take = self._receive, self._take
        for _ in range(_ROUNDS):
            try:
                count, source = receive(_ROOM)
            except BlockingIOError:
                return
            except OSError:
                continue  # of something that was sent: nobody is there, and that has been told now
            take(count, source)
        self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self.socket.fileno() >= 0:
            self._on_event(0)

    def close(self) -> None:
        """Receive nothing any more. It holds no cycle then. Harmless when it has been done."""
        if self.socket.fileno() >= 0:
            self._loop.unregister(self.socket.fileno())
            self.socket.close()
            del self._take, self._receive, self.send_to


def bound_beside(stream: socket) -> socket:
    """Make a UDP socket at the address where a TCP connection came in, with a port of its own.
    OSError.
    """
    name = stream.getsockname()
    host = Endpoint.of_socket(name).host  # IPv4, too, where an IPv6 socket has taken that
    sock = _udp(AF_INET6 if ":" in host else AF_INET)
    try:
        sock.bind((host, 0, *name[2:]) if ":" in host else (host, 0))
    except OSError:
        sock.close()
        raise
    return sock


def _udp(family: int) -> socket:
    return socket(family, SOCK_DGRAM | SOCK_NONBLOCK, IPPROTO_UDP)
