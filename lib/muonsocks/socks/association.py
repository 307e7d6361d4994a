"""A client's datagrams on their way to wherever they are addressed, and the answers back.

    inside     a socket at the address where the client has connected to, for its host alone, and
               once the first datagram has come for that one port of it
    outside    a socket a family, opened on first use, for all destinations: whoever they are, they
               see one address and port (RFC 4787: endpoint-independent mapping)

An answer passes if the client has sent to where it comes from, unless the filter is open.
"""

from __future__ import annotations

import errno
from _socket import SOCK_DGRAM

from muonsocks.address import Endpoint, format_address
from muonsocks.errors import RemoteProtocolError
from muonsocks.net.datagrams import BATCH, VIEW, Port, bound_beside
from muonsocks.net.ending import Ending
from muonsocks.net.relay import Ended, Joint, Watch
from muonsocks.socks.datagram import encode_header, header_length
from muonsocks.socks.datagram_destinations import LIFE, Destination, Destinations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from muonsocks.net.stream import Stream
    from muonsocks.socks.datagram_way import DatagramWay
    from muonsocks.socks.policy import Policy
    from muonsocks.socks.relays import Ask
    from muonsocks.socks.rules import Chain

_IPV4, _IPV4_HEADER = 1, 10
_ZEROS = bytes(3)  # at the beginning of a header


