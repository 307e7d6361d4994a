"""Which receiver a connection goes to: the way through sets of entries, one after the other.

What a set decides is a receiver, or to look further in another set, or to close the connection; the
way begins in one set and leads through 100 at most.

A receiver may be full, or not be there. Then the alternatives are tried that the entry has, and
then those of the entries that led there. They are not tried where a rule says `fail`, or where the
way ends because there is no such set, nothing in it for this connection, or no end at all.
"""

from __future__ import annotations

from muonsocks.socketbox.actions import FAIL, Action, Fail, Final, Jump, ToPath, Verdict
from muonsocks.socketbox.connection import Connection
from muonsocks.socketbox.substitution import substitute

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from muonsocks.socketbox.sets import Entry, EntrySet

MOST_HOPS = 100
_MOST_WARNINGS = 100


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
