"""UDP sockets in a loop: what comes is taken, a flood leaves others a turn, errors end nothing."""

import errno
import socket
from typing import Any

import pytest
from ends import CountedRounds, descriptors
from places import descriptor_limit, in_own_network, root_only, sh

from muonsocks.net.datagrams import BUFFER, HEADROOM, VIEW, Port, bound_beside
from muonsocks.net.dial import Dialler
from muonsocks.net.loop import Loop
from muonsocks.net.task import Mailbox

SECONDS = 15
Got = tuple[bytes, tuple[Any, ...]]


def udp(host: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, 0))
    sock.settimeout(SECONDS)
    return sock


class Taken(Mailbox):
    """What a port has received."""

    def __init__(self, loop: Loop, sock: Any) -> None:
        super().__init__()
        self.loop = loop
        self.port = Port(loop, sock, self.add)

    def add(self, count: int, source: tuple[Any, ...]) -> None:
        self.post((bytes(VIEW[HEADROOM : HEADROOM + count]), source))

    def next(self) -> Got:
        async def take() -> Got:
            with self.loop.deadline(SECONDS):
                found: Got = await self.take()
                return found

        return self.loop.run(take())


@pytest.fixture
def taken(loop: Loop) -> Any:
    taken = Taken(
        loop,
        Dialler(bind_address=bytes((127, 0, 0, 1))).open_socket(socket.AF_INET, socket.SOCK_DGRAM),
    )
    taken.port.send_to(b"", ("127.0.0.1", 9))  # a port is taken when something is sent
    yield taken
    taken.port.close()


@pytest.mark.parametrize("size", [0, 1, 1400, 65507])
def test_what_comes_is_taken(taken: Taken, size: int) -> None:
    data = bytes(range(256)) * 256
    with udp() as peer:
        peer.sendto(data[:size], taken.port.socket.getsockname())
        assert taken.next() == (data[:size], peer.getsockname())
        assert len(BUFFER) >= HEADROOM + 65527


def test_a_flood_leaves_others_their_turn(taken: Taken) -> None:
    """Many are taken for one event, but not all at once."""
    with udp() as peer:
        for number in range(150):
            peer.sendto(b"%d" % number, taken.port.socket.getsockname())
        rounds = CountedRounds(taken.loop)
        got = [taken.next()[0] for _ in range(150)]
    assert got == [b"%d" % number for number in range(150)]
    assert rounds.count + rounds.looks >= 2
    assert rounds.count <= 10


def test_nobody_there_is_no_end(taken: Taken) -> None:
    """An ICMP error comes where a datagram was sent to a port that is closed."""
    with udp() as peer:
        there = peer.getsockname()
    taken.port.socket.connect(there)
    for _ in range(3):
        try:
            taken.port.socket.send(b"anybody?")
        except ConnectionRefusedError:
            continue
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as late:
        late.bind(there)
        late.sendto(b"yes", taken.port.socket.getsockname())
        assert taken.next() == (b"yes", there)


def test_closed_twice_and_with_something_to_come(loop: Loop) -> None:
    taken = Taken(loop, Dialler().open_socket(socket.AF_INET, socket.SOCK_DGRAM))
    taken.port.send_to(b"", ("127.0.0.1", 9))
    where = ("127.0.0.1", taken.port.socket.getsockname()[1])
    with udp() as peer:
        for _ in range(100):
            peer.sendto(b"x", where)
        taken.next()
        taken.port.close()
        taken.port.close()

        async def later() -> None:
            await loop.sleep(0.01)

        loop.run(later())


def test_no_descriptor_for_it(loop: Loop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stream, descriptor_limit(0):
        for make in (
            lambda: bound_beside(stream),
            lambda: Dialler().open_socket(socket.AF_INET, socket.SOCK_DGRAM),
        ):
            with pytest.raises(OSError) as raised:
                make()
            assert raised.value.errno == errno.EMFILE


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.7", "::1"])
def test_beside_a_connection(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as stream:
        beside = bound_beside(stream)
        assert beside.getsockname()[0] == host
        assert beside.getsockname()[1] not in (0, stream.getsockname()[1])
        beside.close()


def test_beside_an_ipv4_connection_of_an_ipv6_listener() -> None:
    with (
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as front,
        socket.create_connection(("127.0.0.1", front.getsockname()[1])),
    ):
        served, _ = front.accept()
        beside = bound_beside(served)
        assert (beside.family, beside.getsockname()[0]) == (socket.AF_INET, "127.0.0.1")
        beside.close()
        served.close()


@root_only()
def test_beside_a_link_local_connection() -> None:
    def check() -> None:
        sh("ip addr add fe80::7/64 dev lo nodad")
        scope = socket.if_nametoindex("lo")
        with socket.socket(socket.AF_INET6) as stream:
            stream.bind(("fe80::7", 0, 0, scope))
            beside = bound_beside(stream)
            assert beside.getsockname()[0].partition("%")[0] == "fe80::7"
            assert beside.getsockname()[3] == scope
            beside.close()

    in_own_network(check)


@root_only()
def test_where_it_leaves_from() -> None:
    """From an address, with a mark, over an interface; IPv6 is for IPv6 alone."""

    def check() -> None:
        sh("ip addr add 192.0.2.7/32 dev lo")
        dialler = Dialler(bind_address=bytes((192, 0, 2, 7)), interface="lo", mark=7)
        sock = dialler.open_socket(socket.AF_INET, socket.SOCK_DGRAM)
        with udp() as peer:
            sock.sendto(b"x", peer.getsockname())
            assert peer.recvfrom(9)[1][0] == "192.0.2.7"
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 7
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)[:2] == b"lo"
        sock.close()
        sock = Dialler().open_socket(socket.AF_INET6, socket.SOCK_DGRAM)
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
        sock.close()
        before = descriptors()
        with pytest.raises(OSError):
            Dialler(interface="none").open_socket(socket.AF_INET, socket.SOCK_DGRAM)
        with pytest.raises(OSError):
            Dialler(bind_address=bytes((192, 0, 2, 8))).open_socket(
                socket.AF_INET, socket.SOCK_DGRAM
            )
        assert descriptors() == before

    in_own_network(check)
