"""The command ASSOCIATE (RFC 1928 sections 4 and 7): datagrams for a client, while it stays."""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, SOCK_DGRAM

from muonsocks.address import format_address
from muonsocks.errors import RefusedByRule
from muonsocks.log import DEBUG, INFO, Form
from muonsocks.socks.admission import Finished
from muonsocks.socks.association import Association
from muonsocks.socks.request import UNSPECIFIED, Command, ReplyCode
from muonsocks.socks.session import FACTS
from muonsocks.socks.socks5 import Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable

    from muonsocks.address import Endpoint
    from muonsocks.net.dial import Dialler
    from muonsocks.net.stream import Stream
    from muonsocks.socks.admission import Answerer
    from muonsocks.socks.proxy_request import ProxyRequest
    from muonsocks.socks.relays import Ask
    from muonsocks.socks.request import Reply, Request
    from muonsocks.socks.rules import Chain
    from muonsocks.socks.session import Session

_ASSOCIATED = Form("associated", *FACTS, "relay")
_DROPPED = Form("", *FACTS, "dropped")
_MOST_REPORTS = 64  # lines for the destinations that one client is not to reach


async def associate(session: Session, server: Answerer, request: Request) -> Association:
    """Carry the request out; what it gives is for `logged`. Finished if that cannot be."""
    obstacle = _obstacle(session, server)
    host = session.peer.address
    if obstacle or host is None:
        await session.refuse_command(server, Command.ASSOCIATE, obstacle)
    wanted = request.destination
    if wanted.packed is not None and any(wanted.packed) and wanted.packed != host:
        await session.refuse(server, ReplyCode.NOT_ALLOWED)
        only = format_address(host)
        raise Finished("client-refused", f"it would send from {wanted.host}, and may from {only}")

    async def begin() -> Association:
        verdict = session.policy.rules.of_command(Command.ASSOCIATE)
        if verdict.refusal:
            raise RefusedByRule(verdict.refusal)
        _expect_right(session.policy.dialler)
        reports = _Reports(session)
        made = Association(
            session.client, host, wanted.port, session.policy, reports.add, _asking(session)
        )
        way = session.policy.rules.way_of_all(Command.ASSOCIATE)
        if way:  # the client is to know if it leads nowhere
            try:
                await made.open_way(way)
            except BaseException:
                made.stop()
                raise
        return made

    session.joint = association = await session.attempt(server, begin, "associate-failed")
    try:
        await session.grant(server, association.bound)
        if session.log.level >= INFO:
            values = (*session.facts(), str(association.bound))
            session.log.fill_in(INFO, _ASSOCIATED, values, session.via)
        association.start()
    except BaseException:
        association.stop()
        raise
    return association


def _expect_right(dialler: Dialler) -> None:
    """Hold that datagrams may leave as they are to, or each of them would be lost. OSError."""
    if dialler.mark or dialler.interface:
        family = AF_INET6 if len(dialler.bind_address or b"") == 16 else AF_INET
        dialler.open_socket(family, SOCK_DGRAM).close()


def _asking(session: Session) -> Ask:
    """Give what has the last proxy of a chain grant an association, for datagrams from anywhere."""

    def ask(way: Chain) -> Awaitable[tuple[Stream, ProxyRequest, Reply]]:
        from muonsocks.socks import ways

        return ways.ask(session, way, Command.ASSOCIATE, [UNSPECIFIED])

    return ask


def _obstacle(session: Session, server: Answerer) -> str:
    """Say why there can be no datagrams for this client; empty if there can."""
    if not isinstance(server, Server):
        return "SOCKS4 has no such command"
    address = session.peer.address
    if not session.client.is_tcp or address is None:
        return "the client does not come over TCP"
    local = session.client.local_endpoint().packed
    if local is None or len(local) != len(address):
        return "the client's address is not of the family that it comes over"
    return ""


class _Reports:
    """Log lines for what nothing is sent to, up to a number of them."""

    __slots__ = ("_left", "_session")

    def __init__(self, session: Session) -> None:
        self._session = session
        self._left = _MOST_REPORTS

    def add(self, endpoint: Endpoint, why: str) -> None:
        """Say that nothing is sent there, and why."""
        log = self._session.log
        if log.level >= DEBUG and self._left:
            self._left -= 1
            log.fill_in(DEBUG, _DROPPED, (*self._session.facts(), str(endpoint)), ("error", why))
