"""UDP sockets that never block, driven by the loop: no coroutine is resumed for a datagram."""

from __future__ import annotations

import errno
from _socket import (
    AF_INET,
    AF_INET6,
    IPPROTO_UDP,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    SOL_UDP,
    socket,
)
from sys import byteorder

from muonsocks.address import Endpoint
from muonsocks.net.loop import Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


# One buffer for all: nothing stays in it when what has been received is dealt with. There is room
# for a header in front of each datagram, so that both are sent as they lie.
HEADROOM = 512
_LONGEST = 65535  # bytes of a datagram, by its length in an IP header
_FULL = 128 << 10  # bytes behind which nothing more is received before all of it has been sent
VIEW = memoryview(bytearray(_FULL + HEADROOM + _LONGEST))

_ROUNDS = 64  # datagrams received for one event, then the others have their turn

_UDP_SEGMENT = 103  # udp(7)
_MOST_SEGMENTS = 64
_CANNOT_SEGMENT = (errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.EOPNOTSUPP, errno.ENOPROTOOPT)


class Batch:
    """Datagrams of the same size to the same place, as they have come one behind the other. They
    are sent with one call when something else comes, or nothing more is there.
    """

    __slots__ = ("_account", "_most", "_pieces", "_send", "_size", "_there", "_to")

    def __init__(self) -> None:
        self._there: object = None
        self._size = self._most = 0
        self._pieces: list[memoryview] = []

    def add(
        self,
        there: object,
        data: memoryview,
        send: Callable[[list[memoryview], Any], int],
        to: Any,
        account: Callable[[int, int, int], None],
    ) -> None:
        """Have data, which lie in VIEW, sent by `send(pieces, to)`, as `Port.send` does that;
        `account` gets the number of those that were sent, their bytes and how many were not.
        """
        size = len(data)
        if there is self._there and size == self._size and len(self._pieces) < self._most:
            self._pieces.append(data)
            return
        self.flush()
        self._there, self._size = there, size
        self._send, self._to, self._account = send, to, account
        self._most = min(_MOST_SEGMENTS, _LONGEST // (size + HEADROOM))
        self._pieces.append(data)

    def flush(self) -> None:
        """Send what is there. It holds nothing then."""
        pieces = self._pieces
        if pieces:
            self._pieces, self._there = [], None
            sent = self._send(pieces, self._to)
            self._account(sent, sent * self._size, len(pieces) - sent)
            del self._send, self._to, self._account


BATCH = Batch()  # of the one port that is receiving


class Port:
    """A UDP socket. What it receives lies in VIEW, with HEADROOM in front of it, when `take` is
    called with where it begins, how long it is and where it comes from, as recvfrom(2) gives that.
    It lies there up to the next flush of BATCH.
    """

    __slots__ = ("_loop", "_receive", "_segment", "_take", "socket")

    _take: Callable[[int, int, tuple[Any, ...]], None]

    def __init__(
        self, loop: Loop, sock: socket, take: Callable[[int, int, tuple[Any, ...]], None]
    ) -> None:
        """Take over a non-blocking socket. OSError, and it is closed, if that is not to be."""
        self._loop = loop
        self._receive = sock.recvfrom_into
        self._take = take
        self._segment = _LONGEST  # bytes of the largest that several may be sent of at once
        self.socket = sock
        try:
            loop.register(sock.fileno(), self._on_event)
        except OSError:
            sock.close()
            raise

    def _on_event(self, _: int) -> None:
        receive, take, start = self._receive, self._take, HEADROOM
        try:
            for _ in range(_ROUNDS):
                if start > _FULL:
                    BATCH.flush()
                    start = HEADROOM
                try:
                    count, source = receive(VIEW[start:])
                except BlockingIOError:
                    return
                except OSError:
                    continue  # of something that was sent: nobody is there, which is told now
                take(start, count, source)
                start += count + HEADROOM
        finally:
            BATCH.flush()
        self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self.socket.fileno() >= 0:
            self._on_event(0)

    def send(self, pieces: list[memoryview], to: Any) -> int:
        """Send datagrams of one size somewhere, or to where the socket is connected if that is
        None. Give how many were sent: an error is no reason to wait, or to send one again.
        """
        size = len(pieces[0])
        if len(pieces) > 1 and 0 < size <= self._segment:
            segment = [(SOL_UDP, _UDP_SEGMENT, size.to_bytes(2, byteorder))]
            try:
                self.socket.sendmsg(pieces, segment, 0, to)
            except OSError as error:
                if error.errno in _CANNOT_SEGMENT:
                    self._segment = size - 1  # it does not fit in a packet, or the device cannot
            else:
                return len(pieces)
        sent = 0
        for data in pieces:
            try:
                if to is None:
                    self.socket.send(data)
                else:
                    self.socket.sendto(data, to)
            except OSError:
                continue
            sent += 1
        return sent

    def close(self) -> None:
        """Receive nothing any more. It holds no cycle then. Harmless when it has been done."""
        if self.socket.fileno() >= 0:
            self._loop.unregister(self.socket.fileno())
            self.socket.close()
            del self._take, self._receive


def bound_beside(
    stream: socket, port: int = 0, prepare: Callable[[socket], None] | None = None
) -> socket:
    """Make a UDP socket at the address that a TCP connection has here, with a port of its own, or
    this one; `prepare` sets its options. OSError.
    """
    name = stream.getsockname()
    host = Endpoint.of_socket(name).host  # IPv4, too, where an IPv6 socket has taken that
    sock = _udp(AF_INET6 if ":" in host else AF_INET)
    try:
        if prepare is not None:
            prepare(sock)
        sock.bind((host, port, *name[2:]) if ":" in host else (host, port))
    except OSError:
        sock.close()
        raise
    return sock


def _udp(family: int) -> socket:
    return socket(family, SOCK_DGRAM | SOCK_NONBLOCK, IPPROTO_UDP)
