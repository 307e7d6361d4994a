"""Where a program's connections lead to, and which way."""

from __future__ import annotations

from muonsocks.address import Endpoint
from muonsocks.client.destinations import HOSTS, Destinations
from muonsocks.client.proxies import DIRECT, is_excepted
from muonsocks.intercept.notify import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from muonsocks.address import Network
    from muonsocks.socks.rules import Chain


class Ways:
    """The ways of one program, and of all that it starts. `destinations` has what stands for what.

    All goes through the proxies of `chain`, but for this host and the first proxy itself, the
    networks of `direct`, and what `exceptions` has, a text as no_proxy is.
    """

    __slots__ = ("_direct", "_exceptions", "chain", "destinations")

    def __init__(
        self,
        chain: Chain,
        direct: Sequence[Network] = (),
        exceptions: str = "",
        hosts: str = HOSTS,
    ) -> None:
        self.chain = chain
        self._direct = direct
        self._exceptions = exceptions
        self.destinations = Destinations(self._chain_to, hosts)

    def meant(self, endpoint: Endpoint) -> Endpoint:
        """Say which destination an address means. Refused if it does not mean one any more."""
        try:
            return self.destinations.meant(endpoint)
        except OSError as error:
            raise Refused(error.errno or 0) from None

    def way_to(self, destination: Endpoint) -> Chain:
        """Say which proxies lead to a destination; none if it is gone to directly."""
        return self.destinations.way_to(destination)

    def _chain_to(self, destination: Endpoint) -> Chain:
        if self._direct or self._exceptions:  # mostly there are none
            packed = destination.packed
            if packed is not None and any(packed in network for network in self._direct):
                return DIRECT
            if is_excepted(destination, self._exceptions):
                return DIRECT
        return self.chain
