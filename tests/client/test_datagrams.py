"""A SocksSocket for UDP: through real proxies, and through one that a test has in its hands."""

import asyncio
import errno
import gc
import os
import select
import socket
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from associated import far_end, header
from ends import PATIENCE
from real_server import Server, until
from relays import Proxy, in_child, settle

from muonsocks.client import (
    ProxyError,
    ProxyMisbehaved,
    ProxyUnreachable,
    RequestRefused,
    association,
)
from muonsocks.client import SocksSocket as AnySocket
from muonsocks.client.datagrams import Datagrams

THERE = ("192.0.2.1", 53)
HEAD = header(*THERE)
pytestmark = pytest.mark.usefixtures("clean")


def udp(proxy: Any, family: int = socket.AF_INET, timeout: float | None = PATIENCE) -> Datagrams:
    sock = AnySocket(family, socket.SOCK_DGRAM, proxy=proxy)
    assert isinstance(sock, Datagrams)
    sock.settimeout(timeout)
    return sock


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy() as one:
        yield one


@contextmanager
def up(proxy: Proxy, *, timeout: float | None = PATIENCE) -> Iterator[tuple[Datagrams, Any]]:
    """A socket that has its association, and where the relay has it."""
    with udp(proxy.url) as sock:
        sock.sendto(b"first", THERE)
        to, data, source = proxy.heard()
        assert (to, data) == (THERE, b"first")
        sock.settimeout(timeout)
        yield sock, source


def says(number: int) -> Any:
    return pytest.raises(OSError, match=rf"\[Errno {number}\]")


# Through real proxies


def real(server: Server, count: int) -> list[str]:
    host, port = server.address
    return [f"socks5h://{host}:{port}"] * count


@pytest.mark.parametrize("count", [1, 2, 3])
def test_through_real_proxies(server: Server, count: int) -> None:
    with udp(real(server, count)) as sock, far_end() as far:
        there = far.getsockname()
        assert sock.sendto(b"question", there) == 8
        data, source = far.recvfrom(99)
        assert data == b"question"
        assert sock.getsockname()[0] == server.address[0]
        far.sendto(b"answer", source)
        assert sock.recvfrom(99) == (b"answer", there)
        assert sock.sendto(b"by name", 0, ("localhost", there[1])) == 7
        assert far.recv(99) == b"by name"
        with pytest.raises(OSError) as told:
            sock.getpeername()
        assert told.value.errno == errno.ENOTCONN
        sock.connect(there)
        assert sock.getpeername() == there
        assert sock.send(b"to the peer") == 11
        assert far.recvfrom(99) == (b"to the peer", source)


@pytest.mark.parametrize("count", [1, 2])
def test_the_largest_datagram(server: Server, count: int) -> None:
    largest = 65507 - 10 * count
    with udp(real(server, count)) as sock, far_end() as far:
        sock.connect(far.getsockname())
        data = os.urandom(largest)
        assert sock.sendmsg([data[:9], data[9:]]) == largest
        arrived, source = far.recvfrom(1 << 16)
        assert arrived == data
        far.sendto(data, source)
        assert sock.recv(1 << 16) == data
        with says(errno.EMSGSIZE):
            sock.send(data + b"!")


def test_a_real_proxy_at_the_other_family(server: Server) -> None:
    """An IPv6 socket goes to an IPv4 proxy, and has the addresses that an IPv6 socket has."""
    with udp(real(server, 1), socket.AF_INET6) as sock, far_end() as far:
        there = ("::ffff:127.0.0.1", far.getsockname()[1])
        sock.sendto(b"question", there)
        source = far.recvfrom(99)[1]
        far.sendto(b"answer", source)
        assert sock.recvfrom(99) == (b"answer", (*there, 0, 0))
        assert sock.getsockname()[0].startswith("::ffff:127.")


