"""SOCKS5, byte for byte as RFC 1928 and RFC 1929 have it."""

import pytest
from playbook import Book, as_client, as_server

from muonsocks.address import Endpoint
from muonsocks.errors import LocalProtocolError, RemoteProtocolError
from muonsocks.socks.request import (
    UNSPECIFIED,
    Command,
    Credentials,
    CredentialsVerdict,
    Event,
    Method,
    MethodChoice,
    MethodOffer,
    Reply,
    ReplyCode,
    Request,
)
from muonsocks.socks.socks5 import Client, Server, encode_reply

V4, V6 = Endpoint("192.0.2.7", 80), Endpoint("2001:db8::7", 8080)
NAME = Endpoint("example.test", 443)
IN_V4 = "01 c0000207 0050"
IN_V6 = "04 20010db8000000000000000000000007 1f90"
IN_NAME = "03 0c 6578616d706c652e74657374 01bb"
ZEROS = "01 00000000 0000"
CONNECT, BIND, ASSOCIATE = Command.CONNECT, Command.BIND, Command.ASSOCIATE

# The beginnings, RFC 1928 section 3 and RFC 1929 section 2
NONE: Book = (
    (">>", "05 01 00", MethodOffer(b"\0")),
    ("<<", "05 00", MethodChoice(Method.NONE)),
)
CHOOSE_PASSWORD: Book = (
    (">>", "05 02 00 02", MethodOffer(b"\0\2")),
    ("<<", "05 02", MethodChoice(Method.PASSWORD)),
)
PASSWORD: Book = (
    *CHOOSE_PASSWORD,
    (">>", "01 05 616c696365 06 736563726574", Credentials(b"alice", b"secret")),
    ("<<", "01 00", CredentialsVerdict(True)),
)

BOOKS: dict[str, tuple[str, Book]] = {
    "no method is acceptable": (
        "closed",
        (
            (">>", "05 01 01", MethodOffer(b"\1")),
            ("<<", "05 ff", MethodChoice(Method.NO_ACCEPTABLE)),
        ),
    ),
    "methods in any order, and twice": (
        "request",
        (
            (">>", "05 05 80 00 02 00 01", MethodOffer(b"\x80\0\2\0\1")),
            ("<<", "05 00", MethodChoice(Method.NONE)),
        ),
    ),
    "the password is wrong": (
        "closed",
        (
            *CHOOSE_PASSWORD,
            (">>", "01 01 75 01 70", Credentials(b"u", b"p")),
            ("<<", "01 01", CredentialsVerdict(False)),
        ),
    ),
    "neither user nor password": (
        "request",
        (
            *CHOOSE_PASSWORD,
            (">>", "01 00 00", Credentials(b"", b"")),
            ("<<", "01 00", CredentialsVerdict(True)),
        ),
    ),
    "any bytes in user and password": (
        "request",
        (
            *CHOOSE_PASSWORD,
            (">>", "01 03 ff003a 02 0d0a", Credentials(b"\xff\0:", b"\r\n")),
            ("<<", "01 00", CredentialsVerdict(True)),
        ),
    ),
    "connect over IPv4": (
        "relay",
        (
            *NONE,
            (">>", f"05 01 00 {IN_V4}", Request(CONNECT, V4)),
            ("<<", f"05 00 00 {IN_V4}", Reply(0, V4)),
        ),
    ),
    "connect over IPv6, with a password": (
        "relay",
        (
            *PASSWORD,
            (">>", f"05 01 00 {IN_V6}", Request(CONNECT, V6)),
            ("<<", f"05 00 00 {IN_V6}", Reply(0, V6)),
        ),
    ),
    "connect to a name": (
        "relay",
        (
            *NONE,
            (">>", f"05 01 00 {IN_NAME}", Request(CONNECT, NAME)),
            ("<<", f"05 00 00 {IN_NAME}", Reply(0, NAME)),
        ),
    ),
    "bind": (
        "relay",
        (
            *NONE,
            (">>", f"05 02 00 {IN_V4}", Request(BIND, V4)),
            ("<<", f"05 00 00 {IN_V6}", Reply(0, V6)),
            ("<<", f"05 00 00 {IN_V4}", Reply(0, V4)),
        ),
    ),
    "bind, and nobody comes": (
        "closed",
        (
            *NONE,
            (">>", f"05 02 00 {IN_V4}", Request(BIND, V4)),
            ("<<", f"05 00 00 {IN_V4}", Reply(0, V4)),
            ("<<", f"05 06 00 {ZEROS}", Reply(ReplyCode.TTL_EXPIRED)),
        ),
    ),
    "bind is refused": (
        "closed",
        (
            *NONE,
            (">>", f"05 02 00 {IN_V4}", Request(BIND, V4)),
            ("<<", f"05 07 00 {ZEROS}", Reply(ReplyCode.COMMAND_NOT_SUPPORTED)),
        ),
    ),
    "associate": (
        "relay",
        (
            *NONE,
            (">>", f"05 03 00 {ZEROS}", Request(ASSOCIATE, UNSPECIFIED)),
            ("<<", f"05 00 00 {IN_V4}", Reply(0, V4)),
        ),
    ),
    "any command is passed on": (
        "closed",
        (
            *NONE,
            (">>", f"05 f0 00 {IN_V4}", Request(0xF0, V4)),
            ("<<", f"05 07 00 {ZEROS}", Reply(ReplyCode.COMMAND_NOT_SUPPORTED)),
        ),
    ),
    **{
        f"failure {code}": (
            "closed",
            (
                *NONE,
                (">>", f"05 01 00 {IN_V4}", Request(CONNECT, V4)),
                ("<<", f"05 {code:02x} 00 {ZEROS}", Reply(code)),
            ),
        )
        for code in range(1, 10)
    },
}
each_book = pytest.mark.parametrize(("end", "book"), BOOKS.values(), ids=BOOKS)


