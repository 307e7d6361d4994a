"""
Run PROG so that its connections go through proxies, and those of all that it starts, whatever
they are linked with.

The proxies are those of --proxy, or else of the environment: all_proxy, ALL_PROXY,
SOCKS5_SERVER, SOCKS_SERVER or SOCKS4_SERVER, but to where no_proxy has.

Usage:
  socksify [options] [--proxy=URL]... [--via=URL]... [--] PROG [ARG...]
  socksify (--help | --version)

Which way:
  --proxy=URL                 through this proxy, socks5h://HOST:PORT say; one through
                              the other if it is repeated
  --via=URL                   and then through this one, after those of --proxy or of the
                              environment; it may be repeated, too
  --direct=NETS               to these networks without a proxy, a comma between
  --udp=WHAT                  refuse datagrams, but for questions for names, or allow
                              them, by UDP ASSOCIATE, in mode isolate [default: refuse]

How:
  --mode=MODE                 isolate: in a network of its own, with nothing in it; async:
                              in this one; hold: as async, and who does not want to wait
                              for a connection waits; auto: the first one that can be had
                              [default: auto]
  --peername                  say that a socket is connected to where the program believes
                              it is, and not to the proxy
  --connect-timeout=SECS      up to a connection [default: 120]

Other:
  -v, --verbose               say which connections there are, and which way they go
  -q, --quiet                 say nothing
  --help                      show this and exit
  --version                   show the version and exit
"""

from __future__ import annotations

import os
from _socket import AF_INET6, socket

from muonsocks.address import Endpoint, parse_networks
from muonsocks.client.proxies import exceptions_in, from_environment
from muonsocks.errors import UsageError, in_one_line
from muonsocks.intercept import kernel
from muonsocks.intercept.bpf import assemble, joined
from muonsocks.intercept.datagrams import Datagrams
from muonsocks.intercept.isolation import Isolation, enter, rules_inside
from muonsocks.intercept.launch import Supervision, step_back
from muonsocks.intercept.look_up import LookUp
from muonsocks.intercept.names import Names, searched
from muonsocks.intercept.nameserver import Nameserver, on_loopback
from muonsocks.intercept.outgoing import RULES, Outgoing
from muonsocks.intercept.parked import RULES as RULES_OF_PARKED
from muonsocks.intercept.parked import Parked
from muonsocks.intercept.peers import Peers
from muonsocks.intercept.supervisor import Supervisor
from muonsocks.intercept.ways import Ways
from muonsocks.log import Log
from muonsocks.net.loop import Loop
from muonsocks.socks.request import Command, Request
from muonsocks.socks.rules import expect_chain
from muonsocks.tools import DONE, SYSTEM_FAILED, execute
from muonsocks.tools.command_line import Options
from muonsocks.tools.intercepted import CallLog, read
from muonsocks.tools.proxies import named_by

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from muonsocks.intercept.bpf import Rules
    from muonsocks.intercept.supervisor import Handler
    from muonsocks.socks.rules import Chain

_MODES = ("auto", "isolate", "async", "hold")
_ISOLATING = ("auto", "isolate")
# s: two trips to a proxy on this host and back are a connection, and each takes about as long
_LOOKING = 3e-4


def main(arguments: list[str], log: Log) -> int:
    """Run the program."""
    given = read(__doc__, arguments, log)
    if given is None:
        return DONE
    wanted = _Wanted(given)
    supervision = step_back(
        lambda: log.error("the supervisor has been killed: nothing can connect any more")
    )
    log.after_fork()

    def become() -> int:
        # A call that is judged by its descriptor goes on with what has that number then.
        try:
            kernel.forbid_tcp_connections()
        except OSError as error:
            log.error(in_one_line(error))
            return SYSTEM_FAILED
        return execute(given.arguments, dict(os.environb), log)

    try:
        _load(wanted.ways)
        rules = _start(supervision, become, wanted, log.debug)
        loop = Loop()
        loop.looking = _LOOKING
        supervised = _Supervised(loop, wanted, rules, supervision, log)
        supervision.attend(loop)
        supervision.go()
    except OSError as error:
        log.error(in_one_line(error))
        supervision.fail()
        return SYSTEM_FAILED
    supervision.answer(loop, supervised.run())
    supervision.wait()
    return DONE


class _Wanted:
    """What a command line asks for."""

    __slots__ = ("is_carried", "mode", "tells_peers", "timeout", "ways")

    def __init__(self, given: Options) -> None:
        """Read it. UsageError."""
        self.ways = _ways(given)
        self.mode = given.text("--mode") or "auto"
        if self.mode not in _MODES:
            hint = f"give one of {', '.join(_MODES)}"
            raise UsageError(f"--mode: {self.mode[:60]!r} is none", hint)
        udp = given.text("--udp") or "refuse"
        if udp not in ("refuse", "allow"):
            raise UsageError(f"--udp: {udp[:60]!r} is neither", "give refuse or allow")
        self.is_carried = udp == "allow"
        if self.is_carried and self.mode not in _ISOLATING:
            problem = f"--udp allow is nothing for --mode {self.mode}"
            raise UsageError(problem, "it takes --mode isolate")
        self.tells_peers = given.flag("--peername")
        self.timeout = given.seconds("--connect-timeout", 120)


