"""From a destination to a connected stream: resolve, then race all addresses (RFC 8305)."""

from __future__ import annotations

import errno
import os
from _socket import (
    AF_INET6,
    AF_UNIX,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPPROTO_TCP,
    IPV6_V6ONLY,
    SO_BINDTODEVICE,
    SO_MARK,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)

from muonsocks.address import Endpoint, format_address
from muonsocks.errors import DialError, NameNotResolved, RefusedByRule
from muonsocks.net.loop import Loop
from muonsocks.net.race import Attempt, begin, dial_error, interleaved, race
from muonsocks.net.stream import Stream, prepare_tcp, unix_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from typing import Any, TypeVar

    T = TypeVar("T")

_IP_BIND_ADDRESS_NO_PORT = 24  # ip(7): do not take a port before the destination is known


def permit_all(_: bytes) -> bool:
    """Permit every address."""
    return True


class Dialler:
    """How the far end is reached: from where, over what, how long it may take."""

    __slots__ = (
        "bind_address",
        "bind_port",
        "connect_timeout",
        "dial_timeout",
        "family",
        "for_relay",
        "interface",
        "lookup",
        "mark",
        "name_lookup",
        "options",
    )

    def __init__(
        self,
        family: int | None = None,
        bind_address: bytes | None = None,
        interface: str = "",
        mark: int = 0,
        connect_timeout: float = 10,
        dial_timeout: float = 30,
        lookup: Callable[[str], Awaitable[list[tuple[bytes, int]]]] | None = None,
        name_lookup: Callable[[bytes], Awaitable[str]] | None = None,
        bind_port: int = 0,
        options: Sequence[tuple[Any, ...]] = (),
    ) -> None:
        """`family` is 4, 6 or None for both; `bind_address` is packed and implies its family. A
        `bind_port` may stand alone, and is for TCP. `options` are what setsockopt(2) gets for each
        TCP socket, as far as they suit its family.

        `lookup` gives what `names.addresses_of` does, `name_lookup` what `names.name_of_address`
        does; without them, those are called in a thread.

        Times are in seconds: `connect_timeout` for each address, `dial_timeout` for the look-up
        and all of them.
        """
        self.family = family
        self.bind_address = bind_address
        self.interface = interface
        self.mark = mark
        self.connect_timeout = connect_timeout
        self.dial_timeout = dial_timeout
        self.lookup = lookup
        self.name_lookup = name_lookup
        self.bind_port = bind_port
        self.options = options
        self.for_relay = True  # or a TCP socket is as the kernel makes it

    async def dial(
        self,
        loop: Loop,
        destination: Endpoint,
        permit: Callable[[bytes], bool] = permit_all,
    ) -> Stream:
        """Connect to the first address that answers, of those that `permit` lets pass.

        Raises RefusedByRule if it lets none pass, NameNotResolved, or DialError.
        """
        if destination.packed is not None:
            self.expect_family(destination)
            if not permit(destination.packed):
                raise RefusedByRule(f"{destination} is not permitted")
            try:
                attempt = self._begin(loop, destination)
            except OSError as error:
                raise dial_error([(destination.host, error.errno or 0)]) from None
            if isinstance(attempt, Stream):
                return attempt
            return await self._race(loop, [], [], attempt)
        with loop.deadline(self.dial_timeout):
            candidates = self._suited(destination, await self.look_up(loop, destination))
            permitted = [one for one in candidates if one.packed and permit(one.packed)]
            if not permitted:
                raise RefusedByRule(f"no address of {destination} is permitted")
            return await self.dial_any(loop, destination, permitted)

    async def dial_any(
        self, loop: Loop, destination: Endpoint, candidates: list[Endpoint]
    ) -> Stream:
        """Connect to the first that answers of these addresses of a name, which has been looked up.

        NameNotResolved if none of them is of the right family, or DialError. It may take what the
        caller leaves it of the time for both, and then that is a DialError, too.
        """
        failures: list[tuple[str, int]] = []
        suited = self._suited(destination, candidates)
        try:
            return await self._race(loop, interleaved(suited), failures)
        except TimeoutError:
            raise dial_error(failures) from None

    async def look_up(self, loop: Loop, destination: Endpoint) -> list[Endpoint]:
        """Give the addresses of a name that are of the family wanted, in the order to try them;
        from here or, through a proxy, from elsewhere. NameNotResolved, also if it takes too long.
        """
        host, port = destination.host, destination.port
        if self.lookup is not None:
            found = await self._in_time(loop, host, self.lookup(host))
        else:
            from muonsocks.net.names import addresses_of

            found = await self._in_time(loop, host, loop.in_thread(addresses_of, host))
        candidates = [Endpoint.at(one, port, scope) for one, scope in found if self._wants(one)]
        if not candidates:
            raise _no_address(destination)
        return candidates

    def _suited(self, destination: Endpoint, candidates: list[Endpoint]) -> list[Endpoint]:
        """Leave out those that cannot be gone to from the address that we bind."""
        if self.bind_address is not None:
            length = len(self.bind_address)
            candidates = [one for one in candidates if len(one.packed or b"") == length]
        if not candidates:
            raise _no_address(destination)
        return candidates

    async def look_up_name(self, loop: Loop, address: bytes) -> str:
        """Give the name of a packed address. NameNotResolved if it has none, or takes too long."""
        host = format_address(address)
        if self.name_lookup is not None:
            return await self._in_time(loop, host, self.name_lookup(address))
        from muonsocks.net.names import name_of_address

        return await self._in_time(loop, host, loop.in_thread(name_of_address, address))

    async def _in_time(self, loop: Loop, host: str, look_up: Awaitable[T]) -> T:
        try:
            with loop.deadline(self.dial_timeout):
                return await look_up
        except TimeoutError:  # of this limit, or of one for that and more
            raise NameNotResolved(f"{host}: no answer in time", errno.ETIMEDOUT) from None

    def expect_family(self, address: Endpoint) -> None:
        """Hold that an address is of a family that this goes out by. DialError."""
        if not self.has_family(address.packed or b""):
            reason = f"this way out has no place for {address.host}"
            raise DialError(errno.EAFNOSUPPORT, reason, [])

    def has_family(self, packed: bytes) -> bool:
        """Say whether an address can be gone to from where this leaves."""
        length = len(packed)
        if self.bind_address is not None and len(self.bind_address) != length:
            return False
        return self._wants(packed)

    def _wants(self, packed: bytes) -> bool:
        return self.family is None or (self.family == 4) == (len(packed) == 4)

    def _race(
        self,
        loop: Loop,
        candidates: list[Endpoint],
        failures: list[tuple[str, int]],
        *under_way: Attempt,
    ) -> Awaitable[Stream]:
        return race(loop, lambda one: self._begin(loop, one), candidates, failures, *under_way)

    def _begin(self, loop: Loop, candidate: Endpoint) -> Stream | Attempt:
        """Begin to connect, as `race.begin` does."""
        patience = min(self.connect_timeout, self.dial_timeout)
        return begin(loop, self.open_socket(candidate.family), candidate, patience)

    def open_socket(self, family: int, kind: int = SOCK_STREAM) -> socket:
        """Make a socket that is to go out, TCP or of another kind, from the right place. OSError
        if that cannot be.
        """
        is_stream = kind == SOCK_STREAM
        sock = socket(family, kind | SOCK_NONBLOCK, IPPROTO_TCP if is_stream else 0)
        try:
            if is_stream:
                if self.for_relay:
                    prepare_tcp(sock)
                set_options(sock, self.options)
            elif family == AF_INET6:
                sock.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, 1)
            if self.mark:
                sock.setsockopt(SOL_SOCKET, SO_MARK, self.mark)
            if self.interface:
                sock.setsockopt(SOL_SOCKET, SO_BINDTODEVICE, os.fsencode(self.interface))
            port = self.bind_port if is_stream else 0
            if self.bind_address is not None or port:
                anywhere = "::" if family == AF_INET6 else "0.0.0.0"
                address = self.bind_address
                sock.setsockopt(IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
                sock.bind((anywhere if address is None else format_address(address), port))
        except OSError:
            sock.close()
            raise
        return sock

    def source_for(self, destination: Endpoint) -> Endpoint:
        """Say which address of ours what goes to an address comes from; port 0. OSError as
        connect(2) if there is no way to it.
        """
        self.expect_family(destination)
        sock = self.open_socket(destination.family, SOCK_DGRAM)
        try:
            sock.connect(destination.sockaddr)  # which sends nothing
            source = Endpoint.of_socket(sock.getsockname())
        finally:
            sock.close()
        source.port = 0
        return source


def set_options(sock: socket, options: Iterable[tuple[Any, ...]]) -> None:
    """Have setsockopt(2) get some options, but for those of the other version of IP. OSError."""
    other = IPPROTO_IP if sock.family == AF_INET6 else IPPROTO_IPV6
    for option in options:
        if option[0] != other:
            sock.setsockopt(*option)


def _no_address(destination: Endpoint) -> NameNotResolved:
    return NameNotResolved(f"{destination.host} has no address of the right family")


async def dial_unix(loop: Loop, path: str, timeout: float) -> Stream:
    """Connect to a unix socket. OSError or DialError."""
    address = unix_address(path)
    sock = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK)
    try:
        patience = 0.01
        while number := sock.connect_ex(address):
            # A full backlog is EAGAIN, and nothing tells when there is room again.
            if number != errno.EAGAIN or timeout <= 0:
                number = errno.ETIMEDOUT if number == errno.EAGAIN else number
                raise DialError(number, os.strerror(number), [(path, number)])
            await loop.sleep(patience)
            timeout -= patience
            patience = min(2 * patience, 0.5)
        return Stream(loop, sock)
    except BaseException:
        sock.close()
        raise
