"""Addresses from which a password was shown, kept in a directory that several programs share.

Each is an empty file: its name is the address, its time of modification when the password was
shown. Looking one up takes one system call and no lock. What changes the directory is done under
a lock on it (flock(2)): nobody removes what somebody else has just renewed, and the number of files
has a bound.

All goes through the directory's descriptor: since it was opened, a server's workers may have
changed their root and their user.
"""

from __future__ import annotations

import errno
import os
from fcntl import LOCK_EX, LOCK_NB, flock
from stat import S_ISREG
from time import time_ns

from muonsocks.address import format_address, parse_address, unmapped
from muonsocks.errors import UsageError

MOST_ADDRESSES = 4096
_DIRECTORY = "auth-once"
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OPEN_FILE = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# What makes a directory unusable, rather than the system short of something.
_UNUSABLE = (
    errno.EACCES,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
)
_ELSEWHERE = "or give another directory with --state=DIR"


class AuthOnce:
    """The addresses that need no password for `ttl` seconds after they have shown one.

    At most MOST_ADDRESSES are kept: then one that is new takes the place of those that have
    expired, or of the oldest. An address (4 or 16 bytes) that is IPv4-mapped is the IPv4 address.
    One of IPv6's link-local addresses is never known: without its interface, which nobody tells us,
    it may be another host's on every link.
    """

    __slots__ = ("_ttl", "directory")

    def __init__(self, directory_fd: int, ttl: float) -> None:
        """Take over the descriptor of a directory that nobody else may look into."""
        self.directory = directory_fd
        self._ttl = int(ttl * 1e9)  # ns

    @classmethod
    def at(cls, path: str, ttl: float, owner: tuple[int, int] | None = None) -> AuthOnce:
        """Open `auth-once` in the state directory `path`; both are made if they are missing.

        Root may make them for the user and group `owner` that the program is going to have.
        UsageError if they cannot be used, or if others could let themselves in there.
        """
        user = os.geteuid()
        writer = user if owner is None else owner[0]
        shown = f"{path}/{_DIRECTORY}"
        state = _open_or_make(path, path, owner)
        try:
            alone = "give a directory of your own with --state=DIR"
            _expect_private(state, path, {user, writer, 0}, 0o022, alone)
            directory = _open_or_make(_DIRECTORY, shown, owner, state)
        finally:
            os.close(state)
        try:
            # Who could open it for reading could hold the lock for ever.
            _expect_private(directory, shown, {writer}, 0o077, f"run chmod 700 {shown}")
        except BaseException:
            os.close(directory)
            raise
        return cls(directory, ttl)

    def close(self) -> None:
        """Close the directory."""
        os.close(self.directory)

    def knows(self, address: bytes) -> bool:
        """Say whether a password was shown from this address, and not too long ago. OSError.

        A time that is still to come counts as too long ago: a clock that was wrong lets nobody in.
        """
        name = _file_name(address)
        modified = self._modified(name)
        if modified is None:
            return False
        if self._is_valid(modified):
            return True
        self._forget(name)
        return False

    def remember(self, address: bytes) -> None:
        """Note that a password was shown from this address just now. OSError if that cannot be.

        It may block: on the disk, and for as long as others are at it.
        """
        name = _file_name(address)
        if not name:
            return
        lock = self._lock(LOCK_EX)
        try:
            if self._modified(name) is None:
                self._make_room()
            now = time_ns()
            file = os.open(name, _OPEN_FILE, 0o600, dir_fd=self.directory)
            try:
                os.utime(file, ns=(now, now))
            finally:
                os.close(file)
        finally:
            os.close(lock)

    def _forget(self, name: str) -> None:
        """Remove a file that has expired, unless that takes waiting or cannot be done."""
        try:
            lock = self._lock(LOCK_EX | LOCK_NB)
            try:
                modified = self._modified(name)
                if modified is not None and not self._is_valid(modified):
                    self._remove(name)
            finally:
                os.close(lock)
        except OSError:
            # It lets nobody in where it is, and what keeps us from removing it will keep us from
            # remembering an address, and be told then.
            return

    def _make_room(self) -> None:
        """Remove what is expired, then the oldest, if one more would be too many. Takes the lock.

        (Processes that share the directory's descriptor share its position too.)
        """
        names = [name for name in os.listdir(self.directory) if _is_file_name(name)]
        if len(names) < MOST_ADDRESSES:
            return
        valid: list[tuple[int, str]] = []
        for name in names:
            modified = self._modified(name)
            if modified is None:
                continue
            if self._is_valid(modified):
                valid.append((modified, name))
            else:
                self._remove(name)
        valid.sort()
        for _, name in valid[: max(0, len(valid) + 1 - MOST_ADDRESSES)]:
            self._remove(name)

    def _lock(self, operation: int) -> int:
        """Lock the directory until the descriptor that is returned is closed.

        One of its own: a lock belongs to what was opened, and workers share what was opened before
        they were made.
        """
        lock = os.open(".", _OPEN_DIRECTORY, dir_fd=self.directory)
        try:
            flock(lock, operation)
        except BaseException:
            os.close(lock)
            raise
        return lock

    def _modified(self, name: str) -> int | None:
        """Give a file's time in ns; None if there is no such file."""
        try:
            status = os.stat(name, dir_fd=self.directory, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return status.st_mtime_ns if S_ISREG(status.st_mode) else None

    def _is_valid(self, modified: int) -> bool:
        return 0 <= time_ns() - modified < self._ttl

    def _remove(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self.directory)
        except FileNotFoundError:
            return  # by somebody who tidies up by hand


def _file_name(address: bytes) -> str:
    """Name the file of an address; nothing, which no file is called, if it cannot have one."""
    address = unmapped(address)
    if len(address) == 16 and address[0] == 0xFE and address[1] >> 6 == 0b10:
        return ""
    return format_address(address)


def _is_file_name(name: str) -> bool:
    address = parse_address(name)
    return address is not None and _file_name(address) == name


def _open_or_make(
    path: str, shown: str, owner: tuple[int, int] | None, parent: int | None = None
) -> int:
    """Open a directory, which is made if it is missing."""
    try:
        try:
            # Without a right until it has its owner: so whoever comes upon it in between, or after
            # that was cut short, sees that it is to be finished.
            os.mkdir(path, 0o700 if owner is None else 0, dir_fd=parent)
        except FileExistsError:
            pass
        follow = 0 if parent is None else os.O_NOFOLLOW
        directory = os.open(path, _OPEN_DIRECTORY | follow, dir_fd=parent)
        try:
            if owner is not None and not os.fstat(directory).st_mode & 0o777:
                os.fchown(directory, *owner)
                os.fchmod(directory, 0o700)
        except BaseException:
            os.close(directory)
            raise
    except OSError as error:
        if error.errno not in _UNUSABLE:
            raise
        problem = f"{shown} is no directory that can be used or made: {error.strerror}"
        raise UsageError(problem, f"make it, {_ELSEWHERE}") from None
    return directory


def _expect_private(
    directory: int, shown: str, owners: set[int], forbidden: int, remedy: str
) -> None:
    """Refuse a directory of others, or that they have one of the `forbidden` permissions for."""
    status = os.fstat(directory)
    if status.st_uid not in owners:
        problem = f"{shown} belongs to user {status.st_uid}, and is for user {max(owners)} to use"
        raise UsageError(problem, f"change its owner, {_ELSEWHERE}")
    if status.st_mode & forbidden:
        problem = f"{shown} is open to others, who could let themselves in"
        raise UsageError(problem, remedy)
