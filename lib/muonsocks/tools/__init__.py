"""The programs: one module each, with its docopt text and `main(arguments, log) -> exit status`."""

from __future__ import annotations

import gc
import os
import sys
from _signal import (
    SIG_DFL,
    SIG_IGN,
    SIGHUP,
    SIGINT,
    SIGPIPE,
    SIGTERM,
    SIGXFSZ,
    getsignal,
    signal,
)

from muonsocks.errors import UsageError, in_one_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from muonsocks.log import Log

DONE = 0  # also when the peer misbehaved or left: that is no failure of ours
REFUSED_BY_RULE = 1
REFUSED_BY_PROXY = 97  # as curl(1) has it
WRONG_USAGE = 100
SYSTEM_FAILED = 111
NOT_EXECUTABLE = 126
NOT_FOUND = 127

# Their standard output is not the peer's.
_OWN_OUTPUT = ("send-receive-fd", "socket-query", "socketbox-relay", "socks-connect")


class Terminated(BaseException):
    """A signal, of this `number`, asks the program to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def run(name: str, has_peer: bool = True) -> NoReturn:
    """Run the tool of module `name`, and end the process with its status.

    `has_peer` says that its standard input and output are a peer's.
    """
    gc.disable()  # what is imported stays: to look for garbage in it takes a twelfth of the start
    program = name.replace("_", "-")
    try:
        log = _log(program, has_peer)
    except Exception:
        os._exit(SYSTEM_FAILED)  # broken in its parts: fd 2 may be the peer, and must stay silent
    status = SYSTEM_FAILED
    try:
        _end_by_exception()
        tool = __import__(f"muonsocks.tools.{name}", fromlist=["main"])
        gc.freeze()
        gc.enable()
        status = tool.main(sys.argv[1:], log)
    except UsageError as error:
        log.fatal(in_one_line(error))
        status = WRONG_USAGE
    except OSError as error:
        log.fatal(in_one_line(error))
    except Terminated:
        status = DONE
    except Exception as error:
        log.fatal(f"this is a bug, please report it: {_described(error)}")
    # The interpreter's own way out takes milliseconds, and there is nothing left to tidy up.
    os._exit(status)


def _log(program: str, has_peer: bool) -> Log:
    from muonsocks.log import Log
    from muonsocks.net.inherit import keep_stderr_from_peer

    peer: tuple[int, ...] = (0, 1) if has_peer else ()
    words = sys.argv[1:]
    if (
        program in _OWN_OUTPUT
        or (program == "socks-relay" and any(map(_is_listen, words)))
        or (program == "virtio-mux" and _has_port(words))
    ):
        peer = (0,)  # standard output may well be where the log is
    stderr_is_peer = keep_stderr_from_peer(peer)
    return Log(program, stderr_is_peer or os.environ.get("SOCKS_LOG") == "syslog")


def _is_listen(argument: str) -> bool:
    """Say whether an argument makes socks-relay a program that stays. docopt takes a part of it."""
    name = argument.partition("=")[0]
    return len(name) > len("--") and "--listen".startswith(name)


# Of virtio-mux: options that are no more than that. The others have a value.
FLAGS = frozenset(
    (
        *("-4", "-6", "-q", "-v", "--quiet", "--verbose", "--help", "--version"),
        *("--allow-local", "--inetd", "--peer-reconnects", "--wait"),
    )
)


def _has_port(words: list[str]) -> bool:
    """Say whether arguments of virtio-mux name a port that is no standard input and output."""
    count, is_value = 0, False
    for word in words:
        if is_value:
            is_value = False
        elif word.startswith("-") and word != "-":
            is_value = _has_value_behind(word)
        else:
            count += 1  # the first one is the side
            if count > 1 and word != "-":
                return True
    return False


def _has_value_behind(word: str) -> bool:
    """Say whether the value of an option is the next argument, as docopt reads it: of a long one a
    part will do, and several short ones may be one word.
    """
    if word.startswith("--"):
        return "=" not in word and not any(flag.startswith(word) for flag in FLAGS)
    for place, letter in enumerate(word[1:], 2):
        if f"-{letter}" not in FLAGS:
            return place == len(word)
    return False


def _end_by_exception() -> None:
    """Let SIGTERM, SIGINT and SIGHUP unwind the program, so that what it borrowed is given back."""
    wanted = [number for number in (SIGTERM, SIGINT, SIGHUP) if getsignal(number) != SIG_IGN]

    from muonsocks.net.signals import deliver

    def terminate(number: int, _: object) -> None:
        for one in wanted:
            signal(one, SIG_DFL)  # the next one need not be polite
        deliver(Terminated(number))

    for number in wanted:
        signal(number, terminate)


def execute(program: list[str], environ: dict[bytes, bytes], log: Log) -> int:
    """Become another program. If that cannot be, log why, and give the exit status that says so."""
    ours = (SIGPIPE, SIGXFSZ)  # what Python ignores for itself, PROG would have to ignore as well
    for number in ours:
        signal(number, SIG_DFL)
    try:
        os.execvpe(program[0], program, environ)
    except (OSError, ValueError) as error:  # ValueError: what no system call can take
        for number in ours:
            signal(number, SIG_IGN)
        problem = error.strerror if isinstance(error, OSError) else str(error)
        log.error(f"{program[0]} cannot be executed: {problem}")
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE


def _described(error: Exception) -> str:
    """Name an unexpected error and where it came from, in one line."""
    place, trace = "", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        place = f" at {os.path.basename(file)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__}: {error}{place}"
