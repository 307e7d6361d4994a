"""Where the datagrams of one client go: each header that it writes leads somewhere, or nowhere.

    an address    judged by the rules once, and again when it has not been used for minutes
    a name        judged, looked up, and its addresses judged; that holds for a minute. What comes
                  for it meanwhile waits, or goes where it went before

What a client can make us remember has a bound: headers, look-ups, datagrams that wait.
"""

from __future__ import annotations

import errno

from muonsocks.errors import RefusedByRule
from muonsocks.socks.datagram import decode_header, encode_header
from muonsocks.socks.request import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from muonsocks.address import Endpoint
    from muonsocks.net.loop import Loop
    from muonsocks.net.task import Task
    from muonsocks.socks.policy import Policy
    from muonsocks.socks.rules import Chain

LIFE = 300.0  # s without a datagram until a destination is forgotten (RFC 4787, REQ-5)
_OF_A_NAME = 60.0  # s that its addresses are good for
_OF_A_REFUSAL = 60.0  # s
_OF_A_FAILURE = 5.0  # s
_MOST = 1024  # headers
_MOST_LOOK_UPS = 16  # at a time
_MOST_HELD = 64  # datagrams that wait for these
_MOST_BYTES_HELD = 256 << 10


class Destination:
    """Where datagrams go, by `send(pieces, to)`, and where answers come from; those have this
    `head` in front. `used` is when the last one went either way.
    """

    __slots__ = ("head", "send", "to", "used")

    def __init__(self, head: bytes, send: Callable[[list[memoryview], Any], int], to: Any) -> None:
        self.head = head
        self.send = send
        self.to = to
        self.used = 0.0


class Mapping:
    """What a header leads to up to the time `until`: `there`, or nowhere if that is None."""

    __slots__ = ("endpoint", "held", "there", "until")

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.there: Destination | None = None
        self.until = 0.0
        self.held: list[bytes] = []  # data that wait until its name has been looked up

    def last_used(self) -> float:
        """Say when it was last of use."""
        return self.until - _OF_A_REFUSAL if self.there is None else self.there.used


