"""What a set of rules finds for a connection: the entry that decides, if there is one.

A set is a list, whose first entry that matches decides, or a map, whose entries are found by a key
in a time that does not grow with their number. If no entry does, the set's default decides.
socketbox.conf(5) describes the sets.
"""

from __future__ import annotations

from muonsocks.socketbox.actions import Verdict
from muonsocks.socketbox.conditions import Condition, Masked, Spans, prefix_length
from muonsocks.socketbox.connection import FIELDS, Field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

MOST_ENTRIES = 100_000  # in all sets together


class Entry:
    """What a connection must be like, and what is done with it then.

    Without a condition on a part of a connection all are alike.
    """

    __slots__ = ("mask", "pattern", "spans", "verdict")

    def __init__(self, conditions: Mapping[Field, Condition], verdict: Verdict) -> None:
        self.verdict = verdict
        self.mask = self.pattern = 0
        self.spans: tuple[tuple[Field, Spans], ...] = ()
        for field, condition in conditions.items():
            if isinstance(condition, Masked):
                self.mask |= condition.mask << field.shift
                self.pattern |= condition.pattern << field.shift
            else:
                self.spans += ((field, condition),)

    def __reduce__(self) -> tuple[Callable[..., Entry], tuple[Any, ...]]:
        """Be small, as each worker gets a copy."""
        return _entry, (self.mask, self.pattern, self.spans, self.verdict)

    @property
    def conditions(self) -> dict[Field, Condition]:
        """The conditions, but those that hold for every connection."""
        found: dict[Field, Condition] = {}
        spans = dict(self.spans)
        for field in FIELDS:
            mask = field.of(self.mask)
            if mask:
                found[field] = Masked(field.of(self.pattern), mask)
            elif field in spans:
                found[field] = spans[field]
        return found

    def is_in_range(self, key: int) -> bool:
        """Say whether a connection is in the ranges of the conditions that have some."""
        return all(condition.holds(field.of(key)) for field, condition in self.spans)

    @property
    def text(self) -> str:
        """The entry as it is written in a file."""
        asked = [f"{field.name}:{wanted.text(field)}" for field, wanted in self.conditions.items()]
        return " ".join((*asked, self.verdict.text))


def _entry(mask: int, pattern: int, spans: tuple[tuple[Field, Spans], ...], to: Verdict) -> Entry:
    entry = Entry({}, to)
    entry.mask, entry.pattern, entry.spans = mask, pattern, spans
    return entry


class EntrySet:
    """A rule list or a map."""

    __slots__ = ("default", "entries", "name", "size")

    def __init__(
        self, name: str, entries: list[Entry], default: Verdict | None = None, size: int = 0
    ) -> None:
        """`size` is for how many entries the file says there is room, or 0."""
        self.name = name
        self.entries = entries
        self.default = default
        self.size = size

    def find(self, key: int) -> Entry | None:
        """Give the entry that a connection matches."""
        raise NotImplementedError

    def lines(self) -> list[str]:
        """Write the set as a file has it."""
        found = [self.name, *(entry.text for entry in self.entries)]
        if self.size:
            found[0] += f" size:{self.size}"
        if self.default:
            found.append(f"default {self.default.text}")
        return found

    def oddities(self) -> list[str]:
        """Say what is allowed here, and hardly meant."""
        return []


class RuleList(EntrySet):
    """A set of which the first entry that matches decides."""

    __slots__ = ()

    def find(self, key: int) -> Entry | None:
        """Give the entry that a connection matches."""
        for entry in self.entries:
            if key & entry.mask == entry.pattern and (not entry.spans or entry.is_in_range(key)):
                return entry
        return None


class Map(EntrySet):
    """A set of which the entry decides that has the same key as the connection: what `mask` leaves.

    Of several with the same key, it is the first.
    """

    __slots__ = ("_found_by", "mask")

    def __init__(
        self,
        name: str,
        mask: int,
        entries: list[Entry],
        default: Verdict | None = None,
        size: int = 0,
    ) -> None:
        super().__init__(name, entries, default, size)
        self.mask = mask
        self._found_by: dict[int, Entry] = {}
        for entry in entries:
            self._found_by.setdefault(entry.pattern & mask, entry)

    def __reduce__(self) -> tuple[Callable[..., Map], tuple[Any, ...]]:
        """Be small: who has the entries can find them."""
        return Map, (self.name, self.mask, self.entries, self.default, self.size)

    def find(self, key: int) -> Entry | None:
        """Give the entry that has a connection's key."""
        return self._found_by.get(key & self.mask)

    def lines(self) -> list[str]:
        """Write the set as a file has it."""
        first, *others = super().lines()
        return [first, *self.key_tokens(), *others]

    def key_tokens(self) -> list[str]:
        """Write what the key is made of, a token each."""
        tokens = []
        for field in FIELDS:
            mask = field.of(self.mask)
            if mask and field.is_address:
                bits = prefix_length(mask)
                tokens.append(f"{field.match}:{field.format(mask) if bits is None else bits}")
            elif mask:
                tokens.append(field.match)
        return tokens

    def oddities(self) -> list[str]:
        """Say what is allowed here, and hardly meant."""
        found = []
        late = [e for e in self.entries if self._found_by[e.pattern & self.mask] is not e]
        if late:
            first = self._found_by[late[0].pattern & self.mask].verdict.origin
            more = f", and {len(late) - 1} more like it" if len(late) > 1 else ""
            found.append(
                f"{late[0].verdict.origin}: the key in {self.name} is that of {first}, "
                f"which comes first: this entry is never used{more}"
            )
        for field in FIELDS:
            is_asked = field.of(self.mask) != 0
            unused = [e for e in self.entries if not is_asked and field.of(e.mask)]
            if unused:
                found.append(
                    f"{unused[0].verdict.origin}: {field.words} is no part of the key of "
                    f"{self.name}: a condition on it has no effect"
                )
            lacking = [e for e in self.entries if is_asked and not field.of(e.mask)]
            if lacking:
                found.append(
                    f"{lacking[0].verdict.origin}: {field.words} is in the key of {self.name}, and "
                    "this entry is for zero there, as it does not say it"
                )
        return found
