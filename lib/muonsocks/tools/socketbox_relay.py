"""
Relay connections that another program has accepted and passes on here, or that come to a
socket which is open here, each to an address or to a unix socket.

Without -s they are accepted at descriptor 0.

Usage:
  socketbox-relay [options]

Where they come from:
  -s, --receive=PATH          they are passed to this unix socket, which is made;
                              "systemd" for the one that systemd has made
  -l, --listen-fd=FD          they come to the socket that is this descriptor
                              [default: 0]
  -e                          to which they are passed, and which does not listen

Where they go:
  -c, --connect=ADDR          to this address; by default ::1
  -p, --port=PORT             to this port; 0 is the one that they have come to
                              [default: 80]
  -I, --interface=NAME        a link-local address is on this network interface
  -n, --scope=NUMBER          the same by the interface's number
  -u, --unix=PATH             to this unix socket (with @ in front, to a name in the
                              abstract namespace)

Where each goes by the address that it has come to (NAT64):
  -N, --nat64                 its last 32 bits replace those of -c, or follow the path
                              of -u as PATH-xxxxxxxx; others than those of -P are closed
  -P, --prefix=ADDR           what it must begin with; by default 64:ff9b::
  -x, --last-64               the last 64 bits, not 32
  --allow-local               to this host's own side too: loopback, link-local

What is said there first:
  -i                          who the client is, by the PROXY protocol, version 1, if it
                              goes to an address
  --proxy-protocol=VERSION    the same by version 1 or 2, wherever it goes

How many there may be:
  --workers=NUMBER            processes that relay; by default one for each CPU
  --max-connections=NUMBER    connections, in all; others wait [default: 16384]
  --max-per-source=NUMBER     of one IPv4 address or IPv6 /64; others are closed

How long it may take, in seconds:
  --connect-timeout=SECS      to connect [default: 10]
  --idle-timeout=SECS         while nothing moves [default: 900]
  --half-close-timeout=SECS   the same once one side has ended [default: 120]
  --drain-timeout=SECS        to finish when it is told to stop [default: 30]

Other:
  -d, --notify-fd=FD          say there, by a newline, that it is ready (s6)
  -v, --verbose               log more
  -q, --quiet                 log no connections
  --help                      show this and exit
  --version                   show the version and exit
"""

from __future__ import annotations

import os
import site
from _socket import AF_INET, AF_INET6, AF_UNIX, SOCK_DGRAM, SOCK_STREAM, if_nametoindex, socket
from errno import EINVAL

from muonsocks.errors import UsageError
from muonsocks.log import Log
from muonsocks.net.dial import Dialler
from muonsocks.net.entrance import Intake, Listener
from muonsocks.net.listen import clients_come_to, inherited, listen_with, name_of
from muonsocks.net.passed import strictness
from muonsocks.net.stream import is_tcp, prepare_tcp
from muonsocks.resident.notify import Notifier
from muonsocks.resident.plan import Capacity, Plan
from muonsocks.resident.supervisor import Supervisor
from muonsocks.socketbox.destination import ToAddress, ToUnixSocket, Translation
from muonsocks.socketbox.relay import Forwarding, Relayer
from muonsocks.socks.policy import Access, Limits, Policy
from muonsocks.socks.proxy_header import version_1, version_2
from muonsocks.socks.rules import Rules
from muonsocks.tools import DONE, SYSTEM_FAILED
from muonsocks.tools.command_line import (
    Options,
    descriptor,
    expect_no_arguments,
    packed_address,
    parse,
    port_number,
    unix_path,
)
from muonsocks.tools.listening import notify_fd, receivers_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.net.entrance import Entrance

_SUFFIX = "-00000000"  # of a path


def main(arguments: list[str], log: Log) -> int:
    """Relay until told to stop, or until nobody can come any more."""
    given = parse(__doc__, arguments, log)
    if given is None:
        return DONE
    expect_no_arguments(given)
    site.main()  # the programs start without it: systemd's modules are to be found there
    log.use_journal_fields()
    policy = Policy(
        Access(),
        Rules((), given.flag("--allow-local") or not given.flag("--nat64")),
        Dialler(connect_timeout=given.seconds("--connect-timeout", 10)),
        Limits(
            idle=given.seconds("--idle-timeout", 900),
            half_close=given.seconds("--half-close-timeout", 120),
        ),
    )
    relayer = Relayer(_forwarding(given, log), policy, log)
    plan = Plan(
        given.number("--workers", 1024) or len(os.sched_getaffinity(0)),
        Capacity(
            given.number("--max-connections", 1 << 24, 16384),
            given.number("--max-per-source", 1 << 24),
        ),
        given.seconds("--drain-timeout", 30),
    )
    fd = None if given.text("--receive") else descriptor_of(given)
    notifier = Notifier(notify_fd(given))
    kept = os.dup(fd) if fd is not None and os.get_blocking(fd) else -1
    entrances = _entrances(given, fd, log)
    try:
        return DONE if Supervisor(relayer, entrances, plan, notifier, log).run() else SYSTEM_FAILED
    finally:
        if kept >= 0:
            os.set_blocking(kept, True)  # as it was: others may have it too