def test_a_real_proxy_in_asyncio(server: Server) -> None:
    class Protocol(asyncio.DatagramProtocol):
        def __init__(self) -> None:
            self.received = asyncio.get_running_loop().create_future()

        def datagram_received(self, data: bytes, source: Any) -> None:
            self.received.set_result((data, source))

    async def ask(number: int, there: Any) -> None:
        loop = asyncio.get_running_loop()
        sock = udp(real(server, 1 + number % 2), timeout=0)
        transport, protocol = await loop.create_datagram_endpoint(Protocol, sock=sock)
        for text in (b"%d" % number, b"%d again" % number):
            transport.sendto(text, there)
            assert await protocol.received == (text.upper(), there)
            protocol.received = loop.create_future()
        transport.close()

    async def main(there: Any) -> None:
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(ask(number, there) for number in range(20)))

    with far_end() as far:

        def echo() -> None:
            for _ in range(40):
                data, source = far.recvfrom(99)
                far.sendto(data.upper(), source)

        thread = threading.Thread(target=echo)
        thread.start()
        asyncio.run(main(far.getsockname()))
        thread.join()


# What goes over the wire


@pytest.mark.parametrize(
    "address, head",
    [
        (THERE, HEAD),
        (("2001:db8::1", 9), header("2001:db8::1", 9)),
        (("2001:db8::1", 9, 0, 0), header("2001:db8::1", 9)),
        (("example.org", 9), b"\0\0\0\3\x0bexample.org\0\x09"),
    ],
)
def test_where_it_is_to_go(proxy: Proxy, address: Any, head: bytes) -> None:
    with udp(proxy.url) as sock:
        for data in (b"", b"data", b"again"):
            assert sock.sendto(data, address) == len(data)
            assert proxy.relay.recv(99) == head + data


def test_names_that_are_looked_up_here(proxy: Proxy) -> None:
    with udp(f"socks5://{proxy.place}") as sock:
        sock.sendto(b"data", ("localhost", 9))
        assert proxy.heard()[:2] == (("127.0.0.1", 9), b"data")
        sock.sendto(b"more", ("127.0.0.1", 10))
        assert proxy.heard()[0] == ("127.0.0.1", 10)
        sock.sendto(b"more", ("localhost", 11))
        to, _, source = proxy.heard()
        assert to == ("127.0.0.1", 11)
        proxy.say(b"answer", source)
        assert sock.recv(9) == b"answer", "it is the same socket"
        sock.setblocking(False)
        with says(errno.EAGAIN):
            sock.sendto(b"later", ("localhost", 12))
        assert select.select([], [sock], [], PATIENCE)[1]
        sock.sendto(b"later", ("localhost", 12))
        to, _, same = proxy.heard()
        assert (to, same) == (("127.0.0.1", 12), source)
        with pytest.raises(socket.gaierror):
            sock.setblocking(True)
            sock.sendto(b"nowhere", ("no-such-name.invalid", 9))
    assert proxy.count == 1


def test_a_second_proxy_has_a_header_of_its_own(proxy: Proxy) -> None:
    with udp([proxy.url, proxy.url]) as sock:
        sock.sendto(b"data", THERE)
        outer = b"\0\0\0" + proxy.endpoint_of(proxy.relay)
        datagram, source = proxy.relay.recvfrom(99)
        assert datagram == outer + HEAD + b"data"
        proxy.relay.sendto(HEAD + b"one header only", source)
        proxy.relay.sendto(b"\0\0\1" + outer[3:] + HEAD + b"a fragment", source)
        proxy.relay.sendto(outer + HEAD + b"answer", source)
        assert sock.recvfrom(99) == (b"answer", THERE)


# Receiving


def test_all_ways_to_receive(proxy: Proxy) -> None:
    with up(proxy) as (sock, source):
        for data in (b"", b"0123456789"):
            proxy.say(data, source)
            assert sock.recv(99) == data
            proxy.say(data, source)
            assert sock.recvfrom(99) == (data, THERE)
            buffer = bytearray(20)
            proxy.say(data, source)
            assert sock.recv_into(buffer) == len(data)
            assert buffer == data.ljust(20, b"\0")
            proxy.say(data, source)
            assert sock.recvfrom_into(buffer, 3) == (min(3, len(data)), THERE)
            proxy.say(data, source)
            assert sock.recvmsg(99, 99) == (data, [], 0, THERE)
            parts = bytearray(2), bytearray(0), bytearray(20)
            proxy.say(data, source)
            assert sock.recvmsg_into(parts) == (len(data), [], 0, THERE)
            assert (parts[0] + parts[2])[: len(data)] == data


