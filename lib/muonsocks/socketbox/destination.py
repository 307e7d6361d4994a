"""Where connections are relayed to, each by the address that it has come to.

With AnyIP or a route to it, this host may have all addresses of a prefix. An address of one has
another one inside, as RFC 6052 has it for NAT64: that of the last 32 bits, or 64.
"""

from __future__ import annotations

from muonsocks.address import Endpoint, format_address, mapped
from muonsocks.errors import RefusedByRule


class Translation:
    """The addresses of a prefix, and what is inside them: 4 bytes, or 8."""

    __slots__ = ("_prefix", "length")

    def __init__(self, prefix: bytes, length: int) -> None:
        """The prefix is an address of which all but the last `length` bytes count."""
        self._prefix = mapped(prefix)[:-length]
        self.length = length

    def inside(self, address: bytes) -> bytes:
        """Give what is inside an address. RefusedByRule if it does not have the prefix."""
        whole = mapped(address)
        if not whole.startswith(self._prefix):
            prefix = format_address(self._prefix + bytes(self.length))
            bits = 8 * len(self._prefix)
            raise RefusedByRule(f"{format_address(address)} is not in {prefix}/{bits}")
        return whole[-self.length :]


class ToAddress:
    """To an address, of which a translation replaces the end; port 0 is the connection's own."""

    __slots__ = ("_address", "_port", "_scope", "_translation")

    def __init__(
        self, address: bytes, port: int, scope: int = 0, translation: Translation | None = None
    ) -> None:
        self._address = address
        self._port = port
        self._scope = scope
        self._translation = translation

    def of(self, local: Endpoint | None) -> Endpoint:
        """Say where a connection goes that has come to `local`, None if that is no address.

        RefusedByRule if it goes nowhere.
        """
        address, port = self._address, self._port
        if local is None or local.packed is None:
            if self._translation is not None or not port:
                raise RefusedByRule("it has come to no address, which would say where it goes")
        else:
            if self._translation is not None:
                end = self._translation.inside(local.packed)
                address = mapped(address)[: -len(end)] + end
            port = port or local.port
        return Endpoint.at(address, port, self._scope)


class ToUnixSocket:
    """To a unix socket; with a translation, to one for each address, PATH-xxxxxxxx."""

    __slots__ = ("_path", "_translation")

    def __init__(self, path: str, translation: Translation | None = None) -> None:
        self._path = path
        self._translation = translation

    def of(self, local: Endpoint | None) -> str:
        """Say where a connection goes that has come to `local`, as `ToAddress` does."""
        if self._translation is None:
            return self._path
        if local is None or local.packed is None:
            raise RefusedByRule("it has come to no address, which would say where it goes")
        return f"{self._path}-{self._translation.inside(local.packed)[-4:].hex()}"
