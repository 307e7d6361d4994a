"""What the classic library knows of a socket, of whatever class: how far it has come, and what goes
through proxies for it.
"""

from __future__ import annotations

import errno
import os
import socket
from weakref import WeakKeyDictionary

from muonsocks.address import Endpoint
from muonsocks.client.call_order import BINDING, CONNECTING, FRESH, OutOfOrder, Program
from muonsocks.client.socks_socket import SocksSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Accepted = tuple[socket.socket, Any]

_FAMILIES = (socket.AF_INET, socket.AF_INET6)

# What a program may have set, and is to hold for the connection to the proxy.
_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_REUSEADDR),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    (socket.SOL_SOCKET, socket.SO_OOBINLINE),
    (socket.SOL_SOCKET, socket.SO_PRIORITY),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
)
_BUFFERS = (socket.SO_SNDBUF, socket.SO_RCVBUF)  # socket(7): they tell twice of what they are told

program = Program()
os.register_at_fork(after_in_child=program.unlock)


class ClassicSocket:
    """What is known. `step` is one of `call_order`; of what has been bound, `peer` is the host that
    may come, and `is_proxied` says where; `waiting` is what Raccept is to give, or raise.
    """

    __slots__ = ("_carrier", "_under_way", "is_proxied", "peer", "step", "waiting")

    def __init__(self) -> None:
        self.step = FRESH
        self.peer = ("", 0)
        self.is_proxied = False
        self.waiting: Accepted | OSError | None = None
        self._under_way: tuple[Any, ...] = ()  # the arguments of a call that does not block
        self._carrier: SocksSocket | None = None

    def __del__(self) -> None:
        if self._carrier is not None:
            self._carrier._drop()
            socket.socket.detach(self._carrier)  # now, and not at the end: it is the program's

    def carrier(self, sock: socket.socket) -> SocksSocket:
        """Give what goes through proxies for the socket: itself if it can, or else one that has the
        same descriptor. OSError (EISCONN) if it is connected already.
        """
        if isinstance(sock, SocksSocket):
            return sock
        if self._carrier is None:
            self._carrier = _made_for(sock)
        self._carrier.settimeout(sock.gettimeout())
        return self._carrier

    def expect_same(self, call: str, arguments: tuple[Any, ...]) -> None:
        """Hold that a call that is repeated has the arguments of the one under way."""
        if self.step in (CONNECTING, BINDING) and arguments != self._under_way:
            due = f"{call} with the same arguments, {self._under_way},"
            raise OutOfOrder(program.name, due, f"one with {arguments}")

    def carry_out(self, step: str, arguments: tuple[Any, ...], call: Callable[[], None]) -> None:
        """Make a call that may be to repeat; while it is under way the socket is at a step."""
        try:
            call()
        except BlockingIOError:
            self.step, self._under_way = step, arguments
            raise
        except OSError as error:
            if error.errno == errno.EISCONN and self.step == step == CONNECTING:
                return
            if not _is_impatience(error):
                self.step = FRESH
            raise

    def accept(self, sock: socket.socket) -> None:
        """Wait for a proxy to tell who has come, or that nobody does any more, and keep that."""
        try:
            conn, peer = self.carrier(sock).accept()
        except OSError as error:
            if isinstance(error, BlockingIOError) or _is_impatience(error):
                raise
            self.waiting = error.with_traceback(None)
            return
        if not isinstance(sock, SocksSocket):
            conn = socket.socket(conn.family, conn.type, conn.proto, fileno=conn.detach())
        self.waiting = conn, peer


_known: WeakKeyDictionary[socket.socket, ClassicSocket] = WeakKeyDictionary()


def known(thing: Any) -> ClassicSocket | None:
    """Give what is known, if anything, of what may be a socket."""
    return _known.get(thing) if isinstance(thing, socket.socket) else None


def known_tcp(sock: socket.socket) -> ClassicSocket:
    """Give what is known of a socket. OSError if it is closed, or not a TCP one."""
    if sock.fileno() < 0:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    if sock.family not in _FAMILIES or sock.type != socket.SOCK_STREAM:
        raise OSError(errno.EOPNOTSUPP, "this is for TCP sockets only")
    found = _known.get(sock)
    if found is None:
        found = _known[sock] = ClassicSocket()
    return found


def is_connected() -> OSError:
    """Make the error of what is connected already, as connect(2) has it."""
    return OSError(errno.EISCONN, os.strerror(errno.EISCONN))


def _is_impatience(error: OSError) -> bool:
    """Say whether a socket's timeout was too short, and what it has waited for may still come."""
    return isinstance(error, TimeoutError) and error.errno is None


def _made_for(sock: socket.socket) -> SocksSocket:
    try:
        sock.getpeername()
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
    else:
        raise is_connected()
    carrier = SocksSocket(
        sock.family, sock.type, sock.proto, fileno=sock.fileno(), proxy=program.proxies
    )
    try:
        _prepare(carrier, sock)
    except BaseException:
        carrier.detach()
        raise
    return carrier


def _prepare(carrier: SocksSocket, sock: socket.socket) -> None:
    """Have the connection to a proxy be as the program has prepared it."""
    source = Endpoint.of_socket(sock.getsockname())
    if source.port:
        carrier._source = source
    with socket.socket(sock.family, sock.type, sock.proto) as fresh:
        for option in _OPTIONS:
            if (value := sock.getsockopt(*option)) != fresh.getsockopt(*option):
                carrier.setsockopt(*option, value)
        for name in _BUFFERS:
            size = sock.getsockopt(socket.SOL_SOCKET, name)
            if size != fresh.getsockopt(socket.SOL_SOCKET, name):
                carrier.setsockopt(socket.SOL_SOCKET, name, size // 2)
