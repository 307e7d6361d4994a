"""The language of socketbox.conf(5): lines of tokens, which are read one after the other.

    nothing  --rule-set, map-set-->  entries  --default-->  default
    entries  --ip rip port rport and actions: one entry of each line that has some--
    default  --actions: what is done if no entry matches, until the next rule-set or map-set--

Everything that the C program takes for good is taken, with the same result, but for files beyond
all measure. What it takes by accident is an error, or a warning where it has a result that somebody
may count on.
"""

from __future__ import annotations

from muonsocks.errors import UsageError
from muonsocks.socketbox.actions import FAIL, Action, Fail, Verdict
from muonsocks.socketbox.conditions import (
    Condition,
    prefix_mask,
    read_address,
    read_addresses,
    read_number,
    read_port,
    read_ports,
)
from muonsocks.socketbox.connection import (
    LOCAL_ADDRESS,
    LOCAL_PORT,
    REMOTE_ADDRESS,
    REMOTE_PORT,
    Field,
)
from muonsocks.socketbox.keywords import (
    ACTIONS,
    CONDITIONS,
    ELSE,
    KEYS,
    LIMITS,
    SETS,
    keyword_of,
    read_action,
    usage,
)
from muonsocks.socketbox.rules import Rules
from muonsocks.socketbox.sets import MOST_ENTRIES, Entry, EntrySet, Map, RuleList

LARGEST_FILE = 8 << 20  # bytes; as many entries as there may be fit
MOST_SETS = 1000  # of each kind
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # as some editors begin a file
_MOST_ACTIONS = 16  # of a line
_FIELDS = {field.name: field for field in (LOCAL_ADDRESS, LOCAL_PORT, REMOTE_ADDRESS, REMOTE_PORT)}
_FIELD_OF_KEY = {field.match: field for field in _FIELDS.values()}
_FEWER = "let one entry stand for several, by a network, a range or -U"
_FIRST_A_SET = f"write {usage(*SETS)} first"
_LIMIT = dict(zip(SETS, LIMITS, strict=True))


def parse_configuration(content: bytes, source: str) -> Rules:
    """Read a file of rules. UsageError with `source`, line, token and what was expected."""
    if len(content) > LARGEST_FILE:
        raise UsageError(f"{source} is larger than {LARGEST_FILE} bytes", _FEWER)
    reader = _Reader(source)
    # A path may have bytes that are no text, and keeps them.
    text = content.removeprefix(_BYTE_ORDER_MARK).decode("utf-8", "surrogateescape")
    for line in text.split("\n"):
        reader.read_line(line)
    return reader.rules()


class _Set:
    """A set as far as it has been read."""

    __slots__ = ("default", "entries", "is_map", "mask", "name", "size")

    def __init__(self, name: str, is_map: bool) -> None:
        self.name = name
        self.is_map = is_map
        self.entries: list[Entry] = []
        self.default: Verdict | None = None
        self.mask = 0
        self.size = 0

    def made(self) -> EntrySet:
        if self.is_map:
            return Map(self.name, self.mask, self.entries, self.default, self.size)
        return RuleList(self.name, self.entries, self.default, self.size)


