"""The dialler: which addresses, in which order, when, from where, and how its failures are told.

A black hole is a listener whose backlog is full: a SYN to it is dropped, and nothing comes back.
"""

import errno
import os
import random
import socket
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from ends import PATIENCE, no_garbage, nothing_left_behind
from places import descriptor_limit, in_own_network, root_only, sh
from real_server import free_port

from muonsocks.address import Endpoint, format_address, parse_address
from muonsocks.errors import DialError, NameNotResolved, RefusedByRule
from muonsocks.net import dial as dial_module
from muonsocks.net import names
from muonsocks.net import race as race_module
from muonsocks.net.dial import Dialler, dial_unix
from muonsocks.net.loop import _INPUT_AND_ROOM, Loop
from muonsocks.net.stream import Stream
from muonsocks.net.task import Task

V4, V6 = "127.0.0.1", "::1"


@pytest.fixture(autouse=True)
def leaks_nothing() -> Iterator[None]:
    with nothing_left_behind():
        yield


class Network:
    """Listeners of all sorts on one port of this host's loopback addresses."""

    def __init__(self) -> None:
        self.port = self._free_port()
        self.sockets: list[socket.socket] = []

    @staticmethod
    def _free_port() -> int:
        """One that no address has in use, and that is given to nobody who asks for any."""
        for _ in range(1000):
            port = random.randrange(12000, 32000)
            try:
                socket.create_server(
                    ("", port), family=socket.AF_INET6, dualstack_ipv6=True
                ).close()
            except OSError:
                continue
            return port
        pytest.skip("no port is free")

    def listener(self, host: str, backlog: int = 128) -> socket.socket:
        """Listen on an address; all use one port."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family)
        self.sockets.append(sock)
        sock.bind((host, self.port))
        sock.listen(backlog)
        return sock

    def black_hole(self, host: str) -> socket.socket:
        """Listen, and let nobody come through."""
        listener = self.listener(host, 0)
        for _ in range(3):
            filler = socket.socket(listener.family)
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
            self.sockets.append(filler)
        return listener

    def refuses(self, host: str) -> None:
        """Nobody listens there, and nobody else will."""
        self.listener(host).listen(0)
        self.sockets[-1].close()
        holder = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        holder.bind((host, self.port))
        self.sockets.append(holder)

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


@pytest.fixture
def network() -> Iterator[Network]:
    network = Network()
    yield network
    network.close()


def hosts(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let every name have these addresses, in this order."""

    def getaddrinfo(*_: object) -> list[tuple[object, ...]]:
        return [
            (socket.AF_INET6, 1, 6, "", (address, 0, 0, 0))
            if ":" in address
            else (socket.AF_INET, 1, 6, "", (address, 0))
            for address in addresses
        ]

    monkeypatch.setattr(names, "getaddrinfo", getaddrinfo)


class Call:
    """What one dialling came to."""

    def __init__(
        self,
        dialler: Dialler,
        destination: Endpoint,
        permit: Callable[[bytes], bool] | None = None,
        among: list[Endpoint] | None = None,
        patience: float = PATIENCE,
    ) -> None:
        """With `among`, the name has been looked up, and that is what was found. `patience` is the
        caller's, in seconds.
        """
        self.address = ""
        self.bound = ""
        self.error: Exception | None = None
        loop = Loop()

        async def main() -> None:
            start = loop.now
            try:
                with loop.deadline(patience):
                    arguments = (permit,) if permit else ()
                    if among is not None:
                        stream = await dialler.dial_any(loop, destination, among)
                    else:
                        stream = await dialler.dial(loop, destination, *arguments)
            except (OSError, RefusedByRule) as error:
                self.error = error.with_traceback(None)
                self.error.__context__ = None
            else:
                assert stream.socket
                self.address = stream.socket.getpeername()[0]
                self.bound = stream.socket.getsockname()[0]
                stream.close()
            self.seconds = loop.now - start

        loop.run(main())
        assert len(loop.handlers) == (loop._threads is not None)
        assert not any(timer.callback for _, _, timer in loop.timers)
        loop.close()

    def failed(self, kind: type, number: int | None = None) -> list[tuple[str, int]]:
        """Hold that it failed in one way; give all attempts that failed."""
        assert type(self.error) is kind, f"{self.error!r} and not {kind}: {self.address}"
        if number is not None:
            assert isinstance(self.error, OSError)
            assert self.error.errno == number
        return list(getattr(self.error, "failures", []))


def quickest(limit: float, make: Callable[[], Call]) -> Call:
    """The first of five calls that takes less: a busy machine may stall one, hardly all."""
    for _ in range(5):
        call = make()
        if call.seconds < limit:
            break
    return call


