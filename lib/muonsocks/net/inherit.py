"""The connection that a launcher (systemd, inetd, tcpserver, a shell) left on fds 0 and 1."""

from __future__ import annotations

import os
from _socket import AF_UNIX, socket
from stat import S_ISCHR, S_ISSOCK

from muonsocks.address import Endpoint, parse_address
from muonsocks.net.borrowed import Borrowed, BorrowedSocket, Pair
from muonsocks.net.loop import Loop
from muonsocks.net.signals import Signals
from muonsocks.net.stream import is_tcp, prepare_tcp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def keep_stderr_from_peer(peer: tuple[int, ...] = (0, 1)) -> bool:
    """Point fd 2 at /dev/null if it is where the peer is, as under inetd. Say whether it was.

    An fd 2 that is closed is opened on /dev/null too, or a socket of ours could become it.
    """
    try:
        stderr = os.fstat(2)
    except OSError:
        _point_at_null(2)
        return False
    if S_ISCHR(stderr.st_mode):
        return False  # a terminal, or /dev/null: shared, and nobody's peer
    for fd in peer:
        try:
            status = os.fstat(fd)
        except OSError:
            continue
        if (status.st_dev, status.st_ino) == (stderr.st_dev, stderr.st_ino):
            _point_at_null(2)
            return True
    return False


def _point_at_null(fd: int) -> None:
    null = os.open("/dev/null", os.O_RDWR)
    if null == fd:
        os.set_inheritable(fd, True)
    else:
        os.dup2(null, fd)
        os.close(null)


def stdio_status() -> tuple[os.stat_result, os.stat_result]:
    """Look at standard input and output. OSError if one of them is not open.

    That is told by nothing as soon as something else has been opened: it gets the number.
    """
    return _status(0, "input"), output_status()


def output_status() -> os.stat_result:
    """Look at standard output only."""
    return _status(1, "output")


def _status(fd: int, name: str) -> os.stat_result:
    try:
        return os.fstat(fd)
    except OSError as error:
        raise OSError(error.errno, f"standard {name} is not open") from None


class Stdio:
    """The client on standard input and output, as one stream."""

    __slots__ = ("_found_blocking", "loop", "socket", "stream")

    def __init__(self, loop: Loop | None = None) -> None:
        """Take over fds 0 and 1, and make a loop for them if there is none. OSError if one of them
        is not open.
        """
        status = stdio_status()
        if loop is None:
            loop = Loop()
            Signals(loop)
        self.loop = loop
        self._found_blocking = tuple(fd for fd in (0, 1) if os.get_blocking(fd))
        self.socket: socket | None = None
        same = (status[0].st_dev, status[0].st_ino) == (status[1].st_dev, status[1].st_ino)
        self.borrow()
        if same and S_ISSOCK(status[0].st_mode):
            self.socket = socket(fileno=0)
            if is_tcp(self.socket):
                prepare_tcp(self.socket)
            self.stream: Borrowed = BorrowedSocket(loop, self.socket, self._found_blocking)
        else:
            self.stream = Pair(loop, 0, 1, self._found_blocking)

    def borrow(self) -> None:
        """Make the descriptors non-blocking, as the stream needs them."""
        for fd in self._found_blocking:
            os.set_blocking(fd, False)

    def restore(self) -> None:
        """Leave the descriptors blocking if they were: other processes may have them too.

        But not those that are the stream's no more, because they were handed over.
        """
        for fd in self.stream.borrowed:
            try:
                os.set_blocking(fd, True)
            except OSError:
                continue  # closed in the meantime, and made blocking then


class Peer:
    """Who the client is: `address` is packed, or None when it did not come over a network."""

    __slots__ = ("address", "port", "text")

    is_shared = False  # its socket, as `Stream` has it

    def __init__(self, text: str, address: bytes | None = None, port: int = 0) -> None:
        self.text = text
        self.address = address
        self.port = port

    @classmethod
    def at(cls, host: str, port: int) -> Peer | None:
        """Make the peer of an address, or of a unix socket's name; None if it is neither."""
        if host.startswith(("/", "@")):
            return cls("unix")
        endpoint = Endpoint(host.partition("%")[0], port)
        return None if endpoint.packed is None else cls.of_endpoint(endpoint)

    @classmethod
    def of_endpoint(cls, endpoint: Endpoint) -> Peer:
        """Make the peer of an address and a port."""
        return cls(str(endpoint), endpoint.packed, endpoint.port)

    @classmethod
    def of_socket(cls, name: tuple[Any, ...]) -> Peer:
        """Make the peer of what accept(2) or getpeername(2) gives for a TCP socket."""
        host, port = name[:2]
        if ":" in host:
            return cls.of_endpoint(Endpoint.of_socket(name))
        return cls(f"{host}:{port}", parse_address(host), port)

    def endpoint(self) -> Endpoint | None:
        """Give its address and port, if it has them."""
        return None if self.address is None else Endpoint.at(self.address, self.port)


def peer_of(stdio_socket: socket | None, environ: Mapping[str, str]) -> Peer:
    """Say who the client is: by systemd's REMOTE_ADDR, UCSPI's $PROTO, or the socket itself."""
    proto = environ.get("PROTO", "")
    sources = [("REMOTE_ADDR", "REMOTE_PORT")]
    if proto:
        sources.append((f"{proto}REMOTEIP", f"{proto}REMOTEPORT"))
    for host_name, port_name in sources:
        port = environ.get(port_name, "")
        peer = Peer.at(
            environ.get(host_name, "").strip("[]"),
            int(port[:5]) if port.isascii() and port.isdecimal() else 0,
        )
        if peer is not None:
            return peer
    if stdio_socket is None:
        return Peer("stdin")
    if stdio_socket.family == AF_UNIX:
        return Peer("unix")
    if not is_tcp(stdio_socket):
        return Peer("unknown")
    try:
        name = stdio_socket.getpeername()
    except OSError:
        return Peer("gone")  # ENOTCONN: reset before we looked
    return Peer.of_socket(name)
