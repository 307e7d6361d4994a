"""
Run PROG so that its connections go through proxies, and those of all that it starts, whatever
they are linked with.

Usage:
  socksify [options] [--proxy=URL]... [--] PROG [ARG...]
  socksify (--help | --version)

Options:
  --proxy=URL                 through this proxy, socks5h://HOST:PORT say; one through
                              the other if it is repeated
  --mode=MODE                 what a connect of a socket that does not block does: async
                              goes on, hold waits until it is up [default: async]
  --connect-timeout=SECS      up to a connection [default: 120]
  -v, --verbose               say which connections there are, and which way they go
  -q, --quiet                 say nothing
  --help                      show this and exit
  --version                   show the version and exit
"""

from __future__ import annotations

import os
from _signal import SIGCHLD

from muonsocks.address import Endpoint
from muonsocks.errors import UsageError, in_one_line
from muonsocks.intercept import kernel
from muonsocks.intercept.bpf import assemble
from muonsocks.intercept.launch import stay_behind, step_back
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

# s: two trips to a proxy on this host and back are a connection, and each takes about as long
_LOOKING = 1.5e-4
TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.intercept.supervisor import Handler

_MODES = ("async", "hold")


def main(arguments: list[str], log: Log) -> int:
    """Run the program."""
    given = parse(__doc__, arguments, log, program_follows=True)
    if given is None:
        return DONE
    if not given.arguments:
        raise UsageError("there is no program to run", "see --help")
    chain = named_by("--proxy", given.texts("--proxy"))
    mode = given.text("--mode")
    if mode not in _MODES:
        raise UsageError(f"there is no mode {mode!r}", f"say one of {', '.join(_MODES)}")
    rules = RULES if mode == "hold" else {**RULES, **RULES_OF_PARKED}
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
        supervision.start(become, assemble(rules, kernel.ARCHITECTURES))
    except OSError as error:
        log.error(in_one_line(error))
        supervision.fail()
        return SYSTEM_FAILED
    loop = Loop()
    loop.looking = _LOOKING

    def report(tid: int, destination: Endpoint, way: object, number: int) -> None:
        log.debug(f"{tid} {destination} {os.strerror(number) if number else 'connected'}")

    def complain(error: BaseException) -> None:
        log.warning(f"a connection under way: {error!r}")

    def failed(call: Call, error: BaseException) -> None:
        log.warning(f"{call.name}: {error!r}")

    timeout = given.seconds("--connect-timeout", 120)
    parked = None if mode == "hold" else Parked(loop, timeout, complain)
    outgoing = Outgoing(loop, Ways(chain), timeout, report, parked)
    handlers: dict[str, Handler] = {"connect": outgoing.connect}
    if parked is not None:
        handlers |= {"getsockopt": parked.getsockopt, "getpeername": parked.getpeername}
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
