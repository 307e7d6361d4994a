"""What has a descriptor's number while a connection for it is made elsewhere.

A program that does not wait looks at its descriptor, with poll(2) or epoll(7), until there is room
for output, as connect(2) has it. So the number gets a socket that has none, up to the end.
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, SHUT_RD, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, socketpair
from _thread import allocate_lock
from os import fstat
from select import epoll

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

_FILLING = bytes(1 << 16)
_INT = 0xFFFFFFFF  # of data that are an int: nobody has set the rest


class Parking:
    """A socket, `sock`, at which nothing happens until `end`, which another thread may call."""

    __slots__ = ("_far", "_lock", "sock")

    def __init__(self) -> None:
        kind = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC
        self.sock, self._far = socketpair(AF_UNIX, kind)
        self._lock = allocate_lock()
        try:
            while True:
                self.sock.send(_FILLING)
        except BlockingIOError:
            return  # it is full

    def end(self) -> None:
        """Have whoever looks at it find that there is room."""
        with self._lock:
            if self._far.fileno() < 0:
                return  # nobody looks any more
            # What is written from now on would be lost: it is an error, and too early.
            self._far.shutdown(SHUT_RD)
            while self._far.recv(len(_FILLING)):
                pass

    def close(self) -> None:
        """Give back what is left: `sock` has been put somewhere."""
        with self._lock:
            self._far.close()


def replace(fd: int, sock: socket, is_watched: bool) -> None:
    """Let a descriptor's number stand for another socket, which is closed elsewhere. With
    `is_watched` the epolls of this process that have the number go on with what it stands for.
    """
    watchers = []
    for watcher, events in _watchers(fd) if is_watched else []:
        try:
            watcher.unregister(fd)
        except FileNotFoundError:
            continue  # another descriptor of an epoll that has been dealt with
        watchers.append((watcher, events))
    os.dup2(sock.fileno(), fd, os.get_inheritable(fd))
    sock.close()
    for watcher, events in watchers:
        watcher.register(fd, events)


def _watchers(fd: int) -> list[tuple[epoll, int]]:
    """Find the epolls of this process that a descriptor is in, and for which events (proc(5)).

    Python has its number as their data; what else has is not for us to imitate.
    """
    found = []
    for number in _epolls():
        try:
            with open(f"/proc/self/fdinfo/{number}") as file:
                lines = file.read().splitlines()
        except FileNotFoundError:
            continue  # another thread has closed it
        for line in lines:
            words = line.split()
            # tfd:       5 events:       19 data:     7f2300000005  pos:0 ino:a6d6 sdev:8
            if words[:1] == ["tfd:"] and int(words[1]) == int(words[5], 16) & _INT == fd:
                found.append((number, int(words[3], 16)))
    return [(epoll.fromfd(os.dup(number)), events) for number, events in found]


def _epolls() -> list[int]:
    """Find the epolls of this process. Its descriptors may be many: to ask the kernel for the inode
    of each is the fastest way to tell, as all epolls have the same one, with few others.
    """
    with epoll(1) as sample:
        one = fstat(sample.fileno())
        inode, device, ours = one.st_ino, one.st_dev, sample.fileno()
        found = []
        for number in range(_table_size()):
            try:
                status = fstat(number)
            except OSError:
                continue
            if status.st_ino == inode and status.st_dev == device and number != ours:
                found.append(number)
    return [number for number in found if _is_epoll(number)]


def _table_size() -> int:
    """Say which number is above those of all descriptors of this process."""
    with open("/proc/self/status") as file:
        return int(file.read().partition("FDSize:")[2].split(None, 1)[0])


def _is_epoll(fd: int) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventpoll]"
    except FileNotFoundError:
        return False  # another thread has closed it
