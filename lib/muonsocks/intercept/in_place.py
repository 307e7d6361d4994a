"""Puts a socket in the place of another one that a process has: under all its numbers, and in all
the epolls that it is in.

An epoll knows a descriptor by its number in the process that adds it (epoll(7)). So we have the
socket under that number ourselves for a moment. Nothing else may run in this process meanwhile:
the supervisor has no threads.

An entry that is disarmed (EPOLLONESHOT) is so afterwards, but for errors; one that is told of
changes (EPOLLET) is told once more of what there is.
"""

from __future__ import annotations

import errno
import os
from fcntl import F_DUPFD_CLOEXEC, fcntl
from resource import RLIMIT_NOFILE, getrlimit

from muonsocks.intercept import kernel
from muonsocks.intercept.notify import Call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable

_EPOLL = "anon_inode:[eventpoll]"
_GONE = (FileNotFoundError, ProcessLookupError)  # closed, or ended, while we looked


class _Entry:
    """What an epoll, whose descriptor in the process is `epoll`, has under a number."""

    __slots__ = ("data", "epoll", "events", "number")

    def __init__(self, epoll: int, number: int, events: int, data: int) -> None:
        self.epoll = epoll
        self.number = number
        self.events = events
        self.data = data


class Places:
    """Where the process that calls has a socket, of which `old` is a duplicate."""

    __slots__ = ("_call", "_entries", "_numbers", "_old")

    def __init__(self, call: Call, old: socket) -> None:
        """Look for them (proc(5)). OSError; EMFILE if there is one that we cannot imitate."""
        self._call = call
        self._old = old
        inode = os.fstat(old.fileno()).st_ino
        self._numbers, epolls = _descriptors(call.tid, inode)
        self._entries = [entry for one in epolls for entry in _entries(call.tid, one, inode)]
        highest = max((entry.number for entry in self._entries), default=0)
        if highest >= getrlimit(RLIMIT_NOFILE)[0] - 2 * len(self._entries) - 4:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def take(self, new: socket) -> None:
        """Put another one there. OSError, and CallGone."""
        call = self._call
        flags = {number: _is_closed_on_exec(call.tid, number) for number in self._numbers}
        kept: list[int] = []  # which are in the way of none
        try:
            epolls = self._open_epolls(kept)
            watched = []
            if epolls:
                old = self._keep(self._old.fileno(), kept)
                watched = [one for one in self._entries if _take_out(one, epolls[one.epoll], old)]
            for number, is_closed_on_exec in flags.items():
                call.put(new, number, is_closed_on_exec)
            if watched:
                fresh = self._keep(new.fileno(), kept)
                for one in watched:
                    _add(one, epolls[one.epoll], fresh)
        finally:
            for fd in kept:
                os.close(fd)

    def _open_epolls(self, kept: list[int]) -> dict[int, int]:
        """Get duplicates of the epolls, by the numbers that those have."""
        epolls: dict[int, int] = {}
        for number in {entry.epoll for entry in self._entries}:
            theirs = self._call.descriptor(number)
            try:
                epolls[number] = self._keep(theirs, kept)
            finally:
                os.close(theirs)
        return epolls

    def _keep(self, fd: int, kept: list[int]) -> int:
        highest = max(entry.number for entry in self._entries)
        kept.append(fcntl(fd, F_DUPFD_CLOEXEC, highest + 1))
        return kept[-1]


def _take_out(entry: _Entry, epoll: int, fd: int) -> bool:
    """Take an entry out of its epoll; False if that is not there any more."""
    try:
        _under(entry.number, fd, lambda number: kernel.unwatch(epoll, number))
    except FileNotFoundError:
        return False  # or the process has two numbers for that epoll
    return True


def _add(entry: _Entry, epoll: int, fd: int) -> None:
    events, data = entry.events, entry.data
    _under(entry.number, fd, lambda number: kernel.watch(epoll, number, events, data))


def _descriptors(tid: int, inode: int) -> tuple[list[int], list[int]]:
    """Give the numbers that a socket has in a process, and those of all its epolls."""
    place, socket_name = f"/proc/{tid}/fd", f"socket:[{inode}]"
    numbers, epolls = [], []
    for name in os.listdir(place):
        try:
            target = os.readlink(f"{place}/{name}")
        except _GONE:
            continue
        if target == socket_name:
            numbers.append(int(name))
        elif target == _EPOLL:
            epolls.append(int(name))
    return numbers, epolls


def _entries(tid: int, epoll: int, inode: int) -> list[_Entry]:
    found = []
    mark = f" ino:{inode:x} "
    for line in _facts(tid, epoll):
        # tfd:       5 events:       19 data:     7f2300000005  pos:0 ino:a6d6 sdev:8
        if line.startswith("tfd:") and mark in line:
            words = line.split()
            found.append(_Entry(epoll, int(words[1]), int(words[3], 16), int(words[5], 16)))
    return found


def _is_closed_on_exec(tid: int, number: int) -> bool:
    for line in _facts(tid, number):
        if line.startswith("flags:"):
            return bool(int(line.split()[1], 8) & os.O_CLOEXEC)
    return False


def _facts(tid: int, number: int) -> list[str]:
    try:
        with open(f"/proc/{tid}/fdinfo/{number}") as file:
            return file.read().splitlines()
    except _GONE:
        return []


def _under(number: int, fd: int, do: Callable[[int], None]) -> None:
    """Do something while a descriptor of ours has a number, which is another's otherwise."""
    try:
        is_inherited = os.get_inheritable(number)
        saved = fcntl(number, F_DUPFD_CLOEXEC, number + 1)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        saved = -1
    try:
        os.dup2(fd, number, False)
        do(number)
    finally:
        if saved < 0:
            os.close(number)
        else:
            os.dup2(saved, number, is_inherited)
            os.close(saved)
