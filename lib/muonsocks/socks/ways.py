"""Which way a session goes to its destination, where there is another one than the direct one.

The rules say which (lookup.py); proxy_chain.py goes there, and asks each by proxy_request.py.
"""

from __future__ import annotations

from muonsocks.address import Endpoint
from muonsocks.net.stream import Stream
from muonsocks.socks import proxy_chain
from muonsocks.socks.lookup import places
from muonsocks.socks.request import Command, Reply, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from muonsocks.socks.proxy_request import ProxyRequest
    from muonsocks.socks.rules import Chain
    from muonsocks.socks.session import Session


async def reach(session: Session, destination: Endpoint) -> Stream:
    """Connect to a destination under the rules, in the way that they have for it.

    RefusedByRule, and what `through` and the dialler raise.
    """
    dialler = session.policy.dialler
    with session.loop.deadline(dialler.dial_timeout):
        found, way = await places(session, Command.CONNECT, destination)
        if way:
            return await _through(session, way, found or [destination])
        if destination.packed is None:
            return await session.introduced(dialler.dial_any(session.loop, destination, found))
    return await session.introduced(dialler.dial(session.loop, destination))


async def through(session: Session, way: Chain, destination: Endpoint) -> Stream:
    """Connect to a destination through proxies, whatever the rules say.

    ProxyFailed; RequestFailed as the last proxy answers; or NameNotResolved.
    """
    dialler = session.policy.dialler
    with session.loop.deadline(dialler.dial_timeout):
        found = await proxy_chain.destinations(session.loop, dialler, way, destination)
        return await _through(session, way, found)


async def _through(session: Session, way: Chain, destinations: list[Endpoint]) -> Stream:
    """Connect to the first of some destinations that the last proxy connects to."""
    stream, asking, reply = await ask(session, way, Command.CONNECT, destinations)
    stream.name = str(asking.request.destination)
    session.bound = reply.bound
    return stream


async def ask(
    session: Session, way: Chain, command: int, destinations: list[Endpoint]
) -> tuple[Stream, ProxyRequest, Reply]:
    """Have the last proxy carry out a command for the first of some destinations that it does so
    for, as `proxy_chain.ask` does it.
    """
    session.via = ("via", ",".join(map(str, way)))
    requests = [Request(command, one) for one in destinations]
    return await proxy_chain.ask(
        session.loop, session.policy.dialler, way, requests, _greeting(session)
    )


def bound_by_proxy(way: Chain, stream: Stream, bound: Endpoint) -> Endpoint:
    """Say which address that is that a proxy has bound. Zeros mean the one that it is reached at,
    if that is known here.
    """
    if bound.packed is None or any(bound.packed):
        return bound
    if len(way) == 1 and stream.is_tcp:
        packed = Endpoint.of_socket(stream.socket.getpeername()).packed
    else:
        packed = way[-1].endpoint.packed
    return bound if packed is None else Endpoint.at(packed, bound.port)


def _greeting(session: Session) -> Callable[[Stream], Awaitable[None]] | None:
    """Give what says to the first proxy who the client is, if that is wanted."""
    if not session.policy.sends_proxy_header:
        return None
    from muonsocks.socks.introduction import say

    return lambda stream: say(session, stream)
