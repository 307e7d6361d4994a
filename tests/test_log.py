"""The log's lines: one each, whatever is in them, in the form that their reader expects."""

import os
import re
import syslog
from collections.abc import Callable

import pytest

from muonsocks.log import DEBUG, ERROR, INFO, WARNING, Log, quoted

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


def test_quoted_is_one_word_that_can_be_read_back() -> None:
    everything = bytes(range(256))
    word = quoted(everything)
    assert word.isprintable() and word.isascii() and len(word.split()) == 1
    back = re.sub(rb"\\x(..)", lambda match: bytes([int(match[1], 16)]), word.encode())
    assert back == everything
