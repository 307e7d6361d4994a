"""
Run PROG so that its connections go through proxies, and those of all that it starts, whatever
they are linked with.

Usage:
  socksify [options] [--proxy=URL]... [--] PROG [ARG...]
  socksify (--help | --version)

Options:
  --proxy=URL                 through this proxy, socks5h://HOST:PORT say; one through
                              the other if it is repeated
  --mode=MODE                 isolate: in a network of its own, with nothing in it; async:
                              in this one; hold: as async, and who does not want to wait
                              for a connection waits; auto: the first one that can be had
                              [default: auto]
  --connect-timeout=SECS      up to a connection [default: 120]
  -v, --verbose               say which connections there are, and which way they go
  -q, --quiet                 say nothing
  --help                      show this and exit
  --version                   show the version and exit
"""

from __future__ import annotations

import os
from _signal import SIGCHLD
from _socket import socket

from muonsocks.address import Endpoint
from muonsocks.errors import UsageError, in_one_line
from muonsocks.intercept import kernel
from muonsocks.intercept.bpf import assemble
from muonsocks.intercept.isolation import Isolation, enter, rules_inside
from muonsocks.intercept.launch import Supervision, stay_behind, step_back
from muonsocks.intercept.look_up import LookUp
from muonsocks.intercept.names import Names
from muonsocks.intercept.nameserver import Nameserver
from muonsocks.intercept.notify import Call
from muonsocks.intercept.outgoing import RULES, Outgoing
from muonsocks.intercept.parked import RULES as RULES_OF_PARKED
from muonsocks.intercept.parked import Parked
from muonsocks.intercept.supervisor import Supervisor
from muonsocks.intercept.ways import Ways
from muonsocks.log import Log
from muonsocks.net.loop import Loop
from muonsocks.net.signals import Signals
from muonsocks.tools import DONE, SYSTEM_FAILED, execute
from muonsocks.tools.command_line import parse
from muonsocks.tools.proxies import named_by

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from muonsocks.intercept.bpf import Rules
    from muonsocks.intercept.supervisor import Handler

_MODES = ("auto", "isolate", "async", "hold")
# s: two trips to a proxy on this host and back are a connection, and each takes about as long
_LOOKING = 1.5e-4


def main(arguments: list[str], log: Log) -> int:
    """Run the program."""
    given = parse(__doc__, arguments, log, program_follows=True)
    if given is None:
        return DONE
    if not given.arguments:
        raise UsageError("there is no program to run", "see --help")
    chain = named_by("--proxy", given.texts("--proxy"))
    mode = given.text("--mode") or "auto"
    if mode not in _MODES:
        raise UsageError(f"--mode: {mode[:60]!r} is none", f"give one of {', '.join(_MODES)}")
    words = given.arguments
    supervision = step_back(
        lambda: log.error("the supervisor has been killed: nothing can connect any more")
    )
    log.after_fork()

    def become() -> int:
        # A call that is judged by its descriptor goes on with what has that number then.
        kernel.forbid_tcp_connections()
        return execute(words, dict(os.environb), log)

    try:
        rules = _start(supervision, become, mode, log.debug)
    except OSError as error:
        log.error(in_one_line(error))
        supervision.fail()
        return SYSTEM_FAILED
    loop = Loop()
    loop.looking = _LOOKING
    insides = [socket(fileno=fd) for fd in supervision.descriptors]
    isolation = Isolation(insides[0]) if insides else None

    def report(tid: int, destination: Endpoint, way: object, number: int) -> None:
        log.debug(f"{tid} {destination} {os.strerror(number) if number else 'connected'}")

    def complain(error: BaseException) -> None:
        log.warning(f"a connection under way: {error!r}")

    def answer_failed(error: BaseException) -> None:
        log.warning(f"a question for a name: {error!r}")

    def failed(call: Call, error: BaseException) -> None:
        log.warning(f"{call.name}: {error!r}")

    ways = Ways(chain)
    timeout = given.seconds("--connect-timeout", 120)
    parked = None if mode == "hold" else Parked(loop, timeout, complain)
    beside = isolation.connect if isolation else None
    outgoing = Outgoing(loop, ways, timeout, report, beside, parked)
    handlers: dict[str, Handler] = {"connect": outgoing.connect}
    if parked is not None:
        handlers |= {"getsockopt": parked.getsockopt, "getpeername": parked.getpeername}
    if isolation is not None:
        handlers["socket"] = isolation.make_socket
        names = Names(ways, LookUp(loop), has_ipv6=len(insides) > 1)
        Nameserver(loop, insides, names.answer, answer_failed)
    supervisor = Supervisor(loop, supervision.listener, rules, handlers, failed)

    def reap() -> None:
        if supervision.reap():
            stay_behind()

    Signals(loop, {SIGCHLD: reap})
    loop.register(supervision.front_descriptor(), lambda _: supervision.obey())
    supervision.go()
    loop.run(supervisor.run())
    if parked is not None:
        loop.run(parked.finish())
    supervision.wait()
    return DONE


def _start(
    supervision: Supervision, become: Callable[[], int], mode: str, say: Callable[[str], None]
) -> Rules:
    """Have the program wait for what is to come, in a network of its own if that is to be and can
    be. Gives the rules of its filter; `descriptors` are what that network's nameservers are.
    """
    rules = RULES if mode == "hold" else {**RULES, **RULES_OF_PARKED}
    if mode in ("auto", "isolate"):
        inside = rules_inside(rules)
        try:
            supervision.start(become, assemble(inside, kernel.ARCHITECTURES), enter)
            say("mode=isolate")
            return inside
        except OSError as error:
            if mode == "isolate":
                hint = "--mode async does without"
                raise OSError(error.errno, f"{in_one_line(error)} ({hint})") from None
            say(f"isolate cannot be had: {in_one_line(error)}")
            mode = "async"
    supervision.start(become, assemble(rules, kernel.ARCHITECTURES))
    say(f"mode={mode}")
    return rules
