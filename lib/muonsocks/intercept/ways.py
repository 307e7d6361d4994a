"""Where a program's connections lead to, and which way."""

from __future__ import annotations

from muonsocks.address import Endpoint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.socks.rules import Chain


class Ways:
    """The ways of one program, and of all that it starts."""

    __slots__ = ("_chain",)

    def __init__(self, chain: Chain) -> None:
        self._chain = chain

    def meant(self, endpoint: Endpoint) -> Endpoint:
        """Say which destination an address means. Refused if it does not mean one any more."""
        return endpoint

    def way_to(self, destination: Endpoint) -> Chain:
        """Say which proxies lead to a destination; none if it is gone to directly."""
        return self._chain
