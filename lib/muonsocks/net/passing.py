"""Descriptors on their way between processes, over unix sockets (SCM_RIGHTS, unix(7)).

The one place that sends and receives them. What is received is closed on exec from the first
instant, and of what was not asked for nothing stays open. `send` and `receive` are for any unix
socket; a Passage is a connection of messages (SOCK_SEQPACKET) in a loop.
"""

from __future__ import annotations

import errno
from _socket import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    CMSG_LEN,
    IPPROTO_TCP,
    MSG_CMSG_CLOEXEC,
    MSG_CTRUNC,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    MSG_TRUNC,
    SCM_RIGHTS,
    SHUT_RD,
    SO_ACCEPTCONN,
    SO_PROTOCOL,
    SOCK_NONBLOCK,
    SOCK_SEQPACKET,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)
from os import close, strerror
from sys import byteorder

from muonsocks.errors import RemoteProtocolError
from muonsocks.net.loop import READABLE, WRITABLE, Loop
from muonsocks.net.stream import Stream, unix_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_INT = 4  # bytes of a descriptor in a control message
_IPPROTO_MPTCP = 262  # mptcp(7)
_TCP = (IPPROTO_TCP, _IPPROTO_MPTCP)
_STREAM_PROTOCOLS = {AF_UNIX: (0,), AF_INET: _TCP, AF_INET6: _TCP}


def send(sock: socket, data: bytes, fds: Sequence[int] = ()) -> int:
    """Send at least a byte, and duplicates of `fds` with it; give how many bytes were taken.

    Only a SOCK_STREAM takes a part, and that with all descriptors. BlockingIOError if there is no
    room now; OSError as sendmsg(2): ETOOMANYREFS if too many descriptors are on their way.
    """
    control = []
    if fds:
        numbers = b"".join(fd.to_bytes(_INT, byteorder) for fd in fds)
        control.append((SOL_SOCKET, SCM_RIGHTS, numbers))
    return sock.sendmsg([data], control, MSG_DONTWAIT | MSG_NOSIGNAL)


def receive(sock: socket, limit: int, most_fds: int = 0) -> tuple[bytes, list[int]]:
    """Receive up to `limit` bytes and `most_fds` descriptors, which are the caller's to close.

    b"" and no descriptors at the end. RemoteProtocolError if a message is longer, has more
    descriptors, or nothing else; OSError as recvmsg(2), EMFILE also if this process has no room
    for the descriptors. Nothing is left open then. BlockingIOError if nothing is there yet.
    """
    # Not CMSG_SPACE: in what that adds for alignment the kernel finds room for one more.
    room = CMSG_LEN(_INT * most_fds) if most_fds else 0
    data, control, flags, _ = sock.recvmsg(limit, room, MSG_DONTWAIT | MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, value in control:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            whole = len(value) // _INT * _INT
            fds += memoryview(value)[:whole].cast("i").tolist()
    try:
        if flags & MSG_TRUNC:
            raise RemoteProtocolError(f"a message is longer than {limit} bytes")
        if flags & MSG_CTRUNC:
            if len(fds) < most_fds:
                raise OSError(errno.EMFILE, "no room for the descriptors that are passed")
            raise RemoteProtocolError(f"more than {most_fds} descriptors are passed")
        if fds and not data:
            raise RemoteProtocolError("descriptors are passed with no word")
    except BaseException:
        close_all(fds)
        raise
    return data, fds


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors that were received and are not wanted."""
    for fd in fds:
        close(fd)


def stream_sockets(fds: list[int]) -> list[socket]:
    """Make sockets of descriptors that were received, which must be connections: TCP or unix.

    Blocking or not, they are left as they are, since others have them too. RemoteProtocolError if
    one is anything else (a listener, a file), and all are closed.
    """
    made: list[socket] = []
    waiting = fds[::-1]
    try:
        while waiting:
            try:
                sock = socket(fileno=waiting[-1])
            except OSError:
                raise RemoteProtocolError("a descriptor that is passed is no socket") from None
            waiting.pop()
            made.append(sock)
            if not is_connection(sock):
                raise RemoteProtocolError("a socket that is passed is no connection")
    except BaseException:
        for sock in made:
            sock.close()
        close_all(waiting)
        raise
    return made


def is_connection(sock: socket) -> bool:
    """Say whether this is one end of a stream, TCP (or MPTCP) or unix, and no listener."""
    if sock.type != SOCK_STREAM or sock.getsockopt(SOL_SOCKET, SO_ACCEPTCONN):
        return False
    protocol = sock.getsockopt(SOL_SOCKET, SO_PROTOCOL)  # sock.proto is what it was made with
    return protocol in _STREAM_PROTOCOLS.get(sock.family, ())


class Passage(Stream):
    """A connection of messages, each with descriptors or without, that never blocks."""

    __slots__ = ()

    @classmethod
    def over(cls, loop: Loop, sock: socket) -> Passage:
        """Take over a connected SOCK_SEQPACKET socket; it is closed if that cannot be."""
        try:
            sock.setblocking(False)
            return cls(loop, sock)
        except BaseException:
            sock.close()
            raise

    @classmethod
    def to(cls, loop: Loop, path: str) -> Passage:
        """Connect to who listens at `path` (with @ in front, in the abstract namespace).

        It is there or not, at once: OSError as connect(2), EAGAIN if its backlog is full.
        """
        sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK)
        try:
            number = sock.connect_ex(unix_address(path))
            if number:
                raise OSError(number, strerror(number))
        except BaseException:
            sock.close()
            raise
        return cls.over(loop, sock)

    async def send_message(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send one message, as `send` does, when there is room for it."""
        while True:
            if not self.ready & WRITABLE:
                self._wanted = WRITABLE
                await self
            try:
                send(self.socket, data, fds)
            except BlockingIOError:
                self._no_room()
                continue
            return

    async def receive_message(self, limit: int, most_fds: int = 0) -> tuple[bytes, list[int]]:
        """Receive one message, as `receive` does, when there is one."""
        while True:
            if not self.ready & READABLE:
                self._wanted = READABLE
                await self
            try:
                return receive(self.socket, limit, most_fds)
            except BlockingIOError:
                self.ready &= ~READABLE

    def last_message(self, limit: int) -> bytes:
        """Let the peer send no more, and give the message that has come before that, or b"".

        What a peer could send, it knows to be received; what comes too late fails with EPIPE.
        """
        self.socket.shutdown(SHUT_RD)
        return receive(self.socket, limit)[0]