def test_a_small_buffer_gets_the_beginning_of_the_data(proxy: Proxy) -> None:
    with up(proxy) as (sock, source):
        for _ in range(5):
            proxy.say(b"0123456789", source)
        proxy.say(b"next", source)
        buffer = bytearray(4)
        assert sock.recv(4) == b"0123"
        assert sock.recvmsg(4) == (b"0123", [], socket.MSG_TRUNC, THERE)
        assert sock.recv_into(buffer) == 4
        assert sock.recv_into(buffer, 0, socket.MSG_TRUNC) == 10, "recv(2): the real length"
        assert sock.recv(0) == b""
        assert sock.recv(99) == b"next"
        with pytest.raises(ValueError):
            sock.recv(-1)
        with pytest.raises(ValueError):
            sock.recv_into(buffer, 5)


def test_peek(proxy: Proxy) -> None:
    with up(proxy) as (sock, source):
        proxy.relay.sendto(b"junk", source)
        proxy.say(b"one", source)
        proxy.say(b"two", source)
        for _ in range(2):
            assert sock.recv(99, socket.MSG_PEEK) == b"one"
        assert [sock.recv(99), sock.recv(99)] == [b"one", b"two"]


def test_what_must_not_wait(proxy: Proxy) -> None:
    with up(proxy, timeout=None) as (sock, source):
        with says(errno.EAGAIN):
            sock.recv(9, socket.MSG_DONTWAIT)
        sock.settimeout(0.01)
        with pytest.raises(TimeoutError, match="timed out"):
            sock.recv(9)
        proxy.say(b"data", source)
        assert sock.recv(9, socket.MSG_DONTWAIT) == b"data"


def test_what_cannot_be_asked_for(proxy: Proxy) -> None:
    with up(proxy) as (sock, _):
        with says(errno.EOPNOTSUPP):
            sock.recv(9, socket.MSG_ERRQUEUE)
        with says(errno.EOPNOTSUPP):
            sock.sendto(b"x", socket.MSG_MORE, THERE)
        with says(errno.EOPNOTSUPP):
            sock.sendmsg([b"x"], [(socket.IPPROTO_IP, socket.IP_TOS, bytes(4))], 0, THERE)
        with says(errno.ENOPROTOOPT):
            sock.setsockopt(socket.IPPROTO_UDP, 103, 1000)  # UDP_SEGMENT
        with says(errno.EOPNOTSUPP):
            sock.listen()
        with pytest.raises(TypeError):
            sock.sendto(b"x")


NOT_FOR_US = [
    b"",
    b"\0\0",
    b"\0\0\0\1",
    HEAD[:-1],
    b"\0\0\0\2" + HEAD[4:],
    b"\0\0\1" + HEAD[3:] + b"fragment",
    b"\0\0\x81" + HEAD[3:] + b"last fragment",
    b"\0\0\0\3\0\0\x35 no name",
    b"\0\0\0\3\4a\0cd\0\x35 none",
]


def test_what_is_none_is_dropped(proxy: Proxy) -> None:
    with up(proxy) as (sock, source):
        for junk in NOT_FOR_US:
            proxy.relay.sendto(junk, source)
        proxy.relay.sendto(b"\xff\xff\0" + HEAD[3:] + b"data", source)
        assert sock.recv(99) == b"data"
        for junk in NOT_FOR_US:
            proxy.relay.sendto(junk, source)
        sock.setblocking(False)
        with says(errno.EAGAIN):
            sock.recv(99)


