"""Pipes for splice: large, few, kept for the next one who needs one."""

from __future__ import annotations

from fcntl import F_GETPIPE_SZ, F_SETPIPE_SZ, fcntl
from os import O_CLOEXEC, O_NONBLOCK, close, pipe2, read

SIZE = 1 << 20  # bytes; /proc/sys/fs/pipe-max-size allows anyone this much
_SMALLEST = 1 << 16  # below this, copying through a buffer is as good
_MOST = 32  # pipes at a time in one process: an ordinary user may have 64 MiB of them in all

_pool: list[Pipe] = []
_in_use = 0
_allowed = _MOST


def limit(descriptors: int) -> int:
    """Let pipes take no more than so many descriptors, and give how many they may take now."""
    global _allowed
    _allowed = min(_MOST, descriptors // 2)
    return 2 * _allowed


class Pipe:
    """Bytes on their way through the kernel: `left` of them are in it."""

    __slots__ = ("left", "reader", "writer")

    def __init__(self, reader: int, writer: int) -> None:
        self.reader = reader
        self.writer = writer
        self.left = 0

    def contents(self) -> bytes:
        """Take the bytes out, where they cannot be spliced on."""
        parts = []
        while self.left:
            part = read(self.reader, self.left)
            parts.append(part)
            self.left -= len(part)
        return b"".join(parts)

    def release(self) -> None:
        """Give the pipe back. One with bytes in it is closed, and they are gone."""
        global _in_use
        _in_use -= 1
        if self.left:
            close(self.reader)
            close(self.writer)
        else:
            _pool.append(self)


def take() -> Pipe | None:
    """Take an empty pipe; None if there are too many, or the system gives only small ones."""
    global _in_use
    if _pool:
        _in_use += 1
        return _pool.pop()
    if _in_use >= _allowed:
        return None
    try:
        reader, writer = pipe2(O_NONBLOCK | O_CLOEXEC)
    except OSError:
        return None  # out of descriptors: copying does without
    try:
        fcntl(writer, F_SETPIPE_SZ, SIZE)
    except OSError:
        if fcntl(writer, F_GETPIPE_SZ) < _SMALLEST:
            close(reader)
            close(writer)
            return None
    _in_use += 1
    return Pipe(reader, writer)
