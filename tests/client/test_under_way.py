"""A SocksSocket that does not block, on its way."""

import errno
import gc
import os
import select
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ends import PATIENCE, no_garbage
from programs import closed_port
from real_server import until
from relays import Proxy, in_child, settle

from muonsocks.client import DestinationRefused, ProxyUnreachable, SocksSocket
from muonsocks.client.under_way import UnderWay

THERE = ("192.0.2.1", 80)
REFUSED = b"\5\5\0\1" + bytes(6)
CLOSED = closed_port()
OUT = select.EPOLLOUT
pytestmark = pytest.mark.usefixtures("clean")


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """One that answers when it is told to."""
    with Proxy() as one:
        one.may_answer.clear()
        yield one


def says(number: int) -> Any:
    return pytest.raises(OSError, match=rf"\[Errno {number}\]")


def set_out(proxy: Proxy | str, family: int = socket.AF_INET) -> SocksSocket:
    sock = SocksSocket(family, proxy=proxy if isinstance(proxy, str) else proxy.url)
    sock.setblocking(False)
    with says(errno.EINPROGRESS):
        sock.connect(THERE)
    assert isinstance(sock, UnderWay)
    return sock


def await_room(sock: socket.socket) -> None:
    assert select.select([], [sock], [], PATIENCE)[1] == [sock]


def error_of(sock: socket.socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def exchange(sock: socket.socket, proxy: Proxy) -> None:
    sock.setblocking(True)
    sock.settimeout(PATIENCE)
    proxy.connection().sendall(b"answer")
    assert sock.recv(9) == b"answer"
    sock.sendall(b"question")
    assert proxy.connection().recv(9) == b"question"


def test_up_to_the_connection(proxy: Proxy) -> None:
    with set_out(proxy) as sock:
        number = sock.fileno()
        proxy.connection()
        assert select.select([sock], [sock], [sock], 0.01) == ([], [], [])
        assert sock.connect_ex(THERE) == errno.EALREADY
        assert error_of(sock) == 0
        with says(errno.ENOTCONN):
            sock.getpeername()
        for call in (sock.recv, sock.send):
            with says(errno.EAGAIN):
                call(b"x" if call == sock.send else 9)
        assert "under way" in repr(sock)
        proxy.may_answer.set()
        await_room(sock)
        assert error_of(sock) == 0
        assert not isinstance(sock, UnderWay)
        assert type(sock) is SocksSocket
        assert sock.fileno() == number
        assert sock.getpeername() == THERE
        assert sock.connect_ex(THERE) == errno.EISCONN
        with says(errno.EAGAIN):
            sock.recv(9)
        exchange(sock, proxy)


def test_another_connect_tells(proxy: Proxy) -> None:
    """As connect(2): 0 once, and then EISCONN."""
    proxy.may_answer.set()
    with set_out(proxy) as sock:
        await_room(sock)
        assert [sock.connect_ex(THERE) for _ in range(2)] == [0, errno.EISCONN]


@pytest.mark.parametrize("how", ["SO_ERROR", "connect", "recv", "getsockname"])
def test_a_failure_is_told_once(proxy: Proxy, how: str) -> None:
    proxy.reply = REFUSED
    proxy.may_answer.set()
    with set_out(proxy) as sock:
        await_room(sock)
        assert "under way" in repr(sock), "that does not find it out"
        with says(errno.ENOTCONN):
            sock.getpeername()
        if how == "SO_ERROR":
            assert error_of(sock) == errno.ECONNREFUSED
            assert isinstance(sock.failure, DestinationRefused)
        else:
            calls: dict[str, Callable[[], object]] = {
                "connect": lambda: sock.connect(THERE),
                "recv": lambda: sock.recv(9),
                "getsockname": sock.getsockname,
            }
            with pytest.raises(DestinationRefused):
                calls[how]()
        assert error_of(sock) == 0
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == socket.AF_INET
        proxy.reply = b"\5\0\0\1" + bytes(6)
        with says(errno.EINPROGRESS):
            sock.connect(THERE)
        await_room(sock)
        assert sock.connect_ex(THERE) == 0


def test_who_waits_for_input_is_told_of_a_failure(proxy: Proxy) -> None:
    proxy.reply = REFUSED
    with set_out(proxy) as sock:
        assert select.select([sock], [], [], 0.01)[0] == []
        proxy.may_answer.set()
        assert select.select([sock], [], [], PATIENCE)[0] == [sock]
        with pytest.raises(DestinationRefused):
            sock.recv(9)


@pytest.mark.parametrize("mode", [0, select.EPOLLET, select.EPOLLONESHOT])
@pytest.mark.parametrize("when", ["before", "meanwhile", "afterwards"])
def test_epolls(proxy: Proxy, mode: int, when: str) -> None:
    sock = SocksSocket(proxy=proxy.url)
    sock.setblocking(False)
    with sock, select.epoll() as epoll:
        number = sock.fileno()
        if when == "before":
            epoll.register(number, OUT)
            epoll.poll(0)
            epoll.modify(number, OUT | mode)
        assert sock.connect_ex(THERE) == errno.EINPROGRESS
        if when == "meanwhile":
            epoll.register(number, OUT | mode)
        if when != "afterwards":
            assert epoll.poll(0.01) == []
        proxy.may_answer.set()
        if when == "afterwards":
            await_room(sock)
            epoll.register(number, OUT | mode)
        assert epoll.poll(PATIENCE) == [(number, OUT)]
        assert error_of(sock) == 0
        if mode == select.EPOLLONESHOT:
            assert epoll.poll(0) == []
        epoll.modify(number, select.EPOLLIN | mode)
        proxy.connection().sendall(b"answer")
        assert epoll.poll(PATIENCE) == [(number, select.EPOLLIN)]
        epoll.unregister(number)


def test_an_epoll_and_an_address_of_ours(proxy: Proxy) -> None:
    """What the errand is to come from is let go of before it; that is another descriptor, too."""
    proxy.may_answer.set()
    with SocksSocket(proxy=proxy.url) as sock, select.epoll() as epoll:
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
        epoll.register(sock, OUT)
        epoll.poll(0)
        assert sock.connect_ex(THERE) == errno.EINPROGRESS
        assert epoll.poll(PATIENCE) == [(sock.fileno(), OUT)]
        assert error_of(sock) == 0


def test_poll_and_duplicated_epolls(proxy: Proxy) -> None:
    with set_out(proxy) as sock, select.epoll() as epoll:
        epoll.register(sock, OUT)
        other = select.epoll.fromfd(os.dup(epoll.fileno()))
        poll = select.poll()
        poll.register(sock, select.POLLIN | select.POLLOUT)
        assert poll.poll(10) == []
        proxy.may_answer.set()
        assert poll.poll(PATIENCE * 1000) == [(sock.fileno(), select.POLLOUT)]
        assert error_of(sock) == 0
        proxy.connection().sendall(b"answer")
        assert other.poll(PATIENCE)[0][1] & OUT
        assert epoll.poll(PATIENCE)[0][1] & OUT
        both = select.POLLIN | select.POLLOUT
        until("the answer is there", lambda: poll.poll(0)[0][1] == both)
        other.close()


def test_blocking_meanwhile(proxy: Proxy) -> None:
    with set_out(proxy) as sock:
        sock.settimeout(0.02)
        with pytest.raises(TimeoutError, match="timed out"):
            sock.recv(9)
        sock.settimeout(None)
        assert "under way" in repr(sock), "that waits for nobody"
        with says(errno.ENOTCONN):
            sock.getpeername()
        proxy.may_answer.set()
        sock.send(b"question")
        assert proxy.connection().recv(9) == b"question"
        assert os.get_blocking(sock.fileno())


def test_options_meanwhile(proxy: Proxy) -> None:
    with set_out(proxy) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 17)
        assert select.select([], [sock], [], 0.01)[1] == [], "no room comes of that"
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 77
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == socket.AF_INET
        with says(errno.ENOPROTOOPT):
            sock.setsockopt(socket.IPPROTO_TCP, 9999, 1)
        proxy.may_answer.set()
        await_room(sock)
        assert error_of(sock) == 0
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 77
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 1 << 18


