"""SOCKS4 and 4A, byte for byte as Ying-Da Lee's two notes have them."""

import pytest
from playbook import Book, as_client, as_server

from muonsocks.address import Endpoint
from muonsocks.errors import LocalProtocolError, RemoteProtocolError
from muonsocks.socks.request import UNSPECIFIED, Command, Reply, ReplyCode, Request
from muonsocks.socks.socks4 import Client, Server, encode_reply

FRED = "46 72 65 64"
NAME = "65 78 61 6d 70 6c 65 2e 74 65 73 74"  # example.test
V4, V4_AGAIN = Endpoint("66.102.7.99", 80), Endpoint("192.0.2.7", 4096)
V6 = Endpoint("2001:db8::7", 8080)
CONNECT, BIND = Command.CONNECT, Command.BIND
GENERAL, REFUSED = ReplyCode.GENERAL_FAILURE, ReplyCode.NOT_ALLOWED
REJECTED = bytes.fromhex("00 5b 0000 00000000")

BOOKS: dict[str, tuple[str, Book]] = {
    "connect": (
        "relay",
        (
            (">>", f"04 01 0050 42660763 {FRED} 00", Request(CONNECT, V4, b"Fred")),
            ("<<", "00 5a 0000 00000000", Reply(0)),
        ),
    ),
    "connect with a bound address": (
        "relay",
        (
            (">>", "04 01 0050 42660763 00", Request(CONNECT, V4)),
            ("<<", "00 5a 1000 c0000207", Reply(0, V4_AGAIN)),
        ),
    ),
    "connect to a name": (
        "relay",
        (
            (
                ">>",
                f"04 01 0050 00000001 {FRED} 00 {NAME} 00",
                Request(CONNECT, Endpoint("example.test", 80), b"Fred"),
            ),
            ("<<", "00 5a 0000 00000000", Reply(0)),
        ),
    ),
    "connect to a name, no user id": (
        "closed",
        (
            (
                ">>",
                f"04 01 ffff 00000001 00 {NAME} 00",
                Request(CONNECT, Endpoint("example.test", 65535)),
            ),
            ("<<", "00 5b 0000 00000000", Reply(GENERAL)),
        ),
    ),
    "bind": (
        "relay",
        (
            (">>", f"04 02 0050 42660763 {FRED} 00", Request(BIND, V4, b"Fred")),
            ("<<", "00 5a 1000 c0000207", Reply(0, V4_AGAIN)),
            ("<<", "00 5a 0050 42660763", Reply(0, V4)),
        ),
    ),
    "bind, and nobody comes": (
        "closed",
        (
            (">>", "04 02 0050 42660763 00", Request(BIND, V4)),
            ("<<", "00 5a 1000 c0000207", Reply(0, V4_AGAIN)),
            ("<<", "00 5b 0000 00000000", Reply(GENERAL)),
        ),
    ),
    "the user id is refused": (
        "closed",
        (
            (">>", f"04 01 0050 42660763 {FRED} 00", Request(CONNECT, V4, b"Fred")),
            ("<<", "00 5d 0000 00000000", Reply(ReplyCode.IDENTITY_REFUSED)),
        ),
    ),
    "the unspecified address is no name": (
        "relay",
        (
            (">>", "04 01 0050 00000000 00", Request(CONNECT, Endpoint("0.0.0.0", 80))),
            ("<<", "00 5a 0000 00000000", Reply(0)),
        ),
    ),
    "any command is passed on": (
        "closed",
        (
            (">>", "04 00 0000 42660763 00", Request(0, Endpoint("66.102.7.99", 0))),
            ("<<", "00 5b 0000 00000000", Reply(ReplyCode.COMMAND_NOT_SUPPORTED)),
        ),
    ),
}
each_book = pytest.mark.parametrize(("end", "book"), BOOKS.values(), ids=BOOKS)


@each_book
def test_server(end: str, book: Book) -> None:
    server = Server()
    as_server(server, book)
    assert server.state == end


