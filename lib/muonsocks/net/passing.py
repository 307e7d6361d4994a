"""Descriptors on their way between processes, over unix sockets (SCM_RIGHTS, unix(7)).

The one place that sends and receives them. What is received is closed on exec from the first
instant, and of what was not asked for nothing stays open. `send` and `receive` are for any unix
socket; a Passage is a connection of messages (SOCK_SEQPACKET) in a loop.
"""

from __future__ import annotations

import errno
from _socket import (
    AF_UNIX,
    CMSG_LEN,
    MSG_CMSG_CLOEXEC,
    MSG_CTRUNC,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    MSG_PEEK,
    MSG_TRUNC,
    SCM_RIGHTS,
    SHUT_RD,
    SOCK_NONBLOCK,
    SOCK_SEQPACKET,
    SOL_SOCKET,
    socket,
)
from fcntl import ioctl
from os import close, dup, strerror
from select import POLLRDHUP, poll
from sys import byteorder

from muonsocks.errors import RemoteProtocolError
from muonsocks.net.loop import READABLE, WRITABLE, Loop
from muonsocks.net.stream import Stream, unix_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import TypeVar

    T = TypeVar("T")

WORD = b"\0"  # goes with a descriptor, where a byte must and nobody looks at it
_SIOCINQ = 0x541B  # unix(7)
_INT = 4  # bytes of a descriptor in a control message
_SCM_PIDFD = 4  # unix(7): the sender, as a descriptor, where SO_PASSPIDFD is set
_ANY_DATA = 4096  # bytes that are read where they do not matter
# What whoever made a socket may have asked to be told with each message: credentials, a security
# label, a time. In what that leaves, descriptors fit that are closed at once; the first is kept.
_ANY_CONTROL = 512


def send(sock: socket, data: bytes, fds: Sequence[int] = (), to: str | None = None) -> int:
    """Send at least a byte, and duplicates of `fds` with it; give how many bytes were taken.

    A socket that is not connected sends a datagram `to` a path (with @ in front, an abstract name).

    Only a SOCK_STREAM takes a part, and that with all descriptors. BlockingIOError if there is no
    room now; OSError as sendmsg(2): ETOOMANYREFS if too many descriptors are on their way.
    """
    control = []
    if fds:
        numbers = b"".join(fd.to_bytes(_INT, byteorder) for fd in fds)
        control.append((SOL_SOCKET, SCM_RIGHTS, numbers))
    flags = MSG_DONTWAIT | MSG_NOSIGNAL
    if to is None:
        return sock.sendmsg([data], control, flags)
    return sock.sendmsg([data], control, flags, unix_address(to))


def receive(sock: socket, limit: int, most_fds: int = 0) -> tuple[bytes, list[int]]:
    """Receive up to `limit` bytes and `most_fds` descriptors, which are the caller's to close.

    b"" and no descriptors at the end. RemoteProtocolError if a message is longer, has more
    descriptors, or nothing else; OSError as recvmsg(2), EMFILE also if this process has no room
    for the descriptors. Nothing is left open then. BlockingIOError if nothing is there yet.
    """
    # Not CMSG_SPACE: in what that adds for alignment the kernel finds room for one more.
    data, fds, flags = _take(sock, limit, CMSG_LEN(_INT * most_fds) if most_fds else 0)
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


def receive_first(sock: socket) -> int | None:
    """Receive a message, whatever its data, and give the first of its descriptors; None at the end.

    This is how connections come to a receiver of socketbox. Further descriptors are closed.
    RemoteProtocolError if the message has none: it is gone, and the next one may be better.
    BlockingIOError if nothing is there yet; OSError EMFILE if this process has no room for a
    descriptor, and then the message stays where it is. There is no end to datagrams.
    """
    close(dup(sock.fileno()))  # or EMFILE: the kernel would drop what has no room, and say nothing
    while True:
        try:
            data, fds, flags = _take(sock, _ANY_DATA, _ANY_CONTROL)
            break
        except ConnectionResetError:
            continue  # the peer has not read what we sent, or was told to connect elsewhere: it is
            # said once, and before all that has come from it and from others
    return _first(sock, data, fds, flags)


def peek_first(sock: socket) -> int | None:
    """As `receive_first`, but leave the message where it is, for `drop` or another look."""
    while True:
        try:
            data, fds, flags = _take(sock, _ANY_DATA, _ANY_CONTROL, MSG_PEEK)
            break
        except ConnectionResetError:
            continue  # as there
    if not fds and flags & MSG_CTRUNC:
        close(dup(sock.fileno()))  # or EMFILE
    return _first(sock, data, fds, flags)


def drop(sock: socket) -> None:
    """Take away the message that has been looked at, and all that came with it."""
    sock.recv(_ANY_DATA, MSG_DONTWAIT)


def _first(sock: socket, data: bytes, fds: list[int], flags: int) -> int | None:
    if fds:
        close_all(fds[1:])
        return fds[0]
    if flags & MSG_CTRUNC:
        raise RemoteProtocolError("a descriptor is passed that the system does not let in")
    if data or not has_hung_up(sock):
        raise RemoteProtocolError("a message without a descriptor")
    return None


def _take(sock: socket, limit: int, room: int, how: int = 0) -> tuple[bytes, list[int], int]:
    """Receive a message: its data, descriptors, which are closed on exec, and flags."""
    data, control, flags, _ = sock.recvmsg(limit, room, how | MSG_DONTWAIT | MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, value in control:
        if level == SOL_SOCKET and kind in (SCM_RIGHTS, _SCM_PIDFD):
            whole = len(value) // _INT * _INT
            numbers = memoryview(value)[:whole].cast("i").tolist()
            if kind == SCM_RIGHTS:
                fds += numbers
            else:
                close_all(number for number in numbers if number >= 0)  # or -errno
    return data, fds, flags


def has_hung_up(sock: socket) -> bool:
    """Say whether the peer sends no more, and nothing is left of what it has sent: a message may
    look like the end, as it is empty. Who sends datagrams never hangs up.
    """
    looks = poll()
    looks.register(sock, POLLRDHUP)
    if not any(events & POLLRDHUP for _, events in looks.poll(0)):
        return False
    left = bytearray(_INT)
    ioctl(sock.fileno(), _SIOCINQ, left)  # the bytes of all messages
    return not any(left)


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors that were received and are not wanted."""
    for fd in fds:
        close(fd)


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
        return await self._when_readable(lambda: receive(self.socket, limit, most_fds))

    async def receive_first(self) -> int | None:
        """Receive one descriptor, as `receive_first` does, when there is a message. Any unix socket
        that can be read will do, and if it is shared, it need not be non-blocking.
        """
        return await self._when_readable(lambda: receive_first(self.socket))

    async def _when_readable(self, take: Callable[[], T]) -> T:
        while True:
            if not self.ready & READABLE:
                self._wanted = READABLE
                await self
            try:
                return take()
            except BlockingIOError:
                self.ready &= ~READABLE

    def last_message(self, limit: int) -> bytes:
        """Let the peer send no more, and give the message that has come before that, or b"".

        What a peer could send, it knows to be received; what comes too late fails with EPIPE.
        """
        self.socket.shutdown(SHUT_RD)
        return receive(self.socket, limit)[0]
