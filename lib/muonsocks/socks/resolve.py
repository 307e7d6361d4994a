"""RESOLVE and RESOLVE_PTR, with which Tor has extended SOCKS (socks-extensions.txt section 2): what
is looked up is the reply's bound address, and that is all.
"""

from __future__ import annotations

import errno

from muonsocks.address import Endpoint
from muonsocks.errors import NameNotResolved, RefusedByRule
from muonsocks.socks.admission import LINGER, Finished
from muonsocks.socks.lookup import places
from muonsocks.socks.request import Command, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from muonsocks.socks.admission import Answerer
    from muonsocks.socks.rules import Chain
    from muonsocks.socks.session import Session


async def resolve(session: Session, server: Answerer, request: Request) -> NoReturn:
    """Look up what a session's client asks for, and tell it. Raises Finished."""
    command = request.command
    # There is no port in what is asked, though a client may write one: rules that are about some
    # ports only are not to be chosen among by that.
    destination = Endpoint(request.destination.host, 0)
    is_socks4 = server.version != "5"
    if not session.policy.commands.resolve:
        await session.refuse_command(server, command, "only with --resolve-commands")
    if command == Command.RESOLVE:
        answer = await session.attempt(
            server, lambda: _address(session, destination, is_socks4), "resolve-failed"
        )
    elif is_socks4:
        await session.refuse_command(server, command, "SOCKS4 has no place for a name")
    else:
        answer = await session.attempt(
            server, lambda: _name(session, destination), "resolve-failed"
        )
    await session.grant(server, answer)
    await session.client.linger(LINGER)
    raise Finished("resolved", answer.host)


async def _address(session: Session, destination: Endpoint, ipv4_only: bool) -> Endpoint:
    """Give the first address that may be told; or what a proxy says where one looks names up."""
    found, way = await places(session, Command.RESOLVE, destination, ipv4_only)
    if not found:
        answer = await _ask(session, way, Command.RESOLVE, destination)
        if ipv4_only and (answer.packed is None or len(answer.packed) != 4):
            raise NameNotResolved(f"SOCKS4 has no place for {answer.host}")
        return answer
    return Endpoint.at(found[0].packed or b"", 0)


async def _ask(session: Session, way: Chain, command: int, destination: Endpoint) -> Endpoint:
    """Have the last proxy look something up."""
    from muonsocks.socks import ways

    stream, _, reply = await ways.ask(session, way, command, [destination])
    stream.close()
    return reply.bound


async def _name(session: Session, destination: Endpoint) -> Endpoint:
    """Give the name of an address, in the same way."""
    packed = destination.packed
    if packed is None:
        raise OSError(errno.EAFNOSUPPORT, f"{destination.host} is no address")
    policy = session.policy
    verdict = policy.rules.of_address(Command.RESOLVE_PTR, destination, packed)
    if verdict.refusal:
        raise RefusedByRule(verdict.refusal)
    if verdict.resolves:
        return await _ask(session, verdict.via, Command.RESOLVE_PTR, destination)
    return Endpoint(await policy.dialler.look_up_name(session.loop, packed), 0)
