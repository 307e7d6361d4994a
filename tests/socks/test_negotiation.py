"""The first byte chooses the machine; what is asked of a client before it may ask."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playbook import Wire, play
from strategies import joined, offers, socks4_requests, some, trailings

from muonsocks.errors import RemoteProtocolError
from muonsocks.socks import socks4, socks5
from muonsocks.socks.negotiation import (
    FIRST_READ,
    choose_method,
    refusal_without_password,
    server_for,
    server_owing_reply,
)
from muonsocks.socks.request import Command, Method, MethodChoice, Reply


@pytest.mark.parametrize(("first", "machine"), [(4, socks4.Server), (5, socks5.Server)])
@pytest.mark.parametrize("behind", [b"", b"\1\0"])
def test_server_for(first: int, machine: type, behind: bytes) -> None:
    server = server_for(bytes((first,)) + behind)
    assert type(server) is machine
    assert server.trailing == b"", "it has not received what was shown"


def test_no_server_for_other_bytes() -> None:
    for first in set(range(256)) - {4, 5}:
        with pytest.raises(RemoteProtocolError, match=f"first byte is {first:#04x}") as caught:
            server_for(bytes((first, 5)))
        assert (caught.value.reply, caught.value.code) == (b"", None)


@some
@given(joined(st.just(b"\5\0"), trailings) | offers | socks4_requests, trailings)
def test_first_read_is_not_past_any_handshake(data: bytes, behind: bytes) -> None:
    """As socks-handshake reads: so many bytes first, then as many as the machine wants."""
    first, wire = data[:FIRST_READ], Wire((data + behind)[FIRST_READ:])
    try:
        server, whole = server_for(first), server_for(first)
    except RemoteProtocolError:
        return
    script = {"choose": MethodChoice(Method.NO_ACCEPTABLE), "answer": Reply(0)}
    expected = play(whole, [data + behind], script)
    before = play(server, [first], script)
    after = play(server, wire.exact_reads(server), {} if before.heard else script)
    assert before.heard + after.heard == expected.heard
    assert server.trailing + wire.unread == whole.trailing
    if expected.heard:
        assert server.trailing == b""


@pytest.mark.parametrize(
    ("version", "machine", "answer"),
    [
        ("5", socks5.Server, "05 00 00 01 00000000 0000"),
        ("4", socks4.Server, "00 5a 0000 00000000"),
        ("4a", socks4.Server, "00 5a 0000 00000000"),
    ],
)
def test_server_owing_reply(version: str, machine: type, answer: str) -> None:
    server = server_owing_reply(version, Command.CONNECT)
    assert type(server) is machine
    assert server is not None
    assert (server.state, server.wants, server.trailing) == ("answer", 0, b"")
    assert server.send(Reply(0)) == bytes.fromhex(answer)


@pytest.mark.parametrize("version", ["5", "4"])
def test_a_server_that_owes_two_replies(version: str) -> None:
    server = server_owing_reply(version, Command.BIND)
    assert server is not None
    assert server.send(Reply(0)) == server.send(Reply(0))
    assert server.state == "relay"


@pytest.mark.parametrize("version", ["", "3", "5a", "4A", "45"])
def test_no_server_for_an_unknown_version(version: str) -> None:
    assert server_owing_reply(version, Command.CONNECT) is None


@pytest.mark.parametrize(
    ("offered", "without", "possible", "required"),
    [
        ("", 0xFF, 0xFF, 0xFF),
        ("00", 0, 0, 0xFF),
        ("02", 0xFF, 2, 2),
        ("00 02", 0, 0, 2),
        ("02 00", 0, 0, 2),
        ("00 00 00", 0, 0, 0xFF),
        ("02 02", 0xFF, 2, 2),
        ("01 80 03 02 00 ff", 0, 0, 2),
        ("01", 0xFF, 0xFF, 0xFF),
        ("ff", 0xFF, 0xFF, 0xFF),
    ],
)
def test_choose_method(offered: str, without: int, possible: int, required: int) -> None:
    """Any order, any number of times; what we choose was offered, or nothing will do."""
    methods = bytes.fromhex(offered)
    assert choose_method(methods, password_required=False, password_possible=False) == without
    assert choose_method(methods, password_required=False, password_possible=True) == possible
    assert choose_method(methods, password_required=True, password_possible=True) == required


@pytest.mark.parametrize(
    ("user", "digits"),
    [(b"", "00 5b 0000 00000000"), (b"alice", "00 5d 0000 00000000")],
)
def test_socks4_where_a_password_is_required(user: bytes, digits: str) -> None:
    reply = Reply(refusal_without_password(user))
    assert socks4.Server("answer").send(reply) == bytes.fromhex(digits)
