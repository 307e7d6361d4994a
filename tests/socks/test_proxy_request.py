"""What is said to a proxy of each kind, as a URL names it, and what is made of its answers."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import commands, endpoints, many

from muonsocks.address import Endpoint
from muonsocks.errors import NotAdmitted, RemoteProtocolError, RequestFailed
from muonsocks.socks.proxy_address import ProxyAddress
from muonsocks.socks.proxy_request import ProxyRequest
from muonsocks.socks.request import UNSPECIFIED, Command, Reply, ReplyCode, Request

PLACES = {
    "4": Endpoint("192.0.2.7", 80),
    "6": Endpoint("2001:db8::7", 80),
    "name": Endpoint("host", 80),
}
CONNECT = {kind: Request(Command.CONNECT, place) for kind, place in PLACES.items()}
BOUND = Endpoint("192.0.2.9", 4096)


def asking(url: str, request: Request = CONNECT["4"]) -> ProxyRequest:
    return ProxyRequest(ProxyAddress.parse(url), request)


def as_bytes(text: str) -> bytes:
    return text[1:].encode("latin-1") if text.startswith("=") else bytes.fromhex(text)


# What is sent at first, then what comes and what is sent in answer to that, by turns.
GREETING, GREETING_WITH_LOGIN = "05 01 00", "05 02 00 02"
LOGIN = "01 02 6d65 06 736563726574"  # me:secret
V4, V6, NAME = "01 c0000207 0050", "04 20010db8" + "00" * 11 + "07 0050", "03 04 686f7374 0050"
GRANTED5, GRANTED4 = "05 00 00 01 c0000209 1000", "00 5a 1000 c0000209"
GRANTED_HTTP = "=HTTP/1.1 200 OK\r\n\r\n"


def http(place: str, login: str = "") -> str:
    return f"=CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n{login}\r\n"


TALKS: dict[str, tuple[str, str, list[str]]] = {
    "socks4": ("socks4://proxy", "4", ["04 01 0050 c0000207 00", GRANTED4]),
    "socks4, a user": ("socks4://me@proxy", "4", ["04 01 0050 c0000207 6d65 00", GRANTED4]),
    "socks4a": ("socks4a://proxy", "name", ["04 01 0050 00000001 00 686f7374 00", GRANTED4]),
    "socks4a, an address": ("socks4a://proxy", "4", ["04 01 0050 c0000207 00", GRANTED4]),
    "socks5, IPv4": ("socks5://proxy", "4", [GREETING, "05 00", f"05 01 00 {V4}", GRANTED5]),
    "socks5, IPv6": ("socks5://proxy", "6", [GREETING, "05 00", f"05 01 00 {V6}", GRANTED5]),
    "socks5h": ("socks5h://proxy", "name", [GREETING, "05 00", f"05 01 00 {NAME}", GRANTED5]),
    "socks5, a password that is not asked for": (
        "socks5://me:secret@proxy",
        "4",
        [GREETING_WITH_LOGIN, "05 00", f"05 01 00 {V4}", GRANTED5],
    ),
    "socks5, a password": (
        "socks5://me:secret@proxy",
        "4",
        [GREETING_WITH_LOGIN, "05 02", LOGIN, "01 00", f"05 01 00 {V4}", GRANTED5],
    ),
    "socks5, a user without one": (
        "socks5://me@proxy",
        "4",
        [GREETING_WITH_LOGIN, "05 02", "01 02 6d65 00", "01 00", f"05 01 00 {V4}", GRANTED5],
    ),
    "socks5, nobody's": (
        "socks5://:p@proxy",
        "4",
        [GREETING_WITH_LOGIN, "05 02", "01 00 01 70", "01 00", f"05 01 00 {V4}", GRANTED5],
    ),
    "http, IPv4": ("http://proxy", "4", [http("192.0.2.7:80"), GRANTED_HTTP]),
    "http, IPv6": ("http://proxy", "6", [http("[2001:db8::7]:80"), GRANTED_HTTP]),
    "http, a name": ("http://proxy", "name", [http("host:80"), GRANTED_HTTP]),
    "http, a password": (
        "http://me:secret@proxy",
        "name",
        [http("host:80", "Proxy-Authorization: Basic bWU6c2VjcmV0\r\n"), GRANTED_HTTP],
    ),
}


def talk(one: ProxyRequest, turns: list[str], cut: int = 1 << 20) -> Reply | None:
    """Hold it to its turns, what comes being cut into pieces."""
    reply = None
    for number, text in enumerate(turns):
        data = as_bytes(text)
        if number % 2:
            for start in range(0, len(data), cut):
                assert reply is None
                assert one.wants
                one.receive(data[start : start + cut])
                reply = one.next_reply()
        else:
            assert one.outgoing() == data
            assert one.outgoing() == b""
    return reply


@pytest.mark.parametrize("cut", [1 << 20, 1, 2, 3])
@pytest.mark.parametrize("what", TALKS)
def test_talks(what: str, cut: int) -> None:
    url, kind, turns = TALKS[what]
    one = asking(url, CONNECT[kind])
    bound = UNSPECIFIED if url.startswith("http") else BOUND
    assert talk(one, turns, cut) == Reply(0, bound)
    assert (one.wants, one.trailing, one.outgoing()) == (0, b"", b"")
    assert one.next_reply() is None


@pytest.mark.parametrize("what", TALKS)
def test_what_comes_behind_is_kept(what: str) -> None:
    url, kind, turns = TALKS[what]
    one = asking(url, CONNECT[kind])
    talk(one, turns[:-1])
    one.receive(as_bytes(turns[-1]) + b"220 welcome\r\n")
    assert one.next_reply() is not None
    assert one.trailing == b"220 welcome\r\n"


@pytest.mark.parametrize("what", TALKS)
def test_a_server_that_says_all_at_once(what: str) -> None:
    url, kind, turns = TALKS[what]
    one = asking(url, CONNECT[kind])
    one.receive(b"".join(map(as_bytes, turns[1::2])))
    assert one.next_reply() is not None
    assert one.outgoing() == b"".join(map(as_bytes, turns[::2]))


REFUSALS = {
    ("socks5://p", "05 00", "05 02 00 01 00000000 0000"): (2, "not allowed"),
    ("socks5://p", "05 00", "05 05 00 01 00000000 0000"): (5, "connection refused"),
    ("socks5://p", "05 00", "05 f0 00 01 00000000 0000"): (0xF0, "reply 240"),
    ("socks5://p", "05 00", "05 04 00 03 00 0000"): (4, "host unreachable"),
    ("socks4://p", "00 5b 0000 00000000"): (1, "general failure"),
    ("socks4://p", "00 5d 0000 00000000"): (2, "not allowed"),
    ("http://p", "=HTTP/1.1 403 No\r\n\r\n"): (2, "status 403"),
    ("http://p", "=HTTP/1.0 503 \r\n\r\n"): (1, "status 503"),
}


@pytest.mark.parametrize("answers", REFUSALS, ids=str)
def test_refusals(answers: tuple[str, ...]) -> None:
    url, *texts = answers
    one, reply = asking(url), None
    for text in texts:
        one.receive(as_bytes(text))
        reply = one.next_reply()
    assert reply is not None
    assert (reply.code, one.say(reply)) == REFUSALS[answers]


NOT_ADMITTED = {
    ("socks5://p", "05 ff"): "it wants a password",
    ("socks5://me:secret@p", "05 ff"): "it wants neither a password nor none",
    ("socks5://me:secret@p", "05 02", "01 01"): "it refuses the password",
    ("http://p", "=HTTP/1.1 407 \r\n\r\n"): "it wants a password",
    ("http://me:secret@p", "=HTTP/1.1 407 \r\n\r\n"): "it refuses the password",
    ("http://me:secret@p", "=HTTP/1.0 401 \r\n\r\n"): "it refuses the password",
}


@pytest.mark.parametrize("answers", NOT_ADMITTED, ids=str)
def test_we_are_not_let_in(answers: tuple[str, ...]) -> None:
    url, *texts = answers
    one = asking(url)
    with pytest.raises(NotAdmitted) as caught:
        for text in texts:
            one.receive(as_bytes(text))
            assert one.next_reply() is None
    assert str(caught.value) == NOT_ADMITTED[answers]


FAULTS = {
    ("socks5://p", "04 00"): "the server's choice of method has version 4, not 5",
    ("socks5://p", "05 02"): "the server chose method 2, which was not offered",
    ("socks5://m:s@p", "05 02", "05 00"): "the server's verdict on the password has version 5",
    ("socks5://p", "05 00", "05 00 00 02"): "the reply has address type 2",
    ("socks4://p", "05 00"): "the reply has version 5, not 0",
    ("http://p", "05 00"): "the answer is not one of HTTP/1",
}


@pytest.mark.parametrize("answers", FAULTS, ids=str)
def test_the_proxy_breaks_the_protocol(answers: tuple[str, ...]) -> None:
    url, *texts = answers
    one = asking(url)
    with pytest.raises(RemoteProtocolError, match=FAULTS[answers]):
        for text in texts:
            one.receive(as_bytes(text))
            assert one.next_reply() is None


@pytest.mark.parametrize("what", TALKS)
def test_the_end_is_no_answer(what: str) -> None:
    url, kind, turns = TALKS[what]
    one = asking(url, CONNECT[kind])
    talk(one, [*turns[:-1], turns[-1][:5]])
    with pytest.raises(RemoteProtocolError, match="closed the connection without an answer"):
        one.receive(b"")


UNSAYABLE = {
    ("socks4://p", "6"): (8, "socks4 has no way to say [2001:db8::7]:80"),
    ("socks4a://p", "6"): (8, "socks4a has no way to say [2001:db8::7]:80"),
    ("http://p", "a:b"): (8, "http has no way to say [a:b]:80"),
    ("socks5h://p", "a b"): (8, "socks5h has no way to say a b:80"),
}


@pytest.mark.parametrize("what", UNSAYABLE, ids=str)
def test_what_a_proxy_cannot_be_asked(what: tuple[str, str]) -> None:
    url, place = what
    with pytest.raises(RequestFailed) as caught:
        asking(url, CONNECT.get(place) or Request(Command.CONNECT, Endpoint(place, 80)))
    assert (caught.value.code, caught.value.strerror) == UNSAYABLE[what]


COMMANDS = {
    "socks4": {Command.CONNECT, Command.BIND},
    "socks4a": {Command.CONNECT, Command.BIND, Command.RESOLVE},
    "socks5": set(Command.__dict__.values()),
    "socks5h": set(Command.__dict__.values()),
    "http": {Command.CONNECT},
}


@pytest.mark.parametrize("scheme", COMMANDS)
@pytest.mark.parametrize("command", [1, 2, 3, 0xF0, 0xF1])
def test_which_commands_there_are(scheme: str, command: int) -> None:
    request = Request(command, PLACES["4"])
    if command in COMMANDS[scheme]:
        assert asking(f"{scheme}://p", request).outgoing()
        return
    with pytest.raises(RequestFailed, match=f"{scheme} has no way to ask for") as caught:
        asking(f"{scheme}://p", request)
    assert caught.value.code == ReplyCode.COMMAND_NOT_SUPPORTED


def test_bind_has_two_replies() -> None:
    for url, first in (("socks5://p", "05 00"), ("socks4://p", "")):
        one = asking(url, Request(Command.BIND, PLACES["4"]))
        one.receive(bytes.fromhex(first + (GRANTED5 if first else GRANTED4)))
        assert one.next_reply() == Reply(0, BOUND)
        assert one.next_reply() is None
        assert one.wants == (4 if first else 8)
        one.receive(bytes.fromhex(GRANTED5 if first else GRANTED4) + b"behind")
        assert one.next_reply() == Reply(0, BOUND)
        assert (one.wants, one.trailing) == (0, b"behind")


@many
@given(
    st.sampled_from(["socks4://u@p", "socks4a://p", "socks5://u:pw@p", "socks5h://p", "http://p"]),
    commands,
    endpoints,
    st.lists(st.binary(min_size=1, max_size=40), max_size=5),
)
def test_any_answer_is_survived(
    url: str, command: int, destination: Endpoint, chunks: Iterable[bytes]
) -> None:
    """A reply, or one of four errors, and nothing else; and no password in any."""
    try:
        one = asking(url, Request(command, destination))
        for chunk in chunks:
            one.receive(chunk)
            if reply := one.next_reply():
                assert one.say(reply)
                return
            assert one.wants
            one.outgoing()
        one.receive(b"")
    except (RemoteProtocolError, NotAdmitted, RequestFailed) as error:
        assert "pw" not in str(error) or "pw" in destination.host
