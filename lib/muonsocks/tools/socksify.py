"""
Run PROG so that its connections go through proxies, and those of all that it starts, whatever
they are linked with.

The proxies are those of --proxy, or else of the environment: all_proxy, ALL_PROXY,
SOCKS5_SERVER, SOCKS_SERVER or SOCKS4_SERVER, but to where no_proxy has.

Usage:
  socksify [options] [--proxy=URL]... [--] PROG [ARG...]
  socksify (--help | --version)

Options:
  --proxy=URL                 through this proxy, socks5h://HOST:PORT say; one through
                              the other if it is repeated
  --direct=NETS               to these networks without a proxy, a comma between
  --connect-timeout=SECS      up to a connection [default: 120]
  -v, --verbose               say which connections there are, and which way they go
  -q, --quiet                 say nothing
  --help                      show this and exit
  --version                   show the version and exit
"""

from __future__ import annotations

import os
from _signal import SIGCHLD
from _socket import AF_INET6

from muonsocks.address import Endpoint, parse_networks
from muonsocks.client.proxies import exceptions_in, from_environment
from muonsocks.errors import UsageError, in_one_line
from muonsocks.intercept import kernel
from muonsocks.intercept.bpf import assemble
from muonsocks.intercept.datagrams import Datagrams
from muonsocks.intercept.launch import stay_behind, step_back
from muonsocks.intercept.look_up import LookUp
from muonsocks.intercept.names import Names, searched
from muonsocks.intercept.nameserver import Nameserver, on_loopback
from muonsocks.intercept.notify import Call
from muonsocks.intercept.outgoing import RULES, Outgoing
from muonsocks.intercept.peers import Peers
from muonsocks.intercept.supervisor import Supervisor
from muonsocks.intercept.ways import Ways
from muonsocks.log import Log
from muonsocks.net.loop import Loop
from muonsocks.net.signals import Signals
from muonsocks.tools import DONE, SYSTEM_FAILED, execute
from muonsocks.tools.command_line import Options, parse
from muonsocks.tools.proxies import named_by

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.socks.rules import Chain


def main(arguments: list[str], log: Log) -> int:
    """Run the program."""
    given = parse(__doc__, arguments, log, program_follows=True)
    if given is None:
        return DONE
    if not given.arguments:
        raise UsageError("there is no program to run", "see --help")
    ways = _ways(given)
    words = given.arguments
    supervision = step_back()
    log.after_fork()
    try:
        sockets = on_loopback()  # a program cannot have them, as they are closed on exec
        supervision.start(
            lambda: execute(words, dict(os.environb), log), assemble(RULES, kernel.ARCHITECTURES)
        )
    except OSError as error:
        log.error(in_one_line(error))
        supervision.fail()
        return SYSTEM_FAILED
    loop = Loop()

    def report(tid: int, destination: Endpoint, way: object, number: int) -> None:
        log.debug(f"{tid} {destination} {os.strerror(number) if number else 'connected'}")

    def failed(call: Call, error: BaseException) -> None:
        log.warning(f"{call.name}: {error!r}")

    def unanswered(error: BaseException) -> None:
        log.warning(f"a question for a name: {error!r}")

    look_up, peers = LookUp(loop), Peers()
    has_ipv6 = any(sock.family == AF_INET6 for sock in sockets)
    names = Names(ways, look_up, searched(os.environ), has_ipv6)
    nameserver = Nameserver(loop, sockets, names.answer, unanswered)
    datagrams = Datagrams(loop, ways, nameserver.endpoints, peers)
    limit = given.seconds("--connect-timeout", 120)
    outgoing = Outgoing(loop, ways, limit, report, datagrams, look_up)
    handlers = {
        "connect": outgoing.connect,
        "sendto": datagrams.sendto,
        "sendmsg": datagrams.sendmsg,
        "sendmmsg": datagrams.sendmmsg,
        "recvfrom": datagrams.recvfrom,
        "getpeername": peers.getpeername,
    }
    supervisor = Supervisor(loop, supervision.listener, RULES, handlers, failed)

    def reap() -> None:
        if supervision.reap():
            stay_behind()

    Signals(loop, {SIGCHLD: reap})
    loop.register(supervision.front_descriptor(), lambda _: supervision.obey())
    supervision.go()
    loop.run(supervisor.run())
    supervision.wait()
    return DONE


def _ways(given: Options) -> Ways:
    """Read which way connections go. UsageError."""
    direct = parse_networks(given.text("--direct") or "")
    chain: Chain = named_by("--proxy", given.texts("--proxy"))
    if chain:
        return Ways(chain, direct)
    environ = {name: os.environ[name] for name in os.environ if name.lower() != "no_proxy"}
    chain = from_environment(Endpoint("0.0.0.0", 0), environ)
    if not chain:
        raise UsageError("there is no proxy", "name it by --proxy, or in $ALL_PROXY")
    return Ways(chain, direct, exceptions_in(os.environ))
