"""The sockets of a program that knows nothing of proxies."""

import errno
import os
import select
import socket
import ssl
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
from places import root_only
from programs import read_all
from upstream import Script, Upstream

from muonsocks.client import program_socket
from muonsocks.client.look_ups import LookUps
from muonsocks.client.program_socket import ProgramSocket

SECONDS = 20
NAME = "name.example"
SCRIPT: Script = [3, b"\5\0", 19, b"\5\0\0\1\1\2\3\4\0\7", b"carried"]
HEARD = b"\5\1\0\5\1\0\3\x0cname.example\0\x50"


@pytest.fixture
def look_ups(monkeypatch: pytest.MonkeyPatch) -> Callable[[Upstream | None], LookUps]:
    """What makes all such sockets go through a proxy, of which there may be none."""

    def through(upstream: Upstream | None, scheme: str = "socks5h") -> LookUps:
        place = upstream.place if upstream else "127.0.0.1:9"
        some = LookUps({"ALL_PROXY": f"{scheme}://{place}"}, "/nonexistent")
        monkeypatch.setattr(ProgramSocket, "look_ups", some, raising=False)
        return some

    return through


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("blocks", [True, False])
def test_an_address_that_stands_for_a_name(look_ups: Any, family: int, blocks: bool) -> None:
    with Upstream(SCRIPT) as upstream:
        address = look_ups(upstream).getaddrinfo(NAME, 80, family, socket.SOCK_STREAM)[0][4]
        with ProgramSocket(family) as sock:
            if blocks:
                sock.settimeout(SECONDS)
                sock.connect(address)
            else:
                sock.setblocking(False)
                assert sock.connect_ex(address) == errno.EINPROGRESS
                assert select.select([], [sock], [], SECONDS)[1]
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
                sock.settimeout(SECONDS)
            assert read_all(sock, 7) == b"carried"
            assert sock.getpeername() == address
            assert sock.getsockname()[:2] == ("1.2.3.4", 7)
        assert upstream.heard == [HEARD]


def test_a_name(look_ups: Any) -> None:
    with Upstream(SCRIPT) as upstream, ProgramSocket() as sock:
        some = look_ups(upstream)
        sock.settimeout(SECONDS)
        sock.connect((NAME, 80))
        assert some.getnameinfo(sock.getpeername(), 0)[0] == NAME
        with pytest.raises(OSError, match="Transport endpoint is already connected"):
            sock.connect((NAME, 80))
    assert upstream.heard == [HEARD]


def test_an_address_that_stands_for_nothing(look_ups: Any) -> None:
    look_ups(None)
    with ProgramSocket() as sock:
        assert sock.connect_ex(("198.18.0.1", 80)) == errno.EHOSTUNREACH
    with ProgramSocket(type=socket.SOCK_DGRAM) as sock, pytest.raises(OSError, match="stand for"):
        sock.sendto(b"lost", ("198.18.0.1", 80))


def test_who_has_the_connection_knows_where_it_leads(look_ups: Any) -> None:
    with Upstream(SCRIPT) as upstream:
        address = look_ups(upstream).getaddrinfo(NAME, 80, type=socket.SOCK_STREAM)[0][4]
        sock = ProgramSocket()
        sock.settimeout(SECONDS)
        sock.connect(address)
        with sock.dup() as another, ProgramSocket(fileno=os.dup(sock.fileno())) as third:
            assert another.getpeername() == third.getpeername() == address
            assert third.getsockname() == ("1.2.3.4", 7)
            with pytest.raises(OSError, match="already connected"):
                third.connect(address)
        with ProgramSocket(fileno=sock.detach()) as owner:
            assert owner.getpeername() == address
            owner.settimeout(SECONDS)
            assert read_all(owner, 7) == b"carried"


def test_who_knows_them_are_not_more_and_more(
    look_ups: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program_socket, "_MOST_KNOWN", 3)
    monkeypatch.setattr(program_socket, "_known", OrderedDict())
    with Upstream(SCRIPT) as upstream:
        look_ups(upstream)
        for _ in range(5):
            with ProgramSocket() as sock:
                sock.connect((NAME, 80))
            assert len(program_socket._known) <= 3


def test_this_host(look_ups: Any) -> None:
    look_ups(None)
    with ProgramSocket() as far, ProgramSocket() as near:
        far.bind(("127.0.0.1", 0))
        far.listen()
        near.connect(("localhost", far.getsockname()[1]))
        conn, peer = far.accept()
        with conn:
            assert peer == near.getsockname()
            conn.sendall(b"here")
            assert read_all(near, 4) == b"here"


