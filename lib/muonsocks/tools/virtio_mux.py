"""
Give a machine without a network a way out through a serial port.

In the virtual machine, virtio-mux guest serves SOCKS clients and sends their connections
over its end of the port; outside, virtio-mux host carries them out.

Usage:
  virtio-mux host [options] [--via=URL]... [PORT]
  virtio-mux guest [options] [-i ADDR]... [PORT]
  virtio-mux --help | --version

PORT is a device, a terminal, a unix socket to connect to, or - for standard input and
output. Without it a host takes -, and a guest /dev/virtio-ports/org.muonsocks.0.

A guest: where it listens, and who may come in:
  -i, --listen=ADDR           on this address; may be repeated
  -p, --port=PORT             on this port instead of 1080
  --inetd                     not at all: serve the client on standard input and output
  -U, --auth-user=NAME        the only user; needs -P
  -P, --auth-password=TEXT    its password (better: --users)
  --users=FILE                users, a line NAME:PASSWORD each
  -w, --trust=NETS            networks that need no password, a comma between

A host: where a guest may go, and how the far end is reached:
  --rules=FILE                allow, deny and via lines, see muonsocks.rules(5)
  --allow-local               this host's own side too: loopback, link-local
  -4                          over IPv4 only
  -6                          over IPv6 only
  -b, --bind-address=ADDR     from this address
  -B, --bind-interface=NAME   over this network interface
  -m, --mark=NUMBER           with this firewall mark
  --via=URL                   through this proxy, socks5h://HOST:PORT say; one through
                              the other if it is repeated

How much there may be:
  --max-connections=NUMBER    connections at a time; by default 4096
  --max-per-source=NUMBER     a guest: of one IPv4 address or IPv6 /64; others are closed
  --memory=MIB                for data that waits to be passed on [default: 64]

How long it may take, in seconds:
  --open-timeout=SECS         a guest: for the host to be there; by default 5
  --wait                      a guest: for as long as that takes
  --handshake-timeout=SECS    a guest: up to the client's request; by default 30
  --connect-timeout=SECS      a host: for each address; by default 10
  --dial-timeout=SECS         a host: for look-up and all addresses; by default 30
  --idle-timeout=SECS         while nothing moves [default: 900]
  --half-close-timeout=SECS   the same once one side has ended [default: 120]
  --ping-timeout=SECS         without a sign of the other side [default: 30]
  --drain-timeout=SECS        a guest: to finish when it is told to stop; by default 30

Other:
  --peer-reconnects           a host: its peer on standard input does, as QEMU with reconnect=
  -d, --notify-fd=FD          a guest: say there, by a newline, that it is ready (s6)
  -v, --verbose               log each failed address too
  -q, --quiet                 log no connections
  --help                      show this and exit
  --version                   show the version and exit
"""

from __future__ import annotations

import os
import site
from mmap import mmap
from resource import RLIMIT_NOFILE, getrlimit, setrlimit

from muonsocks.errors import UsageError, in_one_line
from muonsocks.log import Log
from muonsocks.mux.frames import MOST_CONNECTIONS
from muonsocks.mux.host import Host
from muonsocks.mux.link import Bounds
from muonsocks.mux.places import Place, StandardStreams, UnixSocket, place_of
from muonsocks.net.loop import Loop
from muonsocks.net.signals import Signals
from muonsocks.resident.notify import STATUS_PERIOD, Notifier
from muonsocks.resident.plan import Capacity, Plan, Service
from muonsocks.socks.policy import Access, Policy
from muonsocks.tools import DONE, SYSTEM_FAILED, options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable, Coroutine

    from muonsocks.mux.guest import Guest
    from muonsocks.net.inherit import Peer
    from muonsocks.net.task import Pause, Waitable
    from muonsocks.socks.users import Users

