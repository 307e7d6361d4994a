"""The process that looks names up, alone: what it says, what it keeps, when it ends."""

import errno
import os
import random
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from ends import PATIENCE, descriptors, nothing_left_behind
from nameserver import Gate, wait_until
from places import root_only

from muonsocks.errors import NameNotResolved
from muonsocks.net import resolver_process
from muonsocks.net.identity import Identity
from muonsocks.net.names import MOST_ADDRESSES
from muonsocks.net.resolver_process import (
    ADDRESSES,
    LONGEST_ANSWER,
    NAME,
    READY,
    failure,
    found,
    named,
    read,
    request,
)
from muonsocks.net.threads import MOST

NOBODY = Identity(65534, 65534)


@pytest.fixture(autouse=True)
def leaks_nothing() -> Iterator[None]:
    with nothing_left_behind():
        yield


# Messages


@pytest.mark.parametrize("count", [0, 1, 2, MOST_ADDRESSES])
def test_addresses_come_as_they_went(count: int) -> None:
    chance = random.Random(count)
    addresses = [
        (chance.randbytes(chance.choice((4, 16))), chance.choice((0, 1, 2**32 - 1)))
        for _ in range(count)
    ]
    number = chance.randrange(2**64)
    message = found(number, addresses)
    assert len(message) <= LONGEST_ANSWER
    assert read(message) == (number, addresses)


@pytest.mark.parametrize(
    "error, number, text",
    [
        (NameNotResolved("n: why"), None, "n: why"),
        (OSError(errno.EMFILE, "why"), errno.EMFILE, "why"),
        (OSError("why"), errno.EIO, "why"),
        (PermissionError(errno.EPERM, "why"), errno.EPERM, "why"),
        (ZeroDivisionError("why"), errno.EIO, "ZeroDivisionError: why"),
        (NameNotResolved("w\udc80y"), None, "w?y"),
    ],
)
def test_failures_come_as_they_went(error: Exception, number: int | None, text: str) -> None:
    got_number, got = read(failure(7, error))
    assert got_number == 7
    assert isinstance(got, OSError)
    assert isinstance(got, NameNotResolved) == isinstance(error, NameNotResolved)
    assert (got.errno, got.strerror) == (number, text)


@pytest.mark.parametrize("kind", [NameNotResolved, OSError, ValueError])
def test_reasons_have_a_bound(kind: type[Exception]) -> None:
    message = failure(7, kind("\u00e4" * 9999))
    assert len(message) <= LONGEST_ANSWER
    assert read(message)[0] == 7


def test_what_is_no_answer() -> None:
    good = found(1, [(b"1234", 5), (b"1" * 16, 6)])
    bad = [good[:length] for length in range(len(good)) if length not in (9, 18)]
    bad += [
        good[:8] + b"\4" + good[9:],
        good[:8] + b"\3\xe4",
        good[:8] + b"\2xyz",
        good + b"\5" + b"1" * 9,
    ]
    bad += [found(1, [(b"1234", 5)] * MOST_ADDRESSES * 3)]
    for message in bad:
        with pytest.raises(ValueError):
            read(message)


# The process


class Helper:
    """The process, and the socket that leads to it."""

    def __init__(self, identity: Identity | None = None, buffer: int = 0) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if buffer:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        self.pid = os.fork()
        if self.pid == 0:
            resolver_process.run(theirs, identity, ())
        self.number = theirs.fileno()
        theirs.close()
        self.socket.settimeout(PATIENCE)

    def ask(self, number: int, host: str) -> None:
        self.socket.send(request(number, ADDRESSES, host.encode()))

    def answer(self) -> object:
        return read(self.socket.recv(65536))

    def ended(self) -> int:
        """Wait for its end, and give its status."""
        pidfd = os.pidfd_open(self.pid)
        try:
            assert select.select([pidfd], [], [], PATIENCE)[0], "it does not end"
        finally:
            os.close(pidfd)
        pid, self.pid = self.pid, 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def close(self) -> None:
        self.socket.close()
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def __enter__(self) -> "Helper":
        assert self.socket.recv(100) == READY
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate(tmp_path)
    monkeypatch.setattr(resolver_process, "addresses_of", gate.addresses_of)
    return gate


def test_names_come_as_they_went() -> None:
    message = named(7, "n" * 255)
    assert len(message) <= LONGEST_ANSWER
    assert read(message) == (7, "n" * 255)


def test_answers() -> None:
    """By the system's own means: these need no server."""
    with Helper() as helper:
        helper.socket.send(request(5, NAME, bytes((127, 0, 0, 1))))
        assert helper.answer() == (5, "localhost")
        helper.ask(1, "127.1")
        assert helper.answer() == (1, [(bytes((127, 0, 0, 1)), 0)])
        helper.ask(2**64 - 1, "fe80::1%lo")
        assert helper.answer() == (2**64 - 1, [(b"\xfe\x80" + bytes(13) + b"\1", 1)])
        helper.ask(3, "no..name")
        number, error = helper.answer()  # type: ignore[misc]
        assert number == 3
        assert isinstance(error, NameNotResolved)


