"""Where connections come in that are to be passed on: sockets that listen, or another socketbox;
and who has come.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, AF_UNIX
from os import close, fstat
from stat import S_ISSOCK

from muonsocks.address import parse_address
from muonsocks.errors import RemoteProtocolError
from muonsocks.net.entrance import Intake, Listener, Passed
from muonsocks.net.inherit import Peer
from muonsocks.net.passed import connection_of
from muonsocks.socketbox.connection import Connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import Any

    from muonsocks.net.listen import SocketFile


class Arrival(Peer):
    """Who has come, and at which of our sockets, which are counted from 0.

    `name` is what accept(2) or getpeername(2) gives for an Internet socket, None for another one.
    """

    __slots__ = ("_name", "listener")

    def __init__(self, name: tuple[Any, ...] | None, listener: int) -> None:
        if name is None:
            super().__init__("unix")
        else:
            peer = Peer.of_socket(name)
            super().__init__(peer.text, peer.address)
        self._name = name
        self.listener = listener

    def connection(self, sock: socket) -> Connection:
        """Make what the rules see of this client's socket. OSError as getsockname(2)."""
        if self._name is None:
            return Connection.without_addresses(self.listener)
        host, port = sock.getsockname()[:2]
        local = parse_address(host.partition("%")[0])
        assert local is not None and self.address is not None  # the system writes what it reads
        return Connection(local, port, self.address, self._name[1], self.listener)


class NumberedListener(Listener):
    """A socket that listens for others: who accepts there gives the connection away, and so it
    blocks, as it would if they had accepted it.
    """

    __slots__ = ("_file", "_is_unix", "_number")

    def __init__(self, sock: socket, number: int = 0, file: SocketFile | None = None) -> None:
        """Take over a listening socket, which does not block, and is the one of that number; with
        its `file`, if nobody will have that after us.
        """
        super().__init__(sock, blocks=True)
        self._file = file
        self._is_unix = sock.family == AF_UNIX
        self._number = number

    def take(self) -> tuple[socket, Arrival]:
        """Accept a connection."""
        sock, name = self.accept()
        return sock, Arrival(None if self._is_unix else name, self._number)

    def shut(self) -> None:
        """Have nobody find it any more; once it is closed, its file could be another one's."""
        if self._file is not None:
            self._file.remove()


class NoSocket:
    """Anything else that was passed, where anything may be, as far as that is like a socket."""

    __slots__ = ("_fd",)

    family = -1

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Give its descriptor, -1 once it is closed."""
        return self._fd

    def close(self) -> None:
        """Close it. Harmless when it has been done."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            close(fd)


class AsTheyCome(Intake):
    """Where connections come in that are for others, and left as they are."""

    __slots__ = ()

    def _client(self, fd: int) -> tuple[socket, Peer]:
        if not self._strictness and not S_ISSOCK(fstat(fd).st_mode):
            return NoSocket(fd), Peer("unknown")  # type: ignore[return-value]
        sock = connection_of(fd, self._strictness)
        return sock, Passed.of(sock)


class Upstream(AsTheyCome):
    """A connection to another socketbox, where we have registered: what comes is passed on."""

    __slots__ = ()

    def __init__(self, sock: socket, strictness: int = 2) -> None:
        super().__init__(sock, is_ours=True, strictness=strictness)

    def take(self) -> tuple[socket, Arrival]:
        """Receive a connection."""
        sock, _ = super().take()
        name = None
        if sock.family in (AF_INET, AF_INET6):
            try:
                name = sock.getpeername()
            except OSError:
                sock.close()
                raise RemoteProtocolError("a socket that is passed is not connected") from None
        return sock, Arrival(name, 0)
