"""Log lines to standard error: for the journal, for a terminal or a file, or through syslog.

Under the journal a line begins with its level, `<6>` say (sd-daemon(3)); elsewhere with the time
and the program. Under inetd standard error is the client, and lines go to syslog(3) instead.

Some lines have fields, as (name, value). A program that stays can have the journal get them apart
from the text too, each as one of its own fields.
"""

from __future__ import annotations

import os
from select import POLLOUT, poll
from stat import S_ISREG
from time import gmtime, strftime, time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

ERROR, WARNING, INFO, DEBUG = 3, 4, 6, 7  # syslog(3)'s levels

_LONGEST = 2048  # bytes of a line, and of a field
_JOURNAL = "/run/systemd/journal/socket"
_IN_JOURNAL = {"in": "BYTES_IN", "out": "BYTES_OUT"}  # others: see _in_journal


class Log:
    """Where the lines of one program go, and which."""

    __slots__ = (
        "_blocks",
        "_head",
        "_journal",
        "_never_waits",
        "_pid",
        "_poll",
        "_program",
        "_second",
        "_sendv",
        "level",
        "takes_fields",
        "to_syslog",
    )

    def __init__(self, program: str, to_syslog: bool = False) -> None:
        self._program = program
        self.to_syslog = to_syslog
        self._journal = not to_syslog and _is_journal()
        self._sendv: Callable[..., object] | None = None  # the journal's own protocol
        self._never_waits = False  # libsystemd's socket
        self._poll = poll()
        self._blocks = _may_block()
        self._second, self._head = 0, ""  # and what lines begin with in it
        self._pid = os.getpid()
        self.level = INFO
        self.takes_fields = False  # else nobody need collect them
        if to_syslog:
            import syslog

            syslog.openlog(program, syslog.LOG_PID, syslog.LOG_DAEMON)

    def use_journal_fields(self) -> None:
        """Send lines that have fields to the journal with them, if standard error leads there.

        For programs that stay: the import takes 15 ms.
        """
        if self._journal:
            from systemd.journal import sendv

            self._sendv = sendv
            self.takes_fields = True

    def after_fork(self) -> None:
        """Speak for this process, a child of the one that the log was made in."""
        self._pid = os.getpid()
        self._second = 0

    def error(self, message: str) -> None:
        """Say what keeps this program from its work."""
        self.write(ERROR, message)

    def warning(self, message: str) -> None:
        """Say what somebody should look at."""
        self.write(WARNING, message)

    def info(self, message: str, fields: dict[str, str] | None = None) -> None:
        """Say what happened."""
        self.write(INFO, message, fields)

    def debug(self, message: str, fields: dict[str, str] | None = None) -> None:
        """Say how it happened; only with -v."""
        self.write(DEBUG, message, fields)

    def write(self, level: int, message: str, fields: dict[str, str] | None = None) -> None:
        """Write one line, if its level is to be logged.

        `fields` are not added to the message: it has them as it wants to. Those that are empty or
        "-" are not known, and the journal is not told.
        """
        if level > self.level:
            return
        if fields and self._sendv is not None and self._send(level, message, fields):
            return
        if self.to_syslog:
            import syslog

            syslog.syslog(level, _line(message).decode("utf-8", "ignore"))
        elif self._journal:
            self._print(f"<{level}>{message}")
        else:
            second = int(time())
            if second != self._second:
                moment = strftime("%Y-%m-%dT%H:%M:%SZ", gmtime(second))
                self._second = second
                self._head = f"{moment} {self._program}[{self._pid}]: "
            self._print(self._head + message)

    def fill_in(
        self, level: int, form: Form, values: tuple[str, ...], remark: tuple[str, str] | None = None
    ) -> None:
        """Write a form with its values, if its level is to be logged. `remark` is the name and the
        text of one more field, which may have blanks in it.
        """
        if level > self.level:
            return
        line = form.text % values
        fields = dict(zip(form.names, values, strict=True)) if self.takes_fields else None
        if remark is not None:
            name, text = remark
            escaped = text.replace("\\", "\\\\").replace('"', '\\"')
            line += f' {name}="{escaped}"'
            if fields is not None:
                fields[name] = text
        self.write(level, line, fields)

    def fatal(self, message: str) -> None:
        """Say why the program ends without having done its work: to whoever has started it."""
        if self.to_syslog or self._journal:
            self.error(message)
        else:
            self._print(f"{self._program}: {message}")

    def _send(self, level: int, message: str, fields: dict[str, str]) -> bool:
        """Send a line with its fields to the journal. False if it cannot take it now."""
        assert self._sendv is not None
        entry = [b"PRIORITY=%d" % level, b"SYSLOG_IDENTIFIER=" + self._program.encode()]
        entry.append(b"MESSAGE=" + _line(message))
        entry += [
            f"SOCKS_{_IN_JOURNAL.get(name) or _in_journal(name)}=".encode() + _line(value)
            for name, value in fields.items()
            if value not in ("", "-")
        ]
        try:
            os.stat(_JOURNAL)  # in a root directory without it libsystemd would say nothing
            if self._never_waits:
                self._sendv(*entry)
            else:
                fd = _lowest_free_fd()
                try:
                    self._sendv(*entry)
                finally:
                    self._never_waits = _let_it_fail(fd)
        except OSError:
            return False  # it goes to standard error instead
        return True

    def _print(self, text: str) -> None:
        line = _line(text) + b"\n"
        try:
            if self._blocks:
                self._poll.register(2, POLLOUT)
                if not self._poll.poll(0):
                    return  # nobody reads the log: better to lose a line than to hang with it
            os.write(2, line)
        except OSError:
            # A log that is closed or full must not end the connection, and there is nobody to tell.
            return


