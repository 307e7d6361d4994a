"""
Carry out the SOCKS request that socks-handshake left in the environment: connect, reply
to the client on standard input and output, and relay until both are done.

With HOST PORT or unix:PATH it goes there instead, whatever the request and the rules
say. Without a request it is a plain forwarder to there, and the client gets no reply.

With --listen it is the resident relay that other programs hand their connections over to.

Usage:
  socks-relay [options] [--via=URL]... [HOST PORT]
  socks-relay [options] unix:PATH
  socks-relay [options] --refuse=REASON
  socks-relay [options] --listen=SOCKET

Where a client may go:
  --rules=FILE                allow, deny and via lines, see muonsocks.rules(5)
  --allow-local               this host's own side too: loopback, link-local
  --bind-any                  BIND for whoever connects, if it names no host
  --udp-filter=WHICH          datagrams from where the client has sent some (strict) or
                              from anywhere (open) [default: strict]
  --resolve-commands          Tor's RESOLVE and RESOLVE_PTR, which only look names up
  --refuse=REASON             nowhere: only answer. REASON is a reply code, 1 to 8, or
                              general-failure, not-allowed, network-unreachable,
                              host-unreachable, connection-refused, ttl-expired,
                              command-not-supported, address-type-not-supported

How the far end is reached:
  -4                          over IPv4 only
  -6                          over IPv6 only
  -b, --bind-address=ADDR     from this address
  -B, --bind-interface=NAME   over this network interface
  -m, --mark=NUMBER           with this firewall mark
  --via=URL                   through this proxy, socks5h://HOST:PORT say; one through
                              the other if it is repeated
  --send-proxy                tell it who the client is, by the PROXY protocol

Who relays:
  --relay=SOCKET              a resident relay, if there is one at this unix socket
                              and it has room (without it: $SOCKS_RELAY)
  --listen=SOCKET             this process, for all that connect to this unix socket;
                              "systemd" for the sockets that systemd has passed
  --workers=NUMBER            with --listen: so many; by default one for each CPU
  --drain-timeout=SECS        with --listen: for connections to finish when it is told
                              to stop; by default 30

How long it may take, in seconds:
  --connect-timeout=SECS      for each address [default: 10]
  --dial-timeout=SECS         for look-up and all addresses [default: 30]
  --bind-timeout=SECS         for BIND's peer to connect [default: 120]
  --idle-timeout=SECS         while nothing moves [default: 900]
  --half-close-timeout=SECS   the same once one side has ended [default: 120]

Other:
  -v, --verbose               log each failed address too
  -q, --quiet                 log no connections
  --help                      show this and exit
  --version                   show the version and exit
"""

from __future__ import annotations

import os

from muonsocks.address import Endpoint, is_name
from muonsocks.errors import UsageError
from muonsocks.log import Log, quoted
from muonsocks.net.dial import Dialler, dial_unix
from muonsocks.net.inherit import Stdio, peer_of
from muonsocks.net.relay import Joint
from muonsocks.net.stream import Stream
from muonsocks.socks.admission import Finished
from muonsocks.socks.negotiation import Server
from muonsocks.socks.policy import Access, Limits, Policy
from muonsocks.socks.request import REPLY_NAMES, Command, ReplyCode, Request
from muonsocks.socks.rules import Rules
from muonsocks.socks.session import Session
from muonsocks.tools import DONE, REFUSED_BY_RULE, options
from muonsocks.tools.command_line import port_number
from muonsocks.tools.environment import owed_server, request_from

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_REASONS = {name.replace(" ", "-"): code for code, name in REPLY_NAMES.items()}


def main(arguments: list[str], log: Log) -> int:
    """Relay, and say how that went."""
    server = owed_server(os.environ)
    try:
        given = options.parse(__doc__, arguments, log)
        if given is None:
            return DONE
        listen = given.text("--listen")
        if listen is not None:
            from muonsocks.tools.resident import reside

            return reside(listen, given, log)
        for name in _FOR_RESIDENTS:
            if given.text(name) is not None:
                raise UsageError(f"{name} is for a resident relay", "give --listen too")
        errand = _Errand(given, server)
    except (UsageError, OSError):
        if server is not None:
            _answer_failure(server, log)
        raise
    stdio = Stdio()
    try:
        session = Session(stdio.stream, peer_of(stdio.socket, os.environ), errand.policy, log)
        stdio.loop.run(session.logged(lambda: errand.run(session)))
    finally:
        stdio.restore()
    return REFUSED_BY_RULE if session.refused_by_rule else DONE


