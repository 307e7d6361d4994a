"""Listening sockets: our own, and those that systemd hands over."""

from __future__ import annotations

import errno
import os
from _socket import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    IPPROTO_IPV6,
    IPPROTO_TCP,
    IPV6_V6ONLY,
    SO_ACCEPTCONN,
    SO_REUSEADDR,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    SOCK_SEQPACKET,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)
from stat import S_ISSOCK

from muonsocks.address import Endpoint, format_address, parse_address
from muonsocks.errors import UsageError
from muonsocks.net.stream import is_tcp, prepare_tcp, unix_address

_LOOPBACK_6 = bytes(15) + b"\1"
_BACKLOG = 4096  # connections that wait to be accepted; net.core.somaxconn may make it fewer


def listen_on(address: bytes, port: int) -> socket:
    """Listen on a packed address, IPv6 for itself alone. What we want of the sockets that will be
    accepted is set here, once: they inherit it. OSError that says where.
    """
    family = AF_INET if len(address) == 4 else AF_INET6
    sock = None
    try:
        sock = socket(family, SOCK_STREAM | SOCK_NONBLOCK, IPPROTO_TCP)
        sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        if family == AF_INET6:
            sock.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, 1)
        prepare_tcp(sock)
        sock.bind((format_address(address), port))
        sock.listen(_BACKLOG)
    except OSError as error:
        if sock is not None:
            sock.close()
        where = Endpoint.at(address, port)
        raise OSError(error.errno, f"cannot listen on {where}: {error.strerror}") from None
    return sock


def listen_at(
    path: str, kind: int = SOCK_SEQPACKET, backlog: int = _BACKLOG, mode: int | None = None
) -> socket:
    """Listen for connections at `path`, of messages unless they are of another kind; a socket file
    that nobody serves is replaced. Its mode is as the umask has it, or this one.

    OSError as bind(2): EADDRINUSE if somebody does listen there.
    """
    sock = socket(AF_UNIX, kind | SOCK_NONBLOCK)
    before = None if mode is None else os.umask(0o777)  # nobody comes before the mode is right
    try:
        _bind(sock, path)
        if mode is not None and not path.startswith("@"):
            os.chmod(path, mode)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    finally:
        if before is not None:
            os.umask(before)
    return sock


def receive_at(path: str) -> socket:
    """Take datagrams at `path`, from its owner and group; for the rest as `listen_at`."""
    sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK)
    before = os.umask(0o117)  # with chmod(2) there would be a moment before it
    try:
        _bind(sock, path)
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(before)
    return sock


class SocketFile:
    """The file of a unix socket that is bound here, to be removed before that is closed."""

    __slots__ = ("_file", "_path")

    def __init__(self, path: str) -> None:
        """Note which file it is; an abstract name has none."""
        self._path = path
        self._file = None if path.startswith("@") else _identity(path)

    def remove(self) -> None:
        """Remove it, if nobody has removed it or put another one in its place."""
        if self._file is not None and _identity(self._path) == self._file:
            os.unlink(self._path)
        self._file = None


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None  # it is gone, or its directory is
    return status.st_dev, status.st_ino


def _bind(sock: socket, path: str) -> None:
    """Bind a unix socket. A socket file that nobody serves is replaced."""
    address = unix_address(path)
    try:
        sock.bind(address)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not _is_stale(path):
            raise OSError(error.errno, error.strerror, path) from None
        os.unlink(path)
        sock.bind(address)


def _is_stale(path: str) -> bool:
    """Say whether there is a socket file that nobody serves; never of an abstract name."""
    if path.startswith("@"):
        return False
    probe = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK)  # of whatever type the other is
    try:
        return S_ISSOCK(os.lstat(path).st_mode) and probe.connect_ex(path) == errno.ECONNREFUSED
    finally:
        probe.close()


_UNITS = {  # what makes systemd pass which kind of socket, systemd.socket(5)
    SOCK_STREAM: "ListenStream=",
    SOCK_SEQPACKET: "ListenSequentialPacket=",
    SOCK_DGRAM: "ListenDatagram= with a path",
}


def inherited(*kinds: int, prepares: bool = True) -> list[socket]:
    """Take the sockets that systemd passes (sd_listen_fds(3)), usually none. Where their clients
    are not ours to serve, nothing `prepares` them for that.

    UsageError if there is anything among them but sockets of these kinds: those that listen, by
    default, and with SOCK_DGRAM those that receive at a path or an abstract name.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    try:
        from systemd.daemon import listen_fds
    except ImportError:
        hint = "install the package python3-systemd"
        raise UsageError("sockets of systemd need systemd-python", hint) from None
    kinds = kinds or (SOCK_STREAM,)
    sockets = []
    for fd in listen_fds():
        os.set_inheritable(fd, False)
        try:
            sock = socket(fileno=fd)
            fits = sock.type in kinds and clients_come_to(sock)
        except OSError:
            fits = False
        if not fits:
            units = " or ".join(_UNITS[kind] for kind in kinds)
            raise UsageError(f"descriptor {fd} is no socket to accept from", f"use {units}")
        sock.setblocking(False)
        if prepares and is_tcp(sock):
            prepare_tcp(sock)
        sockets.append(sock)
    return sockets


def clients_come_to(sock: socket) -> bool:
    """Say whether clients can come to a socket: by connecting, or by being passed."""
    if sock.type == SOCK_DGRAM:
        return sock.family == AF_UNIX and bool(sock.getsockname())
    listens = sock.getsockopt(SOL_SOCKET, SO_ACCEPTCONN)
    return bool(listens) and sock.family in (AF_INET, AF_INET6, AF_UNIX)


def name_of(listener: socket) -> str:
    """Say where a socket listens, for a log line."""
    name = listener.getsockname()
    if listener.family == AF_UNIX:
        return f"unix:{name if isinstance(name, str) else '@' + name[1:].decode()}"
    return str(Endpoint(name[0].partition("%")[0], name[1]))


def is_for_this_host(listener: socket) -> bool:
    """Say whether only processes of this host can connect to it."""
    if listener.family == AF_UNIX:
        return True
    address = parse_address(listener.getsockname()[0].partition("%")[0])
    return address is not None and (address[:1] == b"\x7f" or address == _LOOPBACK_6)
