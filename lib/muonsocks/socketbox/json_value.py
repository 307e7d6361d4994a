"""A value in a JSON document that has been parsed, with the way to it for errors:
`box.json: rules.web.rules[3].jump: ...`.

What is asked of it is checked. Everything raises UsageError.
"""

from __future__ import annotations

from muonsocks.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_LONGEST_WAY = 200  # characters in a message
_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number with a point",
    bool: "true or false",
    type(None): "null",
}


def is_for_system(text: str) -> bool:
    """Say whether a system call can take a text, as os.fsencode writes it, and none is empty."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False  # half of a pair of surrogates
    return bool(text) and "\0" not in text


class Node:
    """A value, and the way to it from the top."""

    __slots__ = ("_source", "path", "value")

    def __init__(self, value: Any, source: str, path: str = "") -> None:
        """Make the node of a whole document that is from the file `source`."""
        self.value = value
        self.path = path
        self._source = source

    @property
    def origin(self) -> str:
        """Where this is, for messages."""
        way = self.path if len(self.path) <= _LONGEST_WAY else f"{self.path[:_LONGEST_WAY]}..."
        return f"{self._source}: {way}" if way else self._source

    def error(self, problem: str, hint: str = "") -> UsageError:
        """Make an error about this value."""
        return UsageError(f"{self.origin}: {problem}", hint)

    def _wanted(self, kind: type) -> UsageError:
        there = _KINDS.get(type(self.value), "no JSON")
        return self.error(f"{_KINDS[kind]} is expected, and this is {there}")

    def path_of(self, name: str) -> str:
        """Give the way to a member of an object, whether it is there or not."""
        if not name.replace("-", "_").isidentifier():
            return f"{self.path}[{name!r}]"
        return f"{self.path}.{name}" if self.path else name

    def members(self) -> dict[str, Node]:
        """Give what is in an object, whatever the names are."""
        if not isinstance(self.value, dict):
            raise self._wanted(dict)
        return {
            name: Node(value, self._source, self.path_of(name))
            for name, value in self.value.items()
        }

    def known(self, needed: tuple[str, ...], others: tuple[str, ...] = ()) -> dict[str, Node]:
        """Give what is in an object that has the `needed` names, and of the others any or none."""
        members = self.members()
        for name, member in members.items():
            if name not in needed and name not in others:
                raise member.error(
                    "there is no such key", f"known are {', '.join(needed + others)}"
                )
        for name in needed:
            if name not in members:
                raise self.error(f"{name!r} is missing")
        return members

    def items(self) -> list[Node]:
        """Give what is in a list."""
        if not isinstance(self.value, list):
            raise self._wanted(list)
        return [
            Node(item, self._source, f"{self.path}[{place}]")
            for place, item in enumerate(self.value)
        ]

    def text(self) -> str:
        """Give a string."""
        if not isinstance(self.value, str):
            raise self._wanted(str)
        return self.value

    def flag(self) -> bool:
        """Give true or false."""
        if not isinstance(self.value, bool):
            raise self._wanted(bool)
        return self.value

    def number(self, low: int, high: int) -> int:
        """Give a whole number; one in a string is taken, too."""
        value = self.value
        if isinstance(value, str) and len(value) < 20 and value.isascii() and value.isdecimal():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wanted(int)
        if not low <= value <= high:
            raise self.error("the number is out of range", f"write {low} to {high}")
        return value

    def path_of_file(self) -> str:
        """Give the path of a file."""
        text = self.text()
        if not is_for_system(text):
            raise self.error(f"{text[:60]!r} is no path of a file")
        return text