class Destinations:
    """All of one client. `mappings` has them by the header as the client writes it, `sources` by
    the address as recvfrom(2) gives it.
    """

    __slots__ = (
        "_bytes_held",
        "_exit",
        "_fail",
        "_held",
        "_is_over",
        "_look_ups",
        "_loop",
        "_policy",
        "_send",
        "dropped",
        "mappings",
        "report",
        "sources",
    )

    def __init__(
        self,
        loop: Loop,
        policy: Policy,
        way_out: Callable[[Chain, Endpoint], tuple[Callable[[list[memoryview], Any], int], Any]],
        send: Callable[[Destination, bytes], None],
        report: Callable[[Endpoint, str], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        """`way_out` gives what sends pieces to an endpoint, through the proxies of a chain, and
        how it names that; OSError or RefusedByRule if there is none. `send` is for what has waited;
        `report` is told what nothing is sent to, and why; `fail` gets what is no error of a name.
        """
        self._loop = loop
        self._policy = policy
        self._exit = way_out
        self._send = send
        self.report = report
        self._fail = fail
        self.mappings: dict[bytes, Mapping] = {}
        self.sources: dict[Any, Destination] = {}
        self._look_ups: dict[Mapping, Task | None] = {}
        self._held = self._bytes_held = 0
        self._is_over = False
        self.dropped = 0  # datagrams

    def close(self) -> None:
        """Give all look-ups up. It holds no cycle then. Harmless when it has been done."""
        if self._is_over:
            return
        self._is_over = True
        look_ups, self._look_ups = self._look_ups, {}
        for task in look_ups.values():
            if task is not None:
                task.interrupt(OSError(errno.ECANCELED, "nobody waits for it"))
        self.mappings.clear()
        self.sources.clear()
        del self._exit, self._send, self.report, self._fail

    def find(self, head: bytes, data: memoryview) -> Destination | None:
        """Say where data with this header go. None if they do not, or not yet: then they are kept,
        or counted as dropped. RemoteProtocolError if it is no header that is for us.
        """
        mapping = self.mappings.get(head)
        if mapping is None:
            endpoint = decode_header(head)
            if len(self.mappings) >= _MOST:
                self._make_room()
            mapping = self.mappings[head] = Mapping(endpoint)
        if self._loop.now >= mapping.until:
            if mapping.endpoint.packed is not None:
                self._settle(mapping, [mapping.endpoint], LIFE)
            elif not self._ask(mapping):
                self._hold(mapping, data)
                return None
        if mapping.there is None:
            self.dropped += 1
        return mapping.there

    # Names

    def _ask(self, mapping: Mapping) -> bool:
        """See where a name leads. False if that is not known yet, and will be."""
        if mapping in self._look_ups:
            return mapping.there is not None
        verdict = self._policy.rules.of_name(Command.ASSOCIATE, mapping.endpoint)
        if verdict is not None:
            if verdict.refusal:
                self._refuse(mapping, verdict.refusal, _OF_A_REFUSAL)
            elif why := self._lead(mapping, mapping.endpoint, verdict.via, LIFE):
                self._refuse(mapping, why, _OF_A_REFUSAL)
        elif len(self._look_ups) < _MOST_LOOK_UPS:
            self._look_ups[mapping] = None
            task = self._loop.spawn(
                self._policy.dialler.look_up(self._loop, mapping.endpoint),
                lambda error: self._not_found(mapping, error),
                lambda found: self._found(mapping, found),
            )
            if mapping in self._look_ups:
                self._look_ups[mapping] = task
                return mapping.there is not None
        return True

    def _found(self, mapping: Mapping, candidates: list[Endpoint]) -> None:
        if self._is_over:
            return
        del self._look_ups[mapping]
        self._settle(mapping, candidates, _OF_A_NAME)
        self._let_go(mapping)

    def _not_found(self, mapping: Mapping, error: BaseException) -> None:
        if self._is_over:
            return
        del self._look_ups[mapping]
        if not isinstance(error, OSError):
            self._fail(error)
        elif mapping.there is not None:
            mapping.until = self._loop.now + _OF_A_FAILURE  # it goes on where it went
        else:
            self._refuse(mapping, error.strerror or str(error), _OF_A_FAILURE)
            self._let_go(mapping)

    def _hold(self, mapping: Mapping, data: memoryview) -> None:
        """Keep data until it is known where they go, if there is room for them."""
        if self._held < _MOST_HELD and self._bytes_held + len(data) <= _MOST_BYTES_HELD:
            self._held += 1
            self._bytes_held += len(data)
            mapping.held.append(bytes(data))
        else:
            self.dropped += 1

    def _let_go(self, mapping: Mapping) -> None:
        held, mapping.held = mapping.held, []
        self._held -= len(held)
        self._bytes_held -= sum(map(len, held))
        if mapping.there is None:
            self.dropped += len(held)
            return
        for data in held:
            self._send(mapping.there, data)

    # Addresses

    def _settle(self, mapping: Mapping, candidates: list[Endpoint], life: float) -> None:
        """Let a header lead to the first address that may be sent to; it stays with the one that
        it has led to, if that is among them.
        """
        if (there := mapping.there) is not None:
            head = there.head
            candidates.sort(key=lambda one: encode_header(one) != head)
        why = ""
        for candidate in candidates:
            assert candidate.packed is not None, "names have been looked up"
            verdict = self._policy.rules.of_address(
                Command.ASSOCIATE, mapping.endpoint, candidate.packed
            )
            problem = verdict.refusal or self._lead(mapping, candidate, verdict.via, life)
            if not problem:
                return
            why = why or problem
        self._refuse(mapping, why, _OF_A_REFUSAL)

    def _lead(self, mapping: Mapping, endpoint: Endpoint, via: Chain, life: float) -> str:
        """Let a header lead to an endpoint; or say why that cannot be."""
        try:
            send, to = self._exit(via, endpoint)
        except RefusedByRule as error:
            return str(error)
        except OSError as error:
            return error.strerror or str(error)
        there = self.sources.get(to)
        if there is None:
            there = self.sources[to] = Destination(encode_header(endpoint), send, to)
        there.used = self._loop.now
        mapping.there = there
        mapping.until = self._loop.now + life
        return ""

    def _refuse(self, mapping: Mapping, why: str, life: float) -> None:
        mapping.there = None
        mapping.until = self._loop.now + life
        self.report(mapping.endpoint, why)

    # Forgetting

    def forget_old(self) -> None:
        """Forget what has been of no use for minutes."""
        oldest = self._loop.now - LIFE
        self._forget([head for head, one in self.mappings.items() if one.last_used() < oldest])

    def _make_room(self) -> None:
        """Forget the quarter that was used longest ago."""
        mappings = self.mappings
        self._forget(sorted(mappings, key=lambda head: mappings[head].last_used())[: _MOST // 4])

    def _forget(self, heads: list[bytes]) -> None:
        mappings, sources = self.mappings, self.sources
        for head in heads:
            if mappings[head] not in self._look_ups:
                del mappings[head]
        sources.clear()  # of which several headers may lead to one
        for mapping in mappings.values():
            if mapping.there is not None:
                sources[mapping.there.to] = mapping.there