@pytest.mark.parametrize("name", ["localhost.", "any.localhost"])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_names_of_this_host_are_no_question_to_others(
    look_ups: Any, name: str, family: int
) -> None:
    """The C library would ask DNS for these."""
    look_ups(None)
    with ProgramSocket(family) as far, ProgramSocket(family) as near:
        far.bind((name, 0))
        far.listen()
        near.connect((name, far.getsockname()[1]))
        assert near.getpeername() == far.getsockname()
    kind = socket.SOCK_DGRAM
    with ProgramSocket(family, kind) as far, ProgramSocket(family, kind) as near:
        far.settimeout(SECONDS)
        far.bind((name, 0))
        near.sendto(b"to a name", (name, far.getsockname()[1]))
        assert far.recv(9) == b"to a name"
        near.connect((name, far.getsockname()[1]))
        near.send(b"connected")
        assert far.recv(9) == b"connected"


def test_names_of_others_are_no_question_either(look_ups: Any) -> None:
    """Wherever a program may write one, no matter to which end."""
    look_ups(None)
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with ProgramSocket(type=kind) as sock, pytest.raises(OSError) as caught:
            sock.bind((NAME, 0))
        assert caught.value.errno == errno.EADDRNOTAVAIL
    with ProgramSocket() as far, ProgramSocket() as near:
        far.bind(("", 0))
        far.listen()
        near.connect(("127.0.0.1", far.getsockname()[1]))
        assert near.sendto(b"1", (NAME, 80)) == near.sendto(b"2", 0, (NAME, 80)) == 1
        assert near.sendmsg([b"3"], [], 0, (NAME, 80)) == 1
        conn, _ = far.accept()
        with conn:
            assert read_all(conn, 3) == b"123"


def test_the_proxy_itself(look_ups: Any) -> None:
    with Upstream([b"hello"]) as upstream, ProgramSocket() as sock:
        look_ups(upstream, "socks5")
        host, _, port = upstream.place.partition(":")
        sock.connect((host, int(port)))
        assert read_all(sock, 5) == b"hello"


def test_the_name_of_the_proxy_itself_is_looked_up_here(monkeypatch: pytest.MonkeyPatch) -> None:
    some = LookUps({"ALL_PROXY": "socks5h://proxy.invalid:1080"}, "/nonexistent")
    monkeypatch.setattr(ProgramSocket, "look_ups", some, raising=False)
    with ProgramSocket() as sock, pytest.raises(socket.gaierror):
        sock.connect((some.gethostbyname("proxy.invalid"), 1080))


def test_datagrams_to_a_proxy_that_takes_none(look_ups: Any) -> None:
    with Upstream([]) as upstream:
        look_ups(upstream, "http")
        with ProgramSocket(type=socket.SOCK_DGRAM) as sock, pytest.raises(OSError) as caught:
            sock.sendto(b"lost", ("192.0.2.1", 53))
        assert caught.value.errno == errno.EOPNOTSUPP


def test_datagrams_to_the_name_of_the_proxy_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    some = LookUps({"ALL_PROXY": "socks5h://proxy.example:1080"}, "/nonexistent")
    monkeypatch.setattr(ProgramSocket, "look_ups", some, raising=False)
    with ProgramSocket(type=socket.SOCK_DGRAM) as sock, pytest.raises(OSError) as caught:
        sock.sendto(b"lost", (some.gethostbyname("proxy.example"), 1080))
    assert caught.value.errno == errno.ENETUNREACH


# What cannot be made


REFUSED = [
    (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    (socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_UDP),
    (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW),
    (socket.AF_PACKET, socket.SOCK_DGRAM, 0),
    (socket.AF_PACKET, socket.SOCK_RAW, 0),
]


@root_only()
@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_go_through_proxies(look_ups: Any, kind: tuple[int, int, int]) -> None:
    look_ups(None)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(PermissionError, match="cannot go through proxies"):
        ProgramSocket(*kind)
    assert len(os.listdir("/proc/self/fd")) == before
    with socket.socket(*kind) as given:
        with pytest.raises(PermissionError):
            ProgramSocket(fileno=given.fileno())
        assert os.fstat(given.fileno())


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_NETLINK])
def test_what_leads_nowhere_else(look_ups: Any, family: int) -> None:
    look_ups(None)
    kind = socket.SOCK_STREAM if family == socket.AF_UNIX else socket.SOCK_RAW
    with ProgramSocket(family, kind) as sock, socket.socket(family, kind) as plain:
        assert sock.getsockname() == plain.getsockname()
        assert not sock._is_for_proxies


GROUP = socket.inet_aton("239.1.2.3")
GROUP6 = socket.inet_pton(socket.AF_INET6, "ff05::123")


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
@pytest.mark.parametrize(
    ("family", "option"),
    [
        (socket.AF_INET, (0, socket.IP_ADD_MEMBERSHIP, GROUP + bytes(4))),
        (socket.AF_INET, (0, 39, GROUP + bytes(4) + b"\xc0\0\2\1")),
        (socket.AF_INET6, (41, socket.IPV6_JOIN_GROUP, GROUP6 + bytes(4))),
    ],
)
def test_groups_are_not_joined(look_ups: Any, kind: int, family: int, option: Any) -> None:
    """That is a packet to others, IGMP or MLD, at once."""
    look_ups(None)
    with ProgramSocket(family, kind) as sock, pytest.raises(PermissionError, match="groups"):
        sock.setsockopt(*option)