class Endless:
    """A socket at which there is always something, and never anything that is wanted."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock

    def recv_into(self, view: Any, count: int, flags: int) -> int:
        return 4

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


@pytest.mark.parametrize("timeout, error", [(0.05, TimeoutError), (0, BlockingIOError)])
def test_what_never_ends_does_not_hold_whoever_receives(
    proxy: Proxy, timeout: float, error: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    with up(proxy, timeout=timeout) as (sock, _):
        association = sock._association
        monkeypatch.setattr(association, "sock", Endless(association.sock))  # type: ignore
        with pytest.raises(error):
            sock.recv(9)
        monkeypatch.undo()


@pytest.mark.parametrize("timeout", [0.2, 0])
def test_a_flood_does_not_hold_whoever_receives(proxy: Proxy, timeout: float) -> None:
    over = threading.Event()
    with up(proxy, timeout=timeout) as (sock, source):

        def flood() -> None:
            while not over.is_set():
                for _ in range(200):
                    proxy.relay.sendto(b"junk", source)

        floods = [threading.Thread(target=flood) for _ in range(2)]
        for one in floods:
            one.start()
        try:
            for _ in range(3):
                with pytest.raises((BlockingIOError, TimeoutError)):
                    sock.recv(99)
        finally:
            over.set()
            for one in floods:
                one.join()


def test_only_the_peer_is_heard(proxy: Proxy) -> None:
    with up(proxy) as (sock, source):
        sock.connect(THERE)
        proxy.say(b"no", source, "192.0.2.2", 53)
        proxy.say(b"no", source, "192.0.2.1", 54)
        proxy.say(b"yes", source)
        assert sock.recv(99) == b"yes"
        sock.connect(("example.org", 99))
        assert sock.getpeername() == ("example.org", 99)
        proxy.say(b"no", source)
        proxy.say(b"yes", source, "192.0.2.7", 99)
        assert sock.recvfrom(99) == (b"yes", ("192.0.2.7", 99))
        assert sock.sendto(b"elsewhere", THERE) == 9
        assert proxy.heard()[0] == THERE


def test_no_destination(proxy: Proxy) -> None:
    with up(proxy) as (sock, _), says(errno.EDESTADDRREQ):
        sock.send(b"data")
    with udp(proxy.url) as sock, says(errno.EDESTADDRREQ):
        sock.send(b"data")


def test_shut_down(proxy: Proxy) -> None:
    with up(proxy) as (sock, _):
        sock.shutdown(socket.SHUT_RDWR)
        assert sock.recv(9) == b""
        with pytest.raises(BrokenPipeError):
            sock.sendto(b"data", THERE)


# Without blocking


def test_the_first_one_without_blocking(proxy: Proxy) -> None:
    proxy.may_answer.clear()
    with udp(proxy.url, timeout=0) as sock:
        for _ in range(3):
            with says(errno.EAGAIN):
                sock.sendto(b"data", THERE)
        with says(errno.EAGAIN):
            sock.recv(9)
        proxy.connection()
        assert select.select([sock], [sock], [], 0.01) == ([], [], [])
        proxy.may_answer.set()
        assert select.select([], [sock], [], PATIENCE)[1]
        assert sock.sendto(b"data", THERE) == 4
        assert proxy.heard()[:2] == (THERE, b"data")
        assert proxy.count == 1


def test_who_only_waits_for_input_is_told(proxy: Proxy) -> None:
    """Or the socket would never be put into its place."""
    with udp(proxy.url, timeout=0) as sock, select.epoll() as epoll:
        sock.bind(("127.0.0.1", 0))
        epoll.register(sock, select.EPOLLIN | select.EPOLLET)
        assert epoll.poll(PATIENCE) == [(sock.fileno(), select.EPOLLIN)]
        with says(errno.EAGAIN):
            sock.recv(9)
        assert sock.getsockname() == proxy.relay.getsockname()


def test_connect_without_blocking(proxy: Proxy) -> None:
    proxy.may_answer.clear()
    with udp(proxy.url, timeout=0) as sock:
        assert sock.connect_ex(THERE) == errno.EINPROGRESS
        assert sock.connect_ex(THERE) == errno.EALREADY
        proxy.may_answer.set()
        assert select.select([], [sock], [], PATIENCE)[1]
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert sock.getpeername() == THERE
        sock.connect(("192.0.2.9", 9))
        sock.send(b"data")
        assert proxy.heard()[:2] == (("192.0.2.9", 9), b"data")


def test_another_destination_on_the_way(proxy: Proxy) -> None:
    with udp(proxy.url, timeout=0) as sock:
        with says(errno.EINPROGRESS):
            sock.connect(THERE)
        assert select.select([], [sock], [], PATIENCE)[1]
        sock.connect(("192.0.2.9", 9))
        assert sock.getpeername() == ("192.0.2.9", 9)
        sock.sendall(b"data")
        assert proxy.heard()[0] == ("192.0.2.9", 9)


def test_refused_without_blocking(proxy: Proxy) -> None:
    proxy.reply = b"\5\2\0\1" + bytes(6)
    with udp(proxy.url, timeout=0) as sock, select.epoll() as epoll:
        epoll.register(sock, select.EPOLLIN)
        with says(errno.EAGAIN):
            sock.sendto(b"data", THERE)
        assert epoll.poll(PATIENCE)
        with pytest.raises(RequestRefused) as told:
            sock.recv(9)
        assert (told.value.errno, told.value.code) == (errno.EACCES, 2)
        with says(errno.EAGAIN):
            sock.recv(9)
        assert epoll.poll(0) == [], "a socket that has done nothing yet"


def test_an_epoll_goes_on_with_it(proxy: Proxy) -> None:
    """Registered before there is an association; blocking or not."""
    for timeout in (0, PATIENCE):
        with udp(proxy.url, timeout=timeout) as sock, select.epoll() as epoll:
            epoll.register(sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
            epoll.poll(PATIENCE)
            if not timeout:
                with says(errno.EAGAIN):
                    sock.sendto(b"data", THERE)
                until("there is room", lambda: epoll.poll(1)[0][1] & select.EPOLLOUT)
            sock.sendto(b"data", THERE)
            _, _, source = proxy.heard()
            epoll.poll(0)
            proxy.say(b"answer", source)
            assert epoll.poll(PATIENCE)[0][1] & select.EPOLLIN
            assert sock.recv(99) == b"answer"


# The end of the association


def test_the_next_call_tells_the_end(proxy: Proxy) -> None:
    with up(proxy) as (sock, _):
        sock.connect(THERE)
        proxy.connection().shutdown(socket.SHUT_RDWR)
        until("it is told", lambda: select.select([sock], [], [], 0)[0])
        with pytest.raises(ProxyMisbehaved) as told:
            sock.send(b"lost")
        assert told.value.errno == errno.ECONNRESET
        assert proxy.place in str(told.value)
        with pytest.raises(ProxyMisbehaved):
            sock.recv(9)
        assert sock.getpeername() == THERE
        assert sock.send(b"once more") == 9, "that is another association"
        assert proxy.heard()[:2] == (THERE, b"once more")
        assert proxy.count == 2


def test_what_has_been_told_is_not_told_for_ever(proxy: Proxy) -> None:
    """Or a program that waits for input would be told of nothing else."""
    with up(proxy, timeout=0) as (sock, _), select.epoll() as epoll:
        epoll.register(sock, select.EPOLLIN)
        assert epoll.poll(0) == []
        linger = struct.pack("ii", 1, 0)
        proxy.connection().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        os.close(proxy.connection().detach())
        assert epoll.poll(PATIENCE)
        with pytest.raises(ProxyMisbehaved):
            sock.recv(9)
        assert epoll.poll(0) == []
        with says(errno.EAGAIN):
            sock.recv(9)


@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_who_waits_is_woken_by_the_end(proxy: Proxy, timeout: float | None) -> None:
    with up(proxy, timeout=timeout) as (sock, _):
        caught = []

        def wait() -> None:
            try:
                sock.recv(9)
            except OSError as error:
                caught.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        proxy.connection().sendall(b"what nobody listens to")
        proxy.connection().shutdown(socket.SHUT_WR)
        thread.join(PATIENCE)
        assert list(map(type, caught)) == [ProxyMisbehaved]


@pytest.mark.parametrize("has_thread", [True, False])
def test_a_proxy_that_floods_its_connection_has_ended_it(
    proxy: Proxy, has_thread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the background thread reads that for ever, nor who waits for a datagram, who may have
    none.
    """
    if not has_thread:
        monkeypatch.setattr(association, "Ending", lambda *_: None)
    with up(proxy) as (sock, _):
        proxy.connection().sendall(bytes(1 << 16))
        with pytest.raises(ProxyMisbehaved):
            sock.recv(9)


