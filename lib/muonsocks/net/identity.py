"""Users, by their numbers and those of their groups: whom a process can become."""

from __future__ import annotations

import grp
import os
import pwd

from muonsocks.errors import UsageError

_MAY_CHANGE_GROUPS, _MAY_CHANGE_USER = 1 << 6, 1 << 7  # capabilities(7): CAP_SETGID, CAP_SETUID
_UNCHANGED = 0xFFFFFFFF  # setresuid(2) takes it, as -1, for "leave it as it is"


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
        return self.implied or self.groups_are_ours

    @property
    def needs(self) -> int:
        """Which capabilities it takes to become this, as a mask."""
        needed = 0
        if not self.is_ours:
            if self.uid is not None and self.uid not in os.getresuid():
                needed |= _MAY_CHANGE_USER
            if not self.groups_are_ours and (
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
    def groups_are_ours(self) -> bool:
        """Whether this process has these groups, and no others."""
        return (self.gid is None or os.getresgid() == (self.gid,) * 3) and (
            self.groups is None or set(os.getgroups()) - {self.gid} == {*self.groups} - {self.gid}
        )


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
