"""One end of a connection as a stream that never blocks: a socket. (Others are in borrowed.py.)"""

from __future__ import annotations

import errno
from _socket import (
    AF_INET,
    AF_INET6,
    IPPROTO_TCP,
    SHUT_WR,
    SO_LINGER,
    SO_OOBINLINE,
    SOL_SOCKET,
    TCP_INFO,
    TCP_NODELAY,
    socket,
)
from fcntl import ioctl
from os import fstat, read, write
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP
from stat import S_ISCHR
from sys import byteorder

from muonsocks.address import Endpoint
from muonsocks.net.loop import READABLE, WRITABLE, Loop
from muonsocks.net.task import Task, Waitable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.net.inherit import Peer

# With one of these a short read does not mean that all has been read: the end, the error or
# (urgent data stops a read in the middle, tcp(7)) the rest comes without another event.
MORE = EPOLLRDHUP | EPOLLHUP | EPOLLERR | EPOLLPRI

HANG_UP = EPOLLHUP | EPOLLERR  # of a socket: neither direction goes on
_TCP = (AF_INET, AF_INET6)
_TCP_CLOSE = 7  # of tcpi_state, the first byte of struct tcp_info
_SIOCOUTQ = 0x5411  # tcp(7), unix(7)
RESET_ON_CLOSE = (1).to_bytes(4, byteorder) + bytes(4)  # struct linger: on, 0 s
_LONGEST_DRAIN = 65536  # bytes that are read and dropped at most before a close


class PeerGone(Exception):
    """The peer of a socket that nobody reads has closed or reset it."""

    def __init__(self) -> None:
        super().__init__("it has gone before it got an answer")


