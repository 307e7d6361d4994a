"""HTTP's CONNECT: what is asked, what the answers mean, and where they end."""

import pytest
from playbook import Wire, as_client, play

from muonsocks.address import Endpoint
from muonsocks.errors import LocalProtocolError, RemoteProtocolError
from muonsocks.socks.http_connect import LONGEST_HEAD, Client
from muonsocks.socks.request import Command, Credentials, Reply, ReplyCode, Request

REQUEST = Request(Command.CONNECT, Endpoint("192.0.2.7", 443))

ASKED = {
    Endpoint("192.0.2.7", 443): b"192.0.2.7:443",
    Endpoint("2001:db8::7", 80): b"[2001:db8::7]:80",
    Endpoint("target.test", 8080): b"target.test:8080",
    Endpoint("n" * 255, 1): b"n" * 255 + b":1",
}


@pytest.mark.parametrize("destination", ASKED)
def test_what_is_asked(destination: Endpoint) -> None:
    place = ASKED[destination]
    asked = b"CONNECT " + place + b" HTTP/1.1\r\nHost: " + place + b"\r\n\r\n"
    assert Client().send(Request(Command.CONNECT, destination)) == asked


def test_a_password() -> None:
    """The example of RFC 7617 section 2."""
    asked = Client(Credentials(b"Aladdin", b"open sesame")).send(REQUEST)
    assert b"\r\nProxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n\r\n" in asked


def test_a_long_password_is_one_line() -> None:
    asked = Client(Credentials(b"u" * 255, b"p" * 255)).send(REQUEST)
    assert len(asked.split(b"\r\n")) == 5


MISREAD = [
    "a:1",
    "a/b",
    "a?b",
    "a#b",
    "u@a",
    "[a]",
    "%61",
    "a b",
    "a\r\nX: y",
    "m\u00fcnchen",
    "-a",
]


@pytest.mark.parametrize("name", MISREAD)
def test_names_that_would_be_something_else(name: str) -> None:
    client = Client()
    with pytest.raises(LocalProtocolError):
        client.send(Request(Command.CONNECT, Endpoint(name, 80)))
    assert client.state == "request"


@pytest.mark.parametrize("command", [Command.BIND, Command.ASSOCIATE, Command.RESOLVE, 0])
def test_there_is_nothing_but_connect(command: int) -> None:
    with pytest.raises(LocalProtocolError, match=f"no way to say command {command}"):
        Client().send(Request(command, REQUEST.destination))


STATUSES = {
    200: ReplyCode.SUCCEEDED,
    204: ReplyCode.SUCCEEDED,
    299: ReplyCode.SUCCEEDED,
    301: ReplyCode.GENERAL_FAILURE,
    400: ReplyCode.GENERAL_FAILURE,
    401: ReplyCode.GENERAL_FAILURE,
    403: ReplyCode.NOT_ALLOWED,
    404: ReplyCode.HOST_UNREACHABLE,
    405: ReplyCode.GENERAL_FAILURE,
    407: ReplyCode.GENERAL_FAILURE,
    451: ReplyCode.NOT_ALLOWED,
    500: ReplyCode.GENERAL_FAILURE,
    501: ReplyCode.GENERAL_FAILURE,
    502: ReplyCode.HOST_UNREACHABLE,
    503: ReplyCode.GENERAL_FAILURE,
    504: ReplyCode.TTL_EXPIRED,
    599: ReplyCode.GENERAL_FAILURE,
}


def answered(*chunks: bytes) -> Client:
    client = Client()
    client.send(REQUEST)
    for chunk in chunks:
        client.receive(chunk)
    return client


@pytest.mark.parametrize("status", STATUSES)
def test_statuses(status: int) -> None:
    client = answered(b"HTTP/1.1 %d Reason\r\nContent-Length: 5\r\n\r\nhello" % status)
    code = STATUSES[status]
    assert client.next_event() == Reply(code)
    assert (client.status, client.state) == (status, "closed" if code else "relay")
    assert client.trailing == b"hello"
    assert client.wants == 0
    assert client.next_event() is None


