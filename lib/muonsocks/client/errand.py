"""What a program has done for it by proxies, or without: an errand is a coroutine for the house's
loop. Who runs that loop is another matter: `blocking` in the thread that waits, `background` in
one of its own for a thread that does not, `in_asyncio` inside of asyncio's.
"""

from __future__ import annotations

import errno
from _socket import if_nametoindex

from muonsocks.address import Endpoint
from muonsocks.client.proxies import chain_of, from_environment
from muonsocks.errors import LocalProtocolError, ProxyFailed, UsageError
from muonsocks.net.dial import Dialler
from muonsocks.socks.machine import name_bytes
from muonsocks.socks.request import Command, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Sequence
    from typing import Any

    from muonsocks.client.proxies import Proxies
    from muonsocks.net.loop import Loop
    from muonsocks.net.stream import Stream
    from muonsocks.socks.proxy_request import ProxyRequest
    from muonsocks.socks.rules import Chain

LONGEST = 300.0  # s that a program waits that has set no limit: connect(2) has one, too
_LONGEST_TIMEOUT = 2147483.0  # s; a socket counts milliseconds in an int
_FOREVER = 1e9  # s: no limit but another one


class Granted:
    """What an errand has brought: a socket that does not block, open, and `bound`, the address that
    the last proxy has bound for it; None without proxies. For BIND `asking` has a reply to come.
    """

    __slots__ = ("asking", "bound", "sock")

    def __init__(
        self, sock: socket, bound: Endpoint | None = None, asking: ProxyRequest | None = None
    ) -> None:
        self.sock = sock
        self.bound = bound
        self.asking = asking

    def close(self) -> None:
        """Give it back: nobody waits for it any more."""
        self.sock.close()


class Errand:
    """A command for a destination, and the way there."""

    __slots__ = ("chain", "command", "destination", "dialler")

    def __init__(
        self,
        command: int,
        destination: Endpoint,
        chain: Chain,
        source: Endpoint | None = None,
        options: Sequence[tuple[Any, ...]] = (),
        dialler: Dialler | None = None,
    ) -> None:
        """`source` is the address of ours that the connection is to come from, unless that is empty
        or zeros, and its port unless that is 0; `options` are what the socket's setsockopt gets.
        UsageError if the source is a name. A `dialler` stands for both.
        """
        self.command = command
        self.destination = destination
        self.chain = chain
        if dialler is not None:
            self.dialler = dialler
            return
        bind_address = None
        if source is not None and source.host:
            if source.packed is None:
                raise UsageError(f"{source.host[:60]!r} is no address", "write one of this host's")
            bind_address = source.packed if any(source.packed) else None
        self.dialler = Dialler(
            None,
            bind_address,
            connect_timeout=_FOREVER,
            dial_timeout=_FOREVER,
            bind_port=source.port if source else 0,
            options=options,
        )
        self.dialler.for_relay = False

    async def run(self, loop: Loop, timeout: float | None = None) -> Granted:
        """Do it, all within so many seconds, by default LONGEST. OSError, of the family of
        `errors`, or of connect(2).

        This is for the loop of another one: whoever interrupts it has nothing to tidy up.
        """
        deadline = loop.deadline(LONGEST if timeout is None else timeout)
        try:
            with deadline:
                return await self._run(loop)
        except OSError as error:
            from muonsocks.client.errors import told

            raise told(error, deadline.passed) from None

    async def _run(self, loop: Loop) -> Granted:
        if not self.chain:
            stream = await self.dialler.dial(loop, self.destination)
            return Granted(stream.detach())
        from muonsocks.socks import proxy_chain

        chain, command = self.chain, self.command
        found = [self.destination]
        if command != Command.RESOLVE:
            found = await proxy_chain.destinations(loop, self.dialler, chain, self.destination)
        requests = [Request(command, one) for one in found]
        stream, asking, reply = await proxy_chain.ask(loop, self.dialler, chain, requests)
        bound = reply.bound
        if command in (Command.BIND, Command.ASSOCIATE):
            from muonsocks.socks.ways import bound_by_proxy

            try:
                bound = bound_by_proxy(chain, stream, bound)
            except OSError as error:  # it has gone already
                stream.close()
                raise ProxyFailed(f"{chain[-1]}: {error.strerror}", errno.ECONNRESET) from None
        return Granted(stream.detach(), bound, asking if command == Command.BIND else None)


async def second_reply(
    loop: Loop, sock: socket, asking: ProxyRequest, timeout: float | None
) -> Endpoint:
    """Wait for whoever connects to a proxy that listens by BIND, and say who that is. The socket is
    open afterwards, whatever happens. OSError; TimeoutError, and then it may be waited for again.
    """
    from muonsocks.net.stream import Stream
    from muonsocks.socks import proxy_chain

    stream: Stream = Stream(loop, sock)
    try:
        with loop.deadline(_FOREVER if timeout is None else timeout) as deadline:
            reply = await proxy_chain.next_reply(stream, asking)
    except OSError as error:
        if deadline.passed:
            raise TimeoutError(errno.ETIMEDOUT, "nobody has come in time") from None
        from muonsocks.client.errors import told

        raise told(error) from None
    finally:
        stream.detach()
    return reply.bound


# What programs say


def expect_timeout(timeout: object) -> float | None:
    """Give a time limit in seconds, or None for none, if that is what it is. TypeError or
    ValueError, as `socket` has it, if it is not.
    """
    if timeout is None:
        return None
    if not isinstance(timeout, int | float):
        kind = type(timeout).__name__
        raise TypeError(f"a timeout is a number of seconds or None, not {kind}")
    if not 0 <= timeout <= _LONGEST_TIMEOUT:
        raise ValueError("Timeout value out of range")
    return timeout


def endpoint_of(host: str | bytes | None, port: int | str) -> Endpoint:
    """Make an endpoint of what a program says of a destination. ValueError or OverflowError, as
    `socket` has it, if it can be none. A port is a number: services are not looked up.
    """
    name = host.decode("ascii") if isinstance(host, bytes | bytearray) else host or "0.0.0.0"
    try:
        number = int(port)
    except ValueError:
        raise UsageError(f"{port!r:.60} is not a port", "give its number") from None
    if not 0 <= number <= 65535:
        raise OverflowError("port must be 0-65535.")
    address, percent, zone = name.partition("%")
    if percent and ":" in address:
        endpoint = Endpoint(address, number)
        if endpoint.packed is not None:
            endpoint.scope = _scope(zone)
            return endpoint
    endpoint = Endpoint(name, number)
    if endpoint.packed is None:
        try:
            if not name.isascii():
                endpoint = Endpoint(name.encode("idna").decode("ascii"), number)
            name_bytes(endpoint)
        except (LocalProtocolError, UnicodeError):
            raise UsageError(f"{name[:60]!r} cannot be the name of a host") from None
    return endpoint


def _scope(zone: str) -> int:
    """Give the number of an interface (RFC 4007 section 11.2). UsageError."""
    if zone.isascii() and zone.isdecimal() and len(zone) < 10:
        return int(zone)
    try:
        return if_nametoindex(zone)
    except (OSError, ValueError):
        raise UsageError(f"{zone[:60]!r} is no interface") from None


def way_to(destination: Endpoint, proxies: Proxies) -> Chain:
    """Give the proxies to go through to a destination, as the program or else the environment says.
    UsageError.
    """
    chain = chain_of(proxies)
    return from_environment(destination) if chain is None else chain
