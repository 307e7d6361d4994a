"""BIND: listen for one peer, tell the client where, tell it who has come, and relay.

The sources are RFC 1928 section 4 and the note on SOCKS4. Of the destination only the host counts:
whoever connects from there is the peer, from whatever port.
"""

from __future__ import annotations

import errno

from muonsocks.address import Endpoint
from muonsocks.errors import NameNotResolved, NobodyCame, RefusedByRule, RequestFailed
from muonsocks.log import DEBUG, INFO, Form
from muonsocks.net.door import Door
from muonsocks.socks.lookup import places
from muonsocks.socks.request import Command, ReplyCode, Request
from muonsocks.socks.session import FACTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.net.relay import Joint
    from muonsocks.net.stream import Stream
    from muonsocks.socks.admission import Answerer
    from muonsocks.socks.proxy_request import ProxyRequest
    from muonsocks.socks.rules import Chain
    from muonsocks.socks.session import Session

_BOUND = Form("bound", *FACTS, "listen")
_DROPPED = Form("dropped", *FACTS, "address")


async def bind(
    session: Session, server: Answerer, request: Request, early: bytes = b""
) -> Joint | None:
    """Carry out a BIND for a session, as `Session.fulfil` does a CONNECT."""
    destination, ipv4_only = request.destination, server.version != "5"
    expected = await session.attempt(
        server, lambda: _expect(session, destination, ipv4_only), "bind-failed"
    )
    if expected.via:
        return await _bind_beyond(session, server, expected, early)
    door = await session.attempt(server, lambda: _door(session, expected, ipv4_only), "bind-failed")
    try:
        await _say_bound(session, server, door.endpoint)
        far, peer = await session.attempt(
            server, lambda: _await_peer(session, door, expected), "bind-failed"
        )
    finally:
        door.close()
    try:
        await session.grant(server, peer)
        return await session.relay(far, early)
    except BaseException:
        far.close()
        raise


async def _bind_beyond(
    session: Session, server: Answerer, expected: _Expected, early: bytes
) -> Joint | None:
    """Have a proxy listen, and tell the client what that says."""
    from muonsocks.socks import ways

    way, destinations = expected.via, expected.places or [expected.destination]
    far, asking, reply = await session.attempt(
        server, lambda: ways.ask(session, way, Command.BIND, destinations), "bind-failed"
    )
    try:
        bound = await session.attempt(
            server,
            lambda: _sayable(server, ways.bound_by_proxy(way, far, reply.bound)),
            "bind-failed",
        )
        await _say_bound(session, server, bound)
        peer = await session.attempt(
            server,
            lambda: _await_second_reply(session, server, far, asking, expected),
            "bind-failed",
        )
        far.name = str(peer)
        await session.grant(server, peer)
        return await session.relay(far, early)
    except BaseException:
        far.close()
        raise


async def _await_second_reply(
    session: Session, server: Answerer, far: Stream, asking: ProxyRequest, expected: _Expected
) -> Endpoint:
    """Wait for a proxy to say who has connected to it. NobodyCame, RefusedByRule or OSError."""
    from muonsocks.socks import proxy_chain

    try:
        with session.loop.deadline(session.policy.limits.bind) as deadline:
            reply = await proxy_chain.next_reply(far, asking)
    except OSError as error:
        if isinstance(error, RequestFailed) and error.code == ReplyCode.TTL_EXPIRED:
            raise NobodyCame(error.strerror) from None
        if not deadline.passed:
            raise
        raise NobodyCame("the proxy says of nobody that he came") from None
    expected.expect(reply.bound)
    return await _sayable(server, reply.bound)


async def _sayable(server: Answerer, bound: Endpoint) -> Endpoint:
    """Give what a proxy has bound if the client can be told. OSError."""
    if server.version != "5" and (bound.packed is None or len(bound.packed) != 4):
        raise OSError(errno.EAFNOSUPPORT, f"SOCKS4 has no place for {bound.host}")
    return bound


async def _say_bound(session: Session, server: Answerer, bound: Endpoint) -> None:
    """Tell the client, and the log, where its peer is to connect to."""
    await session.grant(server, bound)
    if session.log.level >= INFO:
        session.log.fill_in(INFO, _BOUND, (*session.facts(), str(bound)), session.via)