HEADS = {
    "the shortest": b"HTTP/1.1 200\n\n",
    "usual": b"HTTP/1.1 200 Connection established\r\n\r\n",
    "of old": b"HTTP/1.0 200 OK\r\nProxy-agent: Apache\r\n\r\n",
    "without a reason": b"HTTP/1.1 200 \r\n\r\n",
    "lines that end in other ways": b"HTTP/1.1 200 OK\nA: b\r\nC: d\n\r\n",
    "a length that means nothing": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
    "after others": b"HTTP/1.1 100 \r\n\r\nHTTP/1.1 103 \r\nA: b\r\n\r\nHTTP/1.1 200 \r\n\r\n",
    "a lone CR": b"HTTP/1.1 200 OK\r\nA: b\rc\r\r\n\r\n",
}


@pytest.mark.parametrize("head", HEADS)
def test_heads_and_where_they_end(head: str) -> None:
    data = HEADS[head]
    script = {"request": REQUEST}
    expected = play(Client(), [data], script)
    assert (expected.heard, expected.state) == ([Reply(0)], "relay")
    for place in range(len(data)):
        assert play(Client(), [data[:place], data[place:]], script) == expected
    exact, wire = Client(), Wire(data + b"\n\n\r\n")
    assert play(exact, wire.exact_reads(exact), script) == expected
    assert (exact.trailing, wire.unread) == (b"", b"\n\n\r\n")


def test_a_conversation() -> None:
    asked = b"CONNECT 192.0.2.7:443 HTTP/1.1\r\nHost: 192.0.2.7:443\r\n\r\n".hex()
    answer = b"HTTP/1.1 403 No\r\n\r\n".hex()
    client = Client()
    as_client(client, ((">>", asked, REQUEST), ("<<", answer, Reply(ReplyCode.NOT_ALLOWED))))
    assert client.state == "closed"


FAULTS = {
    b"\5": "not one of HTTP/1",
    b"SSH-2.0-OpenSSH\r\n": "not one of HTTP/1",
    b"HTTP/2": "not one of HTTP/1",
    b"HTTP/1.1  200": "not one of HTTP/1",
    b"HTTP/1.x": "not one of HTTP/1",
    b"HTTP/1.1 20x": "not one of HTTP/1",
    b"HTTP/1.1 2000": "not one of HTTP/1",
    b"HTTP/1.1 200\t": "not one of HTTP/1",
    b"\r\nHTTP/1.1 200": "not one of HTTP/1",
    b"HTTP/1.1 101 \r\n\r\n": "has status 101",
    b"HTTP/1.1 099 \r\n\r\n": "has status 099",
    b"HTTP/1.1 600 \r\n\r\n": "has status 600",
    b"HTTP/1.1 200 " + bytes(LONGEST_HEAD): "longer than 16384 bytes",
    b"HTTP/1.1 100 \n\n" * 2000: "longer than 16384 bytes",
}


@pytest.mark.parametrize("data", FAULTS, ids=lambda data: str(data[:20]))
def test_faults(data: bytes) -> None:
    for chunks in ([data], [bytes((one,)) for one in data]):
        outcome = play(Client(), chunks, {"request": REQUEST})
        assert outcome.problem is not None
        assert FAULTS[data] in outcome.problem[0]
        assert (outcome.heard, outcome.state) == ([], "closed")


@pytest.mark.parametrize(("more", "is_too_long"), [(0, False), (1, True)])
def test_the_longest_head(more: int, is_too_long: bool) -> None:
    start = b"HTTP/1.1 200 "
    data = start + b"x" * (LONGEST_HEAD - len(start) - 4 + more) + b"\r\n\r\n"
    for cut in (len(data), LONGEST_HEAD - 1, LONGEST_HEAD - 4, 100):
        client = answered(data[:cut])
        if cut < len(data):
            assert client.next_event() is None
        client.receive(data[cut:])
        if is_too_long:
            with pytest.raises(RemoteProtocolError, match="longer"):
                client.next_event()
        else:
            assert client.next_event() == Reply(0)
