"""What is said of calls that are answered."""

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

from muonsocks.address import Endpoint
from muonsocks.intercept.calls import Architecture
from muonsocks.intercept.notify import Call, Listener
from muonsocks.log import DEBUG, Log
from muonsocks.socks.proxy_address import ProxyAddress
from muonsocks.tools.intercepted import CallLog

TARGET = Endpoint("192.0.2.1", 80)
CHAIN = (ProxyAddress.parse("socks5h://127.0.0.1:1"), ProxyAddress.parse("http://127.0.0.2:2"))
Said = Callable[[], list[str]]


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
