"""What socksify and socketbox-preload have in common, and what is said of calls they answer."""

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest
from programs import ROOT, run

from muonsocks.address import Endpoint
from muonsocks.intercept.calls import Architecture
from muonsocks.intercept.notify import Call, Listener
from muonsocks.log import DEBUG, Log
from muonsocks.socks.proxy_address import ProxyAddress
from muonsocks.tools.intercepted import CallLog

TARGET = Endpoint("192.0.2.1", 80)
CHAIN = (ProxyAddress.parse("socks5h://127.0.0.1:1"), ProxyAddress.parse("http://127.0.0.2:2"))
PROXY = "--proxy=socks5h://127.0.0.1:1"
TOOLS = [
    ("socketbox-preload",),
    *(("socksify", PROXY, f"--mode={mode}") for mode in ("auto", "async", "hold")),
]
Said = Callable[[], list[str]]


@pytest.fixture(params=TOOLS, ids=lambda words: "-".join((words[0], *words[2:])))
def tool(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """One of the tools, with what it needs."""
    name, *options = request.param
    return (str(ROOT / "bin" / name), *options)


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> Said:
    """The lines that have been said since, without the time and the program."""
    return lambda: [one.split("]: ", 1)[-1] for one in capfd.readouterr().err.splitlines()]


def told(level: int = DEBUG) -> CallLog:
    log = Log("test")
    log.level = level
    return CallLog(log)


def call(number: int = 42) -> Any:
    """A call of this process, of which only is looked at who calls what."""
    listener = Listener(os.open("/dev/null", os.O_RDONLY))
    architecture = Architecture(1, {"connect": 42})
    made = Call(listener, 1, os.getpid(), architecture, number, [0] * 6)
    listener.close()
    return made


def me() -> str:
    with open("/proc/self/comm") as file:
        return f"{file.read().strip()}[{os.getpid()}]"


# The command line


@pytest.mark.parametrize("words", [(), ("-v",), ("--",), ("-q", "--")])
@pytest.mark.parametrize("name", ["socketbox-preload", "socksify"])
def test_there_has_to_be_a_program(name: str, words: tuple[str, ...]) -> None:
    done = run(str(ROOT / "bin" / name), *words)
    assert (done.status, done.output) == (100, b"")
    assert done.log == f"{name}: there is no program to run; see --help\n"


@pytest.mark.parametrize(
    ("words", "status", "output"),
    [
        (("printf", "%s", "--version", "-q"), 0, b"--version-q"),
        (("--", "echo", "-v"), 0, b"-v\n"),
        (("sh", "-c", "exit 9"), 9, b""),
        (("sh", "-c", "kill -HUP $$"), -1, b""),
        (("sh", "-c", "kill -TERM $$"), -15, b""),
    ],
)
def test_the_words_and_the_end_are_the_programs(
    tool: tuple[str, ...], words: tuple[str, ...], status: int, output: bytes
) -> None:
    done = run(*tool, *words)
    assert (done.status, done.output, done.log) == (status, output, "")


@pytest.mark.parametrize(
    ("program", "status", "reason"),
    [
        ("/no/such", 127, "/no/such cannot be executed: No such file or directory"),
        ("/etc/passwd", 126, "/etc/passwd cannot be executed: Permission denied"),
    ],
)
def test_what_cannot_be_executed(
    tool: tuple[str, ...], program: str, status: int, reason: str
) -> None:
    done = run(*tool, program)
    assert done.status == status
    assert done.log.endswith(f" {reason}\n") and done.log.count("\n") == 1


@pytest.mark.parametrize(("options", "lines"), [((), 1), (("-q",), 0)])
def test_who_wants_it_quiet_has_no_warnings(options: tuple[str, ...], lines: int) -> None:
    listens = "import socket; socket.socket().bind(('127.0.0.1', 80))"
    words = (*options, "--listen=*:80=/no/such", "--", "sh", "-c", 'python3 -c "$0" 2>&-', listens)
    done = run(str(ROOT / "bin" / "socketbox-preload"), *words)
    assert done.log.count("cannot be bound") == done.log.count("\n") == lines


# What is said


def test_a_connection(said: Said) -> None:
    one = told()
    one.connection(os.getpid(), TARGET, CHAIN, 0)
    one.connection(os.getpid(), TARGET, (), errno.ECONNREFUSED)
    one.connection(os.getpid(), TARGET, (), OSError(errno.EIO, "for a reason"))
    one.connection(1 << 30, TARGET, (), 0)
    via = "via=socks5h://127.0.0.1:1,http://127.0.0.2:2"
    up, refused, failed, gone = said()
    assert up.endswith(f"connected target=192.0.2.1:80 {via} program={me()}")
    assert refused.endswith(f"failed target=192.0.2.1:80 program={me()} reason=Connection refused")
    assert failed.endswith("reason=for a reason")
    assert gone.endswith(f"program=-[{1 << 30}]")


def test_a_fault_of_ours_is_said_once(said: Said) -> None:
    one = told()
    for _ in range(3):
        one.failure(call(), OSError(errno.EIO, "for a reason"))
        one.failure(call(1), ValueError("a fault"))
    first, second = said()
    assert first.endswith(f"{me()} cannot connect: for a reason")
    assert second.endswith(f"{me()} cannot go on: ValueError: a fault")


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
def test_who_may_not_be_looked_at_is_told_why(said: Said, number: int) -> None:
    told().failure(call(), OSError(number, os.strerror(number)))
    (line,) = said()
    assert "cannot connect: its memory and descriptors may not be looked at, as of a set" in line


def test_there_are_not_more_warnings_than_so_many(said: Said) -> None:
    one = told()
    for number in range(150):
        one.failure(call(), ValueError(number))
    assert len(said()) == 100
