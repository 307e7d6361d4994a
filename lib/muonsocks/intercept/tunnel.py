"""A program's datagrams, which come out of a device as packets, on their way through proxies.

    from an address and port of the program     an association with the proxies (RFC 1928 section 7)
    to a name, by the address that stands for it     one for each: by that alone it is known which
                                                     name an answer is from
    to port 53     answered here, whatever nameserver it is for

Answers come from where the program has sent to, and nothing comes from elsewhere. Who sends to
what no proxy carries is told that nobody is there.
"""

from __future__ import annotations

import os

from muonsocks.address import Endpoint
from muonsocks.intercept.dns import DOMAIN
from muonsocks.intercept.flow import Flow
from muonsocks.intercept.packets import LONGEST, Datagram, datagram_in
from muonsocks.net.dial import Dialler
from muonsocks.net.loop import Loop, Timer
from muonsocks.socks import proxy_chain
from muonsocks.socks.request import UNSPECIFIED, Command, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from muonsocks.intercept.nameserver import Answer
    from muonsocks.intercept.ways import Ways
    from muonsocks.net.stream import Stream
    from muonsocks.socks.proxy_request import ProxyRequest
    from muonsocks.socks.request import Reply
    from muonsocks.socks.rules import Chain

_MOST_FLOWS = 256  # the one that has been used least recently gives way
_MOST_QUESTIONS = 1024  # at a time
_IDLE = 120.0  # s without a datagram until a flow is forgotten (RFC 4787, REQ-5: no less)
_LOOK = 30.0  # s
_ROUNDS = 64  # packets for one event, then the others have their turn


class Tunnel:
    """Takes the packets of a device, and gives it those that are for the program."""

    __slots__ = (
        "_answer",
        "_buffer",
        "_dialler",
        "_fd",
        "_flows",
        "_loop",
        "_questions",
        "_say",
        "_timer",
        "_ways",
        "fail",
    )

    def __init__(
        self,
        loop: Loop,
        fd: int,
        ways: Ways,
        answer: Answer,
        dialler: Dialler,
        say: Callable[[str], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        """Take over the device. `say` is told where datagrams go, and of failures; `fail` gets what
        is an error of our own.
        """
        self._loop = loop
        self._fd = fd
        self._ways = ways
        self._answer = answer
        self._dialler = dialler
        self._say = say
        self.fail = fail
        self._buffer = memoryview(bytearray(LONGEST))
        self._flows: dict[tuple[bytes, int, bytes], Flow] = {}  # the least recently used first
        self._questions = 0
        self._timer: Timer | None = None
        loop.register(fd, self._on_event)

    def close(self) -> None:
        """Take no more packets. Harmless when it has been done."""
        if self._fd >= 0:
            self._loop.unregister(self._fd)
            os.close(self._fd)
            self._fd = -1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for flow in self._flows.values():
            flow.close()
        self._flows.clear()

    def _on_event(self, _: int) -> None:
        buffers = (self._buffer,)
        for _ in range(_ROUNDS):
            if self._fd < 0:
                return
            try:
                count = os.readv(self._fd, buffers)
            except BlockingIOError:
                return
            datagram = datagram_in(self._buffer[:count])
            if datagram is not None and datagram.source_port:
                self._carry(datagram)
        self._loop.call_soon(lambda: self._on_event(0))

    def write(self, packet: bytes) -> None:
        """Give the device a packet."""
        if self._fd >= 0:
            try:
                os.write(self._fd, packet)
            except OSError:
                return  # it is lost, as packets may be

    def _carry(self, datagram: Datagram) -> None:
        if datagram.destination_port == DOMAIN:
            self._ask(datagram)
            return
        if _is_for_many(datagram.destination):
            return
        endpoint = Endpoint.at(datagram.destination, datagram.destination_port)
        try:
            meant = self._ways.meant(endpoint)
        except OSError:
            self.write(datagram.unreachable())
            return
        chain = self._ways.way_to(meant)
        stand_in = datagram.destination if meant.packed is None else b""
        if not endpoint.port or (stand_in and not chain):
            self.write(datagram.unreachable())
            return
        flow = self._flow((datagram.source, datagram.source_port, stand_in))
        try:
            flow.send(datagram, meant, chain)
        except OSError as error:
            self._say(f"datagrams target={meant}: {error.strerror}")
            self.write(datagram.unreachable())

    def _flow(self, key: tuple[bytes, int, bytes]) -> Flow:
        flow = self._flows.pop(key, None)
        if flow is None:
            if len(self._flows) >= _MOST_FLOWS:
                self._flows.pop(next(iter(self._flows))).close()
            flow = Flow(self, self._loop, key, self._ask_proxies, self._say)
            if self._timer is None:
                self._timer = self._loop.call_later(_LOOK, self._forget_old)
        self._flows[key] = flow
        flow.used = self._loop.now
        return flow

    def _forget_old(self) -> None:
        self._timer = None
        for key, flow in tuple(self._flows.items()):
            if flow.used + _IDLE <= self._loop.now:
                self._flows.pop(key).close()
        if self._flows:
            self._timer = self._loop.call_later(_LOOK, self._forget_old)

    async def _ask_proxies(self, way: Chain) -> tuple[Stream, ProxyRequest, Reply]:
        requests = [Request(Command.ASSOCIATE, UNSPECIFIED)]
        return await proxy_chain.ask(self._loop, self._dialler, way, requests)

    # Names

    def _ask(self, datagram: Datagram) -> None:
        if self._questions < _MOST_QUESTIONS:
            self._questions += 1
            datagram.data = bytes(datagram.data)
            self._loop.spawn(self._reply(datagram), self.fail)

    async def _reply(self, datagram: Datagram) -> None:
        try:
            answer = await self._answer(bytes(datagram.data))
        finally:
            self._questions -= 1
        if answer:
            self.write(datagram.answer(answer).packet())


def _is_for_many(packed: bytes) -> bool:
    """Say whether an address is one of a multicast or a broadcast, which no proxy carries."""
    if len(packed) == 16:
        return packed[0] == 0xFF
    return packed[0] >= 224
