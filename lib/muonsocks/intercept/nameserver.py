"""The sockets that a program's questions for names come in by, and the answers go out by."""

from __future__ import annotations

from _socket import IPPROTO_IP, IPPROTO_IPV6, IPV6_PKTINFO, socket

from muonsocks.net.loop import Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from muonsocks.net.task import Waitable

    # Gives the answer to a message, None if it has earned none (RFC 1035).
    Answer = Callable[[bytes], Coroutine[Waitable, None, bytes | None]]

_IP_PKTINFO = 8
_LONGEST = 4096  # bytes of a question; there are none that are longer
_ANCILLARY = 128
_ROUNDS = 64  # questions at a time, then others have their turn
_MOST = 1024  # questions that wait for their answers; those beyond are lost, as datagrams may be


class Nameserver:
    """Answers what comes in by a socket, from the address that was asked. That is told by the
    socket's IP_PKTINFO or IPV6_RECVPKTINFO, if it has that.
    """

    __slots__ = ("_answer", "_is_asked", "_loop", "_report", "_waiting", "socket")

    def __init__(
        self,
        loop: Loop,
        sock: socket,
        answer: Answer,
        report: Callable[[BaseException], None],
    ) -> None:
        """Take over a socket that does not block. `report` is told of errors of our own."""
        self._loop = loop
        self._answer = answer
        self._report = report
        self._waiting = 0
        self.socket = sock
        loop.register(sock.fileno(), self._on_event)

    def close(self) -> None:
        """Answer no more. Harmless when it has been done."""
        if self.socket.fileno() >= 0:
            self._loop.unregister(self.socket.fileno())
            self.socket.close()

    def _on_event(self, _: int) -> None:
        for _ in range(_ROUNDS):
            if self.socket.fileno() < 0:
                return
            try:
                question, ancillary, _, source = self.socket.recvmsg(_LONGEST, _ANCILLARY)
            except BlockingIOError:
                return
            except OSError:
                continue  # of an answer that nobody has waited for
            if self._waiting < _MOST:
                self._waiting += 1
                self._loop.spawn(
                    self._reply(question, _asked(ancillary), source), self._failed, self._is_over
                )
        self._loop.call_soon(lambda: self._on_event(0))

    async def _reply(
        self, question: bytes, asked: list[tuple[int, int, bytes]], source: tuple[Any, ...]
    ) -> None:
        answer = await self._answer(question)
        if answer is None or self.socket.fileno() < 0:
            return
        try:
            self.socket.sendmsg([answer], asked, 0, source)
        except OSError:
            return  # it is lost, as datagrams may be: the program asks again

    def _is_over(self, _: object) -> None:
        self._waiting -= 1

    def _failed(self, error: BaseException) -> None:
        self._waiting -= 1
        self._report(error)


def _asked(ancillary: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    """Turn the address that a datagram has come to into the one that another is to come from."""
    for level, kind, data in ancillary:
        if (level, kind) == (IPPROTO_IP, _IP_PKTINFO):  # struct in_pktinfo
            return [(level, kind, bytes(4) + data[8:12] + bytes(4))]
        if (level, kind) == (IPPROTO_IPV6, IPV6_PKTINFO):  # struct in6_pktinfo
            return [(level, kind, data[:16] + bytes(4))]
    return []