class _Expected:
    """Who may be the peer: the hosts at `places`; anybody whom rules permit if there are none.

    It is to come `via` these proxies.
    """

    __slots__ = ("_addresses", "_session", "destination", "places", "via")

    def __init__(
        self, session: Session, destination: Endpoint, places: list[Endpoint], via: Chain = ()
    ) -> None:
        self._session = session
        self.destination = destination
        self._addresses = {one.packed for one in places}
        self.places = places
        self.via = via

    def expect(self, peer: Endpoint) -> None:
        """Hold that whom a proxy has let in may be the peer, as far as that can be told: not if the
        proxy looks its name up, or does not say who it is. RefusedByRule.
        """
        is_known = peer.packed is not None and any(peer.packed)
        is_sought_there = not self.places and self.destination.packed is None
        if is_known and not is_sought_there and (objection := self._objection(peer)):
            raise RefusedByRule(f"{peer}: {objection}")

    def lets_in(self, peer: Endpoint) -> bool:
        """Say whether this is the peer, or may be; and log it if not."""
        objection = self._objection(peer)
        session = self._session
        if objection and session.log.level >= DEBUG:
            values = (*session.facts(), str(peer))
            session.log.fill_in(DEBUG, _DROPPED, values, ("detail", objection))
        return not objection

    def _objection(self, peer: Endpoint) -> str:
        """Say what there is against a peer. Rules on ports are about the destination's, and rules
        on names about its name, as ever; but a name that leads nowhere lets nobody in.
        """
        assert peer.packed is not None
        if self.places:
            return "" if peer.packed in self._addresses else "it is not who is expected"
        rules = self._session.policy.rules
        by_itself = Endpoint.at(peer.packed, self.destination.port)
        verdict = rules.of_address(Command.BIND, by_itself, peer.packed)
        refusal = verdict.refusal
        if not refusal and self.destination.packed is None:
            refusal = rules.of_address(Command.BIND, self.destination, peer.packed).refusal
        is_elsewhere = verdict.via != self.via
        return refusal or ("it is to come another way" if is_elsewhere else "")


async def _expect(session: Session, destination: Endpoint, ipv4_only: bool) -> _Expected:
    """Decide who may be the peer. RefusedByRule, or OSError if there is no way to it."""
    policy, packed = session.policy, destination.packed
    nobody = "it names no host"
    if packed is None or any(packed):
        try:
            found, via = await places(session, Command.BIND, destination, ipv4_only)
            return _Expected(session, destination, found, via)
        except NameNotResolved as error:
            nobody = error.strerror or str(error)
    verdict = policy.rules.of_command(Command.BIND)
    if verdict.refusal:
        raise RefusedByRule(verdict.refusal)
    if not policy.commands.bind_any:
        raise RefusedByRule(f"{nobody}, see --bind-any")
    return _Expected(session, destination, [], policy.rules.way_of_all(Command.BIND))


async def _door(session: Session, expected: _Expected, ipv4_only: bool) -> Door:
    """Listen where the peer can come: at an address of the side that it is on, or else of the one
    that the client is on. OSError.
    """
    dialler = session.policy.dialler
    if expected.places:
        source = _source_for(session, expected.places)
    elif dialler.bind_address is not None and any(dialler.bind_address):
        source = Endpoint.at(dialler.bind_address, 0)
    elif session.client.is_tcp:
        source = Endpoint.of_socket(session.client.socket.getsockname())
        source.port = 0
    else:
        nowhere = "no address to listen at is known: the client came over no network, see -b"
        raise OSError(errno.EOPNOTSUPP, nowhere)
    assert source.packed is not None
    if ipv4_only and len(source.packed) != 4:
        raise OSError(errno.EAFNOSUPPORT, f"SOCKS4 has no place for {source.host}")
    return Door(session.loop, dialler, source)


def _source_for(session: Session, candidates: list[Endpoint]) -> Endpoint:
    """Give the address of ours that is nearest to the first candidate that there is a way to."""
    failure: OSError | None = None
    try:
        for candidate in candidates:
            try:
                return session.policy.dialler.source_for(candidate)
            except OSError as error:
                failure = failure or error
        assert failure is not None
        raise failure
    finally:
        failure = None  # or it would keep itself alive, through this frame


async def _await_peer(session: Session, door: Door, expected: _Expected) -> tuple[Stream, Endpoint]:
    """Wait for the peer. NobodyCame says who has come instead."""
    try:
        with session.loop.deadline(session.policy.limits.bind) as deadline:
            return await door.open(expected.lets_in)
    except TimeoutError:
        if not deadline.passed:
            raise
        others = door.turned_away
        who = f"{others} others have" if others else "nobody has"
        raise NobodyCame(f"{who} connected") from None
