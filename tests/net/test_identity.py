"""Users: what names and numbers stand for, and what each takes along."""

import os
import pwd

import pytest
from places import in_child, root_only

from muonsocks.errors import UsageError
from muonsocks.net import identity
from muonsocks.net.identity import Identity


def test_user_by_name_and_by_number() -> None:
    for user in pwd.getpwall():
        if user.pw_uid and user.pw_gid:
            by_name = Identity.of(user.pw_name)
            assert (by_name.uid, by_name.gid) == (user.pw_uid, user.pw_gid)
            same = pwd.getpwuid(user.pw_uid)
            by_number = Identity.of(str(user.pw_uid))
            assert (by_number.uid, by_number.gid) == (same.pw_uid, same.pw_gid)


@pytest.mark.parametrize(
    "text",
    [
        *("no-such-user", "", "-1", " ", "1e3", "nobody ", "\0", "\u0661", "\ud800", "x" * 5000),
        *("4294967295", "4294967294", "99999999999999999999", "000000000065534"),
    ],
)
def test_user_that_is_not_there(text: str) -> None:
    with pytest.raises(UsageError) as told:
        Identity.of(text)
    assert str(told.value) == f"there is no user {text!r}"


@pytest.mark.parametrize(("uid", "gid"), [(0, 0), (0, 1), (1, 0), (0xFFFFFFFF, 1), (1, 0xFFFFFFFF)])
@pytest.mark.parametrize("text", ["mighty", "7"])
def test_user_with_too_much_power(
    monkeypatch: pytest.MonkeyPatch, text: str, uid: int, gid: int
) -> None:
    entry = pwd.struct_passwd(("mighty", "x", uid, gid, "", "/", "/bin/sh"))

    def getpwnam(name: str) -> object:
        if name != "mighty":
            raise KeyError
        return entry

    monkeypatch.setattr(identity.pwd, "getpwnam", getpwnam)
    monkeypatch.setattr(identity.pwd, "getpwuid", lambda _: entry)
    with pytest.raises(UsageError, match="root's number"):
        Identity.of(text)


def test_root_is_none() -> None:
    for text in ("root", "0", "00"):
        with pytest.raises(UsageError, match="root's number"):
            Identity.of(text)


def test_name_goes_before_number(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = pwd.struct_passwd(("1", "x", 42, 43, "", "/", "/bin/sh"))
    monkeypatch.setattr(identity.pwd, "getpwnam", lambda _: entry)
    assert Identity.of("1").uid == 42


# A user, a group and groups, each by itself


def parts(made: Identity | None) -> tuple[object, ...]:
    assert made is not None
    return made.uid, made.gid, made.groups


def test_parts_of_an_identity() -> None:
    nobody = pwd.getpwnam("nobody")
    of_parts = Identity.of_parts
    assert of_parts(None, None, None, False) is None
    assert of_parts(None, None, None, True) is None
    assert parts(of_parts("nobody", None, None, False)) == (nobody.pw_uid, nobody.pw_gid, ())
    assert parts(of_parts("nobody", "tty", None, False)) == (nobody.pw_uid, 5, ())
    assert parts(of_parts("nobody", "7", None, True)) == (nobody.pw_uid, 7, None)
    assert parts(of_parts("4321", None, None, False)) == (4321, None, None)
    assert parts(of_parts("4321", "7", None, False)) == (4321, 7, ())
    assert parts(of_parts(None, "7", None, False)) == (None, 7, ())
    assert parts(of_parts(None, None, "5,tty,7", False)) == (None, None, (5, 5, 7))
    assert parts(of_parts(None, "7", "", True)) == (None, 7, ())


@pytest.mark.parametrize("text", ["root", "0", "00", "", "no-such", "-1", "4294967295", "\u0661"])
def test_parts_that_are_not_to_be_had(text: str) -> None:
    with pytest.raises(UsageError, match=r"there is no user|is root;"):
        Identity.of_parts(text, None, None, False)
    if text not in ("root", "0", "00"):
        with pytest.raises(UsageError, match="there is no group"):
            Identity.of_parts(None, text, None, False)


@root_only()
def test_the_group_of_root() -> None:
    assert Identity(4321, None, None, implied=False).leaves_root_its_group
    assert not Identity(4321, 1234, (), implied=False).leaves_root_its_group
    assert Identity(4321, 1234, (0,), implied=False).leaves_root_its_group
    assert Identity(4321, 0, (), implied=False).leaves_root_its_group
    assert not Identity(None, 0, (), implied=False).leaves_root_its_group
    assert not Identity(None, None, (), implied=False).leaves_root_its_group


@root_only()
@pytest.mark.parametrize("groups", [[0, 7], [7]])
def test_other_groups_of_root(groups: list[int]) -> None:
    def check() -> None:
        os.setgroups(groups)
        kept = Identity(4321, 1234, None, implied=False)
        assert kept.leaves_root_its_group == (0 in groups)

    in_child(check)
