"""
Accept connections here, and pass them on to programs that serve them elsewhere.

Rules say which receiver a connection goes to: a program in another network namespace,
container or account, which gets the socket itself, over a unix socket.

Usage:
  socketbox [options] [-l ADDR]... [-p PORT]...
  socketbox --exec [options] [-l ADDR]... [-p PORT]... PROG [ARG]...
  socketbox --check [options] [FILE]
  socketbox --explain [options] LOCAL REMOTE

Where connections come in:
  -l, --listen=ADDR           on this address instead of ::, or path or @name of a unix
                              socket; may be repeated
  -p, --port=PORT             on this port instead of 80; may be repeated
  -t, --transparent           also what is for other addresses (TPROXY)
  -F, --freebind              also on an address that this host does not have
  -R, --no-reuse-address      not on a port with connections of an earlier server
  -r, --reuse-port            together with other servers
  -b, --backlog=NUMBER        so many wait to be accepted [default: 4096]
  -s, --socket=FD             on this socket, which is open and bound already
  -P, --register=NR:PATH      as group NR of another socketbox, at its control path

Where they go:
  -f, --rules=FILE            by these rules, see socketbox.conf(5); else by
                              /etc/socketbox.conf
  -S, --send-to=PATH          all of them to the receiver at this path
  -i, --send-over=FD          all of them over this unix socket
  -U, --substitute            #//0_ to #//7_ and #//P_ in paths are the local address
                              and port
  -z, --clear-transparent     without what -t has set
  --json=FILE                 all this, and as whom, as in this file of python-socketbox

When a receiver is full or away:
  --queue-timeout=SECS        connections wait for so long [default: 5]
  --max-waiting=NUMBER        so many at most, others are closed [default: 1024]

As whom it runs:
  -u, --user=NAME             as this user, by name or number
  -g, --group=NAME            with this group
  -G, --groups=NAMES          and these other groups, a comma between
  -k, --keep-groups           and the other groups that it has
  -x, --chroot=DIR            with this root directory
  -d, --daemon                in the background, once it serves
  --workers=NUMBER            in so many processes; by default one for each CPU
  --drain-timeout=SECS        so long to finish when it is told to stop [default: 30]

Instead of serving:
  -e, --exec                  bind, and execute PROG with $SKBOX_LISTEN_FD
  --check                     say what is wrong or odd in FILE, or that of -f or --json;
                              with -v also which rules it has
  --explain                   say which rules decide on a connection from REMOTE to LOCAL

Other:
  --notify-fd=FD              say there, by a newline, that it is ready (s6)
  -v, --verbose               log more
  -q, --quiet                 log no connections
  --help                      show this and exit
  --version                   show the version and exit
"""

from __future__ import annotations

import os
import site

from muonsocks.errors import UsageError
from muonsocks.log import Log
from muonsocks.net.privileges import give_up
from muonsocks.resident.notify import Notifier
from muonsocks.resident.plan import Capacity, Plan
from muonsocks.resident.supervisor import Supervisor
from muonsocks.socketbox.actions import ToDescriptor, ToPath
from muonsocks.socketbox.explain import counted, explain, read_connection
from muonsocks.socketbox.rulebook import Document, File, OneAction
from muonsocks.socketbox.server import Box, PassingOptions
from muonsocks.tools import DONE, SYSTEM_FAILED, execute
from muonsocks.tools.background import background
from muonsocks.tools.command_line import Options, descriptor, parse, unix_path
from muonsocks.tools.listening import notify_fd
from muonsocks.tools.open_descriptors import open_descriptors, receiving_socket
from muonsocks.tools.run_as import by_json, by_options
from muonsocks.tools.sources import Sources, add_from_json, add_from_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.socketbox.rulebook import Rulebook

PEER_GONE = 11  # what -i leads to has gone
_DEFAULT_FILE = "/etc/socketbox.conf"
_WITH_VALUE = "lpbsPfSiugGx"  # short options that take what stands behind them
_NOT_WITH_JSON = (
    *("--listen", "--port", "--transparent", "--freebind", "--no-reuse-address", "--reuse-port"),
    *("--socket", "--register", "--rules", "--send-to", "--send-over", "--substitute", "--user"),
    *("--group", "--groups", "--keep-groups", "--chroot", "--exec"),
)


def main(arguments: list[str], log: Log) -> int:
    """Pass connections on until told to stop."""
    inherited = open_descriptors()
    looks_only = any(word in ("--check", "--explain") for word in _before_program(arguments))
    given = parse(__doc__, arguments, log, program_follows=not looks_only)
    if given is None:
        return DONE
    _expect_sense(given, log)
    if given.flag("--check"):
        return _check(given)
    if given.flag("--explain"):
        return _explain(given)
    with Sources() as sources:
        if given.flag("--exec"):
            return _execute(given, sources, log)
        site.main()  # the programs start without it: systemd's modules are to be found there
        log.use_journal_fields()
        return _serve(given, sources, inherited, log)


def _before_program(arguments: list[str]) -> list[str]:
    """Give the words before -e: behind it is a program, with options of its own."""
    return arguments[: next((i for i, word in enumerate(arguments) if _is_exec(word)), None)]


def _is_exec(word: str) -> bool:
    if word.startswith("--"):
        return word == "--" or (len(word) > len("--ex") and "--exec".startswith(word))
    for letter in word[1:] if word.startswith("-") else "":
        if letter == "e" or letter in _WITH_VALUE:
            return letter == "e"
    return False


