"""Clients of both families who come to one path, for a listener for IPv4 and one for IPv6: each
gets those of its own, and is readable only then.
"""

from __future__ import annotations

import os

from muonsocks.intercept.disguise import client_family

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable

    from muonsocks.intercept.receiver import Receiver
    from muonsocks.net.listen import SocketFile
    from muonsocks.net.loop import Loop

_ROUNDS = 64  # clients for one event, then the others have their turn
_PAUSE = 0.1  # s, when there is a shortage


class Sorter:
    """What is at a path then. `receivers` are those that it feeds, by the family."""

    __slots__ = ("_file", "_loop", "_sock", "_take", "receivers")

    def __init__(
        self,
        loop: Loop,
        sock: socket,
        file: SocketFile | None,
        take: Callable[[socket], socket],
    ) -> None:
        """Take over a socket that clients are passed to, and its file. `take` gives the next one:
        BlockingIOError if there is none, another OSError if it cannot be had now.
        """
        self._loop = loop
        self._sock = sock
        self._file = file
        self._take = take
        self.receivers: dict[int, Receiver] = {}
        loop.register(sock.fileno(), self._on_event)

    def _on_event(self, _: int) -> None:
        for _ in range(_ROUNDS):
            try:
                connection = self._take(self._sock)
            except BlockingIOError:
                return
            except OSError:  # a shortage: they wait
                self._loop.call_later(_PAUSE, self._go_on)
                return
            try:
                self._give(connection)
            finally:
                connection.close()
        self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._sock.fileno() >= 0:
            self._on_event(0)

    def _give(self, connection: socket) -> None:
        """Give a client to who is for it; or to the other one, if that is the only one who listens.
        If nobody does, it is closed.
        """
        try:
            family = client_family(connection)
        except OSError:
            return  # it has gone
        own = self.receivers.get(family)
        if own is None or not own.feed(connection):
            for one in self.receivers.values():
                if one is not own and one.feed(connection):
                    return
            if all(one.is_gone for one in self.receivers.values()):
                self._close()  # who comes now finds nobody

    def leave(self, one: Receiver) -> None:
        """Know that one is gone. With the last one goes the path."""
        del self.receivers[one.family]
        if not self.receivers:
            self._close()

    def _close(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.unregister(self._sock.fileno())
            self._sock.close()
            if self._file is not None:
                self._file.remove()


def others_have(inode: int, tid: int) -> bool:
    """Say whether another process than that of a thread has a socket (proc(5))."""
    name = f"socket:[{inode}]"
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) == os.getpid() or os.path.exists(f"/proc/{pid}/task/{tid}"):
            continue
        directory = f"/proc/{pid}/fd"
        try:
            there = os.listdir(directory)
        except OSError:
            continue  # it has ended, or is somebody else's
        for fd in there:
            try:
                if os.readlink(f"{directory}/{fd}") == name:
                    return True
            except OSError:
                continue  # it has been closed
    return False
