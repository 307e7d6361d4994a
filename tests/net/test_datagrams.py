"""UDP sockets in a loop: what comes is taken, a flood leaves others a turn, errors end nothing."""

import errno
import socket
from typing import Any

import pytest
from ends import CountedRounds, descriptors
from places import descriptor_limit, in_own_network, root_only, sh

from muonsocks.net.datagrams import BATCH, HEADROOM, VIEW, Port, bound_beside
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


def leaving(dialler: Dialler, family: int) -> socket.socket:
    """The socket that datagrams leave by."""
    return dialler.open_socket(family, socket.SOCK_DGRAM)


class Taken(Mailbox):
    """What a port has received."""

    def __init__(self, loop: Loop, sock: Any) -> None:
        super().__init__()
        self.loop = loop
        self.port = Port(loop, sock, self.add)

    def add(self, start: int, count: int, source: tuple[Any, ...]) -> None:
        assert start >= HEADROOM
        self.post((bytes(VIEW[start : start + count]), source))

    def next(self) -> Got:
        async def take() -> Got:
            with self.loop.deadline(SECONDS):
                found: Got = await self.take()
                return found

        return self.loop.run(take())


@pytest.fixture
def taken(loop: Loop) -> Any:
    taken = Taken(loop, leaving(Dialler(bind_address=bytes((127, 0, 0, 1))), socket.AF_INET))
    taken.port.send([memoryview(b"")], ("127.0.0.1", 9))  # a port is taken when something is sent
    yield taken
    taken.port.close()


@pytest.mark.parametrize("size", [0, 1, 1400, 65507])
def test_what_comes_is_taken(taken: Taken, size: int) -> None:
    data = bytes(range(256)) * 256
    with udp() as peer:
        peer.sendto(data[:size], taken.port.socket.getsockname())
        assert taken.next() == (data[:size], peer.getsockname())


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
    taken = Taken(loop, leaving(Dialler(), socket.AF_INET))
    taken.port.send([memoryview(b"")], ("127.0.0.1", 9))
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
            lambda: leaving(Dialler(), socket.AF_INET),
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
        sock = leaving(dialler, socket.AF_INET)
        with udp() as peer:
            sock.sendto(b"x", peer.getsockname())
            assert peer.recvfrom(9)[1][0] == "192.0.2.7"
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 7
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)[:2] == b"lo"
        sock.close()
        sock = leaving(Dialler(), socket.AF_INET6)
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
        sock.close()
        before = descriptors()
        with pytest.raises(OSError):
            leaving(Dialler(interface="none"), socket.AF_INET)
        with pytest.raises(OSError):
            Dialler(bind_address=bytes((192, 0, 2, 8))).open_socket(
                socket.AF_INET, socket.SOCK_DGRAM
            )
        assert descriptors() == before

    in_own_network(check)


# Several with one call


class Calls:
    """Stands before a port's socket and counts how often something is sent."""

    def __init__(self, port: Port) -> None:
        self.sizes: list[int] = []
        self._socket = port.socket
        port.socket = self  # type: ignore[assignment]

    def sendmsg(self, pieces: list[memoryview], *rest: Any) -> int:
        self.sizes.append(len(pieces))
        return self._socket.sendmsg(pieces, *rest)

    def sendto(self, data: memoryview, to: Any) -> int:
        self.sizes.append(1)
        return self._socket.sendto(data, to)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


class Passing(Taken):
    """Passes on what it receives."""

    def __init__(self, loop: Loop, to: tuple[str, int]) -> None:
        super().__init__(loop, leaving(Dialler(), socket.AF_INET))
        self.to = to
        self.port.socket.bind(("127.0.0.1", 0))
        self.calls = Calls(self.port)
        self.counted: list[tuple[int, int, int]] = []

    def add(self, start: int, count: int, source: tuple[Any, ...]) -> None:
        data = VIEW[start : start + count]
        BATCH.add(self.to, data, self.port.send, self.to, lambda *n: self.counted.append(n))
        self.post(None)


SIZES = {
    "the same": [64] * 20,
    "each its own": [*range(1, 21)],
    "runs": [100] * 5 + [0] * 3 + [100] * 2 + [1400] * 7,
    "large": [20000] * 9,
    "larger than a packet": [60000] * 3 + [1] * 3,
    "empty": [0] * 3,
}


@pytest.mark.parametrize("name", SIZES)
def test_several_of_one_size_go_with_one_call(loop: Loop, name: str) -> None:
    sizes = SIZES[name]
    sent = [bytes([number]) * size for number, size in enumerate(sizes)]
    with udp() as far, udp() as peer:
        passing = Passing(loop, far.getsockname())
        there = passing.port.socket.getsockname()
        for data in sent:
            peer.sendto(data, there)
        for _ in sent:
            passing.next()
        assert [far.recv(1 << 16) for _ in sent] == sent
        assert sum(passing.calls.sizes) == len(sent)
        if name == "the same":
            assert passing.calls.sizes == [20]
        assert [sum(column) for column in zip(*passing.counted, strict=True)] == [
            len(sent),
            sum(sizes),
            0,
        ]
        passing.port.close()


@root_only()
def test_what_is_larger_than_a_packet_goes_one_by_one() -> None:
    """The kernel does not put several into one call then, and that is tried once."""

    def check() -> None:
        sh("ip link set lo mtu 1500")
        loop = Loop()
        with udp() as far, udp() as peer:
            passing = Passing(loop, far.getsockname())
            for expected in ([4, 1, 1, 1, 1], [1, 1, 1, 1]):
                for _ in range(4):
                    peer.sendto(bytes(2000), passing.port.socket.getsockname())
                for _ in range(4):
                    passing.next()
                assert [len(far.recv(1 << 16)) for _ in range(4)] == [2000] * 4
                assert passing.calls.sizes == expected
                passing.calls.sizes.clear()
            for _ in range(4):
                peer.sendto(bytes(1400), passing.port.socket.getsockname())
            for _ in range(4):
                passing.next()
            assert passing.calls.sizes == [4]
            passing.port.close()
        loop.close()

    in_own_network(check)


def test_what_cannot_be_sent_is_counted(loop: Loop) -> None:
    with udp() as peer:
        passing = Passing(loop, ("127.0.0.1", 0))
        for _ in range(3):
            peer.sendto(b"x", passing.port.socket.getsockname())
        for _ in range(3):
            passing.next()
        assert [sum(column) for column in zip(*passing.counted, strict=True)] == [0, 0, 3]
        passing.port.close()
