"""Which way a session goes to its destination, where there is another one than the direct one."""

from __future__ import annotations

from muonsocks.address import Endpoint
from muonsocks.errors import NameNotResolved, RefusedByRule
from muonsocks.net.stream import Stream
from muonsocks.socks import chain
from muonsocks.socks.request import Command, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.socks.rules import Chain, Rules, Verdict
    from muonsocks.socks.session import Session


async def reach(session: Session, destination: Endpoint) -> Stream:
    """Connect to a destination under the rules, in the way that they have for it.

    RefusedByRule, and what `through` and the dialler raise.
    """
    rules, dialler = session.policy.rules, session.policy.dialler
    if destination.packed is not None:
        by_address = rules.of_address(Command.CONNECT, destination, destination.packed)
        way = _permitted(by_address).via
        if way:
            return await _through(session, way, [destination])
        return await dialler.dial(session.loop, destination)
    by_name = rules.of_name(Command.CONNECT, destination)
    if by_name is not None:
        return await _through(session, _permitted(by_name).via, [destination])
    with session.loop.deadline(dialler.dial_timeout):
        found = await _look_up(session, destination)
        way, candidates = _sorted_out(rules, destination, found)
        if way:
            return await _through(session, way, candidates)
        return await dialler.dial_any(session.loop, destination, candidates)


async def through(session: Session, way: Chain, destination: Endpoint) -> Stream:
    """Connect to a destination through proxies, whatever the rules say.

    ProxyFailed; RequestFailed as the last proxy answers; or NameNotResolved.
    """
    if destination.packed is not None or way[-1].resolves:
        return await _through(session, way, [destination])
    with session.loop.deadline(session.policy.dialler.dial_timeout):
        found = await _look_up(session, destination)
        return await _through(session, way, found)


async def _through(session: Session, way: Chain, destinations: list[Endpoint]) -> Stream:
    """Connect to the first of some destinations that the last proxy connects to."""
    requests = [Request(Command.CONNECT, one) for one in destinations]
    found = await chain.ask(session.loop, session.policy.dialler, way, requests)
    stream, asking, reply = found
    stream.name = str(asking.request.destination)
    session.via = ("via", ",".join(map(str, way)))
    session.bound = reply.bound
    return stream


async def _look_up(session: Session, destination: Endpoint) -> list[Endpoint]:
    try:
        return await session.policy.dialler.look_up(session.loop, destination)
    except TimeoutError:
        raise NameNotResolved(f"{destination.host}: no answer in time") from None


def _sorted_out(
    rules: Rules, destination: Endpoint, found: list[Endpoint]
) -> tuple[Chain, list[Endpoint]]:
    """Choose the way of the first address that is permitted, and all others that have the same."""
    refusal, ways = "", []
    for one in found:
        verdict = rules.of_address(Command.CONNECT, destination, one.packed or b"")
        refusal = verdict.refusal
        if not refusal:
            ways.append((verdict.via, one))
    if not ways:
        raise RefusedByRule(refusal)
    way = ways[0][0]
    return way, [one for other, one in ways if other == way]


def _permitted(verdict: Verdict) -> Verdict:
    if verdict.refusal:
        raise RefusedByRule(verdict.refusal)
    return verdict
