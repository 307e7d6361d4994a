"""The way to a value in a document, and what is asked of it."""

from typing import Any

import pytest

from muonsocks.errors import UsageError
from muonsocks.socketbox.json_value import Node


def node(value: Any) -> Node:
    return Node({"a": [{"b c": value}]}, "box").members()["a"].items()[0].members()["b c"]


WAY = "box: a[0]['b c']: "


def test_ways() -> None:
    top = Node({"a-b": 1, "": 2, "x\ny": 3, "\u00e4": 4, "1": 5}, "box")
    ways = [member.path for member in top.members().values()]
    assert ways == ["a-b", "['']", "['x\\ny']", "\u00e4", "['1']"]
    assert (top.origin, top.members()["a-b"].origin) == ("box", "box: a-b")
    assert node({}).path_of("d") == "a[0]['b c'].d"


@pytest.mark.parametrize(
    ("value", "asked", "reason"),
    [
        ([], "members", "an object is expected, and this is a list"),
        ({}, "items", "a list is expected, and this is an object"),
        (1, "text", "a string is expected, and this is a number"),
        ("true", "flag", "true or false is expected, and this is a string"),
        (1, "flag", "true or false is expected, and this is a number"),
        (None, "flag", "true or false is expected, and this is null"),
        (True, "text", "a string is expected, and this is true or false"),
        ((), "text", "a string is expected, and this is no JSON"),
        ("", "path_of_file", "'' is no path of a file"),
        ("a\0", "path_of_file", "'a\\x00' is no path of a file"),
        ("a\ud800", "path_of_file", "'a\\ud800' is no path of a file"),
    ],
)
def test_another_kind(value: Any, asked: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        getattr(node(value), asked)()
    assert str(caught.value) == WAY + reason


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (True, "a number is expected, and this is true or false"),
        (1.0, "a number is expected, and this is a number with a point"),
        ("", "a number is expected, and this is a string"),
        ("-1", "a number is expected, and this is a string"),
        ("\u0661", "a number is expected, and this is a string"),
        ("1" * 5000, "a number is expected, and this is a string"),
        (-1, "the number is out of range; write 0 to 99"),
        (100, "the number is out of range; write 0 to 99"),
        ("100", "the number is out of range; write 0 to 99"),
    ],
)
def test_no_number(value: Any, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        node(value).number(0, 99)
    assert str(caught.value) == WAY + reason


def test_values() -> None:
    assert (node(99).number(0, 99), node("099").number(0, 99), node(0).number(0, 99)) == (99, 99, 0)
    assert node("/a").path_of_file() == node("/a").text() == "/a"
    assert node(False).flag() is False
    known = node({"x": 1, "y": 2}).known(("x",), ("y", "z"))
    assert {name: member.value for name, member in known.items()} == {"x": 1, "y": 2}


def test_names_that_are_not_known_or_missing() -> None:
    with pytest.raises(UsageError) as caught:
        node({"x": 1, "q": 2}).known(("x",), ("y",))
    assert str(caught.value) == "box: a[0]['b c'].q: there is no such key; known are x, y"
    with pytest.raises(UsageError) as caught:
        node({"q" * 5000: 2}).known(("x",))
    way = "box: a[0]['b c']." + "q" * 188
    assert str(caught.value) == f"{way}...: there is no such key; known are x"
    with pytest.raises(UsageError) as caught:
        node({"y": 1}).known(("x",), ("y",))
    assert str(caught.value) == WAY + "'x' is missing"