class _Errand:
    """What the command line and the environment together ask for."""

    __slots__ = ("_elsewhere", "_path", "_refusal", "_request", "_server", "_user", "policy")

    def __init__(self, given: options.Options, server: Server | None) -> None:
        self._server = server
        self.policy = options.policy(given, Access(), options.resident(given))
        self._refusal = _refusal(given.text("--refuse"))
        self._path, self._elsewhere = _destination(given.arguments)
        if self._path and self.policy.rules.usual_way:
            raise UsageError("--via has no way to a unix socket", "leave one of them out")
        if server is not None:
            self._request, self._user = request_from(os.environ)
        elif self._refusal is not None:
            raise UsageError("--refuse answers a request, and there is none", _WITHOUT_REQUEST)
        elif self._elsewhere is None and not self._path:
            raise UsageError("there is no request and no destination", _WITHOUT_REQUEST)
        else:
            destination = self._elsewhere or Endpoint("0.0.0.0", 0)
            self._request, self._user = Request(Command.CONNECT, destination), b""

    async def run(self, session: Session) -> Joint | None:
        """Do it."""
        session.user = self._user
        session.target = str(self._request.destination)
        if self._refusal is not None and self._server is not None:
            session.refused_by_rule = True
            await session.refuse(self._server, self._refusal)
            raise Finished("refused-by-rule", "--refuse")
        reach: Callable[[], Awaitable[Stream]] | None = None
        if self._path:
            if self._server is None:
                session.target = f"unix:{quoted(self._path)}"
            timeout = self.policy.dialler.connect_timeout
            reach = lambda: session.introduced(dial_unix(session.loop, self._path, timeout))  # noqa: E731
        elif elsewhere := self._elsewhere:
            reach = lambda: self._go(session, elsewhere)  # noqa: E731
        return await session.fulfil(self._server, self._request, reach=reach)

    def _go(self, session: Session, elsewhere: Endpoint) -> Awaitable[Stream]:
        """Connect to where the command line says, through --via; rules have no say in that."""
        way = self.policy.rules.usual_way
        if way:
            from muonsocks.socks.ways import through

            return through(session, way, elsewhere)
        return session.introduced(self.policy.dialler.dial(session.loop, elsewhere))


_FOR_RESIDENTS = ("--workers", "--drain-timeout")
_WITHOUT_REQUEST = "give HOST PORT or unix:PATH, or run it from socks-handshake"


def _refusal(reason: str | None) -> int | None:
    """Read the argument of --refuse as a reply code."""
    if reason is None:
        return None
    code = int(reason) if reason in [*"12345678"] else _REASONS.get(reason)
    if code not in _REASONS.values():
        raise UsageError(f"--refuse: {reason!r} is no reason", "see --help for those there are")
    return code


def _destination(arguments: list[str]) -> tuple[str, Endpoint | None]:
    """Read HOST PORT or unix:PATH as (path, endpoint), of which at most one is there."""
    if not arguments:
        return "", None
    if len(arguments) == 1 and arguments[0].startswith("unix:"):
        return options.unix_path(arguments[0].removeprefix("unix:"), "unix:"), None
    if len(arguments) != 2:
        raise UsageError("the destination does not fit", "give HOST PORT or unix:PATH")
    host = arguments[0]
    if not host.isascii() or not is_name(host.encode()):
        raise UsageError(f"{host!r} is neither a name nor an address")
    return "", Endpoint(host, port_number(arguments[1], "PORT"))


def _answer_failure(server: Server, log: Log) -> None:
    """Tell the client that it will not be served: it must not have to guess that from silence."""
    stdio = Stdio()
    policy = Policy(Access(), Rules(), Dialler(), Limits())
    session = Session(stdio.stream, peer_of(stdio.socket, os.environ), policy, log)

    async def fail() -> None:
        await session.refuse(server, ReplyCode.GENERAL_FAILURE)
        raise Finished("system-error", "socks-relay cannot start")

    try:
        stdio.loop.run(session.logged(fail))
    finally:
        stdio.restore()