_GUEST_PORT = "/dev/virtio-ports/org.muonsocks.0"
_CONNECTIONS = 4096
_FOR_GUESTS = (
    *("--listen", "--port", "--inetd", "--auth-user", "--auth-password", "--users", "--trust"),
    *("--max-per-source", "--open-timeout", "--wait", "--handshake-timeout", "--drain-timeout"),
    "--notify-fd",
)
_FOR_HOSTS = (
    *("--rules", "--allow-local", "-4", "-6", "--bind-address", "--bind-interface", "--mark"),
    *("--peer-reconnects", "--connect-timeout", "--dial-timeout", "--via"),
)


def main(arguments: list[str], log: Log) -> int:
    """Be one side of a mux until told to stop, or until the port is gone for good."""
    given = options.parse(__doc__, arguments, log)
    if given is None:
        return DONE
    sides = {"host": (_host, _FOR_GUESTS), "guest": (_guest, _FOR_HOSTS)}
    which, *port = given.arguments or [""]
    if which not in sides or len(port) > 1:
        raise UsageError("which side is it?", "virtio-mux host [PORT], or virtio-mux guest [PORT]")
    run, foreign = sides[which]
    for name in foreign:
        if given.flag(name):
            raise UsageError(f"{name} is not for a {which}", "see --help")
    if port == [""]:
        raise UsageError("PORT is empty", "name a device or a socket, or leave it out")
    site.main()  # the programs start without it: systemd's modules are to be found there
    return run(given, port, log)


def _place(port: str) -> Place:
    place = place_of(port)
    if isinstance(place, UnixSocket):
        options.unix_path(port, "PORT")
    return place


def _bounds(given: options.Options) -> Bounds:
    memory = given.number("--memory", 1 << 20, 64, smallest=1) << 20
    return Bounds(_connections(given), memory, given.seconds("--ping-timeout", 30))


def _connections(given: options.Options) -> int:
    return given.number("--max-connections", MOST_CONNECTIONS, _CONNECTIONS, smallest=1)


# A host


def _host(given: options.Options, port: list[str], log: Log) -> int:
    log.use_journal_fields()
    policy = Policy(Access(), options.rules(given), options.dialler(given), options.limits(given))
    if not port and os.isatty(0):
        hint = "name a PORT; it is - if that terminal is the port"
        raise UsageError("standard input is a terminal", hint)
    if given.flag("--peer-reconnects"):
        if port not in ([], ["-"]):
            raise UsageError("--peer-reconnects: it is for standard input", "name no other PORT")
        from muonsocks.mux.caller import Caller

        place: Place = Caller()
    else:
        place = _place(*port or "-")
    notifier = Notifier()
    setrlimit(RLIMIT_NOFILE, (getrlimit(RLIMIT_NOFILE)[1],) * 2)
    loop = Loop()
    Signals(loop)
    host = Host(loop, place, policy, _bounds(given), log)
    notifier.ready()
    if notifier.to_systemd:
        _tell_status(host, notifier)
    try:
        loop.run(host.run())
    finally:
        loop.run(host.leave("the host is told to stop"))
    return DONE


def _tell_status(host: Host, notifier: Notifier) -> None:
    guest = _presence(host.link.mux.is_up)
    connections = f"{len(host.tasks)} open, {host.served} served"
    notifier.status(f"guest: {guest}; connections: {connections}")
    host.loop.call_later(STATUS_PERIOD, lambda: _tell_status(host, notifier))


def _presence(is_there: int) -> str:
    return "there" if is_there else "away"


# A guest


def _guest(given: options.Options, port: list[str], log: Log) -> int:
    from muonsocks.net.dial import Dialler
    from muonsocks.socks.rules import Rules

    if given.flag("--wait") and given.flag("--open-timeout"):
        raise UsageError("--wait and --open-timeout exclude each other", "see --help")
    place = _place(*port or [_GUEST_PORT])
    policy = Policy(options.access(given), Rules(), Dialler(), options.limits(given))
    entrance = _Entrance(given, place, policy, log)
    if given.flag("--inetd"):
        return entrance.serve_one()
    return entrance.reside()