@each_book
def test_server(end: str, book: Book) -> None:
    server = Server()
    as_server(server, book)
    assert (server.state, server.version) == (end, "5")


@each_book
def test_client(end: str, book: Book) -> None:
    client = Client()
    as_client(client, book)
    assert client.state == end


# The server's side


def server_in(book: Book) -> Server:
    server = Server()
    as_server(server, book)
    return server


def hears(server: Server | Client, digits: str) -> Event | None:
    server.receive(bytes.fromhex(digits))
    return server.next_event()


def test_an_empty_offer_is_an_offer() -> None:
    server = Server()
    assert hears(server, "05 00") == MethodOffer(b"")
    assert server.send(MethodChoice(Method.NO_ACCEPTABLE)) == b"\5\xff"
    assert server.state == "closed"


def test_the_longest_offer() -> None:
    server = Server()
    assert hears(server, "05 ff" + "01" * 254 + "00") == MethodOffer(b"\1" * 254 + b"\0")


def test_reserved_byte_is_not_looked_at() -> None:
    assert hears(server_in(NONE), f"05 01 ff {IN_V4}") == Request(CONNECT, V4)


@pytest.mark.parametrize(
    ("digits", "destination"),
    [
        ("03 08 31322e332e342e35", Endpoint("12.3.4.5", 80)),
        ("03 03 3a3a31", Endpoint("::1", 80)),
        ("03 0e 3a3a666666663a312e322e332e34", Endpoint("1.2.3.4", 80)),
        ("04 00000000000000000000ffff01020304", Endpoint("1.2.3.4", 80)),
        ("03 05 3132372e31", Endpoint("127.1", 80)),
        ("03 06 307837662e31", Endpoint("0x7f.1", 80)),
        ("03 01 61", Endpoint("a", 80)),
    ],
)
def test_destinations(digits: str, destination: Endpoint) -> None:
    """A name that is an address in full is that address, and an IPv4-mapped one is IPv4."""
    request = hears(server_in(NONE), f"05 01 00 {digits} 0050")
    assert request == Request(CONNECT, destination)
    assert isinstance(request, Request)
    assert request.destination.packed == destination.packed


