"""Programs that a worker has started. If it dies they go on, as children of the supervisor, and
another worker sees them to their end.
"""

from __future__ import annotations

import os
from _signal import SIGCONT, SIGTERM
from ctypes import CDLL, c_ulong, get_errno
from mmap import mmap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
_NUMBERS = 1 << 22  # that a process can have, proc_sys_kernel(5): pid_max
_PAGE = 1 << 12  # of memory, which there is once it has been looked at

_library = CDLL(None, use_errno=True)


def adopt_orphans() -> None:
    """Be the parent of what descendants leave behind from now on, instead of process 1."""
    arguments = (_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if _library.prctl(*map(c_ulong, arguments)) < 0:
        number = get_errno()
        raise OSError(number, f"prctl: {os.strerror(number)}")


class Programs:
    """The numbers of their processes, in memory that supervisor and workers share.

    Children of the supervisor are also what programs have left behind: that is not ours to count or
    to end, and so not found by looking. A worker notes what it starts; whoever is the parent takes
    a number back before the process is reaped, as that may be another one's then. What a worker was
    about to note when it was killed is taken for something left behind.
    """

    __slots__ = ("_marks", "_used")

    def __init__(self) -> None:
        """To be shared, it must be made before the workers are."""
        self._marks = mmap(-1, _NUMBERS)  # a byte each: two processes may write side by side
        self._used = mmap(-1, _NUMBERS // _PAGE)  # the pages of it

    def add(self, pid: int) -> None:
        """Note a program that was started."""
        self._used[pid // _PAGE] = 1
        self._marks[pid] = 1

    def remove(self, pid: int) -> None:
        """Note that a process has ended, a program or not, and is about to be reaped."""
        self._marks[pid] = 0

    def __contains__(self, pid: int) -> bool:
        return bool(self._marks[pid])

    def __iter__(self) -> Iterator[int]:
        for page, is_used in enumerate(self._used[:]):
            end = (page + 1) * _PAGE
            pid = self._marks.find(b"\1", end - _PAGE, end) if is_used else -1
            while pid >= 0:
                yield pid
                pid = self._marks.find(b"\1", pid + 1, end)

    def tell_to_end(self, pid: int) -> None:
        """Have a program end, with all that it has started and that is in its session still."""
        if pid in self:
            try:
                os.killpg(pid, SIGTERM)
                os.killpg(pid, SIGCONT)  # or one that was stopped would not hear of it
            except (PermissionError, ProcessLookupError):
                # It is another user's now, and will be told by the end of its connection; or it
                # has just ended.
                pass
