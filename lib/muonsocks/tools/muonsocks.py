"""
Serve SOCKS clients: a server that stays, with workers that share its listening sockets.

It listens on the addresses of -i, and on the sockets that systemd passes; clients may also
be passed to it, accepted by another program (--receive). Without any of that it listens
everywhere if it is limited who may come in (users or -w), and on loopback alone if not.

Usage:
  muonsocks [options] [-i ADDR]... [--receive=PATH]... [--via=URL]...

Where it listens:
  -i, --listen=ADDR           on this address; may be repeated
  -p, --port=PORT             on this port instead of 1080
  --receive=PATH              not at all, but take the clients that socketbox passes to
                              this unix socket, which is made; may be repeated

Who may come in:
  -U, --auth-user=NAME        the only user; needs -P
  -P, --auth-password=TEXT    its password (better: --users)
  --users=FILE                users, a line NAME:PASSWORD each
  -w, --trust=NETS            networks that need no password, a comma between
  -1, --auth-once             no password from an address that has shown one
  --auth-once-ttl=SECS        for how long, in seconds [default: 86400]
  --state=DIR                 where such addresses are kept
  --proxy-protocol=WHETHER    a PROXY header says who the client is: off, optional or
                              required [default: off]
  --proxy-from=NETS           if it comes from these networks; else from anybody

Where a client may go:
  --rules=FILE                allow, deny and via lines, see muonsocks.rules(5)
  --allow-local               this host's own side too: loopback, link-local
  --bind-any                  BIND for whoever connects, if it names no host
  --udp-filter=WHICH          datagrams from where the client has sent some (strict) or
                              from anywhere (open) [default: strict]
  --resolve-commands          Tor's RESOLVE and RESOLVE_PTR, which only look names up

How the far end is reached:
  -4                          over IPv4 only
  -6                          over IPv6 only
  -b, --bind-address=ADDR     from this address
  -B, --bind-interface=NAME   over this network interface
  -m, --mark=NUMBER           with this firewall mark
  --via=URL                   through this proxy, socks5h://HOST:PORT say; one through
                              the other if it is repeated
  --send-proxy                tell it who the client is, by the PROXY protocol

How many there may be:
  --workers=NUMBER            processes that serve; by default one for each CPU
  --max-connections=NUMBER    connections, in all; others wait [default: 16384]
  --max-per-source=NUMBER     of one IPv4 address or IPv6 /64; others are closed

How long it may take, in seconds:
  --handshake-timeout=SECS    up to the client's request [default: 30]
  --connect-timeout=SECS      for each address [default: 10]
  --dial-timeout=SECS         for look-up and all addresses [default: 30]
  --bind-timeout=SECS         for BIND's peer to connect [default: 120]
  --idle-timeout=SECS         while nothing moves [default: 900]
  --half-close-timeout=SECS   the same once one side has ended [default: 120]
  --drain-timeout=SECS        to finish when it is told to stop [default: 30]

As whom it runs:
  -u, --user=NAME             as this user, once it listens
  -C, --chroot=DIR            with this root directory

Other:
  -d, --notify-fd=FD          say there, by a newline, that it is ready (s6)
  -v, --verbose               log each failed address too
  -q, --quiet                 log no connections
  --help                      show this and exit
  --version                   show the version and exit
"""

from __future__ import annotations

import os
import site
from _socket import socket

from muonsocks import net, socks
from muonsocks.errors import UsageError
from muonsocks.log import Log
from muonsocks.net.identity import Identity
from muonsocks.net.inherit import Peer
from muonsocks.net.loop import Loop
from muonsocks.net.privileges import expect_rights, give_up
from muonsocks.net.resolver import Resolver
from muonsocks.net.stream import Stream
from muonsocks.resident.notify import Notifier
from muonsocks.resident.plan import Capacity, Plan, Service
from muonsocks.resident.supervisor import Supervisor
from muonsocks.socks.session import Session
from muonsocks.tools import DONE, SYSTEM_FAILED, options
from muonsocks.tools.listening import listeners, notify_fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from muonsocks.net.task import Pause
    from muonsocks.socks.policy import Front
    from muonsocks.socks.rules import Rules
    from muonsocks.socks.users import Users