def failure(code: int) -> bytes:
    return bytes.fromhex(f"05 {code:02x} 00 {ZEROS}")


UNSUPPORTED = failure(ReplyCode.ADDRESS_TYPE_NOT_SUPPORTED)
UNREACHABLE = failure(ReplyCode.HOST_UNREACHABLE)

# Where, what comes, what is said of it; the reply that it has earned and the code in it.
BAD: tuple[tuple[Book, str, str, bytes, int | None], ...] = (
    ((), "04", "the greeting has version 4, not 5", b"", None),
    ((), "00", "the greeting has version 0, not 5", b"", None),
    (CHOOSE_PASSWORD, "05", "user and password message has version 5, not 1", b"\1\1", None),
    (NONE, "05 01 00 00", "has address type 0", UNSUPPORTED, 8),
    (NONE, "05 01 00 02", "has address type 2", UNSUPPORTED, 8),
    (NONE, "05 01 00 05", "has address type 5", UNSUPPORTED, 8),
    (NONE, "05 01 00 ff", "has address type 255", UNSUPPORTED, 8),
    (NONE, "05 01 00 03 00 0050", "no valid name", UNREACHABLE, 4),
    (NONE, "05 01 00 03 03 612062 0050", "no valid name", UNREACHABLE, 4),
    (NONE, "05 01 00 03 03 610062 0050", "no valid name", UNREACHABLE, 4),
    (NONE, "05 01 00 03 02 610a 0050", "no valid name", UNREACHABLE, 4),
    (NONE, "05 01 00 03 01 7f 0050", "no valid name", UNREACHABLE, 4),
    (NONE, "05 01 00 03 07 6dfc6e6368656e 0050", "no valid name", UNREACHABLE, 4),
)


@pytest.mark.parametrize(("book", "digits", "problem", "reply", "code"), BAD)
def test_what_a_bad_client_earns(
    book: Book, digits: str, problem: str, reply: bytes, code: int | None
) -> None:
    server = server_in(book)
    with pytest.raises(RemoteProtocolError, match=problem) as caught:
        hears(server, digits)
    assert (caught.value.reply, caught.value.code) == (reply, code)
    assert (server.state, server.next_event(), server.wants) == ("closed", None, 0)


def test_what_a_request_of_another_version_earns() -> None:
    server = server_in(NONE)
    with pytest.raises(RemoteProtocolError, match="the request has version 4, not 5") as caught:
        hears(server, "04")
    assert caught.value.reply == failure(ReplyCode.GENERAL_FAILURE)
    assert server.state == "closed"


def test_the_code_of_a_request_of_another_version() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        hears(server_in(NONE), "04")
    assert caught.value.code == ReplyCode.GENERAL_FAILURE


@pytest.mark.parametrize(
    ("book", "digits", "wanted"),
    [
        ((), "05 03 00 01 02", [2, 1, 3, 2, 1]),
        ((), "05 00", [2, 1]),
        (CHOOSE_PASSWORD, "01 02 7575 01 70", [3, 2, 3, 2, 1, 1]),
        (CHOOSE_PASSWORD, "01 00 00", [3, 2, 1]),
        (NONE, f"05 01 00 {IN_V4}", [4, 3, 2, 1, 6, 5, 4, 3, 2, 1]),
        (NONE, f"05 01 00 {IN_V6}", [4, 3, 2, 1, *range(18, 0, -1)]),
        (NONE, "05 01 00 03 02 6161 0050", [4, 3, 2, 1, 3, 4, 3, 2, 1]),
    ],
)
def test_wants(book: Book, digits: str, wanted: list[int]) -> None:
    """Before each byte, how many are sure to come."""
    server = server_in(book)
    seen = []
    for one in bytes.fromhex(digits):
        seen.append(server.wants)
        server.receive(bytes((one,)))
        if server.wants:
            assert server.next_event() is None
    assert seen == wanted
    assert server.next_event() is not None
    assert server.wants == 0


