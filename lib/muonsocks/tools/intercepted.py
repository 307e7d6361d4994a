"""What the tools have in common that run a program and answer its calls: how they are asked, and
what they log of those calls.
"""

from __future__ import annotations

import errno
import os
from time import monotonic

from muonsocks.errors import UsageError
from muonsocks.log import DEBUG, ERROR, quoted
from muonsocks.tools.command_line import parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.address import Endpoint
    from muonsocks.intercept.notify import Call
    from muonsocks.log import Log
    from muonsocks.socks.rules import Chain
    from muonsocks.tools.command_line import Options

_SELDOM = 1.0  # s between two that say the same of what is passed
_MOST_WARNINGS = 100  # each of another program, or about something else
_NOT_DUMPABLE = (
    "its memory and descriptors may not be looked at, as of a setuid program, or by its own "
    "prctl(PR_SET_DUMPABLE)"
)


def read(doc: str, arguments: list[str], log: Log) -> Options | None:
    """Read a command line that names a program, by the docopt text `doc`; None if it asked for help
    or the version. UsageError.
    """
    given = parse(doc, arguments, log, program_follows=True)
    if given is None:
        return None
    if not given.arguments:
        raise UsageError("there is no program to run", "see --help")
    if given.flag("--quiet"):
        log.level = ERROR
    return given


class CallLog:
    """Says which connections there are, if that is asked for, and once what is our own fault."""

    __slots__ = ("_dropped", "_log", "_warned")

    def __init__(self, log: Log) -> None:
        self._log = log
        self._warned: set[tuple[str, str]] = set()
        self._dropped: dict[str, tuple[float, int]] = {}  # when it was said, and how many since

    def connection(
        self, tid: int, destination: Endpoint, chain: Chain, error: OSError | int
    ) -> None:
        """Say what came of a connection: up, if the error is 0."""
        if self._log.level < DEBUG:
            return  # all that waits for this call has to wait for what is done here
        fields = f"target={destination}"
        if chain:
            fields += f" via={','.join(map(str, chain))}"
        fields += f" program={_program(tid)}[{tid}]"
        if not error:
            self._log.debug(f"connected {fields}")
            return
        number = error if isinstance(error, int) else error.errno or 0
        reason = os.strerror(number)
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
        self._log.debug(f"failed {fields} reason={reason}")

    def dropped(self, reason: str) -> None:
        """Say what has been passed and is dropped, for one of a few reasons: whoever passes a lot
        of it is not to fill the log.
        """
        said, others = self._dropped.get(reason, (-_SELDOM, 0))
        now = monotonic()
        if now - said < _SELDOM:
            self._dropped[reason] = said, others + 1
            return
        self._dropped[reason] = now, 0
        self._log.warning(f"{reason}; {others} more before" if others else reason)

    def failure(self, call: Call, error: BaseException) -> None:
        """Say what has kept us from answering a call, which has failed with ENETUNREACH then."""
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            if error.errno in (errno.EPERM, errno.EACCES):
                reason = _NOT_DUMPABLE
        program = _program(call.tid)
        about = (program, reason)
        if about in self._warned or len(self._warned) >= _MOST_WARNINGS:
            return
        self._warned.add(about)
        self._log.warning(f"{program}[{call.tid}] cannot {call.name or 'go on'}: {reason}")


def _program(tid: int) -> str:
    try:
        with open(f"/proc/{tid}/comm", "rb") as file:
            return quoted(file.read().rstrip(b"\n"))
    except OSError:
        return "-"  # it is gone
