"""Rrcmd, with a host that is played by hand, behind a proxy that is, too; or directly."""

import errno
import os
import socket
from collections.abc import Callable
from typing import Any

import pytest
from classic_calls import HOST, Hand, forget_all, hand, reply
from ends import at_once, descriptors
from places import in_child, in_own_network, root_only
from programs import read_all
from real_server import reset

from muonsocks.client import DIRECT, rsocks
from muonsocks.client.errors import RequestRefused
from muonsocks.client.rcmd import CommandRefused
from muonsocks.errors import UsageError

SECONDS = 20
WORDS = b"me\0you\0ls\0"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_all(monkeypatch)


def _rrcmd(with_stderr: bool = False, timeout: float = SECONDS, host: str = HOST) -> Any:
    return rsocks.Rrcmd(host, 514, "me", "you", "ls", with_stderr, timeout=timeout)


def _play(client: Callable[[], Any], host: Callable[[Hand], None]) -> None:
    """Run both sides; nothing is left open afterwards."""
    with hand() as proxy:
        rsocks.SOCKSinit(proxy=proxy.url)
        before = descriptors().keys()
        error, _ = at_once(client, lambda: host(proxy))
        assert descriptors().keys() == before
        del error  # which has the frames, and what is in them


def _main(proxy: Hand) -> socket.socket:
    conn = proxy.take_request()
    conn.sendall(reply())
    return conn


def test_the_command_starts() -> None:
    def client() -> None:
        sock, stderr = _rrcmd()
        with sock:
            assert stderr is None and sock.gettimeout() == SECONDS
            sock.sendall(b"input")
            assert read_all(sock) == b"output"

    def host(proxy: Hand) -> None:
        with _main(proxy) as conn:
            assert read_all(conn, 1 + len(WORDS)) == b"\0" + WORDS
            conn.sendall(b"\0output"[:1])
            assert read_all(conn, 5) == b"input"
            conn.sendall(b"output")

    _play(client, host)


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (b"\1Permission denied.\n", CommandRefused, f"{HOST}: Permission denied."),
        (b"\1Login incorrect", CommandRefused, f"{HOST}: Login incorrect"),
        (b"\1", CommandRefused, f"{HOST}: it says no"),
        (b"access denied\r\n", CommandRefused, f"{HOST}: access denied"),
        (b"\1a\x1b[2Jb\xff\nc\n", CommandRefused, f"{HOST}: a [2Jb\N{REPLACEMENT CHARACTER}"),
        (b"\1" + b"x" * 100_000, CommandRefused, f"{HOST}: xxx"),
        (b"", ConnectionResetError, f"{HOST} has closed the connection without an answer"),
    ],
)
def test_the_command_is_refused(answer: bytes, kind: type[OSError], text: str) -> None:
    def client() -> OSError:
        with pytest.raises(kind) as caught:
            _rrcmd()
        said = caught.value.strerror
        assert said.startswith(text) and len(said) < 3000
        assert caught.value.errno in (errno.EACCES, errno.ECONNRESET)
        return caught.value

    def host(proxy: Hand) -> None:
        with _main(proxy) as conn:
            read_all(conn, 1 + len(WORDS))
            try:
                conn.sendall(answer)
            except ConnectionError:
                assert len(answer) > 10_000  # it has heard enough

    _play(client, host)


@pytest.mark.parametrize("with_stderr", [False, True])
@pytest.mark.parametrize("said", [b"", b"\1slo"])
def test_the_time_is_for_all_of_it(said: bytes, with_stderr: bool) -> None:
    def client() -> None:
        with pytest.raises(TimeoutError):
            _rrcmd(with_stderr, timeout=0.1)

    def host(proxy: Hand) -> None:
        with _main(proxy) as conn:
            if with_stderr:
                with proxy.take_request() as second:
                    second.sendall(reply())
                    assert read_all(second) == b""
            else:
                conn.sendall(said)
            read_all(conn)

    _play(client, host)


def test_standard_error_has_a_channel() -> None:
    def client() -> None:
        sock, stderr = _rrcmd(True)
        with sock, stderr:
            assert stderr.gettimeout() == sock.gettimeout() == SECONDS
            assert at_once(lambda: read_all(sock), lambda: read_all(stderr)) == [b"out", b"err"]

    def host(proxy: Hand) -> None:
        with _main(proxy) as conn, proxy.take_request() as second:
            second.sendall(reply())
            assert read_all(conn, 5) == b"4711\0"
            second.sendall(reply(0, HOST, 1022))
            assert read_all(conn, len(WORDS)) == WORDS
            conn.sendall(b"\0out")
            second.sendall(b"err")

    _play(client, host)


