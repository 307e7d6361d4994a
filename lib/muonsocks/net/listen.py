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
from fcntl import LOCK_EX, LOCK_NB, flock
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


def listen_with(sock: socket, backlog: int = _BACKLOG) -> None:
    """Listen with a socket that is bound already. OSError that says where."""
    try:
        sock.listen(backlog)
    except OSError as error:  # somebody else was bound there, too, and was faster
        where = f"cannot listen on {name_of(sock)}: {error.strerror}"
        raise OSError(error.errno, where) from None


def listen_at(
    path: str, kind: int = SOCK_SEQPACKET, backlog: int = _BACKLOG, mode: int | None = None
) -> socket:
    """Listen for connections at `path`, of messages unless they are of another kind; a socket file
    that nobody serves is replaced. Its mode is as the umask has it, or this one.

    OSError as bind(2): EADDRINUSE if somebody does listen there.
    """
    sock = socket(AF_UNIX, kind | SOCK_NONBLOCK)
    try:
        _be_at(sock, path, mode, backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def receive_at(path: str) -> socket:
    """Take datagrams at `path`, from its owner and group; for the rest as `listen_at`."""
    sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK)
    try:
        _be_at(sock, path, 0o660)
    except BaseException:
        sock.close()
        raise
    return sock


class SocketFile:
    """The file of a unix socket that is bound here, to be removed once nobody is to come."""

    __slots__ = ("_held", "_path")

    def __init__(self, path: str) -> None:
        """Note which file it is; an abstract name has none. OSError if there is no room for a
        descriptor: as long as it is held, no other file gets its number.
        """
        is_abstract = path.startswith("@")
        self._path = path if is_abstract else os.path.abspath(path)  # wherever we go
        self._held = -1
        if not is_abstract:
            try:
                self._held = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                pass  # somebody has removed it already

    def remove(self) -> None:
        """Remove it, if nobody has removed it or put another one in its place, and if its directory
        is still ours to write to: whoever comes next replaces a dead file.
        """
        if self._held < 0:
            return
        if _identity(self._path) == _identity(self._held):
            try:
                os.unlink(self._path)
            except OSError:
                pass  # as said
        os.close(self._held)
        self._held = -1


def _identity(file: str | int) -> tuple[int, int] | None:
    try:
        status = os.fstat(file) if isinstance(file, int) else os.lstat(file)
    except OSError:
        return None  # it is gone, or its directory is
    return status.st_dev, status.st_ino


def _be_at(sock: socket, path: str, mode: int | None, backlog: int | None = None) -> None:
    """Bind a unix socket, and listen. A socket file that nobody serves is replaced: whoever has one
    that is not served yet, or has found one dead, has the lock.
    """
    address = unix_address(path)
    lock = -1 if path.startswith("@") else _lock(path)
    # The mode is right from the start; chmod(2) would follow a link that has been put there.
    before = None if mode is None else os.umask(0o777 & ~mode)
    try:
        try:
            sock.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_stale(path):
                raise OSError(error.errno, error.strerror, path) from None
            os.unlink(path)
            sock.bind(address)
        if backlog is not None:
            sock.listen(backlog)
    finally:
        if before is not None:
            os.umask(before)
        if lock >= 0:
            _unlock(path, lock)


def _lock(path: str) -> int:
    """Lock a path for who is about to be there, by a file beside it, and give a descriptor of that.
    OSError EADDRINUSE if another program has the lock.
    """
    beside = _beside(path)
    while True:
        before = os.umask(0o177)  # its next owner is to open it, whatever the umask of this one
        try:
            fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            where = beside if os.path.lexists(beside) else path
            raise OSError(error.errno, error.strerror, where) from None
        finally:
            os.umask(before)
        try:
            flock(fd, LOCK_EX | LOCK_NB)
        except OSError as error:
            os.close(fd)
            number = errno.EADDRINUSE if isinstance(error, BlockingIOError) else error.errno
            raise OSError(number, os.strerror(number or 0), path) from None
        if _identity(beside) == _identity(fd):
            return fd
        os.close(fd)  # whoever had it has removed it


def _unlock(path: str, lock: int) -> None:
    try:
        os.unlink(_beside(path))
    except OSError:
        pass  # the directory is not ours any more; what is left there locks nothing
    os.close(lock)


def _beside(path: str) -> str:
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}.lock")


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
        return f"unix:{name if isinstance(name, str) else '@' + os.fsdecode(name[1:])}"
    return str(Endpoint(name[0].partition("%")[0], name[1]))


def is_for_this_host(listener: socket) -> bool:
    """Say whether only processes of this host can connect to it."""
    if listener.family == AF_UNIX:
        return True
    address = parse_address(listener.getsockname()[0].partition("%")[0])
    return address is not None and (address[:1] == b"\x7f" or address == _LOOPBACK_6)