def _in_journal(name: str) -> str:
    """Write a name with what the names of the journal's fields may have in them."""
    return name.upper().replace("-", "_")


def _line(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")[:_LONGEST].replace(b"\n", b" ")


def _may_block() -> bool:
    """Say whether writing to standard error may have to wait for somebody."""
    try:
        status = os.fstat(2)
    except OSError:
        return True
    return not S_ISREG(status.st_mode) and status.st_rdev != os.makedev(1, 3)  # null(4)


class Form:
    """A line of the log with blanks for the values: a word, or none, then name=value each."""

    __slots__ = ("names", "text")

    def __init__(self, word: str, *names: str) -> None:
        self.names = names
        self.text = " ".join([word, *(f"{name}=%s" for name in names)]).lstrip()


def _lowest_free_fd() -> int:
    """Give the number of the descriptor that is opened next."""
    fd = os.dup(2)
    os.close(fd)
    return fd


def _let_it_fail(fd: int) -> bool:
    """Have libsystemd's socket say that the journal is full, where it would wait with us.

    libsystemd does not tell which it is, but opens it with the first message. False if it is not
    this one.
    """
    from _socket import AF_UNIX, SOCK_DGRAM, socket

    try:
        sock = socket(fileno=fd)
    except OSError:
        return False
    is_it = (sock.family, sock.type) == (AF_UNIX, SOCK_DGRAM)
    if is_it:
        sock.setblocking(False)
    sock.detach()
    return is_it


def _is_journal() -> bool:
    """Compare standard error with $JOURNAL_STREAM, as systemd.exec(5) asks."""
    stream = os.environ.get("JOURNAL_STREAM")
    if not stream:
        return False
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return stream == f"{status.st_dev}:{status.st_ino}"


def quoted(value: str | bytes) -> str:
    """Write what a peer has said as one word of a log line; "-" if it is empty."""
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogateescape")
    return "".join(_as_printable(byte) for byte in value) if value else "-"


def _as_printable(byte: int) -> str:
    return chr(byte) if 0x20 < byte < 0x7F and byte not in b'"\\' else f"\\x{byte:02x}"
