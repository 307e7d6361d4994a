"""Which sockets a program under socksify may have."""

import socket

import pytest
from socksified import python, run

from muonsocks.intercept.bpf import ALLOW, refuse, verdict
from muonsocks.intercept.socket_rules import SOCKET_RULES

EACCES, EAFNOSUPPORT, EPERM = 13, 97, 1
FLAGS = socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
S, D, R = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW


def becomes(call: str, *arguments: int) -> int:
    """0 if it is let through, or the errno."""
    found = verdict(SOCKET_RULES[call], [*arguments, 0, 0])
    return 0 if found == ALLOW else found & ~refuse(0)


@pytest.mark.parametrize(
    ("family", "kind", "protocol", "number"),
    [
        (1, S, 0, 0),
        (1, D, 0, 0),
        (16, R, 0, 0),
        (38, 5, 0, 0),
        *((family, S, protocol, 0) for family in (2, 10) for protocol in (0, 6, 262)),
        *((family, D, protocol, 0) for family in (2, 10) for protocol in (0, 17)),
        *((family, S, protocol, EACCES) for family in (2, 10) for protocol in (132, 256, 17)),
        *((family, D, protocol, EACCES) for family in (2, 10) for protocol in (1, 58, 136, 115)),
        *((family, R, protocol, EACCES) for family in (2, 10) for protocol in (0, 1, 58, 255)),
        *((family, kind, 0, EACCES) for family in (2, 10) for kind in (4, 5, 6, 10)),
        *((family, R, 0, EAFNOSUPPORT) for family in (0, 3, 4, 15, 17, 29, 31, 40, 43, 44, 255)),
    ],
)
def test_kinds_of_sockets(family: int, kind: int, protocol: int, number: int) -> None:
    assert becomes("socket", family, kind, protocol) == number
    assert becomes("socket", family, kind | FLAGS, protocol) == number


@pytest.mark.parametrize(
    ("level", "option", "number"),
    [
        (0, 4, EPERM),
        (41, 57, EPERM),
        (41, 5, EPERM),
        (6, 1, 0),
        (1, 2, 0),
        (0, 1, 0),
        (41, 26, 0),
        (6, 4, 0),
        (0, 57, 0),
    ],
)
def test_options_of_sockets(level: int, option: int, number: int) -> None:
    assert becomes("setsockopt", 3, level, option) == number


def test_a_program_has_what_it_may_have() -> None:
    code = (
        "import errno, socket as s\n"
        "def made(*kind):\n"
        "    try:\n"
        "        return s.socket(*kind).proto\n"
        "    except OSError as error:\n"
        "        return errno.errorcode[error.errno]\n"
        "print(made(2, 1), made(2, 1 | s.SOCK_NONBLOCK, 6), made(10, 2), made(1, 1), made(16, 3))\n"
        "print(made(2, 2, 1), made(2, 3, 1), made(2, 1, 132), made(17, 3), made(40, 1))\n"
        "try:\n"
        "    s.socket().setsockopt(0, 4, b'\\x83\\x07\\x04\\x7f\\0\\0\\1\\0')\n"
        "except OSError as error:\n"
        "    print(errno.errorcode[error.errno])\n"
    )
    assert run(*python(code), mode="async").output.splitlines() == [
        "0 6 0 0 0",
        "EACCES EACCES EACCES EAFNOSUPPORT EAFNOSUPPORT",
        "EPERM",
    ]
