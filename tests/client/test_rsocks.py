"""The sequence, blocking or not, with proxies or none; and what Rselect says meanwhile."""

import errno
import os
import select
import socket
from collections.abc import Callable
from typing import Any

import pytest
from classic_calls import (
    BIND,
    BOUND,
    CONNECT,
    HOST,
    PEER,
    Hand,
    forget_all,
    hand,
    listening,
    reach,
    reply,
)
from programs import accept, listener, read_all
from real_server import running
from upstream import BYTE_BY_BYTE, END, RESET, Script, Upstream

from muonsocks.client import DIRECT, SocksSocket, rsocks
from muonsocks.client.errors import (
    DestinationRefused,
    DestinationTimedOut,
    LoginRefused,
    ProxyMisbehaved,
    RequestRefused,
)
from muonsocks.client.rsocks import OutOfOrder

SECONDS = 20
KINDS = {
    "a socket": socket.socket,
    "a SocksSocket": lambda: SocksSocket(proxy=rsocks.program.proxies),
    "an IPv6 socket": lambda: socket.socket(socket.AF_INET6),
}


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_all(monkeypatch)


def patiently(call: Callable[[], Any], sock: socket.socket) -> Any:
    """Repeat a call until it is over; Rselect tells when it is worth while."""
    first = errno.EINPROGRESS
    while True:
        try:
            return call()
        except BlockingIOError as error:
            assert error.errno == first
            assert rsocks.Rselect([], [sock], [], SECONDS) == ([], [sock], [])
            first = errno.EALREADY


def exchange(sock: socket.socket, far: socket.socket) -> None:
    with sock, far:
        for one in (sock, far):
            one.settimeout(SECONDS)
        sock.sendall(b"question")
        assert read_all(far, 8) == b"question"
        far.sendall(b"answer")
        assert read_all(sock, 6) == b"answer"