@each_book
def test_client(end: str, book: Book) -> None:
    # A client is told less than the server says: only 0x5d is no general failure.
    told = {ReplyCode.COMMAND_NOT_SUPPORTED: GENERAL, ReplyCode.IDENTITY_REFUSED: REFUSED}
    client = Client()
    as_client(
        client,
        tuple(
            (way, digits, Reply(told.get(event.code, event.code), event.bound))
            if isinstance(event, Reply)
            else (way, digits, event)
            for way, digits, event in book
        ),
    )
    assert client.state == end


# The server's side


@pytest.mark.parametrize(
    ("digits", "destination", "version"),
    [
        ("04 01 0050 7f000001 00", Endpoint("127.0.0.1", 80), "4"),
        ("04 01 0050 00000100 00", Endpoint("0.0.1.0", 80), "4"),
        ("04 01 0050 00000001 00 61 00", Endpoint("a", 80), "4a"),
        ("04 01 0050 000000ff 00 61 00", Endpoint("a", 80), "4a"),
        ("04 01 0050 00000001 00 31322e332e342e35 00", Endpoint("12.3.4.5", 80), "4a"),
        ("04 01 0050 00000001 00 3a3a31 00", Endpoint("::1", 80), "4a"),
        ("04 01 0050 00000001 00 3a3a666666663a312e322e332e34 00", Endpoint("1.2.3.4", 80), "4a"),
        ("04 01 0050 00000001 00 3132372e31 00", Endpoint("127.1", 80), "4a"),
    ],
)
def test_destinations(digits: str, destination: Endpoint, version: str) -> None:
    """A name that is an address in full is that address; `127.1` is a name like any other."""
    server = Server()
    assert server.version == "4"
    server.receive(bytes.fromhex(digits) + b"behind")
    request = server.next_event()
    assert isinstance(request, Request)
    assert request.destination == destination
    assert request.destination.packed == destination.packed
    assert (server.version, server.trailing) == (version, b"behind")


HEAD, HEAD_4A = "04 01 0050 7f000001", "04 01 0050 00000001 00"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (f"{HEAD_4A} 00", "no valid name"),
        (f"{HEAD_4A} 61 20 62 00", "no valid name"),
        (f"{HEAD_4A} 61 0a 00", "no valid name"),
        (f"{HEAD_4A} 6d fc 6e 63 68 65 6e 00", "no valid name"),
        (f"{HEAD_4A} 7f 00", "no valid name"),
        (HEAD_4A + "61" * 256, "the name is longer than 255 bytes"),
        (HEAD_4A + "61" * 256 + "00", "the name is longer than 255 bytes"),
        (HEAD + "61" * 256, "the user id is longer than 255 bytes"),
        (HEAD + "61" * 256 + "00", "the user id is longer than 255 bytes"),
    ],
)
def test_a_bad_request_is_rejected(data: str, problem: str) -> None:
    server = Server()
    server.receive(bytes.fromhex(data))
    with pytest.raises(RemoteProtocolError, match=problem) as caught:
        server.next_event()
    assert (caught.value.reply, caught.value.code) == (REJECTED, GENERAL)
    assert (server.state, server.next_event(), server.wants) == ("closed", None, 0)


def test_another_version_earns_no_reply() -> None:
    server = Server()
    server.receive(b"\5\1\0")
    with pytest.raises(RemoteProtocolError, match="the request has version 5, not 4") as caught:
        server.next_event()
    assert (caught.value.reply, caught.value.code) == (b"", None)
    assert server.state == "closed"


def test_the_longest_texts_are_taken() -> None:
    server = Server()
    server.receive(bytes.fromhex("04 01 0050 00000001") + b"u" * 255 + b"\0" + b"n" * 255 + b"\0")
    assert server.next_event() == Request(CONNECT, Endpoint("n" * 255, 80), b"u" * 255)


def test_wants() -> None:
    """All of the fixed part and a NUL; what has no length comes in single bytes."""
    server = Server()
    seen = []
    for one in bytes.fromhex(f"{HEAD_4A} 61 62 00"):
        seen.append(server.wants)
        server.receive(bytes((one,)))
        server.next_event()
    assert seen == [9, 8, 7, 6, 5, 4, 3, 2, 1, 1, 1, 1]
    assert server.wants == 0


