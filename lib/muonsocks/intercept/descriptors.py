"""Duplicates of what other processes have open: pidfd_getfd(2)."""

from __future__ import annotations

import errno
import os

from muonsocks.intercept import kernel

_THREAD = os.O_EXCL  # PIDFD_THREAD: of a thread that does not lead its process, Linux 6.9


class Descriptors:
    """Gets duplicates from threads. Mostly it is one that is asked again and again: what is kept of
    it does not lead to another one that gets its number later.
    """

    __slots__ = ("_pidfd", "_tid")

    def __init__(self) -> None:
        self._tid = 0  # whom the last one was of
        self._pidfd = -1

    def get(self, tid: int, fd: int) -> int:
        """Get a duplicate of a descriptor of a thread. OSError: EBADF if it has none of the number,
        ESRCH if it has ended.
        """
        if tid == self._tid:
            try:
                return kernel.descriptor_of(self._pidfd, fd)
            except ProcessLookupError:
                pass  # that one is gone
        try:
            pidfd = os.pidfd_open(tid, _THREAD)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return _by_process(tid, fd)
        self.close()
        self._tid, self._pidfd = tid, pidfd
        return kernel.descriptor_of(pidfd, fd)

    def close(self) -> None:
        """Keep nothing of the thread that was asked last."""
        if self._tid:
            os.close(self._pidfd)
            self._tid = 0


def descriptor_of(tid: int, fd: int) -> int:
    """Get a duplicate of a descriptor of a thread that is asked once. OSError, as `get` does."""
    descriptors = Descriptors()
    try:
        return descriptors.get(tid, fd)
    finally:
        descriptors.close()


def _by_process(tid: int, fd: int) -> int:
    """The same before Linux 6.9. The process may outlive the thread: it must not be kept."""
    try:
        with open(f"/proc/{tid}/status") as file:
            leader = next(line.split()[1] for line in file if line.startswith("Tgid:"))
    except FileNotFoundError:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from None
    pidfd = os.pidfd_open(int(leader))
    try:
        return kernel.descriptor_of(pidfd, fd)
    finally:
        os.close(pidfd)