# Addresses


@pytest.mark.parametrize("host", [V4, V6])
def test_literal(network: Network, host: str) -> None:
    network.listener(host)
    assert Call(Dialler(), Endpoint(host, network.port)).address == host


@pytest.mark.parametrize("host", ["::ffff:127.0.0.1", "::FFFF:7f00:1", "0:0:0:0:0:ffff:7f00:1"])
def test_mapped_literal_is_dialled_as_ipv4(network: Network, host: str) -> None:
    network.listener(V4)
    assert Call(Dialler(4), Endpoint(host, network.port)).address == V4
    assert Call(Dialler(), Endpoint(host, network.port)).address == V4
    Call(Dialler(6), Endpoint(host, network.port)).failed(DialError, errno.EAFNOSUPPORT)


def test_mapped_address_of_a_name_is_an_ipv4_one(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts(monkeypatch, "::ffff:127.0.0.1")
    network.listener(V4)
    asked: list[bytes] = []
    call = Call(Dialler(), Endpoint("name", network.port), lambda one: not asked.append(one))
    assert call.address == V4
    assert asked == [bytes((127, 0, 0, 1))]


def test_stream_is_ready_for_use(network: Network) -> None:
    listener = network.listener(V4)
    loop = Loop()

    async def main() -> None:
        stream = await Dialler().dial(loop, Endpoint(V4, network.port))
        assert stream.socket
        assert not os.get_blocking(stream.reader)
        assert not os.get_inheritable(stream.reader)
        assert stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)
        peer, address = listener.accept()
        assert stream.local_endpoint() == Endpoint(*address)
        assert stream.name == f"{V4}:{network.port}"
        await stream.send(b"up")
        assert peer.recv(10) == b"up"
        loop.call_later(0.001, lambda: peer.send(b"down"))
        assert await stream.receive(10) == b"down"
        stream.close()
        peer.close()

    loop.run(main())
    loop.close()


@pytest.mark.parametrize(
    "family, bind_address, host, number",
    [
        (4, None, V6, errno.EAFNOSUPPORT),
        (6, None, V4, errno.EAFNOSUPPORT),
        (None, V4, V6, errno.EAFNOSUPPORT),
        (None, V6, V4, errno.EAFNOSUPPORT),
        (4, V4, V4, 0),
        (6, V6, V6, 0),
    ],
)
def test_family_of_a_literal(
    network: Network, family: int | None, bind_address: str | None, host: str, number: int
) -> None:
    network.listener(host)
    dialler = Dialler(family, parse_address(bind_address) if bind_address else None)
    call = Call(dialler, Endpoint(host, network.port))
    if number:
        assert call.failed(DialError, number) == []
    else:
        assert call.address == host


@pytest.mark.parametrize(
    "family, bind_address, reached",
    [(None, None, V6), (4, None, V4), (6, None, V6), (None, V4, V4), (None, V6, V6), (4, V6, "")],
)
def test_family_of_a_name(
    network: Network,
    monkeypatch: pytest.MonkeyPatch,
    family: int | None,
    bind_address: str | None,
    reached: str,
) -> None:
    """What cannot be dialled from here is left out, and is nobody's failure."""
    hosts(monkeypatch, V6, V4)
    for host in (V4, V6):
        network.listener(host)
    dialler = Dialler(family, parse_address(bind_address) if bind_address else None)
    call = Call(dialler, Endpoint("name", network.port))
    if reached:
        assert call.address == reached
    else:
        call.failed(NameNotResolved)