def test_nothing_is_wanted_behind_an_unknown_address_type() -> None:
    for machine in (server_in(NONE), asked()):
        machine.receive(bytes.fromhex("05 01 00 02"))
        assert machine.wants == 0


def test_everything_at_once() -> None:
    """A client need not wait for us: each message is heard once it is its turn."""
    server = Server()
    server.receive(bytes.fromhex(f"05 01 02 01 01 75 01 70 05 01 00 {IN_V4}") + b"GET /")
    for heard, said in (
        (MethodOffer(b"\2"), MethodChoice(Method.PASSWORD)),
        (Credentials(b"u", b"p"), CredentialsVerdict(True)),
        (Request(CONNECT, V4), Reply(0, V4)),
    ):
        assert server.next_event() == heard
        assert (server.next_event(), server.wants) == (None, 0)
        server.send(said)
    assert (server.state, server.trailing) == ("relay", b"GET /")


@pytest.mark.parametrize(
    ("code", "bound", "digits"),
    [
        (0, UNSPECIFIED, f"05 00 00 {ZEROS}"),
        (0, V4, f"05 00 00 {IN_V4}"),
        (0, V6, f"05 00 00 {IN_V6}"),
        (0, NAME, f"05 00 00 {IN_NAME}"),
        (0, Endpoint("::ffff:192.0.2.7", 80), f"05 00 00 {IN_V4}"),
        *((code, UNSPECIFIED, f"05 {code:02x} 00 {ZEROS}") for code in range(1, 9)),
    ],
)
def test_replies(code: int, bound: Endpoint, digits: str) -> None:
    assert encode_reply(code, bound) == bytes.fromhex(digits)
    assert Server("answer").send(Reply(code, bound)) == bytes.fromhex(digits)


def test_socks4_code_has_no_place_in_a_reply() -> None:
    reply = encode_reply(ReplyCode.IDENTITY_REFUSED)
    assert reply == encode_reply(ReplyCode.NOT_ALLOWED)


def test_only_the_answer_is_owed() -> None:
    """A machine that another program goes on with, its request read already."""
    server = Server("answer")
    assert server.wants == 0
    server.send(Reply(0))
    assert server.state == "relay"


# The client's side


def client_in(book: Book) -> Client:
    client = Client()
    as_client(client, book)
    return client


def asked(command: int = CONNECT) -> Client:
    client = client_in(NONE)
    client.send(Request(command, NAME))
    return client


@pytest.mark.parametrize(
    ("offered", "digits", "state"),
    [
        (b"\0", "05 00", "request"),
        (b"\0\2", "05 02", "credentials"),
        (b"\2\0", "05 00", "request"),
        (b"\0\2", "05 ff", "closed"),
        (b"\0\x80", "05 80", "request"),  # what such a method has to say is not this machine's
    ],
)
def test_client_hears_the_choice(offered: bytes, digits: str, state: str) -> None:
    client = Client()
    client.send(MethodOffer(offered))
    assert hears(client, digits) == MethodChoice(bytes.fromhex(digits)[1])
    assert client.state == state


@pytest.mark.parametrize("status", [1, 2, 0xFF])
def test_client_hears_any_status_but_0_as_a_refusal(status: int) -> None:
    client = client_in(PASSWORD[:3])
    assert hears(client, f"01 {status:02x}") == CredentialsVerdict(False)
    assert client.state == "closed"


