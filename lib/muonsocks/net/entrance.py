"""Where clients come in, for a worker: a socket that listens, or one that they are passed to.

An entrance has `fileno`, `close`, and `take`, which gives the next client: its socket, and who it
is. BlockingIOError if there is none now; OSError else as in accept(2). RemoteProtocolError if what
has come is no client, and the next one may be; NobodyComes if there is no next one.

Several workers share one. `shut` is called once for all of them, before they are told to end: who
has come until then and `waits_for_nobody_else` is then still to be taken in.
"""

from __future__ import annotations

import errno
from _socket import AF_UNIX, SHUT_RD, SOCK_NONBLOCK, socket
from os import set_blocking

from muonsocks.errors import RemoteProtocolError
from muonsocks.net.inherit import Peer, peer_of
from muonsocks.net.passed import connection_of
from muonsocks.net.passing import receive_first
from muonsocks.net.stream import is_tcp, prepare_tcp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from muonsocks.net.listen import SocketFile

    class Entrance(Protocol):
        """What a worker needs of one."""

        @property
        def waits_for_nobody_else(self) -> bool:
            """Whether who has come is lost when it is closed: no other program will look."""

        @property
        def fileno(self) -> Callable[[], int]:
            """Give the descriptor that is readable while a client waits."""

        @property
        def close(self) -> Callable[[], None]:
            """Take nobody in any more."""

        def shut(self) -> None:
            """Let nobody come any more, as far as that is ours to say."""

        def take(self) -> tuple[socket, Peer]:
            """Give the next client."""


# What accept(2) says of the connection that it was about to give, not of the listener: Linux
# passes on errors that were pending on the new socket. The next one may be well.
PASSING = frozenset(
    (
        errno.ECONNABORTED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EINTR,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENONET,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.EPROTO,
        errno.ETIMEDOUT,
    )
)


class NobodyComes(Exception):
    """An entrance has come to its end. It says why."""


class Listener:
    """A socket that listens: its clients have connected to it."""

    __slots__ = ("_accept", "_blocks", "_family", "_kind", "_protocol", "close", "fileno")

    waits_for_nobody_else = False  # they are told by a reset, and can come again

    def __init__(self, sock: socket, blocks: bool = False) -> None:
        """Take over a socket that does not block; with `blocks` its clients' sockets do."""
        self._accept = sock._accept  # type: ignore[attr-defined]  # one call less than accept
        self._family = sock.family
        self._blocks = blocks
        self._kind = sock.type & ~SOCK_NONBLOCK if blocks else sock.type | SOCK_NONBLOCK
        self._protocol = sock.proto
        self.fileno = sock.fileno
        self.close = sock.close

    def take(self) -> tuple[socket, Peer]:
        """Accept a connection."""
        sock, address = self.accept()
        return sock, Peer("unix") if self._family == AF_UNIX else Peer.of_socket(address)

    def accept(self) -> tuple[socket, Any]:
        """Accept a connection, and give its address as accept(2) does."""
        fd, address = self._accept()
        if not self._blocks:  # as it is, whatever the listener is
            set_blocking(fd, False)
        return socket(self._family, self._kind, self._protocol, fd), address

    def shut(self) -> None:
        """Leave it as it is: whoever starts next may go on with it."""


class Passed(Peer):
    """A client whose socket was passed: who has passed it may have it open for as long as it likes.

    So it must be taken out of a loop before it is closed. It would else stay there, under a number
    that the next client gets.
    """

    __slots__ = ()

    is_shared = True

    @classmethod
    def of(cls, sock: socket) -> Passed:
        """Say who is connected to a socket."""
        peer = peer_of(sock, {})
        return cls(peer.text, peer.address)


class Intake:
    """A unix socket that connections come to which another program has accepted, and passes on:
    one for datagrams, or a connection of messages.

    They are made as ours are, and do not block.
    """

    __slots__ = (
        "_file",
        "_socket",
        "_strictness",
        "close",
        "fileno",
        "waits_for_nobody_else",
    )

    def __init__(
        self,
        sock: socket,
        is_ours: bool,
        file: SocketFile | None = None,
        strictness: int = 2,
    ) -> None:
        """It `is_ours` if nobody will have the socket after us, as systemd has; then its `file`, if
        it has one, is removed in the end. `strictness` is as `connection_of` has it.
        """
        self._socket = sock
        self.waits_for_nobody_else = is_ours
        self._file = file
        self._strictness = strictness
        self.fileno = sock.fileno
        self.close = sock.close

    def take(self) -> tuple[socket, Peer]:
        """Receive a connection."""
        fd = receive_first(self._socket)
        if fd is None:
            raise NobodyComes("who passed connections on has gone")
        return self._client(fd)

    def _client(self, fd: int) -> tuple[socket, Peer]:
        """Make a client of what has been passed."""
        sock = connection_of(fd, self._strictness)
        try:
            sock.getpeername()  # or no service could do anything with it
            sock.setblocking(False)
            if is_tcp(sock):
                prepare_tcp(sock)
        except OSError as error:
            sock.close()
            reason = f"a socket that is passed is of no use: {error.strerror}"
            raise RemoteProtocolError(reason) from None
        return sock, Passed.of(sock)

    def shut(self) -> None:
        """Have nobody find it any more, and who has found it told that it is over."""
        if self.waits_for_nobody_else:
            if self._file is not None:
                self._file.remove()
            try:
                self._socket.shutdown(SHUT_RD)
            except OSError:
                return  # ENOTCONN: the other side has closed, and sends nothing more
