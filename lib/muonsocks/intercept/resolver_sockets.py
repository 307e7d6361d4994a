"""Unix sockets by which a program asks somebody else on its host for names: nscd and unscd,
systemd-resolved, Avahi.

They are known by what a path leads to as the program sees it, in its root and its working
directory, whichever way it is written.
"""

from __future__ import annotations

import errno
import os
from stat import S_ISLNK

from muonsocks.intercept.notify import Call, CallGone

_KNOWN = (
    "/run/nscd/socket",
    "/var/run/nscd/socket",
    "/run/.nscd_socket",
    "/var/run/.nscd_socket",
    "/run/systemd/resolve/io.systemd.Resolve",
    "/run/systemd/resolve/io.systemd.Resolve.Monitor",
    "/run/avahi-daemon/socket",
    "/var/run/avahi-daemon/socket",
)
_MOST_LINKS = 40
_PATH = os.O_PATH | os.O_CLOEXEC


def leads_to_resolver(call: Call, raw: bytes) -> bool:
    """Say whether an address of the unix family leads a caller to one of them. OSError."""
    path = os.fsdecode(raw[2:].partition(b"\0")[0])
    if not path:
        return False
    try:
        view = _View(call.tid)
    except (FileNotFoundError, ProcessLookupError):
        raise CallGone from None
    try:
        there = view.identity(path)
        if there is None:
            return False  # which the kernel is going to say
        return any(view.identity(known) == there for known in _KNOWN) or there in _ours()
    finally:
        view.close()


def _ours() -> list[tuple[int, int]]:
    """Give those that there are where we are: they may be seen elsewhere by others."""
    found = []
    for known in _KNOWN:
        try:
            status = os.stat(known)
        except OSError:
            continue
        found.append((status.st_dev, status.st_ino))
    return found


class _View:
    """Files as a thread sees them. A link that begins with / leads on from its root, not ours."""

    __slots__ = ("_proc", "_root", "_tid", "_working")

    def __init__(self, tid: int) -> None:
        self._tid = tid
        self._proc = os.stat("/proc").st_dev
        self._root = os.open(f"/proc/{tid}/root", _PATH)
        try:
            self._working = os.open(f"/proc/{tid}/cwd", _PATH)
        except OSError:
            os.close(self._root)
            raise

    def close(self) -> None:
        os.close(self._root)
        os.close(self._working)

    def identity(self, path: str) -> tuple[int, int] | None:
        """Give device and inode of what a path leads to; None if that is nothing."""
        try:
            return self._walk(path)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise
            return None

    def _walk(self, path: str) -> tuple[int, int]:
        fd = os.dup(self._root if path.startswith("/") else self._working)
        links = 0
        parts = path.split("/")[::-1]
        try:
            while parts:
                part = parts.pop()
                if part in ("", ".") or (part == ".." and _of(fd) == _of(self._root)):
                    continue
                target = self._target(part, fd)
                if target is None:
                    fd = _instead(fd, os.open(part, _PATH, dir_fd=fd))
                    continue
                links += 1
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                parts += target.split("/")[::-1]
                if target.startswith("/"):
                    fd = _instead(fd, os.dup(self._root))
            return _of(fd)
        finally:
            os.close(fd)

    def _target(self, part: str, fd: int) -> str | None:
        """Say where a link leads; None if it is none, or one of proc(5) that is gone through like a
        door.
        """
        status = os.stat(part, dir_fd=fd, follow_symlinks=False)
        if not S_ISLNK(status.st_mode):
            return None
        if status.st_dev != self._proc:
            return os.readlink(part, dir_fd=fd)
        return str(self._tid) if part in ("self", "thread-self") else None


def _of(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _instead(old: int, new: int) -> int:
    os.close(old)
    return new
