"""Giving up root's privileges for good: another user, another root directory, no way back."""

from __future__ import annotations

import errno
import os
from ctypes import CDLL, c_ulong, get_errno
from stat import S_ISDIR
from sys import byteorder

from muonsocks.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from muonsocks.net.identity import Identity

    T = TypeVar("T")

_PR_SET_NO_NEW_PRIVS = 38  # prctl(2)
# capset(2): the header is the layout's version and this thread, the data three sets of 64 bits.
_CAPABILITY_HEADER = (0x20080522).to_bytes(4, byteorder) + bytes(4)
_NO_CAPABILITIES = bytes(24)
# The bounding set stays: it only limits what an execve(2) could give, and that gives nothing now.
_CAPABILITY_SETS = ("CapInh", "CapPrm", "CapEff", "CapAmb")
_MAY_CHANGE_ROOT = 1 << 18  # CAP_SYS_CHROOT

_library = CDLL(None, use_errno=True)  # here, since there may be no libraries in a chroot


def expect_rights(identity: Identity | None, root: str | None, root_option: str) -> str | None:
    """Look whether `give_up` is likely to be able to do that, before anything else is done. Gives
    `root` as it is found from any working directory.

    UsageError, with the name of the option that asks for `root`, or OSError if not.
    """
    if root == "":
        raise UsageError(f"{root_option} is empty", "name a directory, or leave it out")
    if identity is None and root is None:
        return None
    if root is not None and _stays_root(identity):
        problem = f"{root_option} alone does not hold root, who can leave any directory"
        raise UsageError(problem, "add a user that is not root")
    status = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
    try:
        capabilities = _status(status, "CapEff", 16)
    finally:
        os.close(status)
    if root is not None:
        if not S_ISDIR(os.stat(root).st_mode):
            raise UsageError(f"{root_option}: {root!r} is not a directory", "name one")
        if not capabilities & _MAY_CHANGE_ROOT:
            problem = f"{root_option} takes root's privileges"
            raise UsageError(problem, "start it as root, or leave that out")
        for fd in _directories():
            problem = f"descriptor {fd} is a directory, and would be a way out of {root_option}"
            raise UsageError(problem, f"close it where this is started: {fd}<&-")
    if identity is not None and identity.needs & ~capabilities:
        problem = "to become another user or group takes root's privileges"
        raise UsageError(problem, "start it as root, or leave that out")
    return None if root is None else os.path.join(os.getcwd(), root)


def give_up(
    identity: Identity | None,
    root: str | None,
    kept_directory: int | None = None,
    for_program: bool = False,
) -> None:
    """Become a user, inside the directory `root`, and make sure that there is no way back.

    None leaves the one or the other as it is; with both, nothing happens. To become who one is
    changes neither user nor groups, but any capabilities are given up. They are kept where the user
    is to stay the same, which is said by an identity without one. It is done for the calling
    thread, which must be the only one. What was to be imported, opened or read outside of `root`
    must have been. `kept_directory` is a descriptor that is to stay open though it leads out of it.
    A process that goes on as another program, `for_program`, may get privileges by that.

    OSError if this process has not the right, or a way back is left: then it must end. What can be
    known of that before is for `expect_rights` to say.
    """
    if identity is None and root is None:
        return
    stays_root = _stays_root(identity)
    if stays_root and root is not None:
        raise _way_back("root can leave any directory")
    status = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _status(status, "Threads") != 1:
            raise RuntimeError("privileges are given up before there are threads")
        if root is not None:
            _enter(root, kept_directory)
        becomes = identity is not None and not identity.is_ours
        if identity is not None and becomes:
            _become(identity)
        is_powerless = not stays_root
        if is_powerless and _capabilities(status):
            _call("capset", _CAPABILITY_HEADER, _NO_CAPABILITIES)
        if not for_program:
            gain_no_privileges()
        if identity is not None:
            _verify_user(identity, becomes)
        if is_powerless:
            _must_fail("the user could be root again", os.setuid, 0)
            if _capabilities(status):
                raise _way_back("capabilities are left")
        if not for_program and _status(status, "NoNewPrivs") != 1:
            raise _way_back("a program that is executed could get privileges")
    finally:
        os.close(status)


def gain_no_privileges() -> None:
    """Let no program that is executed have more privileges than this process, prctl(2)."""
    _call("prctl", *map(c_ulong, (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)))


def _stays_root(identity: Identity | None) -> bool:
    """Say whether who becomes this is root, and remains it."""
    return (identity is None or identity.uid is None) and 0 in os.getresuid()


def _enter(root: str, kept_directory: int | None) -> None:
    for fd in _directories():
        if fd != kept_directory:
            raise _way_back(f"descriptor {fd} is a directory outside of the new root")
    os.chroot(root)
    os.chdir("/")
    if not os.path.samestat(os.stat("."), os.stat("/")):
        raise _way_back("the working directory is outside of it")


def _directories() -> list[int]:
    """Give the descriptors that are directories: each is a way out of a root directory."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if S_ISDIR(os.fstat(int(name)).st_mode):
                found.append(int(name))
        except OSError:
            pass  # the descriptor that the list was read from
    return found


def _become(identity: Identity) -> None:
    uid, gid, groups = identity.uid, identity.gid, identity.groups
    try:
        if groups is not None:
            os.setgroups(groups)
        if gid is not None:
            os.setresgid(gid, gid, gid)
        if uid is not None:
            os.setresuid(uid, uid, uid)
    except OSError as error:  # EINVAL: the user is not in this user namespace
        problem = f"the user cannot be changed to {uid}:{gid}: {error.strerror}"
        raise OSError(error.errno, problem) from None


def _verify_user(identity: Identity, became: bool) -> None:
    """See, and try, whether all is as it should be. OSError if it is not."""
    if identity.uid is not None and os.getresuid() != (identity.uid,) * 3:
        raise _way_back("the user is still another one")
    if became and not identity.groups_are_ours:
        raise _way_back("the groups are still others")
    if became and identity.uid is not None:
        if identity.gid:
            _must_fail("the group could be root's again", os.setgid, 0)
        _must_fail("groups could be had again", os.setgroups, [0])


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
