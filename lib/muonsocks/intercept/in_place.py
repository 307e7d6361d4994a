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
from muonsocks.intercept.notify import Call, Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable

_EPOLL = "anon_inode:[eventpoll]"
_NO_THREADS = 2  # links of /proc/PID/task, and there is one more for each
_GONE = (FileNotFoundError, ProcessLookupError)  # closed, or ended, while we looked


class _Entry:
    """What an epoll, whose descriptor in the process is `epoll`, has under a number."""

    __slots__ = ("data", "epoll", "events", "number")

    def __init__(self, epoll: int, number: int, events: int, data: int) -> None:
        self.epoll = epoll
        self.number = number
        self.events = events
        self.data = data


class Look:
    """What sockets and epolls the process that calls has, at a moment. For one that has thousands
    of descriptors this takes tens of ms.
    """

    __slots__ = ("_epolls", "_numbers")

    def __init__(self, call: Call) -> None:
        """Look for them (proc(5)). OSError."""
        place = f"/proc/{call.tid}/fd"
        self._numbers: dict[str, list[int]] = {}
        directory = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in os.listdir(place):
                try:
                    target = os.readlink(name, dir_fd=directory)
                except _GONE:
                    continue
                self._numbers.setdefault(target, []).append(int(name))
        finally:
            os.close(directory)
        epolls = self._numbers.get(_EPOLL, ())
        self._epolls = {number: _facts(call.tid, number) for number in epolls}

    def numbers(self, inode: int) -> list[int]:
        """Give the numbers that a socket has."""
        return self._numbers.get(f"socket:[{inode}]", [])

    def entries(self, inode: int) -> list[_Entry]:
        """Give what all epolls have of it."""
        found = []
        mark = f" ino:{inode:x} "
        for epoll, facts in self._epolls.items():
            # tfd:       5 events:       19 data:     7f2300000005  pos:0 ino:a6d6 sdev:8
            end = facts.find(mark)
            while end >= 0:
                words = facts[facts.rfind("\n", 0, end) + 1 : end].split()
                found.append(_Entry(epoll, int(words[1]), int(words[3], 16), int(words[5], 16)))
                end = facts.find(mark, end + 1)
        return found


class Places:
    """Where the process that calls has a socket, of which `old` is a duplicate. All descriptors of
    ours that it takes to put another one there are open from now on until that is done: without
    one of them, what had been taken out of an epoll could not be put back.
    """

    __slots__ = ("_call", "_entries", "_epolls", "_kept", "_numbers", "_spare")

    def __init__(self, call: Call, old: socket, look: Look | None = None) -> None:
        """Look for them, unless that has been done. OSError, EMFILE if there is one that we cannot
        imitate; and CallGone.
        """
        if look is None:
            look = Look(call)
        self._call = call
        inode = os.fstat(old.fileno()).st_ino
        self._numbers, self._entries = look.numbers(inode), look.entries(inode)
        self._epolls: dict[int, int] = {}  # duplicates, by the numbers that those have
        self._kept: list[int] = []  # of old, and of what is in its place then
        self._spare = -1
        if self._entries:
            try:
                self._open(old.fileno())
            except BaseException:
                self._close()
                raise

    def _open(self, old: int) -> None:
        above = max(entry.number for entry in self._entries) + 1  # in the way of none
        if above >= getrlimit(RLIMIT_NOFILE)[0]:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        for number in {entry.epoll for entry in self._entries}:
            try:
                theirs = self._call.descriptor(number)
            except Refused:
                continue  # another thread has closed it
            try:
                self._epolls[number] = fcntl(theirs, F_DUPFD_CLOEXEC, above)
            finally:
                os.close(theirs)
        for _ in range(2):
            self._kept.append(fcntl(old, F_DUPFD_CLOEXEC, above))
        self._spare = fcntl(old, F_DUPFD_CLOEXEC, above)

    def _close(self) -> None:
        spare = [self._spare] if self._spare >= 0 else []
        for fd in (*self._epolls.values(), *self._kept, *spare):
            os.close(fd)

    def take(self, new: socket) -> None:
        """Put another one there, once. OSError, and CallGone, and then no epoll has lost what it
        had, and nothing has changed if it is a number that the process could not open now (EBADF).
        """
        call = self._call
        out: list[_Entry] = []
        try:
            highest_first = sorted(self._numbers, reverse=True)
            flags = {number: _is_closed_on_exec(call.tid, number) for number in highest_first}
            there = old = self._kept[0] if self._kept else -1
            try:
                for one in self._entries:
                    if one.epoll in self._epolls and self._take_out(one, old):
                        out.append(one)
                for number, is_closed_on_exec in flags.items():
                    call.put(new, number, is_closed_on_exec)
                if out:
                    there = self._kept[1]
                    os.dup2(new.fileno(), there, False)
            finally:
                for one in out:
                    self._add(one, there)
        finally:
            self._close()

    def _take_out(self, entry: _Entry, fd: int) -> bool:
        """Take an entry out of its epoll; False if that is not there any more."""
        epoll = self._epolls[entry.epoll]
        try:
            self._under(entry.number, fd, lambda number: kernel.unwatch(epoll, number))
        except FileNotFoundError:
            return False  # or the process has two numbers for that epoll
        return True

    def _add(self, entry: _Entry, fd: int) -> None:
        epoll, events, data = self._epolls[entry.epoll], entry.events, entry.data
        self._under(entry.number, fd, lambda number: kernel.watch(epoll, number, events, data))

    def _under(self, number: int, fd: int, do: Callable[[int], None]) -> None:
        """Do something while a descriptor of ours has a number, which is another's otherwise."""
        try:
            is_inherited = os.get_inheritable(number)
            os.dup2(number, self._spare, False)
            is_ours = True
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            is_ours = False
        try:
            os.dup2(fd, number, False)
            do(number)
        finally:
            if is_ours:
                os.dup2(self._spare, number, is_inherited)
            else:
                os.close(number)


def has_one_thread(tid: int) -> bool:
    """Say whether nobody but a thread that waits for us can open or close what it has."""
    try:
        return os.stat(f"/proc/{tid}/task").st_nlink == _NO_THREADS + 1
    except _GONE:
        return False


def _is_closed_on_exec(tid: int, number: int) -> bool:
    for line in _facts(tid, number).splitlines():
        if line.startswith("flags:"):
            return bool(int(line.split()[1], 8) & os.O_CLOEXEC)
    return False


def _facts(tid: int, number: int) -> str:
    try:
        with open(f"/proc/{tid}/fdinfo/{number}") as file:
            return file.read()
    except _GONE:
        return ""
