"""
Run PROG so that its connections go through proxies, and those of all that it starts, whatever
they are linked with.

Usage:
  socksify [options] [--proxy=URL]... [--] PROG [ARG...]
  socksify (--help | --version)

Options:
  --proxy=URL                 through this proxy, socks5h://HOST:PORT say; one through
                              the other if it is repeated
  --connect-timeout=SECS      up to a connection [default: 120]
  -v, --verbose               say which connections there are, and which way they go
  -q, --quiet                 say nothing
  --help                      show this and exit
  --version                   show the version and exit
"""

from __future__ import annotations

import os
from _signal import SIGCHLD

from muonsocks.errors import UsageError, in_one_line
from muonsocks.intercept import kernel
from muonsocks.intercept.bpf import assemble
from muonsocks.intercept.launch import stay_behind, step_back
from muonsocks.intercept.outgoing import RULES, Outgoing
from muonsocks.intercept.supervisor import Supervisor
from muonsocks.intercept.ways import Ways
from muonsocks.log import ERROR, Log
from muonsocks.net.loop import Loop
from muonsocks.net.signals import Signals
from muonsocks.tools import DONE, SYSTEM_FAILED, execute
from muonsocks.tools.command_line import parse
from muonsocks.tools.intercepted import CallLog
from muonsocks.tools.proxies import named_by


def main(arguments: list[str], log: Log) -> int:
    """Run the program."""
    given = parse(__doc__, arguments, log, program_follows=True)
    if given is None:
        return DONE
    if not given.arguments:
        raise UsageError("there is no program to run", "see --help")
    if given.flag("--quiet"):
        log.level = ERROR
    chain = named_by("--proxy", given.texts("--proxy"))
    words = given.arguments
    supervision = step_back(
        lambda: log.error("the supervisor has been killed: nothing can connect any more")
    )
    log.after_fork()
    try:
        supervision.start(
            lambda: execute(words, dict(os.environb), log), assemble(RULES, kernel.ARCHITECTURES)
        )
    except OSError as error:
        log.error(in_one_line(error))
        supervision.fail()
        return SYSTEM_FAILED
    loop = Loop()

    told = CallLog(log)
    outgoing = Outgoing(loop, Ways(chain), given.seconds("--connect-timeout", 120), told.connection)
    supervisor = Supervisor(
        loop, supervision.listener, RULES, {"connect": outgoing.connect}, told.failure
    )

    def reap() -> None:
        if supervision.reap():
            stay_behind()

    Signals(loop, {SIGCHLD: reap})
    loop.register(supervision.front_descriptor(), lambda _: supervision.obey())
    supervision.go()
    loop.run(supervisor.run())
    supervision.wait()
    return DONE
