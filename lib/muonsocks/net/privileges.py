"""Giving up root's privileges for good: another user, another root directory, no way back."""

from __future__ import annotations

import errno
import os
import pwd
from ctypes import CDLL, c_ulong, get_errno
from stat import S_ISDIR
from sys import byteorder

from muonsocks.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

_PR_SET_NO_NEW_PRIVS = 38  # prctl(2)
# capset(2): the header is the layout's version and this thread, the data three sets of 64 bits.
_CAPABILITY_HEADER = (0x20080522).to_bytes(4, byteorder) + bytes(4)
_NO_CAPABILITIES = bytes(24)
# The bounding set stays: it only limits what an execve(2) could give, and that gives nothing now.
_CAPABILITY_SETS = ("CapInh", "CapPrm", "CapEff", "CapAmb")
_UNCHANGED = 0xFFFFFFFF  # setresuid(2) takes it, as -1, for "leave it as it is"

_library = CDLL(None, use_errno=True)  # here, since there may be no libraries in a chroot


class Identity:
    """A user, by the numbers of the user and of its primary group."""

    __slots__ = ("gid", "uid")

    def __init__(self, uid: int, gid: int) -> None:
        self.uid = uid
        self.gid = gid

    @classmethod
    def of(cls, text: str) -> Identity:
        """Find a user by its name, or else by its number. UsageError if it is not to be had.

        The system's list of users is read, which must be done before a chroot hides it.
        """
        try:
            user = pwd.getpwnam(text)
        except (KeyError, ValueError):  # ValueError: nothing that could be a name
            is_number = text.isascii() and text.isdecimal() and len(text) <= 10
            try:
                user = pwd.getpwuid(int(text) if is_number else _UNCHANGED)
            except KeyError:
                raise UsageError(f"there is no user {text!r}") from None
        if user.pw_uid in (0, _UNCHANGED) or user.pw_gid in (0, _UNCHANGED):
            raise UsageError(
                f"the user {text!r} has root's number, or its group's", "name one with less power"
            )
        return cls(user.pw_uid, user.pw_gid)

    @property
    def is_ours(self) -> bool:
        """Whether this process is that user already, and nobody else."""
        return os.getresuid() == (self.uid,) * 3


def give_up(identity: Identity | None, root: str | None, kept_directory: int | None = None) -> None:
    """Become a user, inside the directory `root`, and make sure that there is no way back.

    None leaves the one or the other as it is; with both, nothing happens. To become who one is
    changes neither user nor groups, but any capabilities are given up. It is done for the calling
    thread, which must be the only one. What was to be imported, opened or read outside of `root`
    must have been. `kept_directory` is a descriptor that is to stay open though it leads out of it.

    Raises UsageError if this process has not the right, or would keep too many; OSError if the
    system does not let it, or a way back is left: then the process must end.
    """
    if identity is None and root is None:
        return
    if identity is None and 0 in os.getresuid():
        raise UsageError("-C alone does not hold root, who can leave any directory", "add -u USER")
    status = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _status(status, "Threads") != 1:
            raise RuntimeError("privileges are given up before there are threads")
        if root is not None:
            _enter(root, kept_directory)
        becomes = identity is not None and not identity.is_ours
        if identity is not None and becomes:
            _become(identity)
        if _capabilities(status):
            _call("capset", _CAPABILITY_HEADER, _NO_CAPABILITIES)
        _call("prctl", *map(c_ulong, (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)))
        _verify(identity, becomes, status)
    finally:
        os.close(status)


def _enter(root: str, kept_directory: int | None) -> None:
    for name in os.listdir("/proc/self/fd"):
        try:
            is_directory = S_ISDIR(os.fstat(int(name)).st_mode)
        except OSError:
            continue  # the descriptor that the list was read from
        if is_directory and int(name) != kept_directory:
            problem = f"descriptor {name} is a directory, and would be a way out of -C"
            raise UsageError(problem, f"close it where this is started: {name}<&-")
    try:
        os.chroot(root)
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
        raise UsageError(
            "-C takes root's privileges", "start it as root, or leave -C out"
        ) from None
    os.chdir("/")
    if not os.path.samestat(os.stat("."), os.stat("/")):
        raise _way_back("the working directory is outside of -C")


def _become(identity: Identity) -> None:
    uid, gid = identity.uid, identity.gid
    try:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        if error.errno != errno.EPERM:  # EINVAL: the user is not in this user namespace
            problem = f"the user cannot be changed to {uid}:{gid}: {error.strerror}"
            raise OSError(error.errno, problem) from None
        raise UsageError(
            "-u takes root's privileges", "start it as root, or leave -u out"
        ) from None


def _verify(identity: Identity | None, became: bool, status: int) -> None:
    """See, and try, whether all is as it should be. OSError if it is not."""
    if identity is not None and not identity.is_ours:
        raise _way_back("the user is still another one")
    if identity is not None and became:
        if os.getresgid() != (identity.gid,) * 3 or os.getgroups():
            raise _way_back("the groups are still others")
        _must_fail("the group could be root's again", os.setgid, 0)
        _must_fail("groups could be had again", os.setgroups, [0])
    _must_fail("the user could be root again", os.setuid, 0)
    if _capabilities(status):
        raise _way_back("capabilities are left")
    if _status(status, "NoNewPrivs") != 1:
        raise _way_back("a program that is executed could get privileges")


def _must_fail(otherwise: str, call: Callable[[T], None], argument: T) -> None:
    try:
        call(argument)
    except OSError:
        return  # as it should
    raise _way_back(otherwise)


def _way_back(what: str) -> OSError:
    return OSError(errno.EPERM, f"privileges cannot be given up: {what}")


def _capabilities(status: int) -> bool:
    """Say whether there are capabilities in any set that counts."""
    return any(_status(status, name, 16) for name in _CAPABILITY_SETS)


def _status(fd: int, name: str, base: int = 10) -> int:
    """Read a number in /proc/PID/status, proc(5). OSError if it is not there."""
    for line in os.pread(fd, 1 << 16, 0).split(b"\n"):
        key, _, value = line.partition(b":")
        if key == name.encode():
            return int(value, base)
    raise OSError(errno.ENOSYS, f"the kernel does not tell {name} of a process")


def _call(name: str, *arguments: object) -> None:
    """Make a call of the C library that Python does not have. OSError as errno says."""
    if _library[name](*arguments) < 0:
        number = get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
