"""What the library makes of a program's socket, and what it leaves behind."""

import contextlib
import errno
import os
import socket
import warnings
from collections.abc import Callable, Iterator

import pytest
from classic_calls import BIND, CONNECT, HOST, PEER, forget_all, hand, listening, reach, reply
from ends import descriptors, no_garbage, tcp_pair
from programs import accept, listener
from real_server import until
from upstream import END, Upstream

from muonsocks.client import SocksSocket, rsocks
from muonsocks.client.background import Thread
from muonsocks.errors import UsageError

SECONDS = 20


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_all(monkeypatch)


@contextlib.contextmanager
def _all_closed() -> Iterator[None]:
    """Hold that descriptors are closed without a collection; some of them in another thread."""
    Thread.of_this_process()  # which has some, for good
    with no_garbage():
        before = descriptors()
        yield
        until("all is closed", lambda: descriptors().items() <= before.items())


def _under_way() -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    number = 0
    try:
        rsocks.Rconnect(sock, (HOST, 21))
    except BlockingIOError as error:  # pytest.raises would keep it, and the socket
        number = error.errno
    assert number == errno.EINPROGRESS
    return sock


def _fails(call: Callable[[], object]) -> bool:
    try:
        call()
    except OSError:
        return True
    return False


# Which sockets


def test_it_is_for_tcp_alone() -> None:
    for family, kind in (
        (socket.AF_INET, socket.SOCK_DGRAM),
        (socket.AF_INET6, socket.SOCK_DGRAM),
        (socket.AF_UNIX, socket.SOCK_STREAM),
    ):
        with socket.socket(family, kind) as sock, pytest.raises(OSError, match="TCP") as caught:
            rsocks.Rconnect(sock, (HOST, 21))
        assert caught.value.errno == errno.EOPNOTSUPP


def test_it_is_not_for_what_is_closed_or_connected() -> None:
    sock, far = tcp_pair()
    with Upstream(CONNECT) as proxy, sock, far:
        rsocks.SOCKSinit(proxy=proxy.url("socks5h"))
        with pytest.raises(OSError) as caught:
            rsocks.Rconnect(sock, (HOST, 21))
        assert caught.value.errno == errno.EISCONN
        for one in (sock, reach()):
            one.close()
            with pytest.raises(OSError) as caught:
                rsocks.Rconnect(one, (HOST, 21))
            assert caught.value.errno == errno.EBADF


def test_what_cannot_be_a_host() -> None:
    with socket.socket() as sock:
        with pytest.raises(UsageError):
            rsocks.Rconnect(sock, ("two words", 21))
        with pytest.raises(OverflowError):
            rsocks.Rconnect(sock, (HOST, 65536))


def test_a_socks_socket_has_its_own_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    with Upstream(CONNECT) as proxy, Upstream([END]) as other:
        rsocks.SOCKSinit(proxy=proxy.url("socks5h"))
        monkeypatch.setenv("all_proxy", str(other.url("socks5h")))
        with SocksSocket(proxy=proxy.url("socks5h")) as sock:
            rsocks.Rconnect(sock, (HOST, 21))
        with SocksSocket() as sock, pytest.raises(OSError):
            rsocks.Rconnect(sock, (HOST, 21))
        reach().close()
        assert (len(proxy.heard), len(other.heard)) == (2, 1)


def test_the_environment_says_which_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    with Upstream(CONNECT, BIND) as proxy:
        monkeypatch.setenv("all_proxy", f"socks5h://{proxy.place}")
        reach().close()
        with socket.socket() as sock:
            rsocks.Rbind(sock, ("", 0), HOST)
        # BIND names the host, and its port where the connection has been.
        greeting, where = b"\5\1\0", b"\0\1" + socket.inet_aton(HOST) + b"\0\x15"
        assert proxy.heard == [greeting + b"\5\1" + where, greeting + b"\5\2" + where]


# What has been prepared