def test_the_second_of_two_proxies_ends_it(proxy: Proxy) -> None:
    with udp([proxy.url, proxy.url]) as sock:
        sock.sendto(b"data", THERE)
        proxy.connection(1).shutdown(socket.SHUT_RDWR)
        with pytest.raises(ProxyMisbehaved):
            sock.recv(9)


def test_a_relay_that_is_not_there(proxy: Proxy) -> None:
    with up(proxy) as (sock, _):
        proxy.relay.close()
        sock.sendto(b"one", THERE)
        with pytest.raises(ProxyUnreachable) as told:
            sock.recv(9)
        assert told.value.errno == errno.ECONNREFUSED


# Who has it


def test_closing_closes_the_connection(proxy: Proxy) -> None:
    with up(proxy) as (sock, _):
        sock.close()
        assert proxy.connection().recv(1) == b""
    with up(proxy) as (sock, _):
        os.close(sock.detach())
        assert proxy.connection(1).recv(1) == b""


def test_closed_on_the_way(proxy: Proxy) -> None:
    proxy.may_answer.clear()
    with udp(proxy.url, timeout=0) as sock:
        with says(errno.EAGAIN):
            sock.sendto(b"data", THERE)
        proxy.connection()
    assert proxy.connection().recv(1) == b""


def test_forgetting_closes_the_connection(proxy: Proxy) -> None:
    for timeout in (PATIENCE, 0):
        sock = udp(proxy.url, timeout=timeout)
        if timeout:
            sock.sendto(b"data", THERE)
        else:
            proxy.may_answer.clear()
            with says(errno.EAGAIN):
                sock.sendto(b"data", THERE)
        number = 0 if timeout else 1
        connection = proxy.connection(number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del sock
            gc.collect()
        assert connection.recv(1) == b""


def test_two_have_it(proxy: Proxy) -> None:
    with up(proxy) as (sock, source):
        sock.connect(THERE)
        with sock.dup() as other:
            assert other.getpeername() == THERE
            assert other.gettimeout() == PATIENCE
            sock.close()
            settle()
            other.send(b"data")
            assert proxy.heard()[1:] == (b"data", source)
        assert proxy.connection().recv(1) == b""


def test_in_a_child_process(proxy: Proxy) -> None:
    with up(proxy) as (sock, source):

        def story() -> None:
            sock.sendto(b"from the child", THERE)
            proxy.say(b"to the child", source)
            assert sock.recv(99) == b"to the child"
            sock.close()

        in_child(story)
        sock.sendto(b"from the parent", THERE)
        assert [proxy.heard()[1] for _ in range(2)] == [b"from the child", b"from the parent"]

        def wait() -> None:
            with pytest.raises(ProxyMisbehaved):
                sock.recv(9)

        proxy.connection().shutdown(socket.SHUT_RDWR)
        in_child(wait)


def test_a_child_that_is_forked_while_the_thread_is_at_work(proxy: Proxy) -> None:
    """As it is when a proxy ends the association in that very moment."""
    with up(proxy) as (sock, _):

        def wait() -> None:
            with pytest.raises(ProxyMisbehaved):
                sock.recv(9)
            sock.close()

        association: Any = sock._association
        with association._watch._lock:
            proxy.connection().shutdown(socket.SHUT_RDWR)
            in_child(wait)


def test_threads_at_once_have_one_association(proxy: Proxy) -> None:
    proxy.may_answer.clear()
    with udp(proxy.url) as sock:
        threads = [threading.Thread(target=sock.sendto, args=(b"x", THERE)) for _ in range(8)]
        for one in threads:
            one.start()
        proxy.connection()
        proxy.may_answer.set()
        for one in threads:
            one.join()
        assert [proxy.heard()[:2] for _ in threads] == [(THERE, b"x")] * 8
    assert proxy.count == 1


def test_who_waited_before_there_was_an_association(proxy: Proxy) -> None:
    with udp(proxy.url, timeout=None) as sock:
        found: list[bytes] = []
        begun = threading.Event()

        def wait() -> None:
            begun.set()
            found.append(sock.recv(9))

        thread = threading.Thread(target=wait)
        thread.start()
        begun.wait()
        sock.sendto(b"data", THERE)
        proxy.say(b"answer", proxy.heard()[2])
        thread.join(PATIENCE)
        assert found == [b"answer"]


def test_time_is_up(proxy: Proxy) -> None:
    proxy.may_answer.clear()
    with udp(proxy.url, timeout=0.05) as sock:
        with pytest.raises(ProxyError) as told:
            sock.sendto(b"data", THERE)
        assert isinstance(told.value, TimeoutError)


def test_time_is_up_while_another_thread_makes_it(proxy: Proxy) -> None:
    with udp(proxy.url, timeout=1e-6) as sock, sock._beginning:
        with pytest.raises(TimeoutError, match="timed out"):
            sock.sendto(b"data", THERE)
        sock.setblocking(False)
        with says(errno.EAGAIN):
            sock.sendto(b"data", THERE)


@pytest.mark.parametrize("blocks", [True, False])
def test_nobody_can_look_after_it(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, blocks: bool
) -> None:
    """Its thread cannot be had, say: nothing stays open, and nothing is printed."""

    def no_more(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    problems: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", problems.append)
    with udp(proxy.url) as sock, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with monkeypatch.context() as patch:
            patch.setattr(association, "_Watch", no_more)
            if not blocks:
                sock.setblocking(False)
                with says(errno.EAGAIN):
                    sock.sendto(b"data", THERE)
                assert select.select([], [sock], [], PATIENCE)[1]
            with says(errno.EMFILE):
                sock.sendto(b"data", THERE)
        gc.collect()
        assert proxy.connection().recv(1) == b"", "it has been closed"
        sock.settimeout(PATIENCE)
        sock.sendto(b"data", THERE)
        assert proxy.heard()[:2] == (THERE, b"data")
    assert not said and not problems


# From where


def test_bind(proxy: Proxy) -> None:
    """What leaves here comes from this port; peers are told the proxy's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        here = probe.getsockname()
    with udp(proxy.url) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 40000)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0x10)
        size = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        sock.bind(here)
        assert proxy.count == 1
        assert sock.getsockname() == proxy.relay.getsockname()
        sock.sendto(b"data", THERE)
        assert proxy.heard()[2] == here
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == size
        assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 0x10


def test_bind_for_peers_of_this_host(proxy: Proxy) -> None:
    with udp(proxy.url) as sock, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        sock.listens_here = True
        sock.bind(("127.0.0.1", 0))
        here = sock.getsockname()
        peer.sendto(b"direct", here)
        assert sock.recv(9) == b"direct"
        assert proxy.count == 0
        sock.sendto(b"data", THERE)
        assert proxy.heard()[1:] == (b"data", here), "it has kept its port"


# Which way


def plain_exchange(sock: AnySocket) -> None:
    with far_end() as far:
        sock.sendto(b"question", far.getsockname())
        source = far.recvfrom(99)[1]
        assert source[1] == sock.getsockname()[1], "it comes from here"
        far.sendto(b"answer", source)
        assert sock.recvfrom(99) == (b"answer", far.getsockname())


def test_without_proxies(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    with udp("direct") as sock:
        plain_exchange(sock)
        with far_end() as far:
            sock.connect(far.getsockname())
            assert sock.getpeername() == far.getsockname()
            sock.send(b"data")
            assert far.recv(9) == b"data"
    monkeypatch.setenv("ALL_PROXY", proxy.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with udp(None) as sock:
        plain_exchange(sock)
        with says(errno.ENETUNREACH):
            sock.sendto(b"it would be a direct one", THERE)
    with udp(None) as sock:
        sock.sendto(b"data", THERE)
        assert proxy.heard()[0] == THERE
        with says(errno.ENETUNREACH):
            sock.sendto(b"not for the proxy", ("127.0.0.1", 9))


@pytest.mark.parametrize("scheme", ["socks4", "socks4a", "http"])
def test_proxies_that_have_no_datagrams(proxy: Proxy, scheme: str) -> None:
    calls: list[Callable[[Datagrams, Any], object]] = [
        lambda sock, there: sock.sendto(b"data", there),
        lambda sock, there: sock.connect(there),
        lambda sock, there: sock.bind(("127.0.0.1", 0)),
    ]
    with far_end() as far:
        for chain in ([f"{scheme}://{proxy.place}"], [proxy.url, f"{scheme}://{proxy.place}"]):
            for call in calls:
                with udp(chain) as sock, pytest.raises(RequestRefused) as told:
                    call(sock, far.getsockname())
                assert told.value.errno == errno.EOPNOTSUPP
        far.setblocking(False)
        with pytest.raises(BlockingIOError):
            far.recv(9)


def test_a_relay_that_is_nowhere(proxy: Proxy) -> None:
    for bound in (b"\1\x7f\0\0\x02\0\x09", b"\4" + bytes(15) + b"\1\0\x09", b"\3\1x\0\x09"):
        proxy.reply = b"\5\0\0" + bound
        with udp(proxy.url) as sock, pytest.raises(ProxyMisbehaved):
            sock.sendto(b"data", THERE)
