"""What has a descriptor's number while a connection for it is made elsewhere.

A program that does not wait looks at its descriptor, with poll(2) or epoll(7), until there is room
for output, as connect(2) has it; or for input, which there is when that fails. So the number gets a
socket that has neither, up to the end.
"""

from __future__ import annotations

import errno
import os
from _socket import (
    AF_UNIX,
    SHUT_RD,
    SO_SNDBUF,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    socketpair,
)
from _thread import allocate_lock
from os import fstat
from select import epoll

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

PROC = "/proc/self"
_FILLING = bytes(1 << 12)  # more than the smallest buffer takes without being full
_INT = 0xFFFFFFFF  # of data that are an int: nobody has set the rest


class Parking:
    """A socket, `sock`, at which nothing happens until `end`, which another thread may call."""

    __slots__ = ("_far", "_is_left", "_lock", "_tells_input", "sock")

    def __init__(self, tells_input: bool = False) -> None:
        """With `tells_input` who looks for input is told of the end, too. OSError."""
        kind = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC
        self.sock, self._far = socketpair(AF_UNIX, kind)
        self._tells_input = tells_input
        self._is_left = False
        self._lock = allocate_lock()
        self.sock.setsockopt(SOL_SOCKET, SO_SNDBUF, 1)
        try:
            while True:
                self.sock.send(_FILLING)
        except BlockingIOError:
            return  # it is full

    def end(self, has_failed: bool = False) -> None:
        """Have whoever looks at it find that there is room; and an error and an end, if it has
        failed.
        """
        with self._lock:
            if has_failed:
                self._far.close()  # with unread data, which makes it an error
            elif not self._is_left:
                self._make_room()
        if self._is_left:
            self.close()

    def _make_room(self) -> None:
        try:
            if self._tells_input:
                self._far.send(b"\0")
            # What is written from now on would be lost: it is an error, and too early.
            self._far.shutdown(SHUT_RD)
            while self._far.recv(len(_FILLING)):
                pass
        except OSError:
            return  # nobody has the other end any more

    def close(self) -> None:
        """Give back what is left: `sock` has been put somewhere. This waits for nobody, as it may
        be called by what collects garbage, in any thread.
        """
        self._is_left = True
        if self._lock.acquire(blocking=False):
            self._far.close()
            self._lock.release()


def replace(fd: int, sock: socket, is_watched: bool, must_be: bool = False) -> None:
    """Let a descriptor's number stand for another socket, which is closed elsewhere. With
    `is_watched` the epolls of this process that have the number go on with what it stands for.
    OSError; also where there is no /proc to find them in, if that `must_be`.
    """
    watchers = []
    try:
        for watcher, events in _watchers(fd, must_be) if is_watched else []:
            try:
                watcher.unregister(fd)
            except FileNotFoundError:
                continue  # another descriptor of an epoll that has been dealt with
            watchers.append((watcher, events))
        os.dup2(sock.fileno(), fd, os.get_inheritable(fd))
    finally:
        sock.close()
    for watcher, events in watchers:
        watcher.register(fd, events)


def _watchers(fd: int, must_be: bool) -> list[tuple[epoll, int]]:
    """Find the epolls of this process that a descriptor is in, and for which events (proc(5)).

    Python has its number as their data; what else has is not for us to imitate.
    """
    found = []
    for number in _epolls(must_be):
        for events in _events_of(fd, number):
            found.append((epoll.fromfd(os.dup(number)), events))
    return found


def _events_of(fd: int, number: int) -> list[int]:
    try:
        with open(f"{PROC}/fdinfo/{number}") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return []  # another thread has closed it
    # tfd:       5 events:       19 data:     7f2300000005  pos:0 ino:a6d6 sdev:8
    all_of_them = [line.split() for line in lines if line.startswith("tfd:")]
    return [
        int(words[3], 16)
        for words in all_of_them
        if int(words[1]) == int(words[5], 16) & _INT == fd
    ]


def _epolls(must_be: bool) -> list[int]:
    """Find the epolls of this process. Its descriptors may be many: to ask the kernel for the inode
    of each is the fastest way to tell, as all epolls have the same one, with few others. OSError.
    """
    with epoll(1) as sample:
        one = fstat(sample.fileno())
        inode, device, ours = one.st_ino, one.st_dev, sample.fileno()
        found = []
        for number in _descriptors(must_be):
            try:
                status = fstat(number)
            except OSError:
                continue  # another thread has closed it
            if status.st_ino == inode and status.st_dev == device and number != ours:
                found.append(number)
    return [number for number in found if _is_epoll(number)]


def _descriptors(must_be: bool) -> list[int]:
    """Give the numbers of all descriptors of this process."""
    try:
        return [int(name) for name in os.listdir(f"{PROC}/fd")]
    except FileNotFoundError:
        if not must_be:
            return []
        raise OSError(errno.ENOSYS, "a socket that does not block needs /proc here") from None


def _is_epoll(fd: int) -> bool:
    try:
        return os.readlink(f"{PROC}/fd/{fd}") == "anon_inode:[eventpoll]"
    except FileNotFoundError:
        return False  # another thread has closed it