def test_what_cannot_be_meanwhile(proxy: Proxy) -> None:
    with set_out(proxy) as sock:
        with says(errno.EINVAL):
            sock.bind(("127.0.0.1", 0))
        for call in (sock.dup, sock.detach):
            with says(errno.EAGAIN):
                call()
        proxy.may_answer.set()
        await_room(sock)
        with sock.dup() as other:
            exchange(other, proxy)


@pytest.mark.parametrize("way", ["close", "forget", "cycle"])
@pytest.mark.parametrize("when", ["meanwhile", "afterwards"])
def test_given_up(proxy: Proxy, way: str, when: str) -> None:
    """The connection goes, and nothing is left of it."""
    sock = set_out(proxy)
    connection = proxy.connection()
    if when == "afterwards":
        proxy.may_answer.set()
        await_room(sock)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        if way == "close":
            sock.close()
        if way == "cycle":
            sock.itself = sock  # type: ignore[attr-defined]
        del sock
        gc.collect()
    assert connection.recv(1) == b""


def test_nothing_has_to_be_collected(proxy: Proxy) -> None:
    proxy.may_answer.set()

    def story() -> None:
        for reply in (b"\5\0\0\1" + bytes(6), REFUSED):
            proxy.reply = reply
            with set_out(proxy) as sock:
                await_room(sock)
                error_of(sock)
                sock.failure = None
        settle()

    story()
    with no_garbage():
        story()


