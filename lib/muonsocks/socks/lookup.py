"""Where a session's destination is, and which way it goes there, under its rules."""

from __future__ import annotations

from muonsocks.errors import NameNotResolved, RefusedByRule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.address import Endpoint
    from muonsocks.socks.rules import Chain
    from muonsocks.socks.session import Session


async def places(
    session: Session, command: int, destination: Endpoint, ipv4_only: bool = False
) -> tuple[list[Endpoint], Chain]:
    """Give the addresses of a destination that rules permit a command with, a name's in their
    order, and the proxies to go through, which are those of the first. There is no address where a
    proxy looks the name up.

    Raises RefusedByRule, and NameNotResolved, also if there is no address of the right family.
    """
    policy = session.policy
    rules, dialler = policy.rules, policy.dialler
    if destination.packed is not None:
        candidates = [destination]
    else:
        verdict = rules.of_name(command, destination)
        if verdict is not None:
            if verdict.refusal:
                raise RefusedByRule(verdict.refusal)
            return [], verdict.via
        candidates = await dialler.look_up(session.loop, destination)
        if ipv4_only:
            candidates = [one for one in candidates if len(one.packed or b"") == 4]
        if not candidates:
            raise NameNotResolved(f"{destination.host} has no IPv4 address, and SOCKS4 no others")
    permitted: list[Endpoint] = []
    via: Chain = ()
    refusal = ""
    for candidate in candidates:
        assert candidate.packed is not None
        verdict = rules.of_address(command, destination, candidate.packed)
        if verdict.refusal:
            refusal = verdict.refusal
        elif not permitted or verdict.via == via:
            via = verdict.via
            permitted.append(candidate)
    if not permitted:
        raise RefusedByRule(refusal)
    return permitted, via