@pytest.mark.parametrize(
    ("digits", "reply", "state"),
    [
        (f"05 00 00 {IN_V4}", Reply(0, V4), "relay"),
        (f"05 00 ff {IN_V6}", Reply(0, V6), "relay"),
        (f"05 00 00 {IN_NAME}", Reply(0, NAME), "relay"),
        (f"05 05 00 {IN_NAME}", Reply(5, NAME), "closed"),
        ("05 01 00 03 00 0000", Reply(1), "closed"),
        ("05 01 00 03 01 20 0050", Reply(1), "closed"),
        (f"05 99 00 {ZEROS}", Reply(0x99), "closed"),
    ],
)
def test_client_hears_the_reply(digits: str, reply: Reply, state: str) -> None:
    client = asked()
    client.receive(bytes.fromhex(digits) + b"behind")
    assert client.next_event() == reply
    assert (client.state, client.trailing, client.wants) == (state, b"behind", 0)


@pytest.mark.parametrize(
    ("book", "ours", "digits", "problem"),
    [
        ((), MethodOffer(b"\0"), "04", "the server's choice of method has version 4, not 5"),
        ((), MethodOffer(b"\0"), "05 02", "the server chose method 2, which was not offered"),
        ((), MethodOffer(b"\2\1"), "05 00", "the server chose method 0, which was not offered"),
        (CHOOSE_PASSWORD, Credentials(b"", b""), "05", "verdict on the password has version 5"),
        (NONE, Request(CONNECT, V4), "04", "the reply has version 4, not 5"),
        (NONE, Request(CONNECT, V4), "05 00 00 02", "the reply has address type 2"),
        (NONE, Request(CONNECT, V4), "05 01 00 00", "the reply has address type 0"),
        (NONE, Request(CONNECT, V4), "05 00 00 03 00 0050", "no valid bound address"),
        (NONE, Request(CONNECT, V4), "05 00 00 03 01 80 0050", "no valid bound address"),
    ],
)
def test_a_bad_server(book: Book, ours: Event, digits: str, problem: str) -> None:
    client = client_in(book)
    client.send(ours)
    with pytest.raises(RemoteProtocolError, match=problem) as caught:
        hears(client, digits)
    assert (caught.value.reply, caught.value.code) == (b"", None)
    assert (client.state, client.next_event(), client.wants) == ("closed", None, 0)


def test_client_hears_two_replies_at_once() -> None:
    client = asked(BIND)
    client.receive(bytes.fromhex(f"05 00 00 {IN_V6} 05 00 00 {IN_V4}") + b"behind")
    assert client.next_event() == Reply(0, V6)
    assert client.state == "reply"
    assert client.next_event() == Reply(0, V4)
    assert (client.state, client.trailing) == ("relay", b"behind")


@pytest.mark.parametrize(
    ("book", "event", "right"),
    [
        ((), MethodOffer(b""), MethodOffer(b"\0")),
        ((), MethodOffer(bytes(256)), MethodOffer(bytes(255))),
        (CHOOSE_PASSWORD, Credentials(b"u" * 256, b""), Credentials(b"u" * 255, b"")),
        (CHOOSE_PASSWORD, Credentials(b"", b"p" * 256), Credentials(b"", b"p" * 255)),
        (NONE, Request(CONNECT, Endpoint("", 1)), Request(CONNECT, V4)),
        (NONE, Request(CONNECT, Endpoint("a b", 1)), Request(CONNECT, V4)),
        (NONE, Request(CONNECT, Endpoint("n" * 256, 1)), Request(CONNECT, Endpoint("n" * 255, 1))),
    ],
)
def test_client_cannot_say(book: Book, event: Event, right: Event) -> None:
    """What SOCKS5 has no way to say is our own fault, and leaves us free to say another thing."""
    client = client_in(book)
    state = client.state
    with pytest.raises(LocalProtocolError):
        client.send(event)
    assert client.state == state
    client.send(right)
    assert client.state != state


def test_server_cannot_say() -> None:
    server = Server("answer")
    with pytest.raises(LocalProtocolError):
        server.send(Reply(0, Endpoint("a b", 1)))
    assert server.state == "answer"