def _ways(given: Options) -> Ways:
    """Read which way connections go. UsageError."""
    try:
        direct = parse_networks(given.text("--direct") or "")
    except UsageError as error:
        raise UsageError(f"--direct: {error}") from None
    chain: Chain = named_by("--proxy", given.texts("--proxy"))
    exceptions = ""
    if not chain:
        environ = {name: os.environ[name] for name in os.environ if name.lower() != "no_proxy"}
        chain = from_environment(Endpoint("0.0.0.0", 0), environ)
        exceptions = exceptions_in(os.environ)
    chain = (*chain, *named_by("--via", given.texts("--via"), "put it into $ALL_PROXY"))
    if not chain:
        raise UsageError("there is no proxy", "name it by --proxy, or in $ALL_PROXY")
    expect_chain([*chain])
    return Ways(chain, direct, exceptions)


def _load(ways: Ways) -> None:
    """Have in memory what the first connection would wait for."""
    from muonsocks.socks.proxy_request import ProxyRequest

    __import__("muonsocks.socks.proxy_chain")
    for proxy in ways.chain:
        ProxyRequest(proxy, Request(Command.CONNECT, Endpoint("192.0.2.1", 1)))


def _start(
    supervision: Supervision,
    become: Callable[[], int],
    wanted: _Wanted,
    say: Callable[[str], None],
) -> Rules:
    """Have the program wait for what is to come, in a network of its own if that is to be and can
    be: `supervision.descriptors` has what `enter` gives then. Gives the rules of its filter.
    OSError.
    """
    mode, has_device = wanted.mode, wanted.is_carried
    rules = RULES if mode == "hold" else joined(RULES, RULES_OF_PARKED)
    if mode in _ISOLATING:
        has_to = mode == "isolate" or has_device
        hint = "--udp refuse" if has_device else "--mode async"

        def prepare() -> list[int]:
            try:
                return enter(has_device)
            except OSError as error:
                reason = in_one_line(error) + (f" ({hint} does without)" if has_to else "")
                raise OSError(error.errno, reason) from None

        inside = rules_inside(rules)
        try:
            supervision.start(become, assemble(inside, kernel.ARCHITECTURES), prepare)
            say("mode=isolate")
            return inside
        except OSError as error:
            if has_to:
                raise
            say(f"isolate cannot be had: {in_one_line(error)}")
            mode = "async"
    supervision.start(become, assemble(rules, kernel.ARCHITECTURES))
    say(f"mode={mode}")
    return rules


class _Supervised:
    """All that answers a program."""

    __slots__ = ("_log", "_parked", "_supervisor")

    def __init__(
        self,
        loop: Loop,
        wanted: _Wanted,
        rules: Rules,
        supervision: Supervision,
        log: Log,
    ) -> None:
        self._log = log
        told = CallLog(log)
        ways, timeout = wanted.ways, wanted.timeout
        peers, look_up = Peers(wanted.tells_peers), LookUp(loop)
        self._parked = None
        if wanted.mode != "hold":
            self._parked = Parked(loop, timeout, self._complain, peers)
        descriptors = supervision.descriptors
        device = descriptors.pop(0) if wanted.is_carried else None
        inside = [socket(fileno=fd) for fd in descriptors]
        sockets = inside or on_loopback()  # a program cannot have them: they are closed on exec
        has_ipv6 = any(sock.family == AF_INET6 for sock in sockets)
        names = Names(ways, look_up, searched(os.environ), has_ipv6)
        nameserver = Nameserver(loop, sockets, names.answer, self._complain)
        handlers: dict[str, Handler] = {"getpeername": peers.getpeername}
        if inside:
            isolation = Isolation(inside[0])
            handlers["socket"] = isolation.make_socket
            beside = isolation.connect
        else:
            datagrams = Datagrams(loop, ways, nameserver.endpoints, peers)
            for handler in (
                datagrams.sendto,
                datagrams.sendmsg,
                datagrams.sendmmsg,
                datagrams.recvfrom,
            ):
                handlers[handler.__name__] = handler
            beside = datagrams.connect
        if device is not None:
            from muonsocks.intercept.tunnel import Tunnel
            from muonsocks.net.dial import Dialler

            dialler = Dialler(connect_timeout=timeout, dial_timeout=timeout, lookup=look_up)
            Tunnel(loop, device, ways, names.answer, dialler, log.debug, self._complain)
        if self._parked is not None:
            handlers["getsockopt"] = self._parked.getsockopt
            handlers["getpeername"] = self._parked.getpeername
        outgoing = Outgoing(
            loop, ways, timeout, told.connection, peers, look_up, beside, self._parked
        )
        handlers["connect"] = outgoing.connect
        self._supervisor = Supervisor(loop, supervision.listener, rules, handlers, told.failure)

    async def run(self) -> None:
        """Answer until nobody is left who could call, and nothing of what was begun."""
        await self._supervisor.run()
        if self._parked is not None:
            await self._parked.finish()

    def _complain(self, error: BaseException) -> None:
        self._log.warning(f"a connection under way: {error!r}")