def main(arguments: list[str], log: Log) -> int:
    """Serve until told to stop."""
    given = options.parse(__doc__, arguments, log)
    if given is None:
        return DONE
    options.expect_no_arguments(given)
    site.main()  # the programs start without it: systemd's modules are to be found there
    log.use_journal_fields()
    _load_all()
    service = Socks(given, log)
    plan = Plan(
        given.number("--workers", 1024) or len(os.sched_getaffinity(0)),
        _capacity(given, service.front),
        given.seconds("--drain-timeout", 30),
    )
    notifier = Notifier(notify_fd(given))
    believes_all = service.front is not None and not service.front.sources
    entrances = listeners(given, service.is_limited, log, believes_all)
    return DONE if Supervisor(service, entrances, plan, notifier, log).run() else SYSTEM_FAILED


def _load_all() -> None:
    """Load what a program for one connection loads when it is asked for: whoever has given up
    privileges, or has another root, may not get to it any more.
    """
    for room in (net, socks):
        for file in os.listdir(room.__path__[0]):
            name, extension = os.path.splitext(file)
            if extension == ".py":
                __import__(f"{room.__name__}.{name}")


def _capacity(given: options.Options, front: Front | None) -> Capacity:
    """Make how many connections there may be; who is in front of us has those of many clients."""
    per_source = given.number("--max-per-source", 1 << 24)
    fronts = () if front is None else front.sources
    if per_source and front is not None and not fronts:
        problem = "--max-per-source counts nobody where anybody may come for others"
        raise UsageError(problem, "give --proxy-from too")
    most = given.number("--max-connections", 1 << 24, 16384)
    return Capacity(most, per_source, fronts=fronts)


class Socks(Service):
    """The sessions of a resident server."""

    __slots__ = ("_given", "_identity", "_log", "_policy", "_root")

    def __init__(self, given: options.Options, log: Log) -> None:
        self._given = given
        self._log = log
        user = given.text("--user")
        self._identity = None if user is None else Identity.of(user)
        self._root = expect_rights(self._identity, given.text("--chroot"), "-C")
        owner = None
        if self._identity is not None and not self._identity.is_ours:
            uid, gid = self._identity.uid, self._identity.gid
            assert uid is not None and gid is not None  # a user that is known has both
            owner = uid, gid
        self._policy = options.policy(given, options.access(given, owner))
        if self._policy.dialler.mark and self._identity is not None:
            raise UsageError("-m takes a privilege that -u gives up", "leave one of them out")

    @property
    def is_limited(self) -> bool:
        """Whether it is limited who may come in."""
        return self._policy.access.is_limited

    @property
    def front(self) -> Front | None:
        """Who tells by a PROXY header who the client is."""
        return self._policy.front

    def reread(self) -> tuple[Users | None, Rules]:
        """Read users and rules again."""
        users, rules = options.users(self._given), options.rules(self._given)
        if (users is None) != (self._policy.access.users is None):
            raise UsageError("whether there are users is decided at the start", "restart")
        return users, rules

    def take(self, configuration: tuple[Users | None, Rules]) -> None:
        """Go by these users and rules from now on."""
        self._policy.access.users, self._policy.rules = configuration

    def settle(self, loop: Loop, retire: Callable[..., None]) -> None:
        """Give up privileges, and load before that what cannot be had afterwards."""
        access = self._policy.access
        if self._root is not None:
            import hashlib  # noqa: F401  # the users may have hashes, if not now then when reread

            def on_death(reason: str) -> None:
                self._log.error(f"no names can be looked up any more: {reason}")
                retire()

            resolver = Resolver.start(loop, self._identity, on_death)
            dialler = self._policy.dialler
            dialler.lookup, dialler.name_lookup = resolver.lookup, resolver.name_lookup
        kept = None if access.auth_once is None else access.auth_once.directory
        give_up(self._identity, self._root, kept)

    async def serve(self, loop: Loop, sock: socket, peer: Peer) -> int | Pause:
        """Serve one client."""
        client = Stream.of_client(loop, sock, peer)
        return await Session(client, peer, self._policy, self._log).run()