class Association(Joint):
    """One client's datagrams, up to the end of its connection. It sends them to `bound`."""

    __slots__ = (
        "_active",
        "_ask",
        "_bytes_in",
        "_bytes_out",
        "_client",
        "_destinations",
        "_dropped",
        "_ending",
        "_failure",
        "_head_length",
        "_host",
        "_inside",
        "_is_open",
        "_limit",
        "_loop",
        "_outside",
        "_policy",
        "_port",
        "_received",
        "_sent",
        "_source",
        "_watch",
        "_ways",
        "bound",
    )

    def __init__(
        self,
        client: Stream,
        host: bytes,
        port: int,
        policy: Policy,
        report: Callable[[Endpoint, str], None],
        ask: Ask,
    ) -> None:
        """Open what a client sends to from its packed address `host`, and from `port` unless that
        is 0. `report` is told what nothing is sent to, and why; `ask` has a proxy grant one like
        this. OSError.
        """
        super().__init__()
        self._client = client
        self._loop = loop = client.loop
        self._host = format_address(host)
        self._port = port
        self._policy = policy
        self._is_open = policy.commands.udp_open
        self._source: tuple[Any, ...] | None = None  # where the client sends from, once it has
        self._outside: dict[int, Port] = {}
        self._ways: dict[Chain, DatagramWay] = {}  # through proxies
        self._ask: Ask | None = ask
        self._watch: Watch | None = None
        self._ending: Ending | None = None
        self._failure: BaseException | None = None
        self._active = loop.now
        self._limit = policy.limits.idle
        self._head_length = 0
        self._sent = self._received = self._bytes_in = self._bytes_out = self._dropped = 0
        self._inside = Port(loop, bound_beside(client.socket), self._from_client)
        self.bound = Endpoint.of_socket(self._inside.socket.getsockname())
        self._destinations = Destinations(
            loop, policy, self._way_out, self._send_held, report, self._fail
        )

    def start(self) -> None:
        """Go on until the client's connection ends: from now on its stream is not to be read."""
        client, loop = self._client, self._loop
        self._active = loop.now
        self._watch = Watch.of(loop, self._limit)
        self._watch.add(self)
        self._ending = Ending(client, self._finish)

    def counts(self) -> dict[str, int]:
        """Count the bytes of payload and the datagrams that have been sent on."""
        return {
            "in": self._bytes_in,
            "out": self._bytes_out,
            "datagrams-in": self._sent,
            "datagrams-out": self._received,
            "dropped": self._dropped + self._destinations.dropped,
        }

    async def wind_up(self, error: BaseException | None, patience: float) -> Ended:
        """Close all but the client."""
        failure, self._failure = self._failure, None
        try:
            self.stop()
            if error is not None:
                raise error
            if failure is not None:
                raise failure
            return Ended(self.reason, ())
        finally:
            error = failure = None  # or they would keep themselves alive, through this frame

    def stop(self) -> None:
        """Close all but the client, which is told the end. It holds no cycle then. Harmless when it
        has been done.
        """
        if self._watch is not None:
            self._watch.remove(self)
            self._watch = None
        if self._ending is not None:
            self._ending.stop()
            self._ending = None
            self._client.end_output()
        for port in (self._inside, *self._outside.values()):
            port.close()
        self._outside.clear()
        for way in self._ways.values():
            way.close()
        self._ways.clear()
        self._destinations.close()
        self._ask = None

    # Its end

    def end_if_idle(self) -> None:
        """End it if no datagram has passed for too long; forget what it does not need any more."""
        if self._active + self._limit <= self._loop.now:
            self._finish("idle-timeout")
        else:
            self._destinations.forget_old()

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        self._finish("system-error")

    def _finish(self, reason: str) -> None:
        if not self.reason:
            self.reason = reason
            self.wake()

    # Datagrams from the client

    def _from_client(self, start: int, count: int, source: tuple[Any, ...]) -> None:
        if source != self._source and not self._is_client(source):
            self._dropped += 1
            return
        end = _IPV4_HEADER
        if count < end or VIEW[start + 3] != _IPV4:
            end = header_length(VIEW[start:], count)
        head, data = bytes(VIEW[start : start + end]), VIEW[start + end : start + count]
        mapping = self._destinations.mappings.get(head)
        if mapping is None or self._loop.now >= mapping.until or mapping.there is None:
            try:
                there = self._destinations.find(head, data)
            except RemoteProtocolError:
                self._dropped += 1
                return
            if there is None:
                return
        else:
            there = mapping.there
        there.used = self._loop.now
        BATCH.add(there, data, there.send, there.to, self._went_out)

    def _is_client(self, source: tuple[Any, ...]) -> bool:
        """Say whether that is where the client sends from. The first one fixes its port, and has
        the kernel drop what comes from elsewhere: what has come before that is looked at here.
        """
        if self._source is not None or source[0] != self._host:
            return False
        if self._port and source[1] != self._port:
            return False
        try:
            self._inside.socket.connect(source)
        except OSError:
            return False  # there is no way back to it
        self._source = source
        return True

    def _send_held(self, there: Destination, data: bytes) -> None:
        there.used = self._loop.now
        sent = there.send([memoryview(data)], there.to)
        self._went_out(sent, sent * len(data), 1 - sent)

    def _went_out(self, count: int, size: int, lost: int) -> None:
        """Count what was sent, and what was too long, had no way or no room: it is not reliable."""
        if count:
            self._active = self._loop.now
        self._sent += count
        self._bytes_in += size
        self._dropped += lost

    async def open_way(self, via: Chain) -> None:
        """Get ready to go through proxies. OSError if one of them fails or refuses."""
        await self._way(via).open()

    def _way(self, via: Chain) -> DatagramWay:
        from muonsocks.socks.datagram_way import DatagramWay

        way = self._ways.get(via)
        if way is None:
            assert self._ask is not None, "it is open"
            made = (self._loop, via, self._ask, self._from_proxies, self._lost, self._fail)
            way = self._ways[via] = DatagramWay(*made)
        return way

    def _lost(self, via: Chain, count: int, size: int, why: str) -> None:
        self._sent -= count
        self._bytes_in -= size
        self._dropped += count
        self._destinations.report(via[-1].endpoint, why)

    def _way_out(
        self, via: Chain, endpoint: Endpoint
    ) -> tuple[Callable[[list[memoryview], Any], int], tuple[Any, ...]]:
        """Give what sends to an endpoint, and how that is named for it."""
        if via:
            return self._way(via).send, (via, encode_header(endpoint))
        if endpoint.packed is None or not self._policy.dialler.has_family(endpoint.packed):
            raise OSError(errno.EAFNOSUPPORT, f"this way out has no place for {endpoint.host}")
        family = endpoint.family
        port = self._outside.get(family)
        if port is None:
            sock = self._policy.dialler.open_socket(family, SOCK_DGRAM)
            port = self._outside[family] = Port(self._loop, sock, self._from_outside)
        return port.send, endpoint.sockaddr

    # Datagrams to the client

    def _from_outside(self, start: int, count: int, source: tuple[Any, ...]) -> None:
        there = self._destinations.sources.get(source)
        if there is not None and self._loop.now <= there.used + LIFE:
            there.used = self._loop.now
            self._deliver(there.head, start, count)
        elif self._is_open:
            self._deliver(encode_header(Endpoint.of_socket(source)), start, count)
        else:
            self._dropped += 1

    def _from_proxies(self, via: Chain, begin: int, start: int, count: int) -> None:
        head = _ZEROS + bytes(VIEW[begin + 3 : start])
        there = self._destinations.sources.get((via, head))
        if there is not None:
            there.used = self._loop.now
        elif not self._is_open and not self._ways[via].may_be_from(head):
            self._dropped += 1
            return
        self._deliver(head, start, count)

    def _deliver(self, head: bytes, start: int, count: int) -> None:
        """Give the client so many bytes that lie in VIEW from `start` on, with that in front."""
        begin = start - len(head)
        VIEW[begin:start] = head
        BATCH.add(head, VIEW[begin : start + count], self._inside.send, None, self._came_back)
        self._head_length = len(head)  # of what is in the batch now

    def _came_back(self, count: int, size: int, lost: int) -> None:
        """Count what the client was given, and what was too long for it with the header."""
        if count:
            self._active = self._loop.now
        self._received += count
        self._bytes_out += size - count * self._head_length
        self._dropped += lost