@pytest.mark.parametrize("is_blocking", [True, False])
def test_options_are_kept(is_blocking: bool) -> None:
    with hand() as proxy, socket.socket() as sock:
        rsocks.SOCKSinit(proxy=proxy.url)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 50_000)
        sock.set_inheritable(True)
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            rsocks.Rconnect(sock, (HOST, 21))
        with proxy.take_request() as conn:
            sock.setblocking(is_blocking)
            conn.sendall(reply())
            if not is_blocking:
                rsocks.Rselect([], [sock], [], SECONDS)
            with pytest.raises(OSError, match="already connected"):
                rsocks.Rconnect(sock, (HOST, 21))
            assert sock.getpeername() == proxy.listener.getsockname()
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 77
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE) == 1
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 100_000
            assert sock.get_inheritable()
            assert os.get_blocking(sock.fileno()) == is_blocking


def test_a_port_that_has_been_claimed_is_where_it_comes_from() -> None:
    with Upstream(CONNECT) as proxy, socket.socket() as sock:
        rsocks.SOCKSinit(proxy=proxy.url("socks5h"))
        sock.bind(("127.0.0.1", 0))
        claimed = sock.getsockname()
        rsocks.Rconnect(sock, (HOST, 21))
        assert sock.getsockname() == claimed


def test_a_port_cannot_be_claimed_at_a_proxy() -> None:
    with Upstream(CONNECT, BIND) as proxy, socket.socket() as sock:
        rsocks.SOCKSinit(proxy=proxy.url("socks5h"))
        reach().close()
        with pytest.raises(OSError, match="ask Rgetsockname") as caught:
            rsocks.Rbind(sock, ("", 2000), HOST)
        assert caught.value.errno == errno.EADDRNOTAVAIL
        rsocks.Rbind(sock, ("", 0), HOST)


def test_without_proxies_a_program_may_say_where_to_listen() -> None:
    with listener("127.0.0.2") as far:
        with socket.socket() as sock:
            sock.bind(("127.0.0.3", 0))
            rsocks.Rconnect(sock, far.getsockname())
        accept(far).close()
        for address, host in (("", "127.0.0.3"), ("0.0.0.0", "127.0.0.3"), ("127.0.0.4",) * 2):
            with socket.socket() as sock:
                rsocks.Rbind(sock, (address, 0), "127.0.0.2")
                assert rsocks.Rgetsockname(sock)[0] == host


# What is left


def test_nothing_is_left_of_the_sequence() -> None:
    with _all_closed(), Upstream(CONNECT, [*BIND, PEER]) as proxy:
        rsocks.SOCKSinit(proxy=proxy.url("socks5h"))
        reach().close()
        sock = listening()[0]
        conn, _ = rsocks.Raccept(sock)
        conn.close()
        sock.close()
        del conn, sock


def test_nothing_is_left_of_what_nobody_accepts() -> None:
    with _all_closed(), Upstream(CONNECT, [*BIND, PEER]) as proxy:
        rsocks.SOCKSinit(proxy=proxy.url("socks5h"))
        reach().close()
        sock = listening()[0]
        assert rsocks.Rselect([sock], [], [], SECONDS)[0]
        sock.close()
        del sock


@pytest.mark.parametrize("is_closed", [False, True])
@pytest.mark.parametrize("has_arrived", [False, True])
def test_nothing_is_left_of_what_is_under_way(has_arrived: bool, is_closed: bool) -> None:
    with _all_closed(), hand() as proxy:
        rsocks.SOCKSinit(proxy=proxy.url)
        sock = _under_way()
        with proxy.take_request() as conn:
            if has_arrived:
                conn.sendall(reply())
                assert rsocks.Rselect([], [sock], [], SECONDS)[1]
            if is_closed:
                sock.close()
            with warnings.catch_warnings(action="ignore"):  # of a socket that is not closed
                del sock
            assert conn.recv(1) == b""


@pytest.mark.parametrize("step", ["Rconnect", "Rbind", "Raccept"])
def test_nothing_is_left_of_what_has_failed(step: str) -> None:
    ends = {"Rconnect": [END], "Rbind": [END], "Raccept": [*BIND, END]}
    with _all_closed(), Upstream(CONNECT, ends[step]) as proxy:
        rsocks.SOCKSinit(proxy=proxy.url("socks5h"))
        reach().close()
        sock = socket.socket()
        if step == "Rconnect":
            assert _fails(lambda: rsocks.Rconnect(sock, (HOST, 21)))
        else:
            assert _fails(lambda: rsocks.Raccept(listening(sock=sock)[0]))
        sock.close()
