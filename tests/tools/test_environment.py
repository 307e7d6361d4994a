"""What socks-handshake puts into the environment, socks-relay reads as it was."""

import os

import pytest

from muonsocks.address import Endpoint
from muonsocks.errors import UsageError
from muonsocks.socks.request import COMMAND_NAMES, Command, Reply, ReplyCode, Request
from muonsocks.tools.environment import owed_server, request_environment, request_from


def as_text(environ: dict[bytes, bytes]) -> dict[str, str]:
    return {os.fsdecode(name): os.fsdecode(value) for name, value in environ.items()}


@pytest.mark.parametrize("command", COMMAND_NAMES)
@pytest.mark.parametrize("user", [b"", b"me", b"\xff\n'\"$(id)", bytes(range(1, 256))])
@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "example.org", "n" * 255, "$(id)"])
def test_round_trip(host: str, user: bytes, command: int) -> None:
    request = Request(command, Endpoint(host, 65535))
    environ = request_environment("5", request, user)
    assert request_from(as_text(environ)) == (request, user)


@pytest.mark.parametrize(
    ("version", "reply"), [("4", b"\0\x5a"), ("4a", b"\0\x5a"), ("5", b"\5\0\0\1")]
)
def test_a_reply_is_owed(version: str, reply: bytes) -> None:
    environ = request_environment(version, Request(Command.CONNECT, Endpoint("a", 1)), b"")
    server = owed_server(as_text(environ))
    assert server is not None
    assert server.send(Reply(ReplyCode.SUCCEEDED)).startswith(reply)


def test_nothing_is_owed_without_a_request() -> None:
    assert owed_server({"SOCKS_HOST": "stale"}) is None


@pytest.mark.parametrize("version", ["", "3", "5 ", "4A", "4a\n"])
def test_an_unknown_version(version: str) -> None:
    with pytest.raises(UsageError, match="it must be 4, 4a or 5"):
        owed_server({"SOCKS_VERSION": version})


def test_other_variables_are_kept_and_an_earlier_user_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOCKS_USER", "earlier")
    monkeypatch.setenv("SOCKS_HOST", "earlier")
    monkeypatch.setenv("OTHER", "kept")
    environ = request_environment("5", Request(Command.CONNECT, Endpoint("new", 1)), b"")
    assert environ[b"OTHER"] == b"kept"
    assert environ[b"SOCKS_HOST"] == b"new"
    assert b"SOCKS_USER" not in environ
