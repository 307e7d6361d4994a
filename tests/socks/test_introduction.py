"""Who the client is, said by PROXY headers, to us and by us; as playbooks (play.py)."""

import socket

import pytest
from ends import no_garbage
from play import ANYONE, Play, stream_pair
from programs import GREETING, read_all, socks5

from muonsocks.address import Endpoint, parse_networks
from muonsocks.log import DEBUG, INFO
from muonsocks.net.dial import Dialler
from muonsocks.net.inherit import Peer
from muonsocks.net.stream import Stream
from muonsocks.socks.auth_once import AuthOnce
from muonsocks.socks.introduction import introduce
from muonsocks.socks.policy import Access, Front, Limits
from muonsocks.socks.proxy_header import version_1, version_2
from muonsocks.socks.users import parse_users

OPTIONAL, REQUIRED = Front(False), Front(True)
CLIENT, BALANCER = Endpoint("203.0.113.7", 4711), Endpoint("192.0.2.1", 1080)
CLIENT_6 = Endpoint("2001:db8::7", 4711)
USERS = parse_users(b"alice:secret\n", "users")


def header(data: bytes) -> str:
    return f">> {data.hex()}\n"


def from_client(client: Endpoint = CLIENT) -> str:
    return header(version_2(client, BALANCER))


LOCAL = header(bytes.fromhex("0d0a0d0a000d0a515549540a 20000000"))


def perform(book: str, front: Front | None, sends: bool = False, **play: object) -> Play:
    performed = Play(**play)  # type: ignore[arg-type]
    performed.session.policy.front = front
    performed.session.policy.sends_proxy_header = sends
    performed.perform(book)
    return performed


# Who it is


@pytest.mark.parametrize("front", [OPTIONAL, REQUIRED], ids=["optional", "required"])
@pytest.mark.parametrize("version", [version_1, version_2])
@pytest.mark.parametrize("book", ["SOCKS5, all at once", "SOCKS5, byte by byte", "SOCKS4"])
def test_whom_a_header_names(book: str, version: object, front: Front) -> None:
    """All that is logged of the connection names the client, not who is in front of us."""
    data = version(CLIENT, BALANCER)  # type: ignore[operator]
    played = perform(header(data) + ANYONE[book], front)
    assert all(" client=203.0.113.7:4711 " in line for line in played.log.lines)


@pytest.mark.parametrize("version", [version_1, version_2])
def test_a_header_in_one_piece_with_all_else(version: object) -> None:
    data = version(CLIENT_6, BALANCER)  # type: ignore[operator]
    first, rest = ANYONE["SOCKS5, all at once"].strip().split("\n", 1)
    book = f">> {data.hex()} {first.strip()[2:]}\n{rest}"
    played = perform(book, REQUIRED)
    assert " client=[2001:db8::7]:4711 " in played.log.lines[-1]


@pytest.mark.parametrize("place", range(1, 28))
def test_a_header_in_two_pieces(place: int) -> None:
    data = version_2(CLIENT, BALANCER)
    book = header(data[:place]) + "wait 0.005\n" + header(data[place:] + GREETING)
    book += "<< 05 00\n>> end\nlog client=203.0.113.7:4711 end=client-left"
    perform(book, REQUIRED)


@pytest.mark.parametrize("book", ANYONE)
def test_without_a_header(book: str) -> None:
    """Who need not send one is who it is, and is served as ever."""
    perform(ANYONE[book], OPTIONAL)


@pytest.mark.parametrize(
    ("data", "client"),
    [
        (b"PROXY UNKNOWN\r\n", "192.0.2.9:999"),
        (version_2(None, None), "192.0.2.9:999"),
        (bytes.fromhex("0d0a0d0a000d0a515549540a 2112000c") + bytes(12), "192.0.2.9:999"),
        (bytes.fromhex("0d0a0d0a000d0a515549540a 213100d8") + bytes(216), "unix"),
    ],
)
def test_a_client_without_an_address(data: bytes, client: str) -> None:
    book = header(data) + ANYONE["SOCKS4"].replace("user=me", f"user=me client={client}")
    perform(book, REQUIRED)