class _Entrance(Service):
    """Where a guest's clients come in, as a resident program's service."""

    __slots__ = ("_given", "_guest", "_host_is_there", "_log", "_place", "_policy")

    _guest: Guest

    def __init__(self, given: options.Options, place: Place, policy: Policy, log: Log) -> None:
        self._given = given
        self._place = place
        self._policy = policy
        self._log = log
        self._host_is_there = mmap(-1, 1)  # the worker knows, and the supervisor tells systemd

    def _make_guest(self, loop: Loop) -> Guest:
        from muonsocks.mux.guest import Guest

        given = self._given
        patience = None if given.flag("--wait") else given.seconds("--open-timeout", 5)
        return Guest(loop, self._place, _bounds(given), patience, self._log)

    # One client

    def serve_one(self) -> int:
        """Serve the client on standard input and output."""
        from muonsocks.mux.guest import GuestSession
        from muonsocks.net.inherit import Stdio, peer_of

        for name in ("--listen", "--port", "--drain-timeout", "--notify-fd", "--max-per-source"):
            if self._given.flag(name):
                raise UsageError(f"{name} does not go with --inetd", "leave it out")
        if isinstance(self._place, StandardStreams):
            raise UsageError("with --inetd they are the client's", "give another PORT")
        stdio = Stdio()
        guest = self._make_guest(stdio.loop)
        peer = peer_of(stdio.socket, os.environ)
        session = GuestSession(stdio.stream, peer, self._policy, self._log, guest)
        failures: list[BaseException] = []
        try:
            stdio.loop.spawn(guest.run(), failures.append)
            if failures:
                raise failures[0]
            stdio.loop.run(session.run())
            if failures:
                raise failures[0]  # as its client was not told why
        finally:
            stdio.loop.run(guest.leave("the only client has gone"))
            stdio.restore()
        return DONE

    # Those who come

    def reside(self) -> int:
        """Serve all who come."""
        from muonsocks.resident.supervisor import Supervisor
        from muonsocks.tools.listening import listeners, notify_fd

        given, log = self._given, self._log
        log.use_journal_fields()
        per_source = given.number("--max-per-source", 1 << 24)
        plan = Plan(
            1,  # a port has room for one
            Capacity(_connections(given), per_source, each=1),
            given.seconds("--drain-timeout", 30),
        )
        notifier = Notifier(notify_fd(given))
        entrances = listeners(given, self._policy.access.is_limited, log)
        return DONE if Supervisor(self, entrances, plan, notifier, log).run() else SYSTEM_FAILED

    def reread(self) -> Users | None:
        """Read the users again."""
        users = options.users(self._given)
        if (users is None) != (self._policy.access.users is None):
            raise UsageError("whether there are users is decided at the start", "restart")
        return users

    def take(self, configuration: Users | None) -> None:
        """Go by these users from now on."""
        self._policy.access.users = configuration

    def settle(self, loop: Loop, retire: Callable[..., None]) -> None:
        """Open the port."""
        failures: list[BaseException] = []
        self._guest = guest = self._make_guest(loop)

        def on_failure(error: BaseException) -> None:
            failures.append(error)
            if is_settled:
                self._log.error(in_one_line(error) if isinstance(error, OSError) else repr(error))
                retire(for_good=True, failed=True, cuts=True)

        self._note_presence(False)
        guest.on_presence = self._note_presence
        is_settled = False
        loop.spawn(guest.run(), on_failure, lambda _: retire(for_good=True, cuts=True))
        if failures:
            raise failures[0]
        is_settled = True

    def _note_presence(self, is_there: bool) -> None:
        self._host_is_there[0] = is_there

    def state(self) -> str:
        """Say whether the host is there."""
        return f"host: {_presence(self._host_is_there[0])}"

    def finish(self) -> None:
        """Let the host know all that was sent, and that this guest is not there any more."""
        self._guest.loop.run(self._guest.leave("the guest is told to stop"))

    def serve(self, loop: Loop, sock: socket, peer: Peer) -> Coroutine[Waitable, None, int | Pause]:
        """Serve one client."""
        from muonsocks.mux.guest import GuestSession
        from muonsocks.net.stream import Stream

        return GuestSession(Stream(loop, sock), peer, self._policy, self._log, self._guest).run()
