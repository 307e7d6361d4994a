"""A client's datagrams on their way through SOCKS5 proxies, one through the other.

Each proxy has an association for us, asked for on a connection that leads through those before it.
To the relay of the first one goes, for two proxies

    header: the second one's relay | header: the destination | data

and an answer comes with as many headers, of which the last says where it is from.
"""

from __future__ import annotations

import errno

from muonsocks.net.datagrams import VIEW, Port
from muonsocks.net.ending import Ending
from muonsocks.socks.datagram import encode_header, last_header
from muonsocks.socks.relays import MOST_SAID, to_relays

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from muonsocks.net.loop import Loop
    from muonsocks.net.stream import Stream
    from muonsocks.net.task import Task
    from muonsocks.socks.relays import Ask
    from muonsocks.socks.rules import Chain

_MOST_HELD = 64  # datagrams that wait until the proxies are ready
_MOST_BYTES_HELD = 256 << 10
_PAUSE = 5.0  # s until proxies that have failed are asked again
_MOST_PORTS = 1024  # of names that have been sent to
_NAME = 3  # address type, RFC 1928 section 5


class DatagramWay:
    """One chain as a way out, for one client."""

    __slots__ = (
        "_ask",
        "_bytes_held",
        "_chain",
        "_fail",
        "_held",
        "_loop",
        "_lost",
        "_not_before",
        "_outer",
        "_port",
        "_ports",
        "_streams",
        "_take",
        "_task",
    )

    def __init__(
        self,
        loop: Loop,
        chain: Chain,
        ask: Ask,
        take: Callable[[Chain, int, int, int], None],
        lost: Callable[[Chain, int, int, str], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        """`ask` has the last proxy of a chain grant an association. `take` gets the chain that an
        answer has come by, where its last header begins in VIEW, and the data behind that, and how
        many bytes of them there are. `lost` is told how many datagrams and bytes of data `send` has
        been given for nothing, and why; `fail` gets what is no failure of a proxy.
        """
        self._loop = loop
        self._chain = chain
        self._ask = ask
        self._take = take
        self._lost = lost
        self._fail = fail
        self._streams: list[Stream] = []
        self._port: Port | None = None
        self._ports: set[bytes] = set()  # of the names that have been sent to
        self._outer = b""  # the headers for all proxies but the last one
        self._held: list[tuple[bytes, bytes]] = []
        self._bytes_held = 0
        self._task: Task | None = None  # that asks the proxies
        self._not_before = 0.0  # they are asked again

    async def open(self) -> None:
        """Ask all proxies. OSError, as `ask` raises it, if one of them fails or refuses."""
        try:
            sock, relays = await to_relays(self._chain, self._ask, self._streams)
            self._port = Port(self._loop, sock, self._on_datagram)
            self._outer = b"".join(map(encode_header, relays[1:]))
        except BaseException:
            self._let_go()
            raise
        for stream in tuple(self._streams):
            if stream in self._streams:  # the end of another one may have been its own
                Ending(stream, lambda _: self._let_go(), MOST_SAID)

    def close(self) -> None:
        """Be no way any more. It holds no cycle then. Harmless when it has been done."""
        task, self._task = self._task, None
        self._not_before = float("inf")
        if task is not None:
            task.interrupt(OSError(errno.ECANCELED, "nobody waits for it"))
        self._let_go()
        self._held.clear()
        del self._ask, self._take, self._lost, self._fail

    def _let_go(self) -> None:
        if self._port is not None:
            self._port.close()
            self._port = None
        streams, self._streams = self._streams, []
        for stream in streams:
            stream.close()

    # Out

    def send(self, pieces: list[memoryview], to: tuple[Chain, bytes]) -> int:
        """Send data by this chain to where the header says, as `Port.send` does; or later, if the
        proxies are still to be asked.
        """
        _, head = to
        if head[3] == _NAME:
            if len(self._ports) >= _MOST_PORTS:
                self._ports.clear()
            self._ports.add(head[-2:])
        if self._port is not None:
            outer = self._outer + head
            return self._port.send([memoryview(outer + piece) for piece in pieces], None)
        if self._task is None and self._loop.now < self._not_before:
            return 0
        count = 0
        for piece in pieces:
            if len(self._held) < _MOST_HELD and self._bytes_held + len(piece) <= _MOST_BYTES_HELD:
                self._held.append((head, bytes(piece)))
                self._bytes_held += len(piece)
                count += 1
        if count and self._task is None:
            self._not_before = self._loop.now + _PAUSE
            task = self._loop.spawn(self.open(), self._on_failure, self._on_success)
            if not task.is_over:
                self._task = task
        return count

    def _on_success(self, _: None) -> None:
        self._task = None
        for head, data in self._take_held():
            if not self.send([memoryview(data)], (self._chain, head)):
                self._lost(self._chain, 1, len(data), "it cannot be sent")

    def _on_failure(self, error: BaseException) -> None:
        if self._not_before == float("inf"):
            return  # it has been closed
        self._task = None
        held = self._take_held()
        if isinstance(error, OSError):
            self._not_before = self._loop.now + _PAUSE
            size = sum(len(data) for _, data in held)
            self._lost(self._chain, len(held), size, error.strerror or str(error))
        else:
            self._fail(error)

    def _take_held(self) -> list[tuple[bytes, bytes]]:
        held, self._held, self._bytes_held = self._held, [], 0
        return held

    # Back

    def may_be_from(self, head: bytes) -> bool:
        """Say whether an answer with this header may be from one of the names that have been sent
        to: the last proxy has looked them up, and only the port is known here.
        """
        return head[-2:] in self._ports

    def _on_datagram(self, start: int, count: int, _: object) -> None:
        """Take the headers off but the last, which says where it is from."""
        end = start + count
        head, data = last_header(VIEW, start, end, len(self._chain))
        if data:
            self._take(self._chain, head, data, end - data)
