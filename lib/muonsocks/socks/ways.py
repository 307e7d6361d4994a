"""Which way a session goes to its destination, where there is another one than the direct one."""

from __future__ import annotations

from muonsocks.address import Endpoint
from muonsocks.errors import NameNotResolved
from muonsocks.net.stream import Stream
from muonsocks.socks import chain
from muonsocks.socks.lookup import places
from muonsocks.socks.request import Command, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from muonsocks.socks.rules import Chain
    from muonsocks.socks.session import Session


async def reach(session: Session, destination: Endpoint) -> Stream:
    """Connect to a destination under the rules, in the way that they have for it.

    RefusedByRule, and what `through` and the dialler raise.
    """
    dialler = session.policy.dialler
    with session.loop.deadline(dialler.dial_timeout):
        try:
            found, way = await places(session, Command.CONNECT, destination)
        except TimeoutError:
            raise NameNotResolved(f"{destination.host}: no answer in time") from None
        if way:
            return await _through(session, way, found or [destination])
        if destination.packed is not None:
            return await session.introduced(dialler.dial(session.loop, destination))
        return await session.introduced(dialler.dial_any(session.loop, destination, found))


async def through(session: Session, way: Chain, destination: Endpoint) -> Stream:
    """Connect to a destination through proxies, whatever the rules say.

    ProxyFailed; RequestFailed as the last proxy answers; or NameNotResolved.
    """
    dialler = session.policy.dialler
    with session.loop.deadline(dialler.dial_timeout):
        found = [destination]
        if destination.packed is None and not way[-1].resolves:
            try:
                found = await dialler.look_up(session.loop, destination)
            except TimeoutError:
                raise NameNotResolved(f"{destination.host}: no answer in time") from None
        return await _through(session, way, found)


async def _through(session: Session, way: Chain, destinations: list[Endpoint]) -> Stream:
    """Connect to the first of some destinations that the last proxy connects to."""
    requests = [Request(Command.CONNECT, one) for one in destinations]
    found = await chain.ask(session.loop, session.policy.dialler, way, requests, _greeting(session))
    stream, asking, reply = found
    stream.name = str(asking.request.destination)
    session.via = ("via", ",".join(map(str, way)))
    session.bound = reply.bound
    return stream


def _greeting(session: Session) -> Callable[[Stream], Awaitable[None]] | None:
    """Give what says to the first proxy who the client is, if that is wanted."""
    if not session.policy.sends_proxy_header:
        return None
    from muonsocks.socks.introduction import say

    return lambda stream: say(session, stream)
