"""Through a chain of proxies: each is asked for a connection to the next, the last for what is
wanted.

Where the name of the next is not for a proxy to look up, it is looked up here, and its addresses
are tried in turn. Nothing is read that is behind a proxy's reply.
"""

from __future__ import annotations

import errno

from muonsocks.address import Endpoint
from muonsocks.errors import (
    DialError,
    NotAdmitted,
    NotAdmittedByProxy,
    ProxyFailed,
    ProxyNotReached,
    RemoteProtocolError,
    RequestFailed,
    RequestImpossible,
)
from muonsocks.net.dial import Dialler, dial_unix
from muonsocks.net.stream import Stream
from muonsocks.socks.proxy_request import CLOSED, ProxyRequest
from muonsocks.socks.request import Command, Reply, ReplyCode, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from muonsocks.net.loop import Loop
    from muonsocks.socks.proxy_address import ProxyAddress
    from muonsocks.socks.rules import Chain

    Granted = tuple[Stream, ProxyRequest, Reply]
    Refusal = tuple[type[RequestFailed], int, str]

# Of several refusals, the one that says most about the destination is passed on.
_TELLING = (
    ReplyCode.CONNECTION_REFUSED,
    ReplyCode.TTL_EXPIRED,
    ReplyCode.HOST_UNREACHABLE,
    ReplyCode.NETWORK_UNREACHABLE,
    ReplyCode.NOT_ALLOWED,
    ReplyCode.GENERAL_FAILURE,
)


async def ask(
    loop: Loop,
    dialler: Dialler,
    chain: Chain,
    requests: Sequence[Request],
    greet: Callable[[Stream], Awaitable[None]] | None = None,
) -> Granted:
    """Have the last proxy carry out the first of some requests that it grants.

    Gives the stream to it, at whose beginning is what follows its reply; what has asked it, which
    for BIND has another reply to come; and the reply.

    `greet` says something on the connection to the first proxy before all else. ProxyFailed if
    that, or any proxy, fails, or time is up: all of it may take `dial_timeout`. RequestFailed if
    the last proxy refuses all, with the reply code that says most; RequestImpossible if it could be
    asked for none.
    """
    with loop.deadline(dialler.dial_timeout):
        return await _Way(loop, dialler, chain, greet).ask(len(chain) - 1, requests)


async def destinations(
    loop: Loop, dialler: Dialler, chain: Chain, destination: Endpoint
) -> list[Endpoint]:
    """Give what the last proxy may be told of a destination, in the order to try: its addresses, if
    it is a name that is not for that proxy to look up. NameNotResolved.
    """
    if destination.packed is not None or chain[-1].resolves:
        return [destination]
    return await dialler.look_up(loop, destination)


class _Silence(ProxyFailed):
    """A proxy has closed the connection in place of an answer to the request. That is all that
    `ssh -D` says of a destination that it cannot reach: there may be another one that it can.
    """


