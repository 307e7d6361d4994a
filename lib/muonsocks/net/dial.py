"""From a destination to a connected stream: resolve, then race all addresses (RFC 8305)."""

from __future__ import annotations

import errno
import os
from _socket import (
    AF_INET,
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
from muonsocks.net.loop import WRITABLE, Loop, Timer
from muonsocks.net.stream import Stream, prepare_tcp, unix_address
from muonsocks.net.task import Mailbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from typing import Any, TypeVar

    T = TypeVar("T")

_IP_BIND_ADDRESS_NO_PORT = 24  # ip(7): do not take a port before the destination is known
_STAGGER = 0.25  # s between two attempts, RFC 8305 section 8: Connection Attempt Delay
_AT_ONCE = 8  # attempts for one destination: no name server may have us open more sockets
_STILL_CONNECTING = (errno.EINPROGRESS, errno.EALREADY)
_CONNECTED = (0, errno.EISCONN)

# Of several failures, the one that says most about the destination is the one to report: first
# what the destination itself said, then what the way there did, then what went wrong here.
_TELLING = (
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.ETIMEDOUT,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
)


def permit_all(_: bytes) -> bool:
    """Permit every address."""
    return True


class Dialler:
    """How the far end is reached: from where, over what, how long it may take."""

    __slots__ = (
        "bind_address",
        "connect_timeout",
        "dial_timeout",
        "family",
        "interface",
        "lookup",
        "mark",
        "name_lookup",
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
    ) -> None:
        """`family` is 4, 6 or None for both; `bind_address` is packed and implies its family.

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
                attempt = self._start(loop, destination)
            except OSError as error:
                raise _dial_error([(destination.host, error.errno or 0)]) from None
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
            raise _dial_error(failures) from None

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
            raise NameNotResolved(f"{host}: no answer in time") from None

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

    async def _race(
        self,
        loop: Loop,
        candidates: list[Endpoint],
        failures: list[tuple[str, int]],
        *under_way: _Attempt,
    ) -> Stream:
        """Start an attempt every 250 ms, or when one has failed; the first to connect wins.

        Of more than `_AT_ONCE` the next one waits until another has failed.

        `failures` gets the others; those that are cut short have timed out.
        """
        mailbox = Mailbox()
        waiting = candidates[::-1]
        racing = set(under_way)
        for one in racing:
            one.mailbox = mailbox
        stagger: Timer | None = None
        try:
            while waiting or racing:
                if waiting and stagger is None and len(racing) < _AT_ONCE:
                    candidate = waiting.pop()
                    try:
                        attempt = self._start(loop, candidate)
                    except OSError as error:
                        failures.append((candidate.host, error.errno or 0))
                        continue
                    if isinstance(attempt, Stream):
                        return attempt
                    attempt.mailbox = mailbox
                    racing.add(attempt)
                    if waiting:
                        stagger = loop.call_later(_STAGGER, lambda: mailbox.post(None))
                happened: _Attempt | None = await mailbox.take()
                if happened is None:
                    if stagger is not None and stagger.callback is None:
                        stagger = None  # else it is of an earlier one, which a failure overtook
                    continue
                if happened not in racing:
                    continue
                result = happened.result()
                if result in _STILL_CONNECTING:
                    continue
                racing.discard(happened)
                if not result:
                    return happened.stream()
                happened.close()
                failures.append((happened.candidate.host, result))
                if stagger is not None:
                    stagger.cancel()
                    stagger = None
        finally:
            if stagger is not None:
                stagger.cancel()
            for one in racing:
                one.close()
                failures.append((one.candidate.host, errno.ETIMEDOUT))
        raise _dial_error(failures)

    def _start(self, loop: Loop, candidate: Endpoint) -> Stream | _Attempt:
        """Begin to connect; give a stream if that is done at once. OSError if it cannot be."""
        sock = self.open_socket(family_of(candidate))
        try:
            sockaddr = sockaddr_of(candidate)
            number = sock.connect_ex(sockaddr)
            if number == errno.EINPROGRESS:
                number = sock.connect_ex(sockaddr)  # on this host nothing takes time
            if number in _CONNECTED:
                return Stream(loop, sock, str(candidate))
            if number not in _STILL_CONNECTING:
                raise OSError(number, os.strerror(number))
            return _Attempt(loop, self, candidate, sock)
        except OSError:
            sock.close()
            raise

    def open_socket(self, family: int, kind: int = SOCK_STREAM) -> socket:
        """Make a socket that is to go out, TCP or of another kind, from the right place. OSError
        if that cannot be.
        """
        is_stream = kind == SOCK_STREAM
        sock = socket(family, kind | SOCK_NONBLOCK, IPPROTO_TCP if is_stream else 0)
        try:
            if is_stream:
                prepare_tcp(sock)
            elif family == AF_INET6:
                sock.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, 1)
            if self.mark:
                sock.setsockopt(SOL_SOCKET, SO_MARK, self.mark)
            if self.interface:
                sock.setsockopt(SOL_SOCKET, SO_BINDTODEVICE, os.fsencode(self.interface))
            if self.bind_address is not None:
                sock.setsockopt(IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
                sock.bind((format_address(self.bind_address), 0))
        except OSError:
            sock.close()
            raise
        return sock

    def source_for(self, destination: Endpoint) -> Endpoint:
        """Say which address of ours what goes to an address comes from; port 0. OSError as
        connect(2) if there is no way to it.
        """
        self.expect_family(destination)
        sock = self.open_socket(family_of(destination), SOCK_DGRAM)
        try:
            sock.connect(sockaddr_of(destination))  # which sends nothing
            source = Endpoint.of_socket(sock.getsockname())
        finally:
            sock.close()
        source.port = 0
        return source


class _Attempt:
    """One connection attempt under way; posts itself when something has happened to it."""

    __slots__ = (
        "_ready",
        "_sock",
        "_timed_out",
        "_timer",
        "candidate",
        "loop",
        "mailbox",
    )

    mailbox: Mailbox

    def __init__(self, loop: Loop, dialler: Dialler, candidate: Endpoint, sock: socket) -> None:
        self.loop = loop
        self.candidate = candidate
        self._sock = sock
        self._ready = 0
        self._timed_out = False
        loop.register(sock.fileno(), self._on_event, room=True)
        patience = min(dialler.connect_timeout, dialler.dial_timeout)
        self._timer = loop.call_later(patience, self._on_timeout)

    def _on_event(self, events: int) -> None:
        self._ready |= events
        self.mailbox.post(self)

    def _on_timeout(self) -> None:
        self._timed_out = True
        self.mailbox.post(self)

    def result(self) -> int:
        """Give 0 when it is connected, the errno of its failure, or EALREADY."""
        if self._timed_out:
            return errno.ETIMEDOUT
        if not self._ready & WRITABLE:
            return errno.EALREADY
        # To ask again tells what has become of it.
        number = self._sock.connect_ex(sockaddr_of(self.candidate))
        return 0 if number in _CONNECTED else number

    def stream(self) -> Stream:
        """Make a stream of a socket that is connected."""
        self._timer.cancel()
        return Stream(self.loop, self._sock, str(self.candidate), known=self._ready)

    def close(self) -> None:
        """Give up."""
        self._timer.cancel()
        self.loop.unregister(self._sock.fileno())
        self._sock.close()


def family_of(address: Endpoint) -> int:
    """Give the address family of an endpoint that is no name."""
    return AF_INET6 if ":" in address.host else AF_INET


def sockaddr_of(address: Endpoint) -> tuple[Any, ...]:
    """Write an endpoint that is no name as connect(2) is given it."""
    if ":" in address.host:
        return address.host, address.port, 0, address.scope
    return address.host, address.port


def interleaved(candidates: list[Endpoint]) -> list[Endpoint]:
    """Take turns between the families, beginning with that of the first (RFC 8305 section 4)."""
    if not candidates:
        return []
    first = family_of(candidates[0])
    ours = [one for one in candidates if family_of(one) == first]
    others = [one for one in candidates if family_of(one) != first]
    shorter = min(len(ours), len(others))
    woven = [one for pair in zip(ours, others, strict=False) for one in pair]
    return woven + ours[shorter:] + others[shorter:]


def _dial_error(failures: list[tuple[str, int]]) -> DialError:
    number = most_telling([number for _, number in failures])
    return DialError(number, os.strerror(number), failures)


def _no_address(destination: Endpoint) -> NameNotResolved:
    return NameNotResolved(f"{destination.host} has no address of the right family")


def most_telling(numbers: Iterable[int]) -> int:
    """Choose the errno to report among those of all attempts."""
    rank = {number: place for place, number in enumerate(_TELLING)}
    return min(numbers, key=lambda number: rank.get(number, len(rank)), default=errno.ENETUNREACH)


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