@pytest.mark.parametrize(
    ("bound", "on_main", "second_reply", "kind", "text"),
    [
        (reply(2), b"", b"", RequestRefused, "not allowed"),
        (reply(), b"\1no\n", b"", CommandRefused, f"{HOST}: no"),
        (reply(), b"\0", b"", OSError, f"{HOST} does not connect for standard error"),
        (reply(), None, b"", ConnectionResetError, "without an answer"),
        (reply(), b"", reply(1), RequestRefused, "general"),
        (reply(), b"", reply(0, HOST, 5000), OSError, f"not {HOST} has connected but {HOST}:5000"),
    ],
)
def test_standard_error_has_none(
    bound: bytes, on_main: bytes | None, second_reply: bytes, kind: type[OSError], text: str
) -> None:
    def client() -> OSError:
        with pytest.raises(kind, match=text) as caught:
            _rrcmd(True)
        return caught.value

    def host(proxy: Hand) -> None:
        with _main(proxy) as conn, proxy.take_request() as second:
            second.sendall(bound)
            if on_main is None:
                read_all(conn, 5)
                conn.close()
            else:
                conn.sendall(on_main)
            second.sendall(second_reply)
            assert read_all(second) == b""

    _play(client, host)


def test_the_command_is_refused_after_all() -> None:
    """When both channels are there."""

    def client() -> OSError:
        with pytest.raises(CommandRefused) as caught:
            _rrcmd(True)
        return caught.value

    def host(proxy: Hand) -> None:
        with _main(proxy) as conn, proxy.take_request() as second:
            second.sendall(reply() + reply(0, HOST, 1022))
            read_all(conn, 5 + len(WORDS))
            conn.sendall(b"\1no\n")
            assert read_all(second) == b""

    _play(client, host)


def test_the_command_is_refused_before_it_is_said() -> None:
    """The host does not listen to the end, and has said why."""

    def client() -> None:
        with pytest.raises(CommandRefused, match="no"):
            _rrcmd()

    def host(proxy: Hand) -> None:
        conn = proxy.take_request()
        conn.sendall(reply() + b"\1no\n")
        reset(conn)

    _play(client, host)


def test_a_proxy_that_does_not_say_from_which_port() -> None:
    def client() -> None:
        for sock in _rrcmd(True):
            sock.close()

    def host(proxy: Hand) -> None:
        with _main(proxy) as conn, proxy.take_request() as second:
            second.sendall(reply() + reply(0, "0.0.0.0", 0))
            conn.sendall(b"\0")
            read_all(conn)

    _play(client, host)


@pytest.mark.parametrize("words", [("a\0b", "c", "d"), ("a", "b\0", "c"), ("a", "b", "c\0d")])
def test_what_cannot_be_said(words: tuple[str, str, str]) -> None:
    with pytest.raises(UsageError):
        rsocks.Rrcmd(HOST, 514, *words)


# Without proxies


@root_only()
def test_ports_that_are_taken_are_not_claimed() -> None:
    def host(server: socket.socket) -> None:
        with server.accept()[0] as conn:
            assert conn.getpeername()[1] == 1022
            port = b""
            while not port.endswith(b"\0"):
                port += conn.recv(1)
            assert port == b"1021\0"
            with socket.socket() as second:
                second.bind(("127.0.0.1", 1020))
                second.connect(("127.0.0.1", 1021))
                assert read_all(conn, len(WORDS)) == WORDS
                conn.sendall(b"\0")

    def client() -> None:
        for sock in _rrcmd(True, host="localhost"):
            with sock:
                assert read_all(sock) == b""

    def check() -> None:
        with (
            socket.create_server(("127.0.0.1", 514)) as server,
            socket.create_server(("", 1023)),
        ):
            at_once(client, lambda: host(server))

    rsocks.SOCKSinit(proxy=DIRECT)
    in_own_network(check)


@root_only()
@pytest.mark.parametrize(("address", "port"), [("127.0.0.2", 1000), ("127.0.0.1", 5000)])
def test_a_stranger_is_not_standard_error(address: str, port: int) -> None:
    def host(server: socket.socket) -> None:
        with server.accept()[0] as conn:
            assert read_all(conn, 5) == b"1022\0"
            with socket.socket() as second:
                second.bind((address, port))
                second.connect(("127.0.0.1", 1022))
                assert read_all(conn) == b""

    def client() -> None:
        with pytest.raises(OSError, match=f"but {address}:{port}"):
            _rrcmd(True, host="127.0.0.1")

    def check() -> None:
        with socket.create_server(("127.0.0.1", 514)) as server:
            at_once(client, lambda: host(server))

    rsocks.SOCKSinit(proxy=DIRECT)
    in_own_network(check)


@root_only()
def test_the_ports_are_not_for_every_user() -> None:
    def child() -> None:
        os.setuid(65534)
        with pytest.raises(PermissionError, match="ports below 1024, which rsh wants, are not for"):
            _rrcmd(host="127.0.0.1")

    rsocks.SOCKSinit(proxy=DIRECT)
    in_child(child)