class _Way:
    """A chain as far as it is known where its proxies are."""

    __slots__ = ("_chain", "_dialler", "_found", "_greet", "_loop")

    def __init__(
        self,
        loop: Loop,
        dialler: Dialler,
        chain: Chain,
        greet: Callable[[Stream], Awaitable[None]] | None,
    ) -> None:
        self._loop = loop
        self._dialler = dialler
        self._chain = chain
        self._greet = greet
        self._found: dict[int, Endpoint] = {}  # where a proxy has been reached, by its place

    async def ask(self, place: int, requests: Sequence[Request]) -> Granted:
        """Ask the proxy at a place in the chain, on a new connection each time that it refuses."""
        refusals: list[Refusal] = []
        silence = ""
        for request in requests:
            try:
                return await self._ask_once(place, request)
            except RequestFailed as error:
                refusals.append((type(error), error.code, error.strerror or ""))
            except _Silence as error:
                silence = error.strerror or ""
        if silence and all(kind is RequestImpossible for kind, _, _ in refusals):
            raise ProxyFailed(silence, errno.ECONNRESET)
        kind, code, reason = min(refusals, key=_rank)
        raise kind(code, reason)

    async def _ask_once(self, place: int, request: Request) -> Granted:
        asking = ProxyRequest(self._chain[place], request)
        stream = await self._reach(place)
        try:
            reply = await next_reply(stream, asking)
            return stream, asking, reply
        except BaseException:
            stream.close()
            raise

    async def _reach(self, place: int) -> Stream:
        """Connect to a proxy, through those before it."""
        proxy = self._chain[place]
        if not place:
            return await self._reach_first(proxy)
        try:
            found = await self._endpoints(place)
            requests = [Request(Command.CONNECT, endpoint) for endpoint in found]
            stream, asking, _ = await self.ask(place - 1, requests)
        except ProxyFailed:
            raise
        except OSError as error:  # its name is not known, or the one before refuses
            raise not_reached(proxy, error) from None
        self._found[place] = asking.request.destination
        return stream

    async def _reach_first(self, proxy: ProxyAddress) -> Stream:
        try:
            if proxy.path:
                patience = self._dialler.connect_timeout
                stream = await dial_unix(self._loop, proxy.path, patience)
            else:
                stream = await self._dialler.dial(self._loop, proxy.endpoint)
        except OSError as error:
            raise not_reached(proxy, error) from None
        if self._greet is not None:
            try:
                await self._greet(stream)
            except BaseException as error:
                stream.close()
                if isinstance(error, OSError):
                    raise failure(proxy, error) from None
                raise
        return stream

    async def _endpoints(self, place: int) -> list[Endpoint]:
        """Give what the proxy before it may be told of where a proxy is, in the order to try."""
        endpoint = self._chain[place].endpoint
        if place in self._found:
            return [self._found[place]]
        return await destinations(self._loop, self._dialler, self._chain[:place], endpoint)


async def next_reply(stream: Stream, asking: ProxyRequest) -> Reply:
    """Bring a proxy to its next reply, and not a byte further. ProxyFailed, or RequestFailed if it
    refuses.
    """
    try:
        reply = None
        while reply is None:
            await stream.send(asking.outgoing())
            asking.receive(await _read(stream, asking))
            reply = asking.next_reply()
    except (OSError, RemoteProtocolError, NotAdmitted) as error:
        raise failure(asking.proxy, error) from None
    expect_granted(asking, reply)
    return reply


async def _read(stream: Stream, asking: ProxyRequest) -> bytes:
    try:
        data = await stream.receive(asking.wants)
    except ConnectionError:
        if not asking.has_asked:
            raise
        data = b""
    if not data:
        raise silence(asking)
    return data


def expect_granted(asking: ProxyRequest, reply: Reply) -> None:
    """Raise RequestFailed if a proxy has refused."""
    if reply.code != ReplyCode.SUCCEEDED:
        raise RequestFailed(reply.code, f"{asking.say(reply)}, says {asking.proxy}")


def silence(asking: ProxyRequest) -> ProxyFailed:
    """Make the error of a proxy that has closed the connection in place of an answer."""
    kind = _Silence if asking.has_asked else ProxyFailed
    return kind(f"{asking.proxy}: {CLOSED}", errno.ECONNRESET)


def failure(proxy: ProxyAddress, error: OSError | RemoteProtocolError | NotAdmitted) -> OSError:
    """Make the error of what has come between us and a proxy that we are connected to."""
    if isinstance(error, ProxyFailed | RequestFailed):
        return error
    if isinstance(error, OSError):
        return ProxyFailed(f"{proxy}: {error.strerror or error}", error.errno or 0)
    kind = NotAdmittedByProxy if isinstance(error, NotAdmitted) else ProxyFailed
    return kind(f"{proxy}: {error}")


def not_reached(proxy: ProxyAddress, error: OSError) -> ProxyNotReached:
    """Make the error of there being no connection to a proxy."""
    failures = error.failures if isinstance(error, DialError) else ()
    return ProxyNotReached(f"{proxy}: {error.strerror or error}", error.errno or 0, failures)


def _rank(refusal: Refusal) -> int:
    kind, code, _ = refusal
    if kind is RequestImpossible:
        return len(_TELLING) + 1  # which says nothing of the destination
    return _TELLING.index(code) if code in _TELLING else len(_TELLING)