def test_trust_goes_by_the_client() -> None:
    access = Access(USERS, parse_networks("203.0.113.0/24"))
    good = f"{from_client()}>> 05 01 00\n<< 05 00\n>> end\nlog end=client-left"
    perform(good, REQUIRED, access=access)
    refused = "<< 05 ff\n<< end\n>> end\nlog end=no-acceptable-method"
    other = from_client(Endpoint("198.51.100.1", 1))
    perform(f"{other}>> 05 01 00\n{refused}", REQUIRED, access=access)
    front = Access(USERS, parse_networks("192.0.2.9"))
    perform(f"{from_client()}>> 05 01 00\n{refused}", REQUIRED, access=front)


def test_who_has_authenticated_is_the_client(tmp_path: object) -> None:
    """Not who is in front of us: there, others come from too."""
    access = Access(USERS, (), AuthOnce.at(str(tmp_path), 60))
    shown = f"{from_client()}>> 05 01 02 01 05 'alice' 06 'secret'\n<< 05 02 01 00\n>> end\n"
    perform(shown + "log end=client-left user=alice", REQUIRED, access=access)
    again = f"{from_client(Endpoint(CLIENT.host, 1))}>> 05 01 00\n<< 05 00\n>> end\n"
    perform(again + "log end=client-left", REQUIRED, access=access)
    other = f"{from_client(CLIENT_6)}>> 05 01 00\n<< 05 ff\n>> end\n"
    perform(other + "log end=no-acceptable-method", REQUIRED, access=access)
    assert access.auth_once is not None
    assert not access.auth_once.knows(b"\xc0\0\2\x09"), "that is who is in front of us"
    access.auth_once.close()


@pytest.mark.parametrize("nobody", [LOCAL, header(b"PROXY UNKNOWN\r\n")])
def test_who_has_authenticated_is_not_all_who_are_unknown(tmp_path: object, nobody: str) -> None:
    access = Access(USERS, (), AuthOnce.at(str(tmp_path), 60))
    shown = f"{nobody}>> 05 01 02 01 05 'alice' 06 'secret'\n<< 05 02 01 00\n>> end\n"
    perform(shown + "log end=client-left user=alice", REQUIRED, access=access)
    another = f"{nobody}>> 05 01 00\n<< 05 ff\n>> end\n"
    perform(another + "log end=no-acceptable-method", REQUIRED, access=access, level=DEBUG)
    assert access.auth_once is not None
    access.auth_once.close()


# Who may not say so


def test_who_must_send_a_header() -> None:
    book = "<< end\n>> end\nlog client=192.0.2.9:999 reply=- end=protocol-error 'detail=%s'"
    none = book % "no PROXY header"
    perform(">> 05 01 00\n" + none, REQUIRED)
    perform(">> 04 01 0050 c0000201 00\n" + none, REQUIRED)
    perform(">> 'POST / HTTP/1.0'\n" + none, REQUIRED)
    perform(">> 'PROXY UNKNOWN' 0a\n" + book % "a PROXY header has a CR or LF alone", REQUIRED)
    perform(">> 'PROX'\n>> end\n<< end\nlog reply=- end=client-left", REQUIRED)
    perform(">> 'HELO'\n<< end\n>> end\nlog end=protocol-error", OPTIONAL)


@pytest.mark.parametrize("data", [version_1(CLIENT, BALANCER), version_2(CLIENT, BALANCER)])
def test_whom_we_do_not_believe(data: bytes) -> None:
    """Without a header it is served where none is needed, and it is who it is."""
    refused = "<< end\n>> end\nlog client=192.0.2.9:999 end=client-refused "
    refused += "'detail=it may not send a PROXY header'"
    networks = parse_networks("192.0.2.8, 203.0.113.0/24")
    for is_required in (True, False):
        perform(header(data) + refused, Front(is_required, networks))
    perform(ANYONE["SOCKS5, all at once"], Front(False, networks))
    none = "<< end\n>> end\nlog end=protocol-error 'detail=no PROXY header'"
    perform(">> 05 01 00\n" + none, Front(True, networks))


