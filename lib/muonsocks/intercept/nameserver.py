"""A name server for programs on this host: UDP sockets, and whoever answers."""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK, socket

from muonsocks.address import Endpoint
from muonsocks.net.datagrams import VIEW, Port
from muonsocks.net.loop import Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from typing import Any

    Answer = Callable[[bytes], Awaitable[bytes]]  # with nothing, for no answer

MOST = 1024  # questions at a time; who asks another one has to ask again
_LOOPBACK = ((AF_INET, "127.0.0.1"), (AF_INET6, "::1"))


class Nameserver:
    """Answers what comes to some sockets. `endpoints` has where they are, by their family."""

    __slots__ = ("_answer", "_count", "_loop", "_ports", "_report", "endpoints")

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
        self._ports: list[Port] = []
        self.endpoints: dict[int, Endpoint] = {}
        for sock in sockets:
            self.endpoints[sock.family] = Endpoint.of_socket(sock.getsockname())
            self._listen(sock)

    def close(self) -> None:
        """Answer nobody any more."""
        for port in self._ports:
            port.close()

    def _listen(self, sock: socket) -> None:
        def take(start: int, count: int, source: tuple[Any, ...]) -> None:
            if self._count < MOST:
                self._count += 1
                message = bytes(VIEW[start : start + count])
                self._loop.spawn(self._reply(port, message, source), self._report)

        port = Port(self._loop, sock, take)
        self._ports.append(port)

    async def _reply(self, port: Port, message: bytes, source: tuple[Any, ...]) -> None:
        try:
            answer = await self._answer(message)
        finally:
            self._count -= 1
        if answer and port.socket.fileno() >= 0:
            port.send([memoryview(answer)], source)


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
