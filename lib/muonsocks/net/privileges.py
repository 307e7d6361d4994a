"""Giving up root's privileges for good: another user, another root directory, no way back."""

from __future__ import annotations

import errno
import grp
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
_MAY_CHANGE_GROUPS, _MAY_CHANGE_USER, _MAY_CHANGE_ROOT = 1 << 6, 1 << 7, 1 << 18
_UNCHANGED = 0xFFFFFFFF  # setresuid(2) takes it, as -1, for "leave it as it is"

_library = CDLL(None, use_errno=True)  # here, since there may be no libraries in a chroot


class Identity:
    """A user, by numbers: of the user, of its primary group, and of its other groups.

    None is what stays as it is. What is `implied` comes with the user: who is that user already
    keeps the groups that it has.
    """

    __slots__ = ("gid", "groups", "implied", "uid")

    def __init__(
        self,
        uid: int | None,
        gid: int | None,
        groups: tuple[int, ...] | None = (),
        implied: bool = True,
    ) -> None:
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self.implied = implied

    @classmethod
    def of(cls, text: str) -> Identity:
        """Find a user by its name, or else by its number. UsageError if it is not to be had.

        The system's list of users is read, which must be done before a chroot hides it.
        """
        try:
            user = pwd.getpwnam(text)
        except (KeyError, ValueError):  # ValueError: nothing that could be a name
            try:
                user = pwd.getpwuid(_number(text, _UNCHANGED))
            except KeyError:
                raise UsageError(f"there is no user {text!r}") from None
        if user.pw_uid in (0, _UNCHANGED) or user.pw_gid in (0, _UNCHANGED):
            raise UsageError(
                f"the user {text!r} has root's number, or its group's", "name one with less power"
            )
        return cls(user.pw_uid, user.pw_gid)

    @classmethod
    def of_parts(
        cls, user: str | None, group: str | None, groups: str | None, keeps_groups: bool
    ) -> Identity | None:
        """Put one together: a user by its name, with the group of that unless another one is named,
        or by its number alone, which nobody need know; a group; other groups, with commas between.

        The other groups are given up with the group, unless some are named or `keeps_groups`. None
        if nothing is asked for. UsageError if something is not to be had.
        """
        if user is None and group is None and groups is None:
            return None
        uid = gid = None
        if user is not None:
            try:
                entry = pwd.getpwnam(user)
                uid, gid = entry.pw_uid, entry.pw_gid
            except (KeyError, ValueError):
                uid = _number(user, -1)
            if uid < 0:
                raise UsageError(f"there is no user {user!r}", "name one, or a number")
            if uid == 0:
                raise UsageError(f"the user {user!r} is root", "name one with less power")
            if os.getresuid() == (uid,) * 3:
                gid = None  # what comes with the user has come
        if group is not None:
            gid = _group(group)
        others: tuple[int, ...] | None = None
        if groups is not None:
            others = tuple(_group(name) for name in groups.split(",") if name)
        elif gid is not None and not keeps_groups:
            others = ()
        return cls(uid, gid, others, implied=False)

    @property
    def is_ours(self) -> bool:
        """Whether this process is that already, and nobody else."""
        if self.uid is not None and os.getresuid() != (self.uid,) * 3:
            return False
        return self.implied or self._groups_are_ours

    @property
    def needs(self) -> int:
        """Which capabilities it takes to become this, as a mask."""
        needed = 0
        if not self.is_ours:
            if self.uid is not None and self.uid not in os.getresuid():
                needed |= _MAY_CHANGE_USER
            if not self._groups_are_ours and (
                self.groups is not None or self.gid not in os.getresgid()
            ):
                needed |= _MAY_CHANGE_GROUPS
        return needed

    @property
    def leaves_root_its_group(self) -> bool:
        """Whether who becomes this is no longer root, and has the group of root all the same."""
        if self.uid is None:
            return False
        own = os.getresgid() if self.gid is None else (self.gid,)
        return 0 in own or 0 in (os.getgroups() if self.groups is None else self.groups)

    @property
    def _groups_are_ours(self) -> bool:
        return (self.gid is None or os.getresgid() == (self.gid,) * 3) and (
            self.groups is None or set(os.getgroups()) - {self.gid} == {*self.groups} - {self.gid}
        )

    def verify_groups(self) -> None:
        """Hold that the groups are these. OSError if they are not."""
        if not self._groups_are_ours:
            raise _way_back("the groups are still others")


def _number(text: str, otherwise: int) -> int:
    is_number = text.isascii() and text.isdecimal() and len(text) <= 10
    return int(text) if is_number and int(text) < _UNCHANGED else otherwise


def _group(text: str) -> int:
    try:
        return grp.getgrnam(text).gr_gid
    except (KeyError, ValueError):
        number = _number(text, -1)
        if number < 0:
            raise UsageError(f"there is no group {text!r}") from None
        return number


def expect_rights(identity: Identity | None, root: str | None, root_option: str) -> str | None:
    """Look whether `give_up` is likely to be able to do that, before anything else is done. Gives
    `root` as it is found from any working directory.

    UsageError, with the name of the option that asks for `root`, or OSError if not.
    """
    if root == "":
        raise UsageError(f"{root_option} is empty", "name a directory, or leave it out")
    stays_root = (identity is None or identity.uid is None) and 0 in os.getresuid()
    if stays_root and root is not None:
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
    stays_root = (identity is None or identity.uid is None) and 0 in os.getresuid()
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
    if became:
        identity.verify_groups()
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
