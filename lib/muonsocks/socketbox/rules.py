"""Which receiver a connection goes to: sets of entries that are looked up one after the other.

A set is a list, whose first entry that matches decides, or a map, whose entries are found by a key
in a time that does not grow with their number. If no entry does, the set's default decides. What
is decided is a receiver, or to look further in another set, or to close the connection; the way
begins in one set and leads through 100 at most. socketbox.conf(5) describes the sets.

A receiver may be full, or not be there. Then the alternatives are tried that the entry has, and
then those of the entries that led there. They are not tried where a rule says `fail`, or where the
way ends because there is no such set, nothing in it for this connection, or no end at all.
"""

from __future__ import annotations

from muonsocks.socketbox.actions import FAIL, Action, Fail, Final, Jump, ToPath, Verdict
from muonsocks.socketbox.conditions import Condition, Masked, Spans, prefix_length
from muonsocks.socketbox.connection import FIELDS, Connection, Field
from muonsocks.socketbox.substitution import substitute

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

MOST_ENTRIES = 100_000  # in all sets together
MOST_HOPS = 100
_MOST_WARNINGS = 100


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


class Decision:
    """What is done with a connection: `action`; `why` is the FILE:LINE that says so, or a reason.

    If a receiver is full or not there, `otherwise` has the next decision. They end with a Fail.
    """

    __slots__ = ("_hops", "_key", "_rest", "_rules", "action", "why")

    def __init__(
        self, action: Final, why: str, rules: Rules, key: int, rest: _Place, hops: int
    ) -> None:
        self.action = action
        self.why = why
        self._rules = rules
        self._key = key
        self._rest = rest
        self._hops = hops

    def otherwise(self, note: Note | None = None) -> Decision:
        """Decide once more, as this receiver cannot take it. `note` as in `Rules.look_up`."""
        return self._rules.follow(self._key, self._rest, self._hops, note)


class Rules:
    """All sets by their names, of which the one called `start` is looked up first.

    `limits` are the highest numbers of sets that the file allows for, tokens of its beginning.
    `warnings` says what is odd about all this, a line each.
    """

    __slots__ = ("_start", "limits", "most_hops", "sets", "warnings")

    def __init__(
        self,
        sets: dict[str, EntrySet],
        start: str,
        most_hops: int = MOST_HOPS,
        limits: tuple[str, ...] = (),
        warnings: tuple[str, ...] = (),
    ) -> None:
        self.sets = sets
        self.most_hops = most_hops
        self.limits = limits
        self._start: _Place = (Verdict((Jump(start, ""),), ""), 0, None)
        found = [*warnings, *self._oddities(start)]
        self.warnings = found[:_MOST_WARNINGS]
        if len(found) > _MOST_WARNINGS:
            self.warnings.append(f"and {len(found) - _MOST_WARNINGS} more warnings like these")

    def look_up(self, connection: Connection, note: Note | None = None) -> Decision:
        """Decide on a connection.

        `note(hop, set, entry)` is called for each set on the way, and the entry that is found
        there or None.
        """
        return self.follow(connection.key, self._start, 0, note)

    def receivers(
        self, connection: Connection, substitutes: bool = False, note: Note | None = None
    ) -> Iterator[Decision]:
        """Decide on a connection, and again as long as a receiver cannot take it, up to a Fail.
        None is asked twice: if a decision leads back to one, the next is given.

        With `substitutes` a decision has the path that `substitute` makes.
        """
        asked = set()
        decision = self.look_up(connection, note)
        while not isinstance(decision.action, Fail):
            if substitutes and isinstance(decision.action, ToPath):
                decision.action = ToPath(substitute(decision.action.path, connection))
            if decision.action.text not in asked:
                asked.add(decision.action.text)
                yield decision
            decision = decision.otherwise(note)
        yield decision

    def follow(self, key: int, place: _Place, hops: int, note: Note | None) -> Decision:
        """Decide on a connection from a place on its way, to which it were so many hops."""
        while place is not None:
            verdict, index, rest = place
            action = verdict.actions[index]
            if index + 1 < len(verdict.actions):
                rest = (verdict, index + 1, rest)
            if not isinstance(action, Jump):
                end = None if isinstance(action, Fail) else rest
                return Decision(action, verdict.origin, self, key, end, hops)
            if hops == self.most_hops:
                why = f"the way does not end within {hops} sets, the last jump is {verdict.origin}"
                return Decision(FAIL, why, self, key, None, hops)
            hops += 1
            there = self.sets.get(action.target)
            if there is None:
                return Decision(FAIL, f"there is no {action.target}", self, key, None, hops)
            entry = there.find(key)
            if note:
                note(hops, there, entry)
            found = entry.verdict if entry else there.default
            if found is None:
                why = f"{there.name} has nothing for it, and no default"
                return Decision(FAIL, why, self, key, None, hops)
            place = (found, 0, rest)
        return Decision(FAIL, "there is no other receiver", self, key, None, hops)

    def text(self) -> str:
        """Write all sets as a file has them; what comes from JSON has its own names there."""
        lines = [*self.limits]
        for one in self.sets.values():
            lines += one.lines()
        return "".join(f"{line}\n" for line in lines)

    def _oddities(self, start: str) -> list[str]:
        found = []
        if start not in self.sets:
            found.append(f"there is no {start}: every connection is closed")
        missing: dict[str, tuple[Verdict, Action]] = {}
        for one in self.sets.values():
            found += one.oddities()
            verdicts = [entry.verdict for entry in one.entries]
            for verdict in (*verdicts, one.default) if one.default else verdicts:
                for action in verdict.actions:
                    if isinstance(action, Jump) and action.target not in self.sets:
                        missing.setdefault(action.target, (verdict, action))
        for target, (verdict, action) in missing.items():
            found.append(
                f"{verdict.origin}: {action.text}: there is no {target}: "
                "connections that get there are closed"
            )
        return found


# A way that is still to go: the verdict, which of its actions, and where to go after those.
if TYPE_CHECKING:
    _Place = tuple[Verdict, int, "_Place"] | None
    Note = Callable[[int, EntrySet, Entry | None], None]