def _expect_sense(given: Options, log: Log) -> None:
    """Refuse what excludes each other. UsageError."""
    if given.arguments and not any(map(given.flag, ("--check", "--explain", "--exec"))):
        raise UsageError(f"{given.arguments[0]!r} is not an option", "-e has a program follow")
    if given.text("--json") is not None:
        for name in _NOT_WITH_JSON:
            if given.flag(name) or given.text(name) == "":
                raise UsageError(f"{name} does not go with --json", "write it into that file")
    ways = [name for name in ("--send-to", "--send-over") if given.text(name) is not None]
    if len(ways) > 1:
        raise UsageError("-S and -i exclude each other", "leave one of them out")
    if ways and given.text("--rules") is not None:
        log.warning(f"the rules of -f are not read: {ways[0]} is for all")


# Instead of serving


def _check(given: Options) -> int:
    """Say what is wrong or odd in a file."""
    if given.arguments and (given.text("--rules"), given.text("--json")) != (None, None):
        raise UsageError("there are two files to check", "name one")
    if given.arguments:
        book: Rulebook = File(_named(given.arguments[0]))
    else:
        book = _rulebook(given)
    rules = book.read()
    if given.flag("--verbose"):
        for line in rules.text().split("\n")[:-1]:
            _print(line)
    for warning in rules.warnings:
        _print(warning)
    if not given.flag("--quiet"):
        entries = sum(len(one.entries) for one in rules.sets.values())
        counts = ((len(rules.sets), "set"), (entries, "entry"), (len(rules.warnings), "warning"))
        _print(f"good: {', '.join(counted(*one) for one in counts)}")
    return DONE


def _explain(given: Options) -> int:
    """Say how the rules decide on a connection."""
    local, remote = given.arguments
    book = _rulebook(given)
    if isinstance(book, Document):
        configuration = book.configuration
        connection = read_connection(local, remote, configuration.listener_at)
        listeners = len(configuration.listeners)
    else:
        connection, listeners = read_connection(local, remote), 1
    for line in explain(book.read(), connection, given.flag("--substitute"), listeners):
        _print(line)
    return DONE


def _print(line: str) -> None:
    """Write a line, and nothing of it that a terminal would take for more than text."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    os.write(1, f"{''.join(shown)}\n".encode())


def _execute(given: Options, sources: Sources, log: Log) -> int:
    """Bind, give up privileges, and become another program."""
    identity, root = by_options(given, log)  # first: a relative directory is one in that of now
    add_from_options(sources, given)
    if len(sources.sockets) != 1 or sources.registration is not None:
        raise UsageError("-e has one socket", "give one address and one port")
    [sock] = sources.sockets
    fd = sock.detach()
    os.set_inheritable(fd, True)
    os.set_blocking(fd, True)
    tell = background(log, for_program=True) if given.flag("--daemon") else -1
    try:
        give_up(identity, root, for_program=True)
        environ = dict(os.environb)
        environ[b"SKBOX_LISTEN_FD"] = b"%d" % fd
        return execute(given.arguments, environ, log)
    finally:
        if tell >= 0:
            os.write(tell, b"\n")


# Serving


def _rulebook(given: Options) -> Rulebook:
    path = given.text("--send-to")
    if path is not None:
        return OneAction(ToPath(unix_path(path, "-S")), "-S")
    fd = given.text("--send-over")
    if fd is not None:
        return OneAction(ToDescriptor(receiving_socket(fd)), "-i")
    json = given.text("--json")
    if json is not None:
        return Document(os.path.abspath(_named(json)))
    rules = given.text("--rules")
    # Whole, as the working directory may be another one when they are read again.
    return File(_DEFAULT_FILE if rules is None else os.path.abspath(_named(rules)))


def _named(path: str) -> str:
    if not path:
        raise UsageError("a file name is empty", "name a file, or leave the option out")
    return path


def _serve(given: Options, sources: Sources, inherited: frozenset[int], log: Log) -> int:
    rulebook = _rulebook(given)
    passing = PassingOptions(
        given.seconds("--queue-timeout", 5), given.number("--max-waiting", 1 << 20, 1024)
    )
    passing.substitutes = given.flag("--substitute")
    passing.has_one_receiver = isinstance(rulebook, OneAction) and not passing.substitutes
    passing.clears_transparent = given.flag("--clear-transparent")
    fd = given.text("--send-over")
    if fd is not None:
        passing.ends_with = descriptor(fd, "-i")
    notify = notify_fd(given)
    passing.inherited = inherited - {notify}  # which is closed once it has been told
    if given.flag("--daemon") and notify is not None:
        raise UsageError("-d and --notify-fd exclude each other", "-d ends once it serves")
    if isinstance(rulebook, Document):
        passing.identity, passing.root = by_json(rulebook.configuration.daemon, log)
        add_from_json(sources, rulebook.configuration)
        box = Box(rulebook, passing, log, rulebook.configuration.slots, sources.control)
    else:
        passing.identity, passing.root = by_options(given, log)
        box = Box(rulebook, passing, log)  # first: with wrong rules nobody is to come
        add_from_options(sources, given)
    workers = given.number("--workers", 1024)
    if sources.is_for_one_worker:
        if workers > 1:
            raise UsageError("who registers does so with one process", "leave --workers out")
        workers = 1
    workers = workers or len(os.sched_getaffinity(0))
    plan = Plan(workers, Capacity(0, each=1), given.seconds("--drain-timeout", 30))
    if given.flag("--daemon"):
        notify = background(log)
    is_well = Supervisor(box, sources.entrances(log), plan, Notifier(notify), log).run()
    if box.has_lost_its_receiver:
        return PEER_GONE
    return DONE if is_well else SYSTEM_FAILED
