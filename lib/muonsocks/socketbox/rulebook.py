"""Where the rules come from: a file, a document in JSON, or one word of a command line.

A rulebook can `read` them, as often as it is asked to. UsageError or OSError if that cannot be.
"""

from __future__ import annotations

import json
from collections import Counter

from muonsocks.errors import UsageError
from muonsocks.socketbox.actions import Verdict
from muonsocks.socketbox.grammar import LARGEST_FILE, parse_configuration
from muonsocks.socketbox.json_configuration import Configuration, read_json
from muonsocks.socketbox.rules import Rules
from muonsocks.socketbox.sets import RuleList

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from muonsocks.socketbox.actions import Action

    class Rulebook(Protocol):
        """Where rules come from."""

        def read(self) -> Rules:
            """Read them."""


class File:
    """A file in the language of socketbox.conf(5)."""

    __slots__ = ("_path",)

    def __init__(self, path: str) -> None:
        self._path = path

    def read(self) -> Rules:
        """Read it."""
        return parse_configuration(_content(self._path), self._path)


class OneAction:
    """All that comes is treated alike; `origin` is who says so."""

    __slots__ = ("_action", "_origin")

    def __init__(self, action: Action, origin: str) -> None:
        self._action = action
        self._origin = origin

    def read(self) -> Rules:
        """Make the rules, which are always the same."""
        verdict = Verdict((self._action,), self._origin)
        return Rules({"rule-set:0": RuleList("rule-set:0", [], verdict)}, "rule-set:0")


class Document:
    """The configuration of python-socketbox. It has more than rules, which stays what it was at
    first: `configuration`.
    """

    __slots__ = ("_document", "_path", "configuration")

    def __init__(self, path: str) -> None:
        """Read it for the first time."""
        self._path = path
        self._document, warnings = _parsed(path)
        self.configuration: Configuration = read_json(self._document, path, warnings)

    def read(self) -> Rules:
        """Read the rules again. UsageError if anything else has changed."""
        document, warnings = _parsed(self._path)
        rules = read_json(document, self._path, warnings).rules
        for name in sorted(self._document.keys() | document.keys()):
            if name != "rules" and document.get(name) != self._document.get(name):
                problem = f"{self._path}: {name} has changed, and is read at the start only"
                raise UsageError(problem, "restart")
        return rules


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(LARGEST_FILE + 1)


def _parsed(path: str) -> tuple[Any, list[str]]:
    """Give a document, and what is odd about it."""
    warnings: list[str] = []

    def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            counted = Counter(name for name, _ in pairs)
            twice = (repr(name[:60]) for name, count in counted.items() if count > 1)
            more = "stands twice in one object: the last one counts"
            warnings.extend(f"{path}: {name} {more}" for name in twice)
        return made

    content = _content(path)
    if len(content) > LARGEST_FILE:
        problem = f"{path} is larger than {LARGEST_FILE} bytes"
        raise UsageError(problem, "let one rule stand for several")
    try:
        document = json.loads(content, object_pairs_hook=object_of)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}:{error.lineno}:{error.colno}: no JSON: {error.msg}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text", "write it so") from None
    except ValueError:  # the one that is left, of int()
        problem = f"{path}: a number has more digits than can be read"
        raise UsageError(problem, "no number here has more than ten") from None
    except RecursionError:
        raise UsageError(f"{path}: there is too much inside of each other") from None
    return document, warnings