def test_every_address_is_tried_and_the_next_one_at_once(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure does not wait for the 250 ms."""
    dead = [f"127.0.0.{number}" for number in range(2, 12)]
    hosts(monkeypatch, *dead, V4)
    network.listener(V4)
    for host in dead:
        network.refuses(host)
    call = quickest(0.25, lambda: Call(Dialler(), Endpoint("name", network.port)))
    assert call.address == V4
    assert call.seconds < 0.25


def test_all_attempts_are_told(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = ["127.0.0.2", V6, "127.0.0.3"]
    hosts(monkeypatch, *dead)
    for host in dead:
        network.refuses(host)
    failures = Call(Dialler(), Endpoint("name", network.port)).failed(DialError, errno.ECONNREFUSED)
    assert failures == [(host, errno.ECONNREFUSED) for host in dead]


def test_no_more_addresses_than_a_bound(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = [f"127.0.1.{number}" for number in range(1, 101)]
    hosts(monkeypatch, *dead)
    network.refuses(V4)
    with pytest.MonkeyPatch.context() as patch:
        refuse_all(patch)
        failures = Call(Dialler(), Endpoint("name", network.port)).failed(DialError)
    assert [host for host, _ in failures] == dead[:64]


def refuse_all(patch: pytest.MonkeyPatch, number: int = errno.ECONNREFUSED) -> list[Any]:
    """Let every connect fail at once; give the addresses as they are tried."""
    tried: list[Any] = []

    class Refused(socket.SocketType):
        def connect_ex(self, address: Any) -> int:
            tried.append(address[0])
            return number

    patch.setattr(dial_module, "socket", Refused)
    return tried


# Order and time (RFC 8305)


def test_order_of_attempts(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts(monkeypatch, "2001:db8::1", "2001:db8::2", "192.0.2.1", "192.0.2.2", "192.0.2.3")
    tried = refuse_all(monkeypatch)
    Call(Dialler(), Endpoint("name", 80)).failed(DialError, errno.ECONNREFUSED)
    assert tried == ["2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2", "192.0.2.3"]


def test_black_hole_costs_a_quarter_of_a_second(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts(monkeypatch, "127.0.0.2", "127.0.0.3", V4)
    network.listener(V4)
    for host in ("127.0.0.2", "127.0.0.3"):
        network.black_hole(host)
    call = quickest(0.75, lambda: Call(Dialler(), Endpoint("name", network.port)))
    assert call.address == V4
    assert 0.5 <= call.seconds < 0.75


def test_attempts_at_once_have_a_bound(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = [f"127.0.2.{number}" for number in range(1, 21)]
    hosts(monkeypatch, *dead, V4)
    network.listener(V4)
    for host in dead:
        network.black_hole(host)
    under_way: set[str] = set()
    most = []

    class Counted(socket.SocketType):
        def connect_ex(self, address: Any) -> int:
            under_way.add(address[0])
            most.append(len(under_way))
            self.address = address[0]
            return super().connect_ex(address)

        def close(self) -> None:
            under_way.discard(self.address)
            super().close()

    with monkeypatch.context() as patch:
        patch.setattr(dial_module, "socket", Counted)
        patch.setattr(race_module, "_STAGGER", 0.001)
        call = Call(Dialler(connect_timeout=0.2), Endpoint("name", network.port))
    assert call.address == V4
    assert max(most) == 8
    assert call.seconds >= 0.4  # two times eight had their time


def test_first_address_may_still_win(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """The race goes on: the slow one is not given up when the next is tried."""
    hosts(monkeypatch, "127.0.0.2", "127.0.0.3")
    network.black_hole("127.0.0.3")
    slow = network.black_hole("127.0.0.2")
    slow.setblocking(False)
    loop = Loop()

    def accept(_: int) -> None:
        try:
            while True:
                network.sockets.append(slow.accept()[0])
        except BlockingIOError:
            return

    async def main() -> str:
        # Room in the backlog, once the second attempt is on its way: the SYN comes again after 1 s.
        loop.call_later(0.3, lambda: loop.register(slow.fileno(), accept))
        stream = await Dialler().dial(loop, Endpoint("name", network.port))
        assert stream.socket
        try:
            return str(stream.socket.getpeername()[0])
        finally:
            stream.close()

    assert loop.run(main()) == "127.0.0.2"
    loop.unregister(slow.fileno())
    loop.close()


def test_failure_during_the_race_starts_the_next_at_once(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is a black hole, the second refuses at 250 ms: the third begins then."""
    hosts(monkeypatch, "127.0.0.2", "127.0.0.3", V4)
    network.listener(V4)
    network.black_hole("127.0.0.2")
    network.refuses("127.0.0.3")
    call = quickest(0.5, lambda: Call(Dialler(), Endpoint("name", network.port)))
    assert call.address == V4
    assert 0.25 <= call.seconds < 0.5


def test_connect_timeout_is_for_each_address(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts(monkeypatch, "127.0.0.2", "127.0.0.3")
    for host in ("127.0.0.2", "127.0.0.3"):
        network.black_hole(host)
    call = quickest(
        0.25, lambda: Call(Dialler(connect_timeout=0.1), Endpoint("name", network.port))
    )
    assert call.failed(DialError, errno.ETIMEDOUT) == [
        ("127.0.0.2", errno.ETIMEDOUT),
        ("127.0.0.3", errno.ETIMEDOUT),
    ]
    assert 0.2 <= call.seconds < 0.25  # the second begins when the first has failed


def test_connect_timeouts_overlap(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts(monkeypatch, "127.0.0.2", "127.0.0.3")
    for host in ("127.0.0.2", "127.0.0.3"):
        network.black_hole(host)
    call = quickest(0.8, lambda: Call(Dialler(connect_timeout=0.4), Endpoint("name", network.port)))
    call.failed(DialError, errno.ETIMEDOUT)
    assert 0.65 <= call.seconds < 0.8


def test_dial_timeout_is_for_all(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts(monkeypatch, "127.0.0.2", "127.0.0.3")
    for host in ("127.0.0.2", "127.0.0.3"):
        network.black_hole(host)
    call = quickest(0.4, lambda: Call(Dialler(dial_timeout=0.3), Endpoint("name", network.port)))
    assert call.failed(DialError, errno.ETIMEDOUT)
    assert 0.3 <= call.seconds < 0.4


def test_dial_timeout_is_for_the_look_up_too(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()

    def getaddrinfo(*_: object) -> list[object]:
        os.read(reader, 1)
        return []

    monkeypatch.setattr(names, "getaddrinfo", getaddrinfo)
    Call(Dialler(dial_timeout=0.05), Endpoint("name", 80)).failed(NameNotResolved, None)
    os.write(writer, b"x")
    os.close(writer)
    os.close(reader)


def test_an_outer_time_limit_passes(network: Network) -> None:
    network.black_hole(V4)
    loop = Loop()

    async def main() -> None:
        with pytest.raises(TimeoutError) as told, loop.deadline(0.05):
            await Dialler().dial(loop, Endpoint(V4, network.port))
        assert not isinstance(told.value, DialError)

    loop.run(main())
    assert not loop.handlers
    loop.close()


# Failures


def test_most_telling_failure_of_a_race(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts(monkeypatch, "127.0.0.2", "127.0.0.3")
    network.black_hole("127.0.0.2")
    network.refuses("127.0.0.3")
    call = Call(Dialler(connect_timeout=0.3), Endpoint("name", network.port))
    assert call.failed(DialError, errno.ECONNREFUSED) == [
        ("127.0.0.3", errno.ECONNREFUSED),
        ("127.0.0.2", errno.ETIMEDOUT),
    ]


def test_names_that_are_none() -> None:
    for name in ("", "no..name", "a" * 300, "b\u00fccher.example"):
        Call(Dialler(), Endpoint(name, 80)).failed(NameNotResolved)


@pytest.mark.parametrize("number", [socket.EAI_NONAME, socket.EAI_AGAIN])
def test_look_up_that_fails(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def getaddrinfo(*_: object) -> list[object]:
        raise socket.gaierror(number, "reason")

    monkeypatch.setattr(names, "getaddrinfo", getaddrinfo)
    call = Call(Dialler(), Endpoint("name", 80))
    call.failed(NameNotResolved)
    assert isinstance(call.error, OSError)
    assert "name: reason" in call.error.strerror
    assert ("for now" in call.error.strerror) == (number == socket.EAI_AGAIN)


def test_out_of_descriptors(network: Network) -> None:
    network.listener(V4)
    loop = Loop()

    async def main() -> None:
        with descriptor_limit(0), pytest.raises(DialError) as told:
            await Dialler().dial(loop, Endpoint(V4, network.port))
        assert told.value.errno == errno.EMFILE

    loop.run(main())
    loop.close()


def test_permit_is_asked_for_each_address(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts(monkeypatch, "127.0.0.2", V6, "127.0.0.3")
    for host in ("127.0.0.2", "127.0.0.3", V6):
        network.listener(host)
    asked: list[str] = []

    def permit(packed: bytes) -> bool:
        asked.append(format_address(packed))
        return packed.endswith(b"\3")

    assert Call(Dialler(), Endpoint("name", network.port), permit).address == "127.0.0.3"
    assert asked == ["127.0.0.2", V6, "127.0.0.3"]
    tried = refuse_all(monkeypatch)
    Call(Dialler(), Endpoint("name", network.port), lambda _: False).failed(RefusedByRule)
    Call(Dialler(), Endpoint(V4, network.port), lambda _: False).failed(RefusedByRule)
    assert not tried


# From where


def dialled(dialler: Dialler, destination: Endpoint) -> Any:
    """The socket that a dialling came to."""
    loop = Loop()
    sock = loop.run(dialler.dial(loop, destination)).detach()
    loop.close()
    return sock


def test_bind_address(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts(monkeypatch, V6, V4)
    for host in (V4, V6):
        network.listener(host)
    dialler = Dialler(bind_address=parse_address("127.0.0.9"))
    call = Call(dialler, Endpoint("name", network.port))
    assert (call.address, call.bound) == (V4, "127.0.0.9")


@pytest.mark.parametrize("host", [V4, V6])
def test_bind_port(network: Network, host: str) -> None:
    """With no address it is claimed at all of them, of whichever family."""
    network.listener(host)
    port = free_port(host)
    stream = dialled(Dialler(bind_port=port), Endpoint(host, network.port))
    assert stream.getsockname()[:2] == (host, port)
    stream.close()


@pytest.mark.parametrize("host", [V4, V6])
def test_options(network: Network, host: str) -> None:
    """Those of the other version of IP are left out."""
    network.listener(host)
    tcp = (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77)
    of_ip = {
        V4: (socket.IPPROTO_IP, socket.IP_TOS, 0x10),
        V6: (socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 0x10),
    }
    options = [tcp, *of_ip.values()]
    stream = dialled(Dialler(options=options), Endpoint(host, network.port))
    for level, name, value in (tcp, of_ip[host]):
        assert stream.getsockopt(level, name) == value
    stream.close()


def test_bind_address_that_is_not_ours(network: Network) -> None:
    network.listener(V4)
    dialler = Dialler(bind_address=parse_address("192.0.2.99"))
    call = Call(dialler, Endpoint(V4, network.port))
    assert call.failed(DialError, errno.EADDRNOTAVAIL) == [(V4, errno.EADDRNOTAVAIL)]


def test_interface_that_is_not_there(network: Network) -> None:
    network.listener(V4)
    call = Call(Dialler(interface="no-such-one"), Endpoint(V4, network.port))
    assert call.failed(DialError)[0][1] in (errno.ENODEV, errno.EPERM)


@root_only()
def test_interface_and_mark(network: Network) -> None:
    """The socket has both, which is what routes and filters look at."""
    listener = network.listener(V4)
    loop = Loop()

    async def main() -> None:
        dialler = Dialler(interface="lo", mark=0x1234)
        stream = await dialler.dial(loop, Endpoint(V4, network.port))
        assert stream.socket
        assert stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 0x1234
        name = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)
        assert name.rstrip(b"\0") == b"lo"
        stream.close()

    loop.run(main())
    listener.accept()[0].close()
    loop.close()


@root_only()
def test_mark_chooses_the_route() -> None:
    def run() -> None:
        sh(
            "ip addr add 198.51.100.1/32 dev lo",
            "ip rule add fwmark 7 to 198.51.100.1 prohibit pref 1",
            "ip rule del pref 0",
            "ip rule add table local pref 10",
        )
        with socket.create_server(("198.51.100.1", 0)) as listener:
            there = Endpoint(*listener.getsockname())
            assert Call(Dialler(), there).address == "198.51.100.1"
            Call(Dialler(mark=7), there).failed(DialError, errno.EACCES)

    in_own_network(run)


@root_only()
def test_unreachable_networks() -> None:
    def run() -> None:
        sh("ip route add unreachable 198.51.100.0/24", "ip route add prohibit 203.0.113.0/24")
        Call(Dialler(), Endpoint("192.0.2.1", 80)).failed(DialError, errno.ENETUNREACH)
        Call(Dialler(), Endpoint("2001:db8::1", 80)).failed(DialError, errno.ENETUNREACH)
        Call(Dialler(), Endpoint("198.51.100.1", 80)).failed(DialError, errno.EHOSTUNREACH)
        Call(Dialler(), Endpoint("203.0.113.1", 80)).failed(DialError, errno.EACCES)

    in_own_network(run)


# Real names


@root_only()
def test_real_names(tmp_path: Path) -> None:
    """In a network and with files of our own: getaddrinfo(3) reads /etc/hosts."""

    def run() -> None:
        (tmp_path / "hosts").write_text(
            "198.51.100.1 four both\n2001:db8::1 six both\n198.51.100.9 half-dead\n"
            "198.51.100.1 half-dead\n127.0.0.1 localhost\n::ffff:198.51.100.1 mapped\n"
        )
        (tmp_path / "resolv.conf").write_text(
            "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"
        )
        sh(
            f"mount --bind {tmp_path}/hosts /etc/hosts",
            f"mount --bind {tmp_path}/resolv.conf /etc/resolv.conf",
            "ip addr add 198.51.100.1/32 dev lo",
            "ip addr add 2001:db8::1/128 dev lo nodad",
            "ip route add unreachable 198.51.100.9",
        )
        with socket.create_server(("198.51.100.1", 0)) as four:
            port = four.getsockname()[1]
            assert Call(Dialler(), Endpoint("four", port)).address == "198.51.100.1"
            assert Call(Dialler(), Endpoint("FOUR", port)).address == "198.51.100.1"
            assert Call(Dialler(), Endpoint("both", port)).address == "198.51.100.1"
            assert Call(Dialler(), Endpoint("half-dead", port)).address == "198.51.100.1"
            assert Call(Dialler(), Endpoint("mapped", port)).address == "198.51.100.1"
            Call(Dialler(), Endpoint("six", port)).failed(DialError, errno.ECONNREFUSED)
            Call(Dialler(4), Endpoint("six", port)).failed(NameNotResolved)
            Call(Dialler(), Endpoint("nobody.example", port)).failed(NameNotResolved)
            # What the C library takes for an address is one, whatever it looks like.
            assert Call(Dialler(), Endpoint("198.51.25601", port)).address == "198.51.100.1"
            with socket.create_server(("2001:db8::1", port), family=socket.AF_INET6):
                assert Call(Dialler(), Endpoint("both", port)).address == "2001:db8::1"
                assert Call(Dialler(4), Endpoint("both", port)).address == "198.51.100.1"

    in_own_network(run)


def test_scope_of_a_link_local_address() -> None:
    address = Endpoint.at(parse_address("fe80::1") or b"", 80, 1)
    assert address.sockaddr == ("fe80::1", 80, 0, 1)


@root_only()
def test_link_local_address_that_names_its_interface() -> None:
    """It is a name to us, which getaddrinfo knows: without its scope there is no way there."""

    def run() -> None:
        sh("ip addr add fe80::1/64 dev lo nodad")
        # The kernel adds the way to it a moment later, in a thread of its own.
        wait = "until ip -6 route show table local | grep -q fe80::1; do sleep 0.01; done"
        subprocess.run(["timeout", "20", "sh", "-c", wait], check=True)
        with socket.socket(socket.AF_INET6) as listener:
            listener.bind(("fe80::1", 0, 0, socket.if_nametoindex("lo")))
            listener.listen()
            there = Endpoint("fe80::1%lo", listener.getsockname()[1])
            assert Call(Dialler(), there).address == "fe80::1"

    in_own_network(run)


def test_another_way_to_look_up(network: Network) -> None:
    """Of what it gives, families and scopes are heeded; what it raises passes."""
    network.listener(V4)
    asked: list[str] = []

    async def lookup(host: str) -> list[tuple[bytes, int]]:
        asked.append(host)
        if host == "nobody":
            raise NameNotResolved("nobody: gone")
        if host == "broken":
            raise OSError(errno.EIO, "broken")
        return [(bytes(15) + b"\1", 0), (bytes((127, 0, 0, 1)), 0)]

    dialler = Dialler(4, lookup=lookup)
    assert Call(dialler, Endpoint("name", network.port)).address == V4
    assert Call(dialler, Endpoint(V4, network.port)).address == V4
    Call(dialler, Endpoint("nobody", network.port)).failed(NameNotResolved, None)
    Call(dialler, Endpoint("broken", network.port)).failed(OSError, errno.EIO)
    assert asked == ["name", "nobody", "broken"]


# In two steps


def test_addresses_that_have_been_looked_up(network: Network) -> None:
    """The first that answers; only those that there is a way out for."""
    network.listener(V4)
    found = [Endpoint(host, network.port) for host in (V6, "127.0.0.2", V4)]
    name = Endpoint("name", network.port)
    assert Call(Dialler(), name, among=found).address == V4
    assert Call(Dialler(bind_address=b"\x7f\0\0\7"), name, among=found).bound == "127.0.0.7"
    refused = Call(Dialler(), name, among=found[:2]).failed(DialError, errno.ECONNREFUSED)
    assert refused == [(V6, errno.ECONNREFUSED), ("127.0.0.2", errno.ECONNREFUSED)]
    Call(Dialler(bind_address=bytes(15) + b"\1"), name, among=found[1:]).failed(NameNotResolved)


def test_the_time_for_addresses_that_have_been_looked_up(network: Network) -> None:
    network.black_hole("127.0.0.2")
    found = [Endpoint("127.0.0.2", network.port)]
    call = Call(Dialler(), Endpoint("name", network.port), among=found, patience=0.2)
    assert call.failed(DialError, errno.ETIMEDOUT) == [("127.0.0.2", errno.ETIMEDOUT)]


@pytest.mark.parametrize(
    ("dialler", "expected"),
    [
        (Dialler(), [V6, V4]),
        (Dialler(4), [V4]),
        (Dialler(6), [V6]),
        (Dialler(bind_address=b"\x7f\0\0\1"), [V6, V4]),
    ],
)
def test_what_is_found_is_for_other_ways_out_too(dialler: Dialler, expected: list[str]) -> None:
    """A proxy can go where we cannot."""

    async def lookup(_: str) -> list[tuple[bytes, int]]:
        return [(bytes(15) + b"\1", 0), (bytes((127, 0, 0, 1)), 0)]

    dialler.lookup = lookup
    loop = Loop()
    found = loop.run(dialler.look_up(loop, Endpoint("name", 80)))
    loop.close()
    assert found == [Endpoint(host, 80) for host in expected]


# Unix sockets


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_unix(tmp_path: Path, abstract: bool) -> None:
    name = f"@muonsocks-test-{os.getpid()}" if abstract else str(tmp_path / "socket")
    with unix_listener(name) as listener:

        async def main(loop: Loop) -> None:
            stream = await dial_unix(loop, name, PATIENCE)
            peer, _ = listener.accept()
            await stream.send(b"up")
            assert peer.recv(10) == b"up"
            stream.close()
            peer.close()

        run(main)


def unix_listener(name: str, backlog: int = 10) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("\0" + name[1:] if name.startswith("@") else name)
    listener.listen(backlog)
    return listener


def run(story: Callable[[Loop], Coroutine[Any, Any, None]]) -> None:
    loop = Loop()

    async def main() -> None:
        with loop.deadline(PATIENCE):
            await story(loop)

    loop.run(main())
    assert not loop.handlers
    loop.close()


@pytest.mark.parametrize("room", [False, True], ids=["for-ever", "for-a-while"])
def test_unix_with_a_full_backlog(tmp_path: Path, room: bool) -> None:
    name = str(tmp_path / "socket")
    with unix_listener(name, 0) as listener, socket.socket(socket.AF_UNIX) as filler:
        filler.connect(name)

        async def main(loop: Loop) -> None:
            if room:
                loop.call_later(0.02, lambda: listener.accept()[0].close())
                (await dial_unix(loop, name, PATIENCE)).close()
            else:
                with pytest.raises(DialError) as told:
                    await dial_unix(loop, name, 0.05)
                assert told.value.errno == errno.ETIMEDOUT
                assert told.value.failures == [(name, errno.ETIMEDOUT)]

        run(main)


@pytest.mark.parametrize("name, number", [("nobody", errno.ENOENT), ("file", errno.ECONNREFUSED)])
def test_unix_that_is_not_there(tmp_path: Path, name: str, number: int) -> None:
    (tmp_path / "file").touch()

    async def main(loop: Loop) -> None:
        with pytest.raises(DialError) as told:
            await dial_unix(loop, str(tmp_path / name), PATIENCE)
        assert told.value.errno == number

    run(main)


def test_unix_path_that_is_too_long() -> None:
    async def main(loop: Loop) -> None:
        with pytest.raises(OSError):
            await dial_unix(loop, "/" + "x" * 200, PATIENCE)

    run(main)


def test_unix_interrupted(tmp_path: Path) -> None:
    name = str(tmp_path / "socket")
    with unix_listener(name, 0), socket.socket(socket.AF_UNIX) as filler:
        filler.connect(name)

        async def main(loop: Loop) -> None:
            with pytest.raises(TimeoutError), loop.deadline(0.02):
                await dial_unix(loop, name, PATIENCE)

        run(main)


# Nothing is left behind


def test_interrupted_race(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """The descriptors of three attempts are closed, whatever it is that ends them."""
    holes = ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
    hosts(monkeypatch, *holes)
    monkeypatch.setattr(race_module, "_STAGGER", 0.001)
    for host in holes:
        network.black_hole(host)
    ended: list[type] = []

    async def dial(loop: Loop) -> None:
        try:
            await Dialler().dial(loop, Endpoint("name", network.port))
        except KeyboardInterrupt as error:
            ended.append(type(error))

    async def main(loop: Loop) -> None:
        task: Task = loop.spawn(dial(loop), pytest.fail)
        while len(loop.handlers) < 4:  # the eventfd of the threads is one
            await loop.sleep(0.001)
        task.interrupt(KeyboardInterrupt())
        assert task.is_over
        assert len(loop.handlers) == 1

    loop = Loop()
    loop.run(main(loop))
    assert ended == [KeyboardInterrupt]
    assert not any(timer.callback for _, _, timer in loop.timers)
    loop.close()


def test_losers_are_closed(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts(monkeypatch, "127.0.0.2", V4)
    network.black_hole("127.0.0.2")
    network.listener(V4)
    monkeypatch.setattr(race_module, "_STAGGER", 0.001)

    async def main(loop: Loop) -> None:
        stream = await Dialler().dial(loop, Endpoint("name", network.port))
        assert len(loop.handlers) == 2
        stream.close()
        assert len(loop.handlers) == 1

    loop = Loop()
    loop.run(main(loop))
    loop.close()


def test_two_winners_at_once(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both turn out to be connected in one round: one is taken, the other one is closed."""
    hosts(monkeypatch, "127.0.0.2", V4)
    for host in ("127.0.0.2", V4):
        network.listener(host)
    monkeypatch.setattr(race_module, "_STAGGER", 0)
    loop = Loop()
    made: list[Any] = []
    asked: list[Any] = []

    class Late(socket.SocketType):
        def connect_ex(self, address: Any) -> int:
            if self not in made:
                made.append(self)
                if len(made) == 2:  # now the first one has its event again, beside the second's
                    loop._epoll.modify(made[0].fileno(), _INPUT_AND_ROOM)
                return super().connect_ex(address)
            asked.append(self)
            return errno.EALREADY if len(made) == 1 else super().connect_ex(address)

    monkeypatch.setattr(dial_module, "socket", Late)

    async def main() -> None:
        stream = await Dialler().dial(loop, Endpoint("name", network.port))
        assert stream.socket in made
        assert [sock.fileno() >= 0 for sock in made].count(True) == 1
        stream.close()

    loop.run(main())
    assert len(made) == 2
    assert asked[0] is made[0]
    loop.close()


def test_no_cycles(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """With gc off: successes, failures of all kinds and interrupts leave no garbage."""
    monkeypatch.setattr(race_module, "_STAGGER", 0.001)
    network.listener(V4)
    network.refuses("127.0.0.2")
    network.black_hole("127.0.0.3")
    answers = {
        b"good": [V4],
        b"second": ["127.0.0.2", "127.0.0.3", V4],
        b"refuses": ["127.0.0.2"],
        b"nothing": ["127.0.0.3", "127.0.0.2", "127.0.0.3"],
    }

    def getaddrinfo(name: bytes, *_: object) -> list[tuple[object, ...]]:
        if name not in answers:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, 1, 6, "", (address, 0)) for address in answers[name]]

    monkeypatch.setattr(names, "getaddrinfo", getaddrinfo)
    ends: list[str] = []

    async def one(loop: Loop, number: int) -> None:
        name = ("good", "second", "refuses", "nothing", "unknown", V4, V6)[number % 7]
        dialler = Dialler(connect_timeout=0.01, dial_timeout=(0.005, PATIENCE)[number % 2])
        permit = lambda _: number % 5 > 0  # noqa: E731
        try:
            stream: Stream = await dialler.dial(loop, Endpoint(name, network.port), permit)
            stream.close()
            ends.append("connected")
        except (OSError, RefusedByRule, KeyboardInterrupt) as error:
            ends.append(type(error).__name__)

    async def main(loop: Loop) -> None:
        for number in range(300):
            task = loop.spawn(one(loop, number), pytest.fail)
            if number % 11 == 10 and not task.is_over:
                task.interrupt(KeyboardInterrupt())
            while not task.is_over:
                await loop.sleep(0.0005)

    with no_garbage():
        loop = Loop()
        loop.run(main(loop))
        loop.close()
    assert len(ends) == 300
    assert set(ends) == {
        "connected",
        "DialError",
        "NameNotResolved",
        "RefusedByRule",
        "KeyboardInterrupt",
    }


# Which address of ours it is from


@root_only()
def test_source() -> None:
    def check() -> None:
        sh(
            "ip link add one type veth peer name two",
            "ip link set one up",
            "ip link set two up",
            "ip addr add 192.0.2.1/24 dev one",
            "ip addr add 198.51.100.1/24 dev two",
            "ip addr add 192.0.2.7/32 dev two",
            "ip addr add 2001:db8::1/64 dev one nodad",
        )

        def source(dialler: Dialler, host: str) -> str:
            return str(dialler.source_for(Endpoint(host, 21)))

        assert source(Dialler(), "192.0.2.99") == "192.0.2.1:0"
        assert source(Dialler(), "198.51.100.99") == "198.51.100.1:0"
        assert source(Dialler(), "2001:db8::99") == "[2001:db8::1]:0"
        assert source(Dialler(), "192.0.2.1") == "192.0.2.1:0"
        assert source(Dialler(bind_address=bytes((192, 0, 2, 7))), "192.0.2.99") == "192.0.2.7:0"
        assert source(Dialler(bind_address=bytes(4)), "192.0.2.99") == "192.0.2.1:0"
        failures: list[tuple[Dialler, str, int]] = [
            (Dialler(), "203.0.113.1", errno.ENETUNREACH),
            (Dialler(6), "192.0.2.99", errno.EAFNOSUPPORT),
            (Dialler(bind_address=bytes((192, 0, 2, 7))), "2001:db8::99", errno.EAFNOSUPPORT),
        ]
        for dialler, host, number in failures:
            with pytest.raises(OSError) as told:
                dialler.source_for(Endpoint(host, 21))
            assert told.value.errno == number

    with nothing_left_behind():
        in_own_network(check)
