"""A name server for programs on this host: UDP sockets, and whoever answers."""

from __future__ import annotations

from _socket import (
    AF_INET,
    AF_INET6,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPV6_PKTINFO,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    socket,
)

from muonsocks.address import Endpoint
from muonsocks.net.loop import Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from typing import Any

    Answer = Callable[[bytes], Awaitable[bytes]]  # with nothing, for no answer
    Ancillary = list[tuple[int, int, bytes]]

MOST = 1024  # questions at a time; who asks another one has to ask again
_LOOPBACK = ((AF_INET, "127.0.0.1"), (AF_INET6, "::1"))
_LONGEST = 65535  # bytes of a question
_ANCILLARY = 128  # bytes
_ROUNDS = 64  # questions received for one event, then the others have their turn
_IP_PKTINFO = 8


class Nameserver:
    """Answers what comes to some sockets. `endpoints` has where they are, by their family.

    An answer comes from the address that was asked, if the socket tells that one: IP_PKTINFO,
    IPV6_RECVPKTINFO.
    """

    __slots__ = ("_answer", "_count", "_loop", "_report", "_sockets", "endpoints")

    def __init__(
        self,
        loop: Loop,
        sockets: Iterable[socket],
        answer: Answer,
        report: Callable[[BaseException], None],
    ) -> None:
        """Take over some sockets that do not block. `report` is told of errors of our own."""
        self._loop = loop
        self._answer = answer
        self._report = report
        self._count = 0
        self._sockets: list[socket] = []
        self.endpoints: dict[int, Endpoint] = {}
        for sock in sockets:
            self.endpoints[sock.family] = Endpoint.of_socket(sock.getsockname())
            self._listen(sock)

    def close(self) -> None:
        """Answer nobody any more. Harmless when it has been done."""
        sockets, self._sockets = self._sockets, []
        for sock in sockets:
            self._loop.unregister(sock.fileno())
            sock.close()

    def _listen(self, sock: socket) -> None:
        self._sockets.append(sock)
        self._loop.register(sock.fileno(), lambda _: self._receive(sock))

    def _receive(self, sock: socket) -> None:
        for _ in range(_ROUNDS):
            if sock.fileno() < 0:
                return
            try:
                message, ancillary, _, source = sock.recvmsg(_LONGEST, _ANCILLARY)
            except BlockingIOError:
                return
            except OSError:
                continue  # of an answer: nobody has waited for it
            if self._count < MOST:
                self._count += 1
                self._loop.spawn(self._reply(sock, message, _back(ancillary), source), self._report)
        self._loop.call_soon(lambda: self._receive(sock))

    async def _reply(
        self, sock: socket, message: bytes, back: Ancillary, source: tuple[Any, ...]
    ) -> None:
        try:
            answer = await self._answer(message)
        finally:
            self._count -= 1
        if answer and sock.fileno() >= 0:
            try:
                sock.sendmsg([answer], back, 0, source)
            except OSError:
                return  # it is lost, as datagrams may be: who asks does so again


def _back(ancillary: Ancillary) -> Ancillary:
    """Turn the address that a question has come to into the one that its answer is to come from."""
    for level, kind, data in ancillary:
        if (level, kind) == (IPPROTO_IP, _IP_PKTINFO):  # struct in_pktinfo
            return [(level, kind, bytes(4) + data[8:12] + bytes(4))]
        if (level, kind) == (IPPROTO_IPV6, IPV6_PKTINFO):  # struct in6_pktinfo
            return [(level, kind, data[:16] + bytes(4))]
    return []


def on_loopback() -> list[socket]:
    """Make sockets on this host's loopback addresses, at ports that are free. Where there is no
    IPv6 there is none for that. OSError if there is none at all.
    """
    made: list[socket] = []
    failure: OSError | None = None
    for family, host in _LOOPBACK:
        try:
            sock = socket(family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC)
        except OSError as error:
            failure = error
            continue
        try:
            sock.bind((host, 0))
        except OSError as error:
            failure = error
            sock.close()
            continue
        made.append(sock)
    if not made and failure is not None:
        raise failure
    return made
