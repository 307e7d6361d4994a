"""Programs that a worker had started when it died: they go on, as children of the supervisor."""

from __future__ import annotations

import os
from _signal import SIGTERM
from ctypes import CDLL, c_ulong, get_errno

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)

_library = CDLL(None, use_errno=True)


def adopt_orphans() -> None:
    """Be the parent of what descendants leave behind from now on, instead of process 1."""
    arguments = (_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if _library.prctl(*map(c_ulong, arguments)) < 0:
        number = get_errno()
        raise OSError(number, f"prctl: {os.strerror(number)}")


def orphans(parent: int) -> list[int]:
    """Find the programs that have become children of a process: each has a session of its own,
    which neither the workers have nor what programs have started and left. OSError for want of a
    descriptor.
    """
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # it has ended, or is hidden as another user's (hidepid=, proc(5))
            state, its_parent, _, session = fields[:4]
            if state != b"Z" and int(its_parent) == parent and session == name.encode():
                found.append(int(name))
    return found


def tell_to_end(pid: int) -> None:
    """Have a program end, with all that it has started and that is in its session still."""
    try:
        os.killpg(pid, SIGTERM)
    except (PermissionError, ProcessLookupError):
        # It has become another user, and will be told by the end of its connection; or has ended.
        pass