def test_groups_are_not_joined_on_the_way_either(look_ups: Any) -> None:
    with Upstream([3]) as upstream, ProgramSocket() as sock:
        look_ups(upstream)
        sock.setblocking(False)
        assert sock.connect_ex((NAME, 80)) == errno.EINPROGRESS
        with pytest.raises(PermissionError, match="groups"):
            sock.setsockopt(0, socket.IP_ADD_MEMBERSHIP, GROUP + bytes(4))


def test_no_connection_but_by_connect(look_ups: Any) -> None:
    look_ups(None)
    with socket.create_server(("127.0.0.1", 0)) as far, ProgramSocket() as sock:
        far.setblocking(False)
        sock.setblocking(False)
        for send in (
            lambda: sock.sendto(b"x", socket.MSG_FASTOPEN, far.getsockname()),
            lambda: sock.sendmsg([b"x"], [], socket.MSG_FASTOPEN, far.getsockname()),
        ):
            with pytest.raises(OSError) as caught:
                send()
            assert caught.value.errno == errno.EOPNOTSUPP
        with pytest.raises(BlockingIOError):
            far.accept()


def test_the_methods_of_a_stream_are_those_of_a_socket() -> None:
    for name in ("recv", "recv_into", "recvfrom", "recvmsg", "send", "sendall"):
        assert getattr(ProgramSocket, name) is getattr(socket.socket, name)


def test_unix_sockets_send_as_ever(look_ups: Any) -> None:
    look_ups(None)
    a, b = socket.socketpair()
    with ProgramSocket(fileno=a.detach()) as near, b:
        assert near.sendmsg([b"ab", b"cd"]) == 4
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as far:
            far.bind(b"\0muonsocks-test-%d" % os.getpid())
            with ProgramSocket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                assert sender.sendto(b"x", far.getsockname()) == 1
                assert sender.sendto(b"x", 0, far.getsockname()) == 1
        assert read_all(b, 4) == b"abcd"


def test_a_class_that_derives_from_it_and_connects_in_its_own_way(look_ups: Any) -> None:
    """As ssl.SSLSocket does, whose connect() and connect_ex() call each other's parent."""

    class Own(ProgramSocket):
        calls = 0

        def connect(self, address: Any) -> None:
            self.calls += 1
            super().connect(address)

        def connect_ex(self, address: Any) -> int:
            return super().connect_ex(address)

    assert ssl.SSLSocket.connect_ex is not socket.socket.connect_ex
    with Upstream(SCRIPT) as upstream, Own() as sock:
        look_ups(upstream)
        sock.settimeout(SECONDS)
        assert sock.connect_ex((NAME, 80)) == 0
        assert sock.calls == 0


# Nobody is asked


def test_names_of_this_host(look_ups: Any) -> None:
    """The C library would ask a name server for what is below localhost."""
    look_ups(None)
    with ProgramSocket() as far, ProgramSocket() as near:
        far.bind(("there.localhost", 0))
        far.listen()
        near.connect(("there.localhost", far.getsockname()[1]))
    with ProgramSocket(type=socket.SOCK_DGRAM) as far, ProgramSocket(type=socket.SOCK_DGRAM) as one:
        far.bind(("there.localhost", 0))
        far.settimeout(SECONDS)
        port = far.getsockname()[1]
        one.sendto(b"1", ("there.localhost", port))
        one.sendmsg([b"2"], [], 0, ("there.localhost", port))
        one.connect(("there.localhost", port))
        one.send(b"3")
        assert [far.recv(9) for _ in range(3)] == [b"1", b"2", b"3"]


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_name_to_be_bound_to(look_ups: Any, kind: int) -> None:
    look_ups(None)
    with ProgramSocket(type=kind) as sock, pytest.raises(OSError) as caught:
        sock.bind((NAME, 0))
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_a_name_that_a_stream_is_sent_to(look_ups: Any) -> None:
    look_ups(None)
    with ProgramSocket() as sock:
        for send in (
            lambda: sock.sendto(b"x", (NAME, 80)),
            lambda: sock.sendto(b"x", 0, (NAME, 80)),
            lambda: sock.sendmsg([b"x"], [], 0, (NAME, 80)),
        ):
            with pytest.raises(BrokenPipeError):
                send()
        for arguments in [(), (b"x",), (b"x", 0, (NAME, 80), 1)]:
            with pytest.raises(TypeError):
                sock.sendto(*arguments)


# What would go its own way


def test_a_descriptor_of_the_other_kind(look_ups: Any) -> None:
    """It would send datagrams with the methods for TCP."""
    look_ups(None)
    kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
    for kind, other in (kinds, kinds[::-1]):
        with ProgramSocket(type=kind) as sock:
            with pytest.raises(PermissionError):
                ProgramSocket(socket.AF_INET, other, 0, fileno=sock.fileno())
            ProgramSocket(socket.AF_INET, kind, 0, fileno=sock.fileno()).detach()
            ProgramSocket(fileno=sock.fileno()).detach()
