"""What a command line gives: options in every spelling, arguments, and what those may be."""

import os
import socket

import pytest

from muonsocks.errors import UsageError
from muonsocks.log import DEBUG, WARNING, Log
from muonsocks.tools import command_line, muonsocks, socks_handshake


def test_an_option_that_may_be_repeated() -> None:
    """In every spelling, in its order; and no argument of it is one of the program's."""
    arguments = ["-i", "::1", "--listen=127.0.0.1", "-q", "-i::", "--listen", "0.0.0.0"]
    given = command_line.parse(muonsocks.__doc__ or "", arguments, Log("test"))
    assert given is not None
    assert given.texts("--listen") == ["::1", "127.0.0.1", "::", "0.0.0.0"]
    assert given.arguments == []
    assert given.text("--users") is None
    given = command_line.parse(muonsocks.__doc__ or "", [], Log("test"))
    assert given is not None
    assert given.texts("--listen") == []


def test_a_default_is_the_one_that_the_text_says() -> None:
    """With an option or without any, when docopt is not even loaded."""
    for arguments in ([], ["-q"]):
        given = command_line.parse(muonsocks.__doc__ or "", arguments, Log("test"))
        assert given is not None
        assert given.number("--max-connections", 1 << 24, 16384) == 16384
        assert given.seconds("--drain-timeout", 30) == 30
        assert given.number("--max-per-source", 1 << 24) == 0
        assert given.number("--workers", 1024) == 0


@pytest.mark.parametrize(
    ("text", "number"), [("010", 10), ("0", 0), ("00", 0), ("0x10", 16), ("16", 16), ("0b11", 3)]
)
def test_numbers(text: str, number: int) -> None:
    assert command_line.Options({"-n": text}, []).number("-n", 99) == number


@pytest.mark.parametrize("text", ["", "x", "1.0", "0x", "9" * 5000, "08x"])
def test_no_numbers(text: str) -> None:
    with pytest.raises(UsageError, match="is not a number; give 0 to 99"):
        command_line.Options({"-n": text}, []).number("-n", 99)


def test_an_address() -> None:
    """Brackets come in pairs."""
    for text in ("[::1]", "::1"):
        assert command_line.packed_address(text, "-c") == bytes(15) + b"\1"
    for text in ("1.2.3.4", "::ffff:1.2.3.4"):
        assert command_line.packed_address(text, "-c") == b"\1\2\3\4"
    for text in ("[::1", "::1]", "[1.2.3.4]", "[", "]", "[]", "", "a\0", "x" * 5000):
        with pytest.raises(UsageError, match=r"^-c: .* is not an address; give IPv") as raised:
            command_line.packed_address(text, "-c")
        assert len(str(raised.value)) < 150


@pytest.mark.parametrize(("option", "level"), [("-q", WARNING), ("-v", DEBUG)])
def test_what_is_logged(option: str, level: int) -> None:
    log = Log("test")
    command_line.parse(muonsocks.__doc__ or "", [option], log)
    assert log.level == level


def test_a_text_without_options_for_the_log() -> None:
    log = Log("test")
    before = log.level
    text = "Usage:\n  test [options] [WORD...]\n\n  -x  cross\n  --help\n  --version\n"
    given = command_line.parse(text, ["-x", "--", "-y"], log)
    assert given is not None
    assert given.flag("-x") and given.arguments == ["-y"]
    assert log.level == before


def test_options_end_where_a_program_is_named() -> None:
    text = socks_handshake.__doc__ or ""
    for arguments in (["-q", "sh", "-v", "--", "-x"], ["-q", "--", "sh", "-v", "--", "-x"]):
        given = command_line.parse(text, arguments, Log("test"), program_follows=True)
        assert given is not None
        assert given.arguments == ["sh", "-v", "--", "-x"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["-t"], "A is missing"),
        (["-s", "x"], "there is no program to run"),
        (["-s"], "the arguments do not fit"),
        (["-s", "-t"], "the arguments do not fit"),
    ],
)
def test_the_one_argument_that_is_missing_is_named(words: list[str], problem: str) -> None:
    text = "Usage:\n  test -s B PROG [ARG...]\n  test -t A\n\n  -s  some\n  -t  other\n"
    with pytest.raises(UsageError, match=problem):
        command_line.parse(text, words, Log("test"), program_follows=True)


def test_a_descriptor() -> None:
    with socket.socket() as sock:
        assert command_line.descriptor(str(sock.fileno()), "-f") == sock.fileno()
    assert command_line.descriptor("00", "-f") == 0


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "+1", "1.0", " 1", "\u0661", "0x1", "9" * 10, "9" * 5000]
)
def test_no_number_of_a_descriptor(text: str) -> None:
    with pytest.raises(UsageError, match="is no descriptor; give its number") as raised:
        command_line.descriptor(text, "-f")
    assert len(str(raised.value)) < 150


def test_a_descriptor_that_is_not_open() -> None:
    fd = os.dup(0)
    os.close(fd)
    for number in (fd, 999_999_999):
        with pytest.raises(UsageError, match=f"-f: descriptor {number} is not open; leave it"):
            command_line.descriptor(str(number), "-f")


@pytest.mark.parametrize("path", ["/run/x", "@name", "x", "p" * 107, "\xe4" * 53])
def test_a_path_of_a_unix_socket(path: str) -> None:
    assert command_line.unix_path(path, "SOCKET") == path


@pytest.mark.parametrize("path", ["", "@"])
def test_no_path_of_a_unix_socket(path: str) -> None:
    with pytest.raises(
        UsageError,
        match=r"^SOCKET: .* is no path of a socket; a path",
    ):
        command_line.unix_path(path, "SOCKET")


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("80", 80), ("00080", 80), ("0000000080", 80), ("000000", 0), ("65535", 65535)],
)
def test_ports(text: str, number: int) -> None:
    assert command_line.port_number(text, "PORT") == number


@pytest.mark.parametrize(
    "text",
    ["", " 80", "80 ", "+80", "-1", "65536", "8_0", "0x50", "\u0668", "\xb2", "1" * 5000],
    ids=range(11),
)
def test_no_ports(text: str) -> None:
    with pytest.raises(UsageError, match=r"^PORT is"):
        command_line.port_number(text, "PORT")
