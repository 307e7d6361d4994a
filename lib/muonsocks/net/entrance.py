"""Where clients come in, for a worker: a socket that listens.

An entrance has `fileno`, `close`, and `take`, which gives the next client: a socket that does not
block, and who it is. BlockingIOError if there is none now; OSError else as in accept(2).
"""

from __future__ import annotations

from _socket import AF_UNIX, SOCK_NONBLOCK, socket
from os import set_blocking

from muonsocks.net.inherit import Peer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Entrance(Protocol):
        """What a worker needs of one."""

        @property
        def fileno(self) -> Callable[[], int]:
            """Give the descriptor that is readable while a client waits."""

        @property
        def close(self) -> Callable[[], None]:
            """Take nobody in any more."""

        def take(self) -> tuple[socket, Peer]:
            """Give the next client."""


class Listener:
    """A socket that listens: its clients have connected to it."""

    __slots__ = ("_accept", "_family", "_kind", "_protocol", "close", "fileno")

    def __init__(self, sock: socket) -> None:
        self._accept = sock._accept  # type: ignore[attr-defined]  # one call less than accept
        self._family = sock.family
        self._kind = sock.type | SOCK_NONBLOCK
        self._protocol = sock.proto
        self.fileno = sock.fileno
        self.close = sock.close

    def take(self) -> tuple[socket, Peer]:
        """Accept a connection."""
        fd, address = self._accept()
        set_blocking(fd, False)
        sock = socket(self._family, self._kind, self._protocol, fd)
        return sock, Peer("unix") if self._family == AF_UNIX else Peer.of_socket(address)
