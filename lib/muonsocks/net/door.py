"""A door: a socket that listens for one peer, and turns away whoever else comes."""

from __future__ import annotations

import errno
from _socket import SO_LINGER, SOL_SOCKET

from muonsocks.address import Endpoint
from muonsocks.net.dial import Dialler
from muonsocks.net.entrance import PASSING, Listener
from muonsocks.net.inherit import Peer
from muonsocks.net.listen import listen_with
from muonsocks.net.stream import RESET_ON_CLOSE, Stream
from muonsocks.net.task import Waitable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from muonsocks.net.loop import Loop

_BACKLOG = 16  # one is expected, but others who come are not to keep that one out


class Door(Waitable):
    """A listening socket. `endpoint` is where, `turned_away` counts those who were not let in."""

    __slots__ = ("_listener", "_loop", "endpoint", "turned_away")

    def __init__(self, loop: Loop, dialler: Dialler, source: Endpoint) -> None:
        """Listen at an address of ours, for what comes the way that the dialler goes. The port is
        the kernel's choice. OSError if that cannot be, EADDRNOTAVAIL if there is no port.
        """
        super().__init__()
        dialler.expect_family(source)
        sock = dialler.open_socket(source.family)
        try:
            sock.bind(source.sockaddr)
            listen_with(sock, _BACKLOG)
            self.endpoint = Endpoint.of_socket(sock.getsockname())
        except OSError as error:
            sock.close()
            if error.errno == errno.EADDRINUSE:  # though any would do, bind(2)
                raise OSError(errno.EADDRNOTAVAIL, "no port is free") from None
            raise
        self._loop = loop
        self._listener = Listener(sock)
        self.turned_away = 0

    async def open(self, lets_in: Callable[[Endpoint], bool]) -> tuple[Stream, Endpoint]:
        """Wait for a peer that is let in, and give it; then it is closed. Others are reset: one in
        a round of the loop, so that many of them are in nobody's way. OSError as accept(2).
        """
        fd = self._listener.fileno()
        self._loop.register_listener(fd, lambda _: self.wake())
        try:
            while True:
                await self
                try:
                    sock, name = self._listener.accept()
                except OSError as error:
                    if error.errno not in PASSING and error.errno != errno.EAGAIN:
                        raise
                    continue
                peer = Endpoint.of_socket(name)
                if lets_in(peer):
                    far = Stream.of_client(self._loop, sock, Peer.of_socket(name))
                    far.name = str(peer)
                    return far, peer
                self.turned_away += 1
                sock.setsockopt(SOL_SOCKET, SO_LINGER, RESET_ON_CLOSE)
                sock.close()
        finally:
            self._loop.unregister(fd)
            self.close()

    def close(self) -> None:
        """Listen no more. Who has come since is reset. Harmless when it has been done."""
        self._listener.close()