def test_whom_we_believe() -> None:
    book = ANYONE["SOCKS4"].replace("user=me", "user=me client=203.0.113.7:4711")
    perform(from_client() + book, Front(True, parse_networks("192.0.2.8/31")))
    perform(from_client() + book, Front(True, parse_networks("::1")), peer=Peer("unix"))


def test_a_header_takes_its_time() -> None:
    limits = Limits(handshake=0.2)
    late = "<< end\nlog client=192.0.2.9:999 reply=- end=handshake-timeout"
    perform(">> 'PROXY TC'\nwait 0.1\n>> 'P4'\n" + late, REQUIRED, limits=limits)
    perform(late, OPTIONAL, limits=limits)
    late = late.replace("192.0.2.9:999", "203.0.113.7:4711")
    perform(f"{from_client()}wait 0.1\n>> 05 01\n" + late, REQUIRED, limits=limits)


# Health checks

LOOKS = {
    "nothing": LOCAL + ">> end\n<< end\nlog end=client-left",
    "nothing, by version 1": ">> 'PROXY UNKNOWN' 0d0a\n>> end\n<< end\nlog end=client-left",
    "a greeting": LOCAL + ">> 05 01 00\n<< 05 00\n>> end\nlog end=client-left",
}


@pytest.mark.parametrize("book", LOOKS)
def test_a_look_is_no_news(book: str) -> None:
    """But where all is told."""
    assert perform(LOOKS[book], REQUIRED).log.lines
    assert told_of(LOOKS[book].rpartition("log ")[0]) == []


def told_of(book: str, access: Access | None = None) -> list[str]:
    """What the log has of a session that nobody wants details of."""
    play = Play(access=access, level=INFO)
    play.session.policy.front = REQUIRED

    async def to_the_end() -> None:
        await play._perform(book)
        assert await play.over.take() is None

    play.loop.run(to_the_end())
    play.loop.close()
    return play.log.lines


@pytest.mark.parametrize(
    ("access", "end"),
    [
        (Access(USERS), "no-acceptable-method"),
        (Access(None, parse_networks("203.0.113.0/24")), "client-refused"),
    ],
)
def test_a_look_where_it_is_limited_who_may_come_in(access: Access, end: str) -> None:
    book = LOCAL + ">> 05 01 00\n<< 05 ff\n<< end\n>> end\n"
    assert f" end={end}" in perform(book + "log", REQUIRED, access=access).log.lines[-1]
    assert told_of(book, access) == []


@pytest.mark.parametrize(
    "book",
    [
        LOCAL + ANYONE["a destination that refuses"],
        LOCAL + ANYONE["another protocol"].replace("GET", "XET"),
        from_client() + ">> end\n<< end\nlog end=client-left",
        from_client() + ">> 05 01 00\n<< 05 00\n>> end\nlog end=client-left",
    ],
)
def test_what_else_comes_to_nothing_is_logged(book: str) -> None:
    assert perform(book, REQUIRED, level=INFO).log.lines


def test_a_password_is_not_guessed_in_silence() -> None:
    book = LOCAL + ">> 05 01 02 01 05 'alice' 05 'guess'\n<< 05 02 01 01\n<< end\n>> end\n"
    book += "log end=authentication-failed user=alice"
    perform(book, REQUIRED, access=Access(USERS), level=INFO)
    found = LOCAL + ">> 05 01 02 01 05 'alice' 06 'secret'\n<< 05 02 01 00\n>> end\n<< end\n"
    found += "log end=client-left user=alice"
    perform(found, REQUIRED, access=Access(USERS), level=INFO)


# For a program that goes on


