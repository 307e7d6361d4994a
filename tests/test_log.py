"""The log's lines: one each, whatever is in them, in the form that their reader expects."""

import json
import os
import re
import subprocess
import syslog
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from muonsocks.log import DEBUG, ERROR, INFO, WARNING, Form, Log, quoted

LIB = Path(__file__).resolve().parents[1] / "lib"
PYTHON = "/usr/bin/python3"

HEAD = rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\dZ socks-test\[{os.getpid()}\]: "

MESSAGES = ["a\nb", "a\n", "\n\n", "a\udcffb", "\ud800", "x" * 100_000]

Lines = Callable[[], list[str]]


@pytest.fixture
def lines(capfd: pytest.CaptureFixture[str]) -> Lines:
    """Give what has been written to fd 2 since the last time."""
    return lambda: capfd.readouterr().err.splitlines()


def write_all(log: Log) -> None:
    for write in (log.error, log.warning, log.info, log.debug):
        write(f"a {write.__name__}")


@pytest.mark.parametrize("level", [ERROR, WARNING, INFO, DEBUG])
def test_levels(lines: Lines, level: int) -> None:
    log = Log("socks-test")
    log.level = level
    write_all(log)
    names = {ERROR: "error", WARNING: "warning", INFO: "info", DEBUG: "debug"}
    expected = [f"{HEAD}a {name}" for number, name in names.items() if number <= level]
    written = lines()
    assert len(written) == len(expected)
    for line, pattern in zip(written, expected, strict=True):
        assert re.fullmatch(pattern, line)


def test_journal(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    log = Log("socks-test")
    log.level = DEBUG
    write_all(log)
    log.fatal("all over")
    expected = ["<3>a error", "<4>a warning", "<6>a info", "<7>a debug", "<3>all over"]
    assert lines() == expected


@pytest.mark.parametrize("stream", ["", "1:2", "x", "0:0"])
def test_another_journal_stream(lines: Lines, monkeypatch: pytest.MonkeyPatch, stream: str) -> None:
    """It was inherited from a parent whose standard error led elsewhere: sd-daemon(3)."""
    monkeypatch.setenv("JOURNAL_STREAM", stream)
    Log("socks-test").info("message")
    [line] = lines()
    assert re.fullmatch(f"{HEAD}message", line)


def test_fatal_is_for_whoever_started_the_program(lines: Lines) -> None:
    log = Log("socks-test")
    log.level = ERROR
    log.fatal("no such file")
    assert lines() == ["socks-test: no such file"]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: ascii(message[:9]))
def test_a_message_is_one_line(lines: Lines, message: str) -> None:
    Log("socks-test").info(message)
    [line] = lines()
    assert re.match(HEAD, line)
    assert len(line) <= 2048