class Stream(Waitable):
    """Reads from `reader` and writes to `writer`, which are the one descriptor of `socket`.

    `ready` has the epoll events that have come and not yet been found used up. At most one task
    waits for a stream. A relay takes over the handlers, and then nobody may read or write here.
    """

    __slots__ = (
        "_tells_room",
        "_wanted",
        "_watcher",
        "is_shared",
        "is_tcp",
        "loop",
        "name",
        "reader",
        "ready",
        "socket",
        "writer",
    )

    always_ready = 0  # events that need not be waited for, as no socket has

    def __init__(self, loop: Loop, sock: socket, name: str = "-", known: int | None = None) -> None:
        """Take over a non-blocking socket that leads to `name`, as the log has it.

        The loop may have it already, for an earlier owner; then its events so far are `known`.
        """
        self.task = None
        self._watcher: Task | None = None
        self.loop = loop
        self.socket = sock
        self.reader = self.writer = fd = sock.fileno()
        self.name = name
        self.is_tcp = sock.family in _TCP
        self.is_shared = False  # another process may have it open, and closing it says nothing
        self._wanted = 0
        if known is None:
            self.ready = EPOLLOUT  # trying tells
            self._tells_room = False
            loop.register(fd, self._on_event)
        else:
            self.ready = known
            self._tells_room = True
            loop.handlers[fd] = self._on_event

    @classmethod
    def of_client(cls, loop: Loop, sock: socket, peer: Peer) -> Stream:
        """Take over the socket of who has come in.

        OSError, and it is closed, if it cannot be waited for: epoll(7) has a limit for each user.
        """
        try:
            stream = cls(loop, sock)
        except OSError:
            sock.close()
            raise
        stream.is_shared = peer.is_shared
        return stream

    def take_back(self) -> None:
        """Be the one who reads and writes again, after a relay was."""
        self.ready = READABLE | WRITABLE  # unknown, and trying tells
        for fd in (self.reader, self.writer):
            if fd in self.loop.handlers:
                self.loop.handlers[fd] = self._on_event

    def _on_event(self, events: int) -> None:
        self.ready |= events
        if events & self._wanted:
            self._wanted = 0
            self.wake()
        elif events & HANG_UP and self._watcher is not None:
            self._watcher.interrupt(PeerGone())

    def watch_room(self) -> None:
        """Be told from now on when there is room for output, as there is none.

        Few streams ever need it, and a socket that is told would be so twice for nothing: when it
        is new, and when the end of its output has arrived.
        """
        if not self._tells_room:
            self._tells_room = True
            self.loop.watch_room(self.writer)

    def watch(self) -> None:
        """Raise PeerGone in the current task, once, if the peer hangs up before `unwatch`.

        The end of what it sends is no hang-up.
        """
        if self.ready & HANG_UP:
            raise PeerGone
        self._watcher = self.loop.current

    def unwatch(self) -> None:
        """Let the peer do what it likes again."""
        self._watcher = None

    async def receive(self, limit: int) -> bytes:
        """Read up to `limit` bytes once there are any; b"" at the end. OSError as read(2)."""
        while True:
            if not self.ready & READABLE:
                self._wanted = READABLE
                await self
            try:
                data = read(self.reader, limit)
            except BlockingIOError:
                self.ready &= ~READABLE | self.always_ready
                continue
            except OSError as error:
                if is_hang_up(self.reader, error):
                    return b""
                raise
            # A short read of TCP has taken all there was; a terminal, say, gives a line at a time.
            if len(data) < limit and self.is_tcp and not self.ready & MORE:
                self.ready &= ~EPOLLIN
            return data

    def send_now(self, data: bytes) -> bytes:
        """Write what can be written at once, and give the rest. OSError as write(2)."""
        if not self.ready & WRITABLE:
            return data
        try:
            return data[write(self.writer, data) :]
        except BlockingIOError:
            self._no_room()
            return data

    async def send(self, data: bytes) -> None:
        """Write all of `data`. OSError as write(2)."""
        while data:
            if not self.ready & WRITABLE:
                self._wanted = WRITABLE
                await self
            try:
                data = data[write(self.writer, data) :]
            except BlockingIOError:
                self._no_room()

    def _no_room(self) -> None:
        self.ready &= ~WRITABLE | self.always_ready
        self.watch_room()

    def end_output(self) -> None:
        """Say that nothing more will be written: the peer reads an end of file."""
        try:
            self.socket.shutdown(SHUT_WR)
        except OSError:
            return  # ENOTCONN: the peer is gone and cannot be told

    async def linger(self, seconds: float) -> None:
        """End the output and drop what the peer still sends, for so many seconds at most.

        A socket that is closed with input unread resets the connection, and the peer may then lose
        the last thing it was told.
        """
        self.end_output()
        left = _LONGEST_DRAIN
        try:
            with self.loop.deadline(seconds):
                while left > 0:
                    data = await self.receive(left)
                    if not data:
                        return
                    left -= len(data)
        except OSError:  # TimeoutError too: the peer has had its chance
            return

    async def abort(self, seconds: float) -> None:
        """Close so that the peer reads an error, not an end: what it got is not the whole.

        What has been written is given so many seconds to arrive first. Where there is no reset
        (a unix socket, a pipe) this is a plain close.
        """
        if self.is_tcp:
            try:
                patience = 0.002
                while seconds > 0 and _unacknowledged(self.socket):
                    await self.loop.sleep(patience)
                    seconds -= patience
                    patience = min(2 * patience, 0.1)
            except OSError:
                pass  # the connection is gone already
        self.reset_on_close()
        self.close()

    def reset_on_close(self) -> None:
        """Let the close that follows, or the end of the process, reset a TCP connection."""
        if self.is_tcp:
            try:
                self.socket.setsockopt(SOL_SOCKET, SO_LINGER, RESET_ON_CLOSE)
            except OSError:
                return  # closed already

    def local_endpoint(self) -> Endpoint:
        """Say which address of ours a TCP connection has; zeros for any other stream."""
        if not self.is_tcp:
            return Endpoint("0.0.0.0", 0)
        return Endpoint.of_socket(self.socket.getsockname())

    def close(self) -> None:
        """Give what it reads and writes back to the system. Harmless when it has been done."""
        if self.is_shared:
            self.loop.unregister(self.reader)  # or it would be watched under a number that is free
        else:
            self.loop.handlers.pop(self.reader, None)
        self.reader = self.writer = -1
        self.socket.close()

    def detach(self) -> socket:
        """Leave the socket, open and non-blocking, to whoever goes on with it without this loop."""
        self.loop.unregister(self.reader)
        self.reader = self.writer = -1
        return self.socket

    def give_away(self) -> None:
        """Close it here and leave all as it is for another process, which has it too."""
        self.close()


def is_hang_up(fd: int, error: OSError) -> bool:
    """Say whether a read has failed because nobody has the other side of a terminal open.

    That is its end. Whoever has the master side is always told in this way, and whoever has the
    other one, if it looks at the right moment.
    """
    return error.errno == errno.EIO and S_ISCHR(fstat(fd).st_mode)


def is_tcp(sock: socket) -> bool:
    """Say whether a socket is TCP (or MPTCP), not a unix socket."""
    return sock.family in _TCP


def unix_address(path: str) -> str:
    """Give the address of a unix socket; a leading @ means the abstract namespace, unix(7)."""
    return "\0" + path[1:] if path.startswith("@") else path


def prepare_tcp(sock: socket) -> None:
    """Set what every TCP socket of ours has: no delay, and urgent data left in its place."""
    sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    try:
        sock.setsockopt(SOL_SOCKET, SO_OOBINLINE, 1)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:  # MPTCP has no urgent data
            raise


def _unacknowledged(sock: socket) -> int:
    """Count the bytes that a TCP peer may still acknowledge: none once the connection is gone,
    though what was left in its queue is counted for ever.
    """
    if sock.getsockopt(IPPROTO_TCP, TCP_INFO, 1)[0] == _TCP_CLOSE:
        return 0
    return send_queue(sock.fileno())


def send_queue(fd: int) -> int:
    """Count the bytes in a socket's send queue: those that a TCP peer has not acknowledged, or a
    unix socket's has not read. OSError.
    """
    count = bytearray(4)
    ioctl(fd, _SIOCOUTQ, count)
    return int.from_bytes(count, byteorder)