def descriptor_of(given: Options) -> int | None:
    """Give the descriptor of -l. None if that is systemd's to say."""
    text = given.text("--listen-fd") or "0"
    return None if text == "systemd" else descriptor(text, "-l")


# Where they come from


def _entrances(given: Options, fd: int | None, log: Log) -> list[Entrance]:
    level = strictness(os.environ)
    path = given.text("--receive")
    if path is not None:
        if given.flag("-e"):
            raise UsageError("-s and -e exclude each other", "see --help")
        return receivers_at(path, "-s", log, strictness=level)
    sockets = inherited(SOCK_DGRAM if given.flag("-e") else SOCK_STREAM) if fd is None else []
    if fd is not None:
        sockets.append(_receiving(fd) if given.flag("-e") else _listening(fd))
    if not sockets:
        raise UsageError("systemd has passed no socket", "start it by its socket unit")
    names = ", ".join(map(name_of, sockets))
    if given.flag("-e"):
        log.info(f"receiving at {names}")
        return [Intake(sock, is_ours=False, strictness=level) for sock in sockets]
    log.info(f"listening on {names}")
    return [Listener(sock) for sock in sockets]


def _listening(fd: int) -> socket:
    """Listen at a socket that is open here."""
    sock = _socket(fd, "-l")
    try:
        if sock.type == SOCK_STREAM and sock.family in (AF_INET, AF_INET6, AF_UNIX):
            listen_with(sock)
        can_listen = clients_come_to(sock) and sock.type == SOCK_STREAM
    except OSError as error:
        if error.errno != EINVAL:
            raise
        can_listen = False  # it is connected, or bound to nothing
    if not can_listen:
        hint = "bind it, or give -e for one that connections are passed to"
        raise UsageError(f"-l: descriptor {fd} is no socket to listen at", hint)
    sock.setblocking(False)
    if is_tcp(sock):
        prepare_tcp(sock)
    return sock


def _receiving(fd: int) -> socket:
    """Take a unix socket that is open here."""
    sock = _socket(fd, "-l")
    if is_tcp(sock) or (sock.type == SOCK_STREAM and clients_come_to(sock)):
        hint = "without -e it is one to listen at"
        raise UsageError(f"-l: connections cannot be passed to descriptor {fd}", hint)
    return sock


def _socket(fd: int, what: str) -> socket:
    try:
        sock = socket(fileno=fd)
    except OSError:
        raise UsageError(f"{what}: descriptor {fd} is no socket", "give one, or -s") from None
    os.set_inheritable(fd, False)
    return sock


# Where they go


def _forwarding(given: Options, log: Log) -> Forwarding:
    translation = _translation(given)
    path = given.text("--unix")
    version = given.text("--proxy-protocol")
    if version not in (None, "1", "2"):
        raise UsageError(f"--proxy-protocol: {version!r} is no version", "give 1 or 2")
    header = {None: None, "1": version_1, "2": version_2}[version]
    if path is None:
        if given.flag("-i") and header is None:
            header = version_1
        return Forwarding(_to_address(given, translation), header)
    suffix = _SUFFIX if translation is not None else ""
    unix_path(path + suffix if path else path, "-u")
    if given.flag("-i"):
        log.warning("-i is for addresses; --proxy-protocol=1 says it to a unix socket, too")
    return Forwarding(ToUnixSocket(path, translation), header)


def _to_address(given: Options, translation: Translation | None) -> ToAddress:
    packed = packed_address(given.text("--connect") or "::1", "-c")
    name, scope = given.text("--interface"), given.number("--scope", 0xFFFFFFFF)
    if name is not None:
        if scope:
            raise UsageError("-I and -n exclude each other", "give one of them")
        try:
            scope = if_nametoindex(name)
        except OSError:
            raise UsageError(f"-I: there is no interface {name!r}", "see ip link") from None
    port = port_number(given.text("--port") or "80", "-p")
    return ToAddress(packed, port, scope, translation)


def _translation(given: Options) -> Translation | None:
    if not given.flag("--nat64"):
        if given.flag("--last-64"):
            raise UsageError("-x is for -N", "give that too")
        return None
    prefix = given.text("--prefix") or "64:ff9b::"
    if ":" not in prefix:  # it would be all of IPv4, ::ffff:0:0/96
        raise UsageError(f"-P: {prefix[:60]!r} is not an IPv6 address", "give it in full")
    return Translation(packed_address(prefix, "-P"), 8 if given.flag("--last-64") else 4)