@pytest.mark.parametrize("fd_2", ["closed", "full"])
def test_a_log_that_cannot_be_written(fd_2: str) -> None:
    kept = os.dup(2)
    try:
        if fd_2 == "closed":
            os.close(2)
        else:
            full = os.open("/dev/full", os.O_WRONLY)
            os.dup2(full, 2)
            os.close(full)
        log = Log("socks-test")
        log.info("lost")
        log.fatal("lost too")
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def test_syslog(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []
    written: list[tuple[int, str]] = []

    def write(level: int, message: str) -> None:
        message.encode()  # as syslog(3) needs it
        assert "\n" not in message  # what follows would look like a line of its own
        written.append((level, message))

    monkeypatch.setattr(syslog, "openlog", lambda *arguments: opened.append(arguments))
    monkeypatch.setattr(syslog, "syslog", write)
    log = Log("socks-test", to_syslog=True)
    write_all(log)
    log.fatal("all over")
    assert opened == [("socks-test", syslog.LOG_PID, syslog.LOG_DAEMON)]
    assert written == [(3, "a error"), (4, "a warning"), (6, "a info"), (3, "all over")]
    assert lines() == []


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: ascii(message[:9]))
def test_what_syslog_is_given(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    written: list[bytes] = []
    monkeypatch.setattr(syslog, "openlog", lambda *_: None)
    monkeypatch.setattr(syslog, "syslog", lambda _, text: written.append(text.encode()))
    Log("socks-test", to_syslog=True).fatal(message)
    [line] = written
    assert b"\n" not in line


QUOTED: dict[bytes | str, str] = {
    b"": "-",
    "": "-",
    b"me": "me",
    "me": "me",
    b"a b": r"a\x20b",
    b'"': r"\x22",
    b"\\": r"\x5c",
    b"\n\r\t\0\x7f": r"\x0a\x0d\x09\x00\x7f",
    b"\xff": r"\xff",
    "\u00fc": r"\xc3\xbc",
    "\udcff": r"\xff",
    b"end=closed": "end=closed",
    b"'$(id)": "'$(id)",
}


@pytest.mark.parametrize("value", QUOTED, ids=ascii)
def test_quoted(value: bytes | str) -> None:
    assert quoted(value) == QUOTED[value]


def test_a_child_has_its_own_number(capfd: pytest.CaptureFixture[str]) -> None:
    log = Log("test")
    log.info("here")
    pid = os.fork()
    if pid == 0:
        log.after_fork()
        log.info("there")
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    here, there = capfd.readouterr().err.splitlines()
    assert f"test[{os.getpid()}]: here" in here
    assert f"test[{pid}]: there" in there


def test_quoted_is_one_word_that_can_be_read_back() -> None:
    everything = bytes(range(256))
    word = quoted(everything)
    assert word.isprintable() and word.isascii() and len(word.split()) == 1
    back = re.sub(rb"\\x(..)", lambda match: bytes([int(match[1], 16)]), word.encode())
    assert back == everything


class Kept(Log):
    """A log that keeps what is written, with its fields."""

    __slots__ = ("written",)

    def __init__(self, takes_fields: bool) -> None:
        super().__init__("test")
        self.takes_fields = takes_fields
        self.written: list[tuple[int, str, dict[str, str] | None]] = []

    def write(self, level: int, message: str, fields: dict[str, str] | None = None) -> None:
        self.written.append((level, message, fields))


CLOSED, VALUES = Form("closed", "client", "end"), ("unix", "100%s")


@pytest.mark.parametrize("takes_fields", [True, False])
def test_a_form_is_filled_in(takes_fields: bool) -> None:
    log = Kept(takes_fields)
    log.fill_in(INFO, CLOSED, VALUES)
    log.fill_in(INFO, CLOSED, VALUES, ("detail", 'a \\ and "b"'))
    log.fill_in(INFO, Form("", "client"), ("unix",))
    log.fill_in(DEBUG, CLOSED, VALUES)
    fields = {"client": "unix", "end": "100%s"}
    expected: list[tuple[str, dict[str, str]]] = [
        ("closed client=unix end=100%s", fields),
        (
            r'''closed client=unix end=100%s detail="a \\ and \"b\""''',
            fields | {"detail": 'a \\ and "b"'},
        ),
        ("client=unix", {"client": "unix"}),
    ]
    assert log.written == [
        (INFO, line, known if takes_fields else None) for line, known in expected
    ]


@pytest.mark.parametrize("takes_fields", [True, False])
def test_a_form_has_a_place_for_each_value(takes_fields: bool) -> None:
    for values in (("unix",), ("unix", "closed", "more")):
        with pytest.raises((TypeError, ValueError)):
            Kept(takes_fields).fill_in(INFO, CLOSED, values)


# The journal's own protocol: libsystemd as it is, and a socket of ours in the place of journald's.
# The protocol is described in systemd's "Native Journal Protocol".

JOURNAL = """
import json, os, signal, socket, struct, sys, time
sys.path.insert(0, sys.argv[1])
from muonsocks.log import DEBUG, INFO, WARNING, Log

PLACE = "/run/systemd/journal/socket"
os.makedirs(os.path.dirname(PLACE))
journald = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
journald.bind(PLACE)
journald.setblocking(False)
stderr, fd = os.pipe()
os.set_blocking(stderr, False)
os.dup2(fd, 2)
os.environ["JOURNAL_STREAM"] = "{0.st_dev}:{0.st_ino}".format(os.fstat(2))

def entry():
    data, fields = journald.recv(1 << 20), []
    while data:
        line, _, rest = data.partition(b"\\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            [size] = struct.unpack("<Q", rest[:8])
            value, rest = rest[8 : 8 + size], rest[8 + size + 1 :]
        fields.append((name.decode(), value.decode("latin-1")))
        data = rest
    return fields

def lines():
    try:
        return os.read(stderr, 1 << 20).decode("latin-1").splitlines()
    except BlockingIOError:
        return []

def give(*what):
    print(json.dumps(what))

log = Log("socks-test")
log.use_journal_fields()
"""


def with_journal(script: str) -> Any:
    """What a script gives that logs to a journal."""
    if os.geteuid() != 0:
        pytest.skip("a mount namespace with a journal's socket of our own takes root")
    namespace = ["unshare", "--mount", "sh", "-ec", 'mount -t tmpfs tmpfs /run; exec "$@"', "sh"]
    done = subprocess.run(
        [*namespace, PYTHON, "-I", "-", LIB],
        input=JOURNAL + script,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


FIELDS = """{
    "client": "192.0.2.5:49152", "user": "-", "target": "", "in": "79", "out": "0", "end": "closed",
    "datagrams-in": "7"
}"""


def test_fields_for_the_journal() -> None:
    entry, lines = with_journal(
        f"""
assert log.takes_fields
log.info("closed client=192.0.2.5:49152 user=- end=closed", {FIELDS})
give(entry(), lines())
"""
    )
    assert sorted(entry) == [
        ["MESSAGE", "closed client=192.0.2.5:49152 user=- end=closed"],
        ["PRIORITY", "6"],
        ["SOCKS_BYTES_IN", "79"],
        ["SOCKS_BYTES_OUT", "0"],
        ["SOCKS_CLIENT", "192.0.2.5:49152"],
        ["SOCKS_DATAGRAMS_IN", "7"],
        ["SOCKS_END", "closed"],
        ["SYSLOG_IDENTIFIER", "socks-test"],
    ]
    assert lines == []


def test_levels_and_fields() -> None:
    """A line without fields, and what ends the program, need not wait for journald to look."""
    kept, entries, lines = with_journal(
        """
log.level = WARNING
log.info("kept back", {"client": "unix"})
kept = lines()
log.level = DEBUG
log.debug("tried", {"client": "unix"})
log.info("reloaded")
log.fatal("all over")
give(kept, dict(entry()), lines())
"""
    )
    assert kept == []
    assert (entries["MESSAGE"], entries["PRIORITY"]) == ("tried", "7")
    assert lines == ["<6>reloaded", "<3>all over"]


def test_only_programs_that_stay_ask_for_fields() -> None:
    text, modules = with_journal(
        """
del sys.modules["systemd.journal"]
log = Log("socks-test")
log.info("message", {"client": "unix"})
del os.environ["JOURNAL_STREAM"]
other = Log("socks-test")
other.use_journal_fields()
other.info("another", {"client": "unix"})
give(lines(), "systemd.journal" in sys.modules or log.takes_fields or other.takes_fields)
"""
    )
    assert text[0] == "<6>message"
    assert text[1].endswith("]: another")
    assert not modules


HOSTILE_FIELDS = {
    "newlines": "a\nMESSAGE=forged\nSOCKS_END=closed\n",
    "binary framing": "a\nMESSAGE\n\x06\0\0\0\0\0\0\0forged\n",
    "NUL": "a\0b",
    "surrogates": "\udcff\ud800",
    "huge": "x" * 1_000_000,
}


@pytest.mark.parametrize("what", HOSTILE_FIELDS)
def test_a_field_is_one_field(what: str) -> None:
    value = HOSTILE_FIELDS[what]
    [entry] = with_journal(
        f"""
value = json.loads({json.dumps(value)!r})
log.info("message " + value, {{"target": value}})
give(entry())
"""
    )
    fields = dict(entry)
    assert sorted(name for name, _ in entry) == sorted(fields)
    assert fields.keys() == {"MESSAGE", "PRIORITY", "SOCKS_TARGET", "SYSLOG_IDENTIFIER"}
    assert len(fields["SOCKS_TARGET"]) <= 2048 and len(fields["MESSAGE"]) <= 2048
    assert "\n" not in fields["SOCKS_TARGET"] + fields["MESSAGE"]
    assert fields["SOCKS_TARGET"].startswith(value[:1]) or "\\udcff" in fields["SOCKS_TARGET"]


def test_a_journal_that_hangs_holds_nothing_up() -> None:
    """What it does not take goes to standard error, and, when that is full too, nowhere."""
    taken, lines, again = with_journal(
        """
signal.alarm(20)
for number in range(5000):
    log.info("line", {"end": str(number)})
taken = []
try:
    while True:
        taken.append(dict(entry())["SOCKS_END"])
except BlockingIOError:
    rest = lines()
log.info("line", {"end": "again"})
give(taken, rest, dict(entry())["SOCKS_END"])
"""
    )
    assert taken == [str(number) for number in range(len(taken))]
    assert 0 < len(taken) < 5000
    assert set(lines) == {"<6>line"}
    assert again == "again"


@pytest.mark.parametrize(
    "gone",
    [
        "journald.close()",
        "os.unlink(PLACE)",
        "os.mkdir('/run/empty'); os.chroot('/run/empty')",
        "log.info('first', {'end': 'x'}); os.mkdir('/run/empty'); os.chroot('/run/empty')",
    ],
)
def test_a_journal_that_is_not_there(gone: str) -> None:
    [lines] = with_journal(
        f"""
{gone}
log.info("message", {{"client": "unix"}})
give(lines())
"""
    )
    assert lines == ["<6>message"]