def test_answers_in_any_order(gate: Gate) -> None:
    with Helper() as helper:
        helper.ask(1, "slow1111")
        helper.ask(2, "fast2222")
        assert helper.answer() == (2, [(b"2222", 0)])
        with gate.opened():
            assert helper.answer() == (1, [(b"1111", 0)])


def test_keeps_no_descriptor_but_its_own(gate: Gate) -> None:
    high = 1000
    reader, writer = os.pipe()
    os.dup2(writer, high)
    try:
        with Helper() as helper:
            helper.ask(1, "fast1111")
            helper.answer()
            open_there = descriptors(helper.pid)
            its_own = {"anon_inode:[eventpoll]", "anon_inode:[eventfd]"}
            others = {fd for fd, what in open_there.items() if what not in its_own}
            assert others == {2, helper.number}
            assert len(open_there) == 4
    finally:
        for fd in (reader, writer, high):
            os.close(fd)


def test_signals_for_the_server_are_not_for_it(gate: Gate) -> None:
    """None ends it, and no handler of the server's runs in it."""
    numbers = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGINT)}
    signal.signal(signal.SIGUSR1, lambda *_: os._exit(77))
    try:
        with Helper() as helper:
            for number in numbers:
                os.kill(helper.pid, number)
            helper.ask(1, "fast1111")
            assert helper.answer() == (1, [(b"1111", 0)])
            ignored = int(status(helper.pid)["SigIgn"], 16)
            assert all(ignored >> (number - 1) & 1 for number in numbers)
            caught = int(status(helper.pid)["SigCgt"], 16)
            assert not any(caught >> (number - 1) & 1 for number in numbers)
            os.kill(helper.pid, signal.SIGKILL)
            assert helper.ended() == -signal.SIGKILL
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


@root_only()
def test_is_the_user_it_should_be() -> None:
    with Helper(NOBODY) as helper:
        found = status(helper.pid)
        assert found["Uid"].split() == found["Gid"].split() == ["65534"] * 4
        assert (found["Groups"], int(found["CapEff"], 16), found["NoNewPrivs"]) == ("", 0, "1")
        helper.ask(1, "127.1")
        assert helper.answer() == (1, [(bytes((127, 0, 0, 1)), 0)])


def test_ends_with_its_socket(gate: Gate) -> None:
    """Even while look-ups hang, more than it has threads for those of."""
    with Helper() as helper:
        for number in range(1, 11):
            helper.ask(number, "slow")
        wait_until(lambda: len(gate.begun()) == 10)
        helper.socket.close()
        assert helper.ended() == 0


def test_ends_with_its_socket_that_has_answers_in_it(gate: Gate) -> None:
    """That is a reset, and no end of file."""
    with Helper() as helper:
        for number in range(1, 11):
            helper.ask(number, "fast1111")
        assert select.select([helper.socket], [], [], PATIENCE)[0]
        helper.socket.close()
        assert helper.ended() == 0


def test_ends_while_nobody_takes_its_answers(gate: Gate) -> None:
    with Helper(buffer=4096) as helper:
        for number in range(1, MOST + 1):
            helper.ask(number, "fast1111")
        wait_until(lambda: len(gate.begun()) == MOST)
        helper.socket.close()
        assert helper.ended() == 0


def test_answers_may_wait_to_be_taken(gate: Gate) -> None:
    with Helper(buffer=4096) as helper:
        for number in range(1, MOST + 1):
            helper.ask(number, "fast1111")
        wait_until(lambda: len(gate.begun()) == MOST)
        numbers = [helper.answer()[0] for _ in range(MOST)]  # type: ignore[index]
        assert sorted(numbers) == list(range(1, MOST + 1))


def test_no_more_at_once_than_agreed(gate: Gate) -> None:
    """Who asks for more is not the program that this was made for."""
    with Helper() as helper:
        for number in range(1, MOST + 1):
            helper.ask(number, "slow1111")
        wait_until(lambda: len(gate.begun()) == MOST)
        assert int(status(helper.pid)["Threads"]) == MOST + 1
        with gate.opened():
            for _ in range(MOST):
                helper.answer()
        for number in range(1, MOST + 2):
            helper.ask(number, "slow1111")
        number, error = helper.answer()  # type: ignore[misc]
        assert (number, error.strerror) == (0, "ValueError: more is asked than was agreed")
        assert helper.ended() == 1


def test_request_that_is_none() -> None:
    with Helper() as helper:
        helper.socket.send(request(0, ADDRESSES, b"\xff"))
        number, error = helper.answer()  # type: ignore[misc]
        assert number == 0
        assert error.strerror.startswith("UnicodeDecodeError")
        assert helper.ended() == 1


def test_request_that_is_too_long(gate: Gate) -> None:
    with Helper() as helper:
        helper.ask(1, "x" * 5000)
        assert helper.answer() == (1, [(b"xxxx", 0)])
        assert gate.begun() == ["x" * 255]