@pytest.mark.parametrize("timeout", [None, SECONDS, 0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_direct", [False, True])
def test_the_sequence(is_direct: bool, kind: str, timeout: float | None) -> None:
    host = "::1" if is_direct and "IPv6" in kind else "127.0.0.1"
    with running(host="127.0.0.1") as server, listener(host) as far:
        at = server.address
        rsocks.SOCKSinit(proxy=DIRECT if is_direct else f"socks5://{at[0]}:{at[1]}")
        control, data = KINDS[kind](), KINDS[kind]()
        fds = control.fileno(), data.fileno()
        for sock in (control, data):
            sock.settimeout(timeout)
        where = far.getsockname()[:2]
        if timeout == 0:
            with pytest.raises(OSError) as caught:
                patiently(lambda: rsocks.Rconnect(control, where), control)
            assert caught.value.errno == errno.EISCONN
        else:
            rsocks.Rconnect(control, where)
        conn = accept(far)
        if not is_direct or timeout == 0:
            with pytest.raises(OSError) as caught:
                rsocks.Rconnect(control, where)
            assert caught.value.errno == errno.EISCONN
        assert rsocks.Rgetsockname(control)[:2] == conn.getpeername()[:2]

        patiently(lambda: rsocks.Rbind(data, ("", 0), host), data)
        bound = rsocks.Rgetsockname(data)
        assert bound[0] == host and bound[1]
        rsocks.Rlisten(data, 1)
        assert rsocks.Rselect([data], [], [], 0) == ([], [], [])
        if timeout == 0:
            with pytest.raises(BlockingIOError):
                rsocks.Raccept(data)
        with socket.create_connection(bound[:2]) as peer:
            assert rsocks.Rselect([data, conn], [], [], SECONDS) == ([data], [], [])
            sock, address = rsocks.Raccept(data)
            assert address[:2] == peer.getsockname()[:2]
            assert sock.gettimeout() is None and os.get_blocking(sock.fileno())
            assert isinstance(sock, SocksSocket) == (kind == "a SocksSocket" and not is_direct)
            exchange(sock, peer)
        with pytest.raises(OutOfOrder, match="Rbind of another socket is due before Raccept"):
            rsocks.Raccept(data)
        assert fds == (control.fileno(), data.fileno())
        assert (control.gettimeout(), data.gettimeout()) == (timeout, timeout)
        exchange(control, conn)
        data.close()


# A socket that does not block


def test_rconnect_step_by_step() -> None:
    with hand() as proxy, socket.socket() as sock:
        rsocks.SOCKSinit(proxy=proxy.url)
        sock.setblocking(False)

        def again() -> None:
            rsocks.Rconnect(sock, (HOST, 21))

        def raises(number: int) -> None:
            with pytest.raises(OSError) as caught:
                again()
            assert caught.value.errno == number

        raises(errno.EINPROGRESS)
        raises(errno.EALREADY)
        with proxy.take_request() as conn:
            raises(errno.EALREADY)
            other = rf"Rconnect with the same arguments, \('{HOST}', 21\), is due before one with"
            with pytest.raises(OutOfOrder, match=other):
                rsocks.Rconnect(sock, (HOST, 22))
            with pytest.raises(OutOfOrder, match="Rconnect, with the same arguments, is due"):
                rsocks.Rgetsockname(sock)
            assert rsocks.Rselect([sock], [sock], [sock], 0) == ([], [], [])
            with pytest.raises(BlockingIOError):
                sock.send(b"too early")
            conn.sendall(reply())
            assert rsocks.Rselect([], [sock], [], SECONDS) == ([], [sock], [])
            with pytest.raises(BrokenPipeError):
                sock.send(b"too early")
            with pytest.raises(OutOfOrder):
                rsocks.Rgetsockname(sock)
            raises(errno.EISCONN)
            raises(errno.EISCONN)
            assert rsocks.Rgetsockname(sock) == BOUND
            exchange(sock, conn)


def test_rconnect_raises_what_has_failed_and_may_be_repeated() -> None:
    with hand() as proxy, socket.socket() as sock:
        rsocks.SOCKSinit(proxy=proxy.url)
        sock.setblocking(False)
        for port, code, kind in ((21, 5, DestinationRefused), (22, 2, RequestRefused)):
            with pytest.raises(BlockingIOError):
                rsocks.Rconnect(sock, (HOST, port))
            with proxy.take_request() as conn:
                conn.sendall(reply(code))
                assert rsocks.Rselect([], [sock], [], SECONDS)[1]
                with pytest.raises(kind):
                    rsocks.Rconnect(sock, (HOST, port))
        with pytest.raises(OutOfOrder, match="Rconnect is due before Rlisten"):
            rsocks.Rlisten(sock)


def test_rconnect_may_be_waited_for_in_the_end() -> None:
    with hand() as proxy, socket.socket() as sock:
        rsocks.SOCKSinit(proxy=proxy.url)
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            rsocks.Rconnect(sock, (HOST, 21))
        with proxy.take_request() as conn:
            sock.settimeout(0.05)
            with pytest.raises(TimeoutError):
                rsocks.Rconnect(sock, (HOST, 21))
            conn.sendall(reply())
            sock.settimeout(None)
            with pytest.raises(OSError) as caught:
                rsocks.Rconnect(sock, (HOST, 21))
            assert caught.value.errno == errno.EISCONN
            exchange(sock, conn)


def test_rbind_step_by_step() -> None:
    with hand() as proxy, socket.socket() as sock:
        _reach_by(proxy)
        sock.setblocking(False)

        def again() -> None:
            rsocks.Rbind(sock, ("", 0), HOST)

        for number in (errno.EINPROGRESS, errno.EALREADY):
            with pytest.raises(BlockingIOError) as caught:
                again()
            assert caught.value.errno == number
        with pytest.raises(OutOfOrder, match="Rbind with the same arguments"):
            rsocks.Rbind(sock, ("", 0), "192.0.2.8")
        with pytest.raises(OutOfOrder, match="Rbind, with the same arguments, is due"):
            rsocks.Rlisten(sock)
        with proxy.take_request() as conn:
            conn.sendall(reply(2))
            assert rsocks.Rselect([], [sock], [], SECONDS)[1]
            with pytest.raises(RequestRefused):
                again()
        with pytest.raises(BlockingIOError):
            again()
        with proxy.take_request() as conn:
            conn.sendall(reply())
            assert rsocks.Rselect([], [sock], [], SECONDS)[1]
            again()
            assert rsocks.Rgetsockname(sock) == BOUND
            rsocks.Rlisten(sock)
            with pytest.raises(BlockingIOError) as caught:
                rsocks.Raccept(sock)
            assert caught.value.errno == errno.EAGAIN
            conn.sendall(PEER)
            assert rsocks.Rselect([sock], [], [], SECONDS)[0]
            accepted, peer = rsocks.Raccept(sock)
            assert peer == (HOST, 20)
            exchange(accepted, conn)


def _reach_by(proxy: Hand) -> None:
    """Reach the host, without a thread."""
    rsocks.SOCKSinit(proxy=proxy.url)
    with socket.socket() as sock:
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            rsocks.Rconnect(sock, (HOST, 21))
        with proxy.take_request() as conn:
            conn.sendall(reply())
            assert rsocks.Rselect([], [sock], [], SECONDS)[1]
            with pytest.raises(OSError, match="is already connected"):
                rsocks.Rconnect(sock, (HOST, 21))


# Rselect


def test_rselect_waits_for_a_whole_reply() -> None:
    """Up to a timeout; the sockets of others count as ever, and integers do."""
    with Upstream(CONNECT, [*BIND, 1, BYTE_BY_BYTE, PEER]) as proxy:
        rsocks.SOCKSinit(proxy=proxy.url("socks5h"))
        reach().close()
        near, far = socket.socketpair()
        with listening()[0] as sock, near, far:
            assert rsocks.Rselect([sock, far], [far.fileno()], [], 0) == ([], [far.fileno()], [])
            assert rsocks.Rselect([sock, far], [], [], 0.05) == ([], [], [])
            sock.send(b"x")  # which makes this proxy go on
            assert rsocks.Rselect([sock], [], [], SECONDS) == ([sock], [], [])
            assert rsocks.Rselect([sock, far], [], [], SECONDS) == ([sock], [], [])
            near.send(b"x")
            ready = rsocks.Rselect([far.fileno(), sock], [], [], SECONDS)
            assert ready == ([far.fileno(), sock], [], [])
            conn, peer = rsocks.Raccept(sock)
            conn.close()
            assert peer == (HOST, 20)
            assert rsocks.Rselect([sock], [], [], 0)[0] == select.select([sock], [], [], 0)[0]


def test_rselect_is_not_woken_by_a_part_of_a_reply() -> None:
    with hand() as proxy:
        _reach_by(proxy)
        with socket.socket() as sock:
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                rsocks.Rbind(sock, ("", 0), HOST)
            with proxy.take_request() as conn:
                conn.sendall(reply())
                assert rsocks.Rselect([], [sock], [], SECONDS)[1]
                listening(sock=sock)
                conn.sendall(PEER[:5])
                assert select.select([sock], [], [], SECONDS)[0]
                assert rsocks.Rselect([sock], [], [], 0.02) == ([], [], [])
                conn.sendall(PEER[5:])
                assert rsocks.Rselect([sock], [], [], SECONDS) == ([sock], [], [])
                rsocks.Raccept(sock)[0].close()


# What goes wrong


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ([END], ProxyMisbehaved),
        ([3, RESET], ProxyMisbehaved),
        ([3, b"\5\xff"], LoginRefused),
        ([3, b"\5\0", 10, END], ProxyMisbehaved),
        ([3, b"\5\0", 10, b"\5\0\0", END], ProxyMisbehaved),
        ([3, b"\5\0", 10, b"HTTP/1.0 "], ProxyMisbehaved),
        ([3, b"\5\0", 10, reply(5)], DestinationRefused),
    ],
)
@pytest.mark.parametrize("call", ["Rconnect", "Rbind"])
def test_a_proxy_that_fails(call: str, script: Script, kind: type[Exception]) -> None:
    with Upstream(CONNECT, script, [*BIND, PEER]) as proxy, socket.socket() as sock:
        rsocks.SOCKSinit(proxy=proxy.url("socks5h"))
        sock.settimeout(SECONDS)
        reach().close()
        with pytest.raises(kind):
            if call == "Rbind":
                rsocks.Rbind(sock, ("", 0), HOST)
            else:
                rsocks.Rconnect(sock, (HOST, 21))
        listening(sock=sock)  # which is still possible
        rsocks.Raccept(sock)[0].close()


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        ([END], ProxyMisbehaved),
        ([RESET], ProxyMisbehaved),
        ([PEER[:5], END], ProxyMisbehaved),
        ([b"nonsense"], ProxyMisbehaved),
        ([reply(6)], DestinationTimedOut),
        ([reply(1)], RequestRefused),
    ],
)
@pytest.mark.parametrize("how", ["blocking", "timeout", "not blocking", "selected"])
def test_nobody_comes(how: str, end: Script, kind: type[Exception]) -> None:
    with Upstream(CONNECT, [*BIND, 1, *end]) as proxy:
        rsocks.SOCKSinit(proxy=proxy.url("socks5h"))
        reach().close()
        with listening()[0] as sock:
            if how == "timeout":
                sock.settimeout(0.02)
                with pytest.raises(TimeoutError):
                    rsocks.Raccept(sock)
                sock.settimeout(SECONDS)
            sock.send(b"x")  # which makes this proxy go on
            if how == "not blocking":
                sock.setblocking(False)
            if how in ("not blocking", "selected"):
                assert rsocks.Rselect([sock], [], [], SECONDS)[0]
            with pytest.raises(kind):
                rsocks.Raccept(sock)
            with pytest.raises(OutOfOrder, match="Rbind of another socket is due before Raccept"):
                rsocks.Raccept(sock)