class _Reader:
    """Where in a file we are, and what has been read so far."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._line = 0
        self._token = self._token_of_action = ""
        self._sets: dict[str, _Set] = {}
        self._limits: dict[str, int] = {}  # by kind of set
        self._entries = 0
        self._warnings: list[str] = []
        self._set: _Set | None = None
        self._in_default = False
        # Of this line: the conditions of its entry, if it has one; the actions of that or of the
        # default; whether `else` joins them, and whether it is the token before.
        self._conditions: dict[Field, Condition] | None = None
        self._actions: list[Action] = []
        self._is_joined = False
        self._is_open = False

    def read_line(self, line: str) -> None:
        self._line += 1
        try:
            for token in line.rstrip("\r").replace("\t", " ").split(" "):
                if token.startswith("#"):
                    break
                if token:
                    self._token = token
                    self._take(token)
            self._end_line()
        except UsageError as error:
            raise UsageError(f"{self._origin()}: near {self._token[:60]!r}: {error}") from None

    def rules(self) -> Rules:
        """Give what has been read."""
        sets = {name: one.made() for name, one in self._sets.items()}
        limits = tuple(f"{_LIMIT[kind]}:{number}" for kind, number in self._limits.items())
        return Rules(sets, "rule-set:0", limits=limits, warnings=tuple(self._warnings))

    def _origin(self) -> str:
        return f"{self._source}:{self._line}"

    def _warn(self, text: str, token: str = "") -> None:
        near = (token or self._token)[:60]
        self._warnings.append(f"{self._origin()}: near {near!r}: {text}")

    def _take(self, token: str) -> None:
        if token == ELSE:
            self._else()
            return
        keyword, value = keyword_of(token, self._expected())
        if self._is_open and keyword not in ACTIONS:
            raise UsageError("this does not go after else", f"write {usage(*ACTIONS)}")
        if keyword in ACTIONS:
            self._action(keyword, value)
        elif keyword in CONDITIONS:
            self._condition(keyword, value)
        elif keyword in SETS:
            self._begin_set(keyword, value)
        elif keyword == "default":
            self._begin_default()
        elif keyword == "size":
            self._size(value)
        elif keyword in KEYS:
            self._key(keyword, value)
        else:
            self._limit(SETS[LIMITS.index(keyword)], value)

    def _expected(self) -> tuple[str, ...]:
        """Say which keywords may come now."""
        if self._is_open:
            return ACTIONS
        if self._set is None:
            return (*LIMITS, *SETS)
        if self._in_default:
            return (*ACTIONS, *SETS)
        if self._conditions is not None:
            return (*CONDITIONS, *ACTIONS, ELSE)
        keys = KEYS if self._set.is_map else ()
        return (*CONDITIONS, *ACTIONS, "default", "size", *keys, *SETS)

    # What begins something

    def _limit(self, kind: str, value: str) -> None:
        if kind in self._limits:
            raise UsageError(f"{_LIMIT[kind]} is said twice", "leave one of them out")
        limit = read_number(value, 1, MOST_SETS)
        for name in self._sets:
            known, _, number = name.partition(":")
            if known == kind and int(number) >= limit:
                raise UsageError(f"there is a {name} already", f"write more than {number}")
        self._limits[kind] = limit

    def _begin_set(self, kind: str, value: str) -> None:
        self._must_come_before_an_entry()
        limit = self._limits.get(kind)
        try:
            number = read_number(value, 0, (limit or MOST_SETS) - 1)
        except UsageError as error:
            if limit is None:
                raise
            raise UsageError(f"{error}, or a larger {_LIMIT[kind]}") from None
        self._end_default()
        name = f"{kind}:{number}"
        self._set = self._sets.setdefault(name, _Set(name, kind == "map-set"))
        self._in_default = False

    def _begin_default(self) -> None:
        self._must_come_before_an_entry()
        if self._set is None:
            raise UsageError("this belongs to no set", _FIRST_A_SET)
        if self._in_default:
            raise UsageError("this is the default already", f"write {usage(*ACTIONS)}")
        self._in_default = True

    def _must_come_before_an_entry(self) -> None:
        if self._conditions is not None:
            raise UsageError("this line is an entry already", "begin a new line")

    # What a set has

    def _entries_of(self) -> _Set:
        """Give the set that we are in, which must not be at its default."""
        if self._set is None:
            raise UsageError("this belongs to no set", _FIRST_A_SET)
        if self._in_default:
            again = f"write {usage(*ACTIONS)}, or {self._set.name} once more to go back"
            raise UsageError("a default has only actions", again)
        return self._set

    def _size(self, value: str) -> None:
        there = self._entries_of()
        size = read_number(value, 1, MOST_ENTRIES)
        if there.size:
            raise UsageError(f"{there.name} has a size already", "leave one of them out")
        count = len(there.entries) + (self._conditions is not None)
        if count > size:
            raise UsageError(f"{there.name} has {count} entries", f"write {count} or more")
        there.size = size

    def _key(self, keyword: str, value: str) -> None:
        there = self._entries_of()
        if not there.is_map:
            raise UsageError("only a map has a key", "write it below map-set:N")
        field = _FIELD_OF_KEY[keyword]
        mask = prefix_mask(read_number(value, 0, 128)) if field.is_address else field.everything
        there.mask = there.mask & ~(field.everything << field.shift) | mask << field.shift

    def _entry(self) -> dict[Field, Condition]:
        """Give the conditions of this line's entry, which begins now unless it has."""
        there = self._entries_of()
        if self._conditions is None:
            count = len(there.entries) + 1
            if there.size and count > there.size:
                more = "write a larger size, or leave it out"
                raise UsageError(f"this is entry {count} of {there.name}", more)
            if self._entries == MOST_ENTRIES:
                raise UsageError(f"there are more than {MOST_ENTRIES} entries", _FEWER)
            self._entries += 1
            self._conditions = {}
        return self._conditions

    def _condition(self, keyword: str, value: str) -> None:
        there = self._entries_of()
        conditions = self._entry()
        field = _FIELDS[keyword]
        if field in conditions:
            self._warn(f"{keyword} is said twice in a line: only the last one counts")
        if not there.is_map:
            conditions[field] = read_addresses(value) if field.is_address else read_ports(value)
        elif field.is_address:
            conditions[field] = read_address(value, "in a map, write one address in full")
        else:
            conditions[field] = read_port(value, "in a map, write one port, 0 to 65535")

    # Actions

    def _action(self, keyword: str, value: str) -> None:
        if self._set is None or not self._in_default:
            self._entry()
        if self._is_joined and not self._is_open:
            raise UsageError("two actions, and others with else between", "write else before it")
        if self._actions and not self._is_open:
            self._actions.clear()
            self._warn("of several actions in a line the last one counts; else lets all be tried")
        self._actions.append(read_action(keyword, value))
        self._is_open = False
        self._token_of_action = self._token

    def _else(self) -> None:
        if not self._actions or self._is_open:
            raise UsageError("there is no action before else", f"write {usage(*ACTIONS)} first")
        if isinstance(self._actions[-1], Fail):
            raise UsageError("fail closes the connection", "leave out what comes after it")
        if len(self._actions) == _MOST_ACTIONS:
            raise UsageError(f"this line has {_MOST_ACTIONS} actions", "leave out the others")
        self._is_joined = self._is_open = True

    def _end_line(self) -> None:
        if self._is_open:
            raise UsageError("there is no action after else", f"write {usage(*ACTIONS)}")
        self._end_default()
        if self._set and self._conditions is not None:
            verdict = Verdict(tuple(self._actions) or (FAIL,), self._origin())
            self._set.entries.append(Entry(self._conditions, verdict))
        self._conditions = None
        self._actions = []
        self._is_joined = False

    def _end_default(self) -> None:
        """Keep what the default's actions are by this line, before another line or another set."""
        if self._set and self._in_default and self._actions:
            if self._set.default:
                replaced = self._set.default.origin
                self._warn(f"this replaces the default of {replaced}", self._token_of_action)
            self._set.default = Verdict(tuple(self._actions), self._origin())
            self._actions = []
            self._is_joined = False
