"""The way to a proxy from a socket of ours that is to take the place of the program's."""

from __future__ import annotations

from _socket import AF_INET, AF_INET6

from muonsocks.address import Endpoint
from muonsocks.intercept.own_socket import Mapped
from muonsocks.intercept.socket_options import set_options
from muonsocks.net.dial import Dialler
from muonsocks.net.loop import Loop
from muonsocks.net.race import Attempt, begin
from muonsocks.net.stream import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from muonsocks.intercept.socket_options import Options

_FOREVER = 1e9  # s: an errand has a limit of its own


class StandIn(Dialler):
    """Dials with sockets that are as the program's, of the same family where that can be: its
    addresses are of that.
    """

    __slots__ = ("_family", "_options")

    def __init__(
        self,
        family: int,
        options: Options,
        lookup: Callable[[str], Awaitable[list[tuple[bytes, int]]]] | None = None,
    ) -> None:
        super().__init__(connect_timeout=_FOREVER, dial_timeout=_FOREVER, lookup=lookup)
        self._family = family
        self._options = options
        self.for_relay = False

    def _begin(self, loop: Loop, candidate: Endpoint) -> Stream | Attempt:
        family = candidate.family
        if family == AF_INET and self._family == AF_INET6:
            family, candidate = AF_INET6, Mapped(candidate)
        sock = self.open_socket(family)
        set_options(sock, self._options)
        return begin(loop, sock, candidate, _FOREVER)
