"""-1 as its users see it: one client shows a password, and other programs let its address in."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import (
    GREETING,
    HANDSHAKE,
    INETD,
    PASSWORD_GREETING,
    SECONDS,
    accept,
    credentials,
    environment,
    listener,
    serving,
    socks4,
    socks5,
    tcp_from,
)

PASSWORD = ["-1", "-Ume", "-Psecret"]
LOGIN = PASSWORD_GREETING + credentials(b"me", b"secret")
HERE, THERE = "127.0.0.5", "127.0.0.6"


class Shared:
    """Programs that share a state directory."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.files = state / "auth-once"
        options = [*PASSWORD, f"--state={state}"]
        self.inetd = [INETD, *options, "--allow-local"]
        self.handshake = [HANDSHAKE, *options, "socks-relay", "--allow-local"]

    def log_in(self, source: str, *more: str, command: list[str] | None = None) -> None:
        """Show a password, and connect."""
        connect(command or [*self.inetd, *more], source, LOGIN, b"\5\2\1\0")

    def method(self, source: str, *more: str) -> int:
        """Offer everything: what is chosen?"""
        with serving(*self.inetd, *more, over=tcp_from(source)) as program:
            program.client.send(b"\5\2\2\0")
            return program.client.read(2)[1]

    def age(self, name: str, seconds: float) -> None:
        then = time.time() - seconds
        os.utime(self.files / name, (then, then))


def connect(command: list[str], source: str, greeting: bytes, answer: bytes) -> str:
    """Go to a far end, and give the log."""
    with listener() as far, serving(*command, over=tcp_from(source)) as program:
        program.client.send(greeting + socks5(*far.getsockname()))
        assert program.client.read(len(answer)) == answer
        accept(far).close()
        assert program.client.read(4) == b"\5\0\0\1"
        program.client.close()
        assert program.status == 0
    return program.log


@pytest.fixture
def shared(tmp_path: Path) -> Shared:
    return Shared(tmp_path / "state")


@pytest.mark.parametrize("first", ["inetd", "handshake"])
def test_one_password_is_enough_for_all(shared: Shared, first: str) -> None:
    assert shared.method(HERE) == 2
    shared.log_in(HERE, command=getattr(shared, first))
    assert os.listdir(shared.files) == [HERE]
    for command in (shared.inetd, shared.handshake):
        assert "user=- " in connect(command, HERE, GREETING, b"\5\0")
        with listener() as far, serving(*command, over=tcp_from(HERE)) as program:
            program.client.send(socks4(*far.getsockname()))
            assert program.client.read(2) == b"\0\x5a"
            accept(far).close()
        for greeting, answer in ((GREETING, b"\5\xff"), (socks4(THERE, 80), b"\0\x5d")):
            with serving(*command, over=tcp_from(THERE)) as program:
                program.client.send(greeting)
                assert program.client.read(2) == answer
    assert os.listdir(shared.files) == [HERE]


def test_others_who_do_not_share_it_ask_again(shared: Shared, tmp_path: Path) -> None:
    shared.log_in(HERE)
    assert Shared(tmp_path / "other").method(HERE) == 2
    assert shared.method(HERE) == 0


def test_who_may_come_in_may_still_show_a_password(shared: Shared) -> None:
    shared.log_in(HERE)
    shared.log_in(HERE)
    with serving(*shared.inetd, over=tcp_from(HERE)) as program:
        program.client.send(PASSWORD_GREETING + credentials(b"me", b"guess"))
        assert program.client.rest() == b"\5\2\1\1"
    assert program.end == "authentication-failed"
    assert shared.method(HERE) == 0


def test_a_time_to_live(shared: Shared) -> None:
    """From when the password was shown, not from when somebody last came."""
    shared.log_in(HERE)
    for age, ttl, method in (
        (86300, [], 0),
        (86500, [], 2),
        (50, ["--auth-once-ttl=60"], 0),
        (70, ["--auth-once-ttl=60"], 2),
        (-3600, [], 2),
    ):
        shared.log_in(HERE)
        shared.age(HERE, age)
        assert shared.method(HERE, *ttl) == method, age
        assert shared.method(HERE, *ttl) == method, age
        assert os.listdir(shared.files) == ([HERE] if method == 0 else [])


def test_a_short_time_to_live(shared: Shared) -> None:
    shared.log_in(HERE, ttl := "--auth-once-ttl=0.2")
    deadline = time.monotonic() + SECONDS
    while shared.method(HERE, ttl) == 0:
        assert time.monotonic() < deadline


def test_a_connection_that_is_older_than_the_password(shared: Shared) -> None:
    """What opens several at once need not wait with the others."""
    with serving(*shared.inetd, over=tcp_from(HERE)) as program:
        program.client.send(GREETING[:2])
        shared.log_in(HERE)
        program.client.send(GREETING[2:])
        assert program.client.read(2) == b"\5\0"


def test_who_the_launcher_says_it_is(shared: Shared) -> None:
    for variables in ({"REMOTE_ADDR": "::ffff:192.0.2.1"}, {"REMOTE_ADDR": "2001:DB8::1"}):
        with serving(*shared.inetd, environ=environment(**variables)) as program:
            program.client.send(LOGIN)
            assert program.client.read(4) == b"\5\2\1\0"
    with serving(*shared.inetd) as program:  # over a unix socket, from nobody knows where
        program.client.send(LOGIN)
        assert program.client.read(4) == b"\5\2\1\0"
    assert sorted(os.listdir(shared.files)) == ["192.0.2.1", "2001:db8::1"]


def test_many_at_once(shared: Shared) -> None:
    """The directory is made by whoever is first; every one who was let in is known."""
    sources = [f"127.0.0.{10 + number % 6}" for number in range(18)]
    failures: list[BaseException] = []

    def client(source: str) -> None:
        try:
            with serving(*shared.inetd, over=tcp_from(source)) as program:
                program.client.send(LOGIN)
                assert program.client.read(4) == b"\5\2\1\0"
                assert program.log == ""
            assert shared.method(source) == 0
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=client, args=(source,)) for source in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(os.listdir(shared.files)) == sorted(set(sources))


@pytest.fixture
def broken(shared: Shared) -> Iterator[Shared]:
    """Something is in the way of the client's address."""
    shared.files.mkdir(0o700, parents=True)
    shared.state.chmod(0o700)
    (shared.files / HERE).mkdir()
    yield shared


@pytest.mark.parametrize("which", ["inetd", "handshake"])
def test_what_cannot_be_remembered_is_logged(broken: Shared, which: str) -> None:
    log = connect(getattr(broken, which), HERE, LOGIN, b"\5\2\1\0")
    [first, *_] = log.splitlines()
    assert first.endswith(
        ": addresses that have authenticated cannot be remembered: Is a directory"
    )
    assert log.count("remembered") == 1
    assert broken.method(HERE) == 2


def test_the_program_behind_the_handshake_gets_no_descriptor_of_it(shared: Shared) -> None:
    found = []
    for options in (["-Ume", "-Psecret"], [*PASSWORD, f"--state={shared.state}"]):
        with serving(HANDSHAKE, *options, "ls", "/proc/self/fd", over=tcp_from(HERE)) as program:
            program.client.send(LOGIN + socks5("192.0.2.1", 80))
            found.append(program.client.rest().removeprefix(b"\5\2\1\0").split())
    assert found == [[b"0", b"1", b"2", b"3"]] * 2  # 3 is what ls reads
