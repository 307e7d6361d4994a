"""The way of one connection through the rules, step by step, for who wonders."""

from __future__ import annotations

from muonsocks.address import parse_address
from muonsocks.errors import UsageError
from muonsocks.socketbox.actions import Fail
from muonsocks.socketbox.conditions import read_number
from muonsocks.socketbox.connection import FIELDS, LISTENER, Connection, Field
from muonsocks.socketbox.rules import Rules
from muonsocks.socketbox.sets import Entry, EntrySet, Map

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_MOST_SHOWN = 8  # entries before the one that matches; of more only the nearest are shown
_NEAREST = 3
_HINT = "write 192.0.2.1:80, [2001:db8::1]:80 or unix"


def read_connection(
    local: str, remote: str, listener_at: Callable[[bytes, int], int] = lambda *_: 0
) -> Connection:
    """Make the connection that a command line names: ADDRESS:PORT or [ADDRESS]:PORT each, or
    `unix` for an end that has none. `listener_at` says at which listener it comes in. UsageError.
    """
    end = _end(local)
    return Connection(*end, *_end(remote), listener_at(*end))


def _end(text: str) -> tuple[bytes, int]:
    if text == "unix":
        return bytes(16), 0
    host, _, port = text.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    packed = parse_address(host[1:-1] if is_bracketed else host)
    if packed is None or is_bracketed != (":" in host):
        raise UsageError(f"{text[:60]!r} is not an address and a port", _HINT)
    if not port[:1].isdecimal():  # a sign, too, would be a number to the rules
        raise UsageError(f"{text[:60]!r} has no port", _HINT)
    return packed, read_number(port, 0, 65535)


def explain(
    rules: Rules, connection: Connection, substitutes: bool = False, listeners: int = 1
) -> list[str]:
    """Say which sets a connection comes to, what it finds there and why not before, what is
    decided, and what is tried if that cannot be; as lines of text.

    `substitutes` is as for `Rules.receivers`. There are so many `listeners`, and if it could be
    another one, it is said which is assumed.
    """
    lines = [f"connection {connection}"]
    key = connection.key
    if listeners > 1:
        lines.append(f"listener {LISTENER.of(key)}, as its address and port have it")

    def note(hop: int, there: EntrySet, found: Entry | None) -> None:
        lines.append(f"hop {hop}: {there.name}, {counted(len(there.entries), 'entry')}")
        lines.extend(f"  {line}" for line in _in_set(there, key, found))

    how = "decision"
    for decision in rules.receivers(connection, substitutes, note):
        lines.append(f"{how}: {decision.action.text} ({decision.why})")
        if not isinstance(decision.action, Fail):
            lines.append("if that is full or not there:")
        how = "then"
    return lines


def counted(number: int, what: str) -> str:
    """Write how many there are of something."""
    if number != 1:
        what = "entries" if what == "entry" else f"{what}s"
    return f"{number:,} {what}"


def _in_set(there: EntrySet, key: int, found: Entry | None) -> list[str]:
    if isinstance(there, Map):
        lines = [_key_of(there, key)]
    else:
        lines = _passed_over(there, key, found)
    if found:
        lines.append(f"{_entry(found)}: matches")
    elif there.default:
        lines.append(f"{there.default.origin}: default {there.default.text}")
    else:
        lines.append("no entry matches, and there is no default")
    return lines


def _entry(entry: Entry) -> str:
    return f"{entry.verdict.origin}: {entry.text}"


def _key_of(there: Map, key: int) -> str:
    parts = [f for f in FIELDS if f.of(there.mask)]
    values = [f"{f.name}:{f.format(f.of(key & there.mask))}" for f in parts]
    if not values:
        return "the key is empty: every connection has it, and every entry"
    return f"the key by {' '.join(there.key_tokens())} is {' '.join(values)}"


def _passed_over(there: EntrySet, key: int, found: Entry | None) -> list[str]:
    """Say why the entries before the one that was found do not match."""
    before: list[Entry] = []
    for entry in there.entries:
        if entry is found:
            break
        before.append(entry)
    shown = before
    lines = []
    if len(before) > _MOST_SHOWN:
        near = sorted(range(len(before)), key=lambda place: _distance(before[place], key))
        shown = [before[place] for place in sorted(near[:_NEAREST])]
        lines.append(
            f"{counted(len(before), 'entry')} do not match, of which {_NEAREST} are nearest:"
        )
    for entry in shown:
        reasons = " and ".join(
            f"{field.words} is {field.format(field.of(key))}" for field in _missed(entry, key)
        )
        lines.append(f"{_entry(entry)}: no, {reasons}")
    return lines


def _missed(entry: Entry, key: int) -> list[Field]:
    return [field for field, wanted in entry.conditions.items() if not wanted.holds(field.of(key))]


def _distance(entry: Entry, key: int) -> tuple[int, int]:
    """How many conditions do not hold, and by how many bits."""
    far = [wanted.distance(field.of(key)) for field, wanted in entry.conditions.items()]
    return len(far) - far.count(0), sum(far)