@pytest.mark.parametrize(
    ("code", "bound", "digits"),
    [
        (ReplyCode.SUCCEEDED, UNSPECIFIED, "00 5a 0000 00000000"),
        (ReplyCode.SUCCEEDED, V4_AGAIN, "00 5a 1000 c0000207"),
        (ReplyCode.SUCCEEDED, Endpoint("::ffff:192.0.2.7", 4096), "00 5a 1000 c0000207"),
        (ReplyCode.SUCCEEDED, V6, "00 5a 0000 00000000"),
        (ReplyCode.SUCCEEDED, Endpoint("a.test", 80), "00 5a 0000 00000000"),
        *((code, UNSPECIFIED, "00 5b 0000 00000000") for code in range(1, 9)),
        (ReplyCode.IDENTITY_REFUSED, UNSPECIFIED, "00 5d 0000 00000000"),
        (0x5A, UNSPECIFIED, "00 5b 0000 00000000"),
        (0xFF, UNSPECIFIED, "00 5b 0000 00000000"),
    ],
)
def test_replies(code: int, bound: Endpoint, digits: str) -> None:
    """IPv6 has no place in a reply: zeros. Of the failures only 0x5d is told apart."""
    assert encode_reply(code, bound) == bytes.fromhex(digits)
    assert Server("answer").send(Reply(code, bound)) == bytes.fromhex(digits)


def test_only_the_answer_is_owed() -> None:
    """A machine that another program goes on with, its request read already."""
    server = Server("answer")
    assert server.wants == 0
    assert server.send(Reply(0)) == encode_reply(0)
    assert server.state == "relay"


# The client's side


def asked(command: int = CONNECT) -> Client:
    client = Client()
    client.send(Request(command, V4))
    return client


@pytest.mark.parametrize(
    ("digits", "reply", "state"),
    [
        ("00 5a 1000 c0000207", Reply(0, V4_AGAIN), "relay"),
        ("00 5b 0000 00000000", Reply(GENERAL), "closed"),
        ("00 5c 0000 00000000", Reply(REFUSED), "closed"),
        ("00 5d 1000 c0000207", Reply(REFUSED, V4_AGAIN), "closed"),
        ("00 00 0000 00000000", Reply(GENERAL), "closed"),
        ("00 59 0000 00000000", Reply(GENERAL), "closed"),
        ("00 5e 0000 00000000", Reply(GENERAL), "closed"),
    ],
)
def test_client_hears(digits: str, reply: Reply, state: str) -> None:
    client = asked()
    client.receive(bytes.fromhex(digits) + b"behind")
    assert client.next_event() == reply
    assert (client.state, client.trailing, client.wants) == (state, b"behind", 0)


def test_client_hears_another_version() -> None:
    client = asked()
    client.receive(b"\5")
    with pytest.raises(RemoteProtocolError, match="the reply has version 5, not 0") as caught:
        client.next_event()
    assert (caught.value.reply, client.state) == (b"", "closed")


def test_client_hears_two_replies_at_once() -> None:
    client = asked(BIND)
    assert client.wants == 8
    client.receive(bytes.fromhex("00 5a 1000 c0000207 00 5a 0050 42660763") + b"behind")
    assert client.next_event() == Reply(0, V4_AGAIN)
    assert client.state == "answer"
    assert client.next_event() == Reply(0, V4)
    assert (client.state, client.trailing) == ("relay", b"behind")


@pytest.mark.parametrize(
    "request_",
    [
        Request(CONNECT, V6),
        Request(CONNECT, Endpoint("0.0.0.1", 80)),
        Request(CONNECT, Endpoint("0.0.0.255", 80)),
        Request(CONNECT, Endpoint("", 80)),
        Request(CONNECT, Endpoint("a b", 80)),
        Request(CONNECT, Endpoint("n" * 256, 80)),
        Request(CONNECT, Endpoint("münchen", 80)),
        Request(CONNECT, V4, b"u" * 256),
        Request(CONNECT, V4, b"a\0b"),
    ],
)
def test_client_cannot_say(request_: Request) -> None:
    """What SOCKS4 has no way to say is our own fault, and leaves us free to say another thing."""
    client = Client()
    with pytest.raises(LocalProtocolError):
        client.send(request_)
    assert client.state == "request"
    client.send(Request(CONNECT, V4, b"u" * 255))
    assert client.state == "answer"