@pytest.mark.parametrize(
    ("data", "client"),
    [
        (version_1(CLIENT, BALANCER), "203.0.113.7:4711"),
        (version_2(CLIENT_6, BALANCER), "[2001:db8::7]:4711"),
        (b"PROXY UNKNOWN\r\n", "192.0.2.9:999"),
        (b"", "192.0.2.9:999"),
    ],
)
def test_not_one_byte_too_many_is_read(data: bytes, client: str) -> None:
    play = Play()
    play.session.policy.front = REQUIRED if data else OPTIONAL
    handshake = GREETING + socks5("192.0.2.1", 80)

    async def check() -> None:
        await play.client.send(data + handshake + b"behind")
        server, request = await play.session.negotiate(exact=True)
        assert server.trailing == b""
        assert request.destination == Endpoint("192.0.2.1", 80)
        assert await play.session.client.receive(100) == b"behind"

    play.loop.run(check())
    play.loop.close()
    assert play.session.peer.text == client


# Saying it


@pytest.mark.parametrize("peer", [CLIENT, CLIENT_6])
def test_the_far_end_is_told(peer: Endpoint) -> None:
    """Before what the client has sent already. Over no network the client has come to nowhere."""
    told = version_2(peer, Endpoint("0.0.0.0", 0)).hex()
    book = ANYONE["SOCKS5, all at once"].replace("far >> 'early'", f"far >> {told} 'early'")
    perform(book, None, sends=True, peer=Peer.of_endpoint(peer))
    by_name = ANYONE["SOCKS4a"].replace("far <<", f"far >> {told}\nfar <<")
    perform(by_name, None, sends=True, peer=Peer.of_endpoint(peer))


def test_the_far_end_is_told_what_we_were_told() -> None:
    told = version_2(CLIENT, Endpoint("0.0.0.0", 0)).hex()
    book = ANYONE["SOCKS4"].replace("far >> 'early'", f"far >> {told} 'early'")
    perform(from_client() + book, REQUIRED, sends=True)


def test_the_far_end_is_told_of_nobody() -> None:
    told = version_2(None, None).hex()
    book = ANYONE["SOCKS4"].replace("far >> 'early'", f"far >> {told} 'early'")
    perform(book.replace("user=me", "user=me client=unix"), None, sends=True, peer=Peer("unix"))


@pytest.mark.parametrize("book", ["a destination that refuses", "a name that does not exist"])
def test_nobody_is_told_where_nobody_is(book: str) -> None:
    perform(ANYONE[book], None, sends=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_what_is_told_has_the_destination(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    play = Play(peer=Peer.of_endpoint(CLIENT))
    with socket.create_server((host, 0), family=family) as server:
        place = Endpoint(*server.getsockname()[:2])
        play.loop.run(connect(play, place))
        with server.accept()[0] as far:
            assert read_all(far) == version_2(CLIENT, place)
    play.loop.close()


async def connect(play: Play, place: Endpoint) -> None:
    (await introduce(play.session, Dialler().dial(play.loop, place))).close()


def test_a_far_end_that_is_gone_before_it_is_told() -> None:
    play = Play(peer=Peer.of_endpoint(CLIENT))
    far, other = stream_pair(play.loop)
    other.close()

    async def connect() -> Stream:
        return far

    async def check() -> None:
        with pytest.raises(BrokenPipeError):
            await introduce(play.session, connect())

    play.loop.run(check())
    assert far.reader == -1
    play.loop.close()


def test_nothing_is_garbage() -> None:
    """But loops, of which there is one."""
    told = version_2(CLIENT, Endpoint("0.0.0.0", 0)).hex()
    books = [
        from_client() + ANYONE["SOCKS4"].replace("far >> 'early'", f"far >> {told} 'early'"),
        ">> 'PROXY nonsense' 0d0a\n<< end\n>> end\nlog end=protocol-error",
        ">> 05\n<< end\n>> end\nlog end=protocol-error",
        LOOKS["a greeting"],
    ]
    with no_garbage():
        loops = [perform(book, REQUIRED, sends=True).loop for book in books]
        refused = header(version_2(CLIENT, BALANCER)) + "<< end\n>> end\nlog end=client-refused"
        loops.append(perform(refused, Front(True, parse_networks("::1"))).loop)
    assert len(loops) == len(books) + 1
