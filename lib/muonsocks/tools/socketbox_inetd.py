"""
Run PROG for each connection that another program has accepted and passes on here, with
the connection as its standard input and output.

PATH is the unix socket that connections are passed to, and is made (with @ in front, a
name in the abstract namespace); "systemd" is the one that systemd has made.

Usage:
  socketbox-inetd [options] (PATH | --register=CONTROL GROUP) PROG [ARG...]
  socketbox-inetd (--help | --version)

Where connections come from:
  --register=CONTROL        from the server whose control socket is at this path: it is
                            told that we take those for the group of this number

How many there may be:
  --max=NUMBER              at a time; others wait [default: 256]
  --max-per-source=NUMBER   of one IPv4 address or IPv6 /64; others are closed

Other:
  --drain-timeout=SECS      for programs to end when this one is told to [default: 30]
  -d, --notify-fd=FD        say there, by a newline, that it is ready (s6)
  -v, --verbose             log more
  -q, --quiet               log no connections
  --help                    show this and exit
  --version                 show the version and exit
"""

from __future__ import annotations

import os
import site
from resource import RLIMIT_NOFILE, getrlimit
from shutil import which

from muonsocks.errors import UsageError
from muonsocks.log import Log
from muonsocks.net.passed import strictness
from muonsocks.resident.notify import Notifier
from muonsocks.resident.plan import Capacity, Plan
from muonsocks.resident.supervisor import Supervisor
from muonsocks.socketbox.entrances import AsTheyCome
from muonsocks.socketbox.inetd import Starter
from muonsocks.tools import DONE, NOT_EXECUTABLE, NOT_FOUND, SYSTEM_FAILED
from muonsocks.tools.command_line import Options, parse
from muonsocks.tools.listening import notify_fd, receivers_at, registered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.net.entrance import Entrance

_MOST = 1 << 20  # connections


def main(arguments: list[str], log: Log) -> int:
    """Start programs until told to stop, or until the server has gone."""
    given = parse(__doc__, arguments, log, program_follows=True)
    if given is None:
        return DONE
    place, program = (given.arguments or [""])[0], given.arguments[1:]
    if not program:
        raise UsageError("no PROG is given", "say what is to be run, socks-inetd for instance")
    if which(program[0]) is None:
        is_there = "/" in program[0] and os.path.exists(program[0])
        log.fatal(f"{program[0]} cannot be executed: {_reason(is_there)}")
        return NOT_EXECUTABLE if is_there else NOT_FOUND
    site.main()  # the programs start without it: systemd's modules are to be found there
    log.use_journal_fields()
    most = given.number("--max", _MOST, 256)
    starter = Starter(program, os.environb, getrlimit(RLIMIT_NOFILE)[0], log)
    capacity = Capacity(most, given.number("--max-per-source", _MOST), each=1, option="--max")
    drain = given.seconds("--drain-timeout", 30)
    plan = Plan(1, capacity, drain)
    notifier = Notifier(notify_fd(given))
    entrances = _entrances(given, place, log)
    return DONE if Supervisor(starter, entrances, plan, notifier, log).run() else SYSTEM_FAILED


def _reason(is_there: bool) -> str:
    return "it is no program, or not ours to run" if is_there else "there is no such program"


def _entrances(given: Options, place: str, log: Log) -> list[Entrance]:
    """Receive at a path, or from a server; connections are left as they come, for PROG."""
    level = strictness(os.environ)
    control = given.text("--register")
    if control is None:
        return receivers_at(place, "PATH", log, AsTheyCome, level)
    return [registered(control, place, log, AsTheyCome, level)]
