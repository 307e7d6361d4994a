"""
Run PROG so that it gets connections that another program has accepted and passes on: where it
listens at one of these addresses, a unix socket is in the place of that, for it and all that
it starts, whatever they are linked with.

Usage:
  socketbox-preload [options] [--listen=WHERE]... [--] PROG [ARG...]
  socketbox-preload (--help | --version)

Options:
  --listen=WHERE   ADDR:PORT=PATH: who listens at this address and port receives at the
                   unix socket PATH, which is made (with @ in front, a name in the
                   abstract namespace); ADDR is * for any address; may be repeated
  -v, --verbose    say which addresses have become which paths
  -q, --quiet      say nothing
  --help           show this and exit
  --version        show the version and exit

The variables SKBOX_* are as for socketbox-preload.so, see socketbox-preload(1).
"""

from __future__ import annotations

import os

from muonsocks.address import Endpoint
from muonsocks.errors import in_one_line
from muonsocks.intercept import kernel
from muonsocks.intercept.accepting import Accepting
from muonsocks.intercept.bpf import assemble
from muonsocks.intercept.conventions import Conventions, Places
from muonsocks.intercept.disguise import Disguises
from muonsocks.intercept.incoming import Incoming, rules
from muonsocks.intercept.launch import step_back
from muonsocks.intercept.reaching import Reaching
from muonsocks.intercept.supervisor import Supervisor
from muonsocks.log import Log
from muonsocks.net.loop import Loop
from muonsocks.net.passed import strictness
from muonsocks.tools import DONE, SYSTEM_FAILED, execute
from muonsocks.tools.intercepted import CallLog, read

# s: about what it takes, when one client comes after the other, until the next connection is here
_LOOKING = 3e-4


def main(arguments: list[str], log: Log) -> int:
    """Run the program."""
    given = read(__doc__, arguments, log)
    if given is None:
        return DONE
    here = _here()
    places = Places(given.texts("--listen"), here)
    conventions = Conventions(os.environ, here)
    level = strictness(os.environ)
    words, chosen = given.arguments, rules(bool(conventions.connects))
    supervision = step_back(
        lambda: log.error("the supervisor has been killed: nothing can be accepted any more")
    )
    log.after_fork()

    def bound(endpoint: Endpoint, path: str, problem: str) -> None:
        if problem:
            log.warning(f"{endpoint} cannot be bound: {path}{': ' if path else ''}{problem}")
        else:
            log.debug(f"{endpoint} is {path}")

    try:
        supervision.start(
            lambda: execute(words, dict(os.environb), log),
            assemble(chosen, kernel.ARCHITECTURES),
            is_killable=False,  # who accepts may wait for long, and is not to be deaf
        )
        loop = Loop()
        loop.looking = _LOOKING
        told = CallLog(log)
        disguises = Disguises()
        accepting = Accepting(loop, disguises, level, told.dropped)
        incoming = Incoming(loop, places, conventions, disguises, accepting, bound)
        reaching = Reaching(loop, conventions, disguises)
        handlers = {**incoming.handlers, "connect": reaching.connect}
        supervisor = Supervisor(loop, supervision.listener, chosen, handlers, told.failure)
        supervision.attend(loop)
        supervision.go()
    except OSError as error:
        log.error(in_one_line(error))
        supervision.fail()
        return SYSTEM_FAILED
    supervision.answer(loop, supervisor.run())
    incoming.receivers.close()
    supervision.wait()
    return DONE


def _here() -> str:
    """Give the directory that a path is in which does not begin with a slash. OSError."""
    try:
        return os.getcwd()
    except OSError as error:
        raise OSError(error.errno, error.strerror, "the current directory") from None