def test_closed_by_another_thread(proxy: Proxy) -> None:
    sock = set_out(proxy)
    sock.settimeout(None)
    caught: list[BaseException] = []
    begun = threading.Event()

    def wait() -> None:
        begun.set()
        try:
            sock.recv(9)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    begun.wait()
    proxy.connection()
    sock.close()
    thread.join(PATIENCE)
    assert [getattr(one, "errno", one) for one in caught] == [errno.EBADF]


def test_several_threads_wait(proxy: Proxy) -> None:
    with set_out(proxy) as sock:
        sock.settimeout(PATIENCE)
        threads = [threading.Thread(target=sock.send, args=(b"x",)) for _ in range(8)]
        for one in threads:
            one.start()
        proxy.connection()
        proxy.may_answer.set()
        for one in threads:
            one.join(PATIENCE)
        received = b""
        while len(received) < 8:
            received += proxy.connection().recv(9)
        assert received == b"x" * 8


def test_in_a_child_process(proxy: Proxy) -> None:
    """The parent has the errand: the child is told so, and may begin again."""
    with set_out(proxy) as sock:
        proxy.connection()

        def story() -> None:
            with says(errno.ECONNABORTED):
                sock.connect(THERE)
            assert sock.connect_ex(THERE) == errno.EINPROGRESS
            sock.close()

        in_child(story)
        assert error_of(sock) == 0
        proxy.may_answer.set()
        await_room(sock)
        exchange(sock, proxy)


def test_no_room_for_descriptors(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails at once, nothing is under way, and it can be tried again."""
    from muonsocks.client import parking, under_way

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EMFILE, "too many")

    for module, name in ((parking, "socketpair"), (under_way, "Pending"), (under_way, "replace")):
        with SocksSocket(proxy=proxy.url) as sock:
            sock.setblocking(False)
            with monkeypatch.context() as patch:
                patch.setattr(module, name, fail)
                with says(errno.EMFILE):
                    sock.connect(THERE)
            assert type(sock) is SocksSocket
            assert sock.connect_ex(THERE) == errno.EINPROGRESS
        settle()


def test_no_proxy_is_there() -> None:
    with set_out(f"socks5://127.0.0.1:{CLOSED}") as sock:
        await_room(sock)
        with pytest.raises(ProxyUnreachable) as told:
            sock.connect(THERE)
        assert told.value.errno == errno.ECONNREFUSED


def test_a_high_number_and_low_ones(proxy: Proxy) -> None:
    """Above what select(2) can have; and 0, where standard input was closed."""
    proxy.may_answer.set()

    def story() -> None:
        os.close(0)
        with set_out(proxy) as sock:
            assert sock.fileno() == 0
            poll = select.poll()
            poll.register(sock, select.POLLOUT)
            assert poll.poll(PATIENCE * 1000)
            sock.send(b"question")
            assert sock.fileno() == 0 and not sock.get_inheritable()

    in_child(story)
    assert proxy.connection().recv(9) == b"question"


# Listening


def test_listening(proxy: Proxy) -> None:
    proxy.reply = b"\5\0\0\1\xc0\0\2\x09\0\x50"
    with SocksSocket(proxy=proxy.url) as sock, select.epoll() as epoll:
        sock.setblocking(False)
        with says(errno.EINPROGRESS):
            sock.listen()
        with says(errno.EALREADY):
            sock.listen()
        with says(errno.EAGAIN):
            sock.getsockname()
        proxy.may_answer.set()
        await_room(sock)
        sock.listen()
        assert sock.getsockname() == ("192.0.2.9", 80)
        epoll.register(sock, select.EPOLLIN)
        assert epoll.poll(0.01) == []
        with says(errno.EAGAIN):
            sock.accept()
        second = b"\5\0\0\1\xc0\0\2\x07\0\x51"
        proxy.connection().sendall(second[:7])
        assert epoll.poll(PATIENCE)
        with says(errno.EAGAIN):
            sock.accept()
        proxy.connection().sendall(second[7:] + b"data")
        assert epoll.poll(PATIENCE)
        conn, peer = sock.accept()
        with conn:
            assert (conn.gettimeout(), conn.getpeername(), peer) == (None, *[("192.0.2.7", 81)] * 2)
            assert os.get_blocking(conn.fileno())
            assert conn.recv(9) == b"data"
            proxy.connection().sendall(b"more")
            conn.settimeout(PATIENCE)
            assert conn.recv(9, socket.MSG_PEEK) == b"more"
            assert epoll.poll(0) == [], "the connection is not where it listened"
            with says(errno.EINVAL):
                sock.accept()
            with says(errno.EISCONN):
                sock.connect(THERE)


def test_connecting_is_not_listening(proxy: Proxy) -> None:
    proxy.may_answer.set()
    with set_out(proxy) as sock:
        await_room(sock)
        with says(errno.EINVAL):
            sock.listen()
