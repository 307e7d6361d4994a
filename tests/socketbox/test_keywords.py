"""The tokens of the rules: what a keyword may be short for, and what is said of what is none."""

import pytest

from muonsocks.errors import UsageError
from muonsocks.socketbox.actions import FAIL, Jump, ToDescriptor, ToPath
from muonsocks.socketbox.keywords import (
    ACTIONS,
    CONDITIONS,
    ELSE,
    KEYS,
    LIMITS,
    SETS,
    USAGE,
    keyword_of,
    read_action,
    usage,
)


def why_not(token: str, *expected: str) -> str:
    with pytest.raises(UsageError) as error:
        keyword_of(token, expected or ("fail",))
    return str(error.value)


def test_every_keyword_is_of_one_kind() -> None:
    kinds = [*ACTIONS, *CONDITIONS, *KEYS, *SETS, *LIMITS, "size", "default"]
    assert sorted(kinds) == sorted(USAGE)
    assert ELSE not in USAGE


def test_how_they_are_written() -> None:
    assert usage("fail") == "fail"
    assert usage("ip", "rip") == "ip:ADDRESS or rip:ADDRESS"
    assert usage(*SETS, ELSE) == "rule-set:N, map-set:N or else"


@pytest.mark.parametrize("keyword", USAGE)
def test_whole(keyword: str) -> None:
    """With a value where there is one; where there is none, none is looked at."""
    if ":" in USAGE[keyword]:
        assert keyword_of(f"{keyword}:a:b", ()) == (keyword, "a:b")
        for token in (keyword, f"{keyword}:"):
            assert why_not(token) == f"a value is missing; write {USAGE[keyword]}"
    else:
        for token in (keyword, f"{keyword}:", f"{keyword}:x"):
            assert keyword_of(token, ()) == (keyword, "")


@pytest.mark.parametrize("keyword", USAGE)
def test_shortened(keyword: str) -> None:
    """As far as nothing else begins so, and before a colon only: as the C program has it."""
    for length in range(1, len(keyword)):
        name = keyword[:length]
        meant = [other for other in USAGE if other.startswith(name)]
        if name in USAGE:
            assert keyword_of(f"{name}:1", ()) == (name, "1"), "whole goes before short"
        elif len(meant) > 1:
            expected = f"{name!r} is short for several; write {usage(*meant)}"
            assert why_not(f"{name}:1") == expected
        else:
            value = "1" if ":" in USAGE[keyword] else ""
            assert keyword_of(f"{name}:1", ()) == (keyword, value)
            assert why_not(name) == "there is no such token; write fail"


@pytest.mark.parametrize("token", ["", ":", ":80", "nothing", "nothing:1", "IP:::1", "ipp:::1"])
def test_no_keyword(token: str) -> None:
    """What was expected is said."""
    reason = "there is no such token; write ip:ADDRESS or jump-unix:PATH"
    assert why_not(token, "ip", "jump-unix") == reason


@pytest.mark.parametrize(
    "path", ["/run/r", "r", "@name", "@" + "x" * 106, "x" * 107, "@@", "\xe9" * 53, "\udcff" * 107]
)
def test_paths(path: str) -> None:
    action = read_action("jump-unix", path)
    assert isinstance(action, ToPath)
    assert (action.path, action.text) == (path, f"jump-unix:{path}")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("x" * 108, "is no path of a socket; a path or @NAME of 107 bytes at most fits"),
        ("@", "'@' is no path of a socket; a path or @NAME of 107 bytes at most fits"),
        ("a\rb", "'a\\rb' is no path of a socket; write it without a carriage return"),
    ],
)
def test_wrong_paths(path: str, reason: str) -> None:
    with pytest.raises(UsageError) as error:
        read_action("jump-unix", path)
    assert str(error.value).endswith(reason)


def test_actions() -> None:
    descriptor = read_action("jump-fd", "7")
    assert isinstance(descriptor, ToDescriptor) and descriptor.number == 7
    for keyword, target in (("jump-rule", "rule-set:5"), ("jump-map", "map-set:5")):
        jump = read_action(keyword, "05")
        assert isinstance(jump, Jump)
        assert (jump.target, jump.text) == (target, f"{keyword}:5")
    assert read_action("fail", "") is FAIL


@pytest.mark.parametrize("keyword", ["jump-fd", "jump-rule", "jump-map"])
@pytest.mark.parametrize("number", ["-1", "2147483648", "x"])
def test_wrong_numbers(keyword: str, number: str) -> None:
    with pytest.raises(UsageError):
        read_action(keyword, number)
