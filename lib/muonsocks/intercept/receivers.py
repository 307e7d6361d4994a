"""The receivers of all programs that call: by their sockets, and by their paths."""

from __future__ import annotations

import errno
import os
from _socket import AF_UNIX, SOCK_DGRAM, socket

from muonsocks.intercept.cookies import cookie_of
from muonsocks.intercept.notify import Refused
from muonsocks.intercept.receiver import Receiver

_MOST = 1024  # that there may be at a time


class Receivers:
    """All that there are, of all programs that call."""

    __slots__ = ("_by_inode", "_by_path")

    def __init__(self) -> None:
        self._by_inode: dict[int, Receiver] = {}
        self._by_path: dict[str, Receiver] = {}

    def of(self, inode: int) -> Receiver | None:
        """Give the one that has an inode."""
        return self._by_inode.get(inode)

    def at(self, path: str) -> Receiver | None:
        """Give the one that has been put at a path last."""
        return self._by_path.get(path)

    def add(self, one: Receiver) -> None:
        """Have one more. Refused if there are too many."""
        if len(self._by_inode) >= _MOST:
            raise Refused(errno.ENOBUFS)
        self._by_inode[one.inode] = one
        if one.path:
            self._by_path[one.path] = one

    def move(self, one: Receiver, sock: socket) -> None:
        """Know one by another socket."""
        del self._by_inode[one.inode]
        one.inode, one.cookie = os.fstat(sock.fileno()).st_ino, cookie_of(sock)
        self._by_inode[one.inode] = one

    def remove(self, one: Receiver) -> None:
        """Forget one, which nobody has any more."""
        del self._by_inode[one.inode]
        one.close()
        if self._by_path.get(one.path) is one:
            del self._by_path[one.path]
            if one.sorter is not None:
                for other in one.sorter.receivers.values():
                    self._by_path[one.path] = other

    def sweep(self) -> None:
        """Forget those that nobody has any more: those of our network namespace. OSError."""
        with open("/proc/net/unix", "rb") as file:
            next(file)  # what the columns are
            there = {int(line.split(None, 7)[6]) for line in file}
        for one in list(self._by_inode.values()):
            if one.inode not in there and not one.waiting:  # or we have it, from another namespace
                self.remove(one)

    def close(self) -> None:
        """Forget all, when there is nobody left."""
        for one in list(self._by_inode.values()):
            self.remove(one)


def is_receiver(sock: socket, accepts_of_streams: bool) -> bool:
    """Say whether a unix socket that has been there before us is one that connections are passed
    to: of datagrams, or, if wanted, one that is connected.
    """
    if sock.family != AF_UNIX:
        return False
    if sock.type == SOCK_DGRAM:
        return True
    if not accepts_of_streams:
        return False
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
