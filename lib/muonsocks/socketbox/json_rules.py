"""The rules in a configuration of python-socketbox: the same model, and names for numbers.

    {"_start": {"type": "rule", "rules": [{"l_ip": "::1", "l_port": 80, "jump": "r:web"}]},
     "web": {"type": "map", "mask": {"r_ip": "::", "r_mask": "ffff::"}, "rules": [...]}}

What is not found is closed: there are no defaults here.
"""

from __future__ import annotations

from muonsocks.errors import UsageError
from muonsocks.socketbox.actions import Action, Jump, ToGroup, Verdict
from muonsocks.socketbox.conditions import Masked, read_address, read_masked
from muonsocks.socketbox.connection import (
    LISTENER,
    LOCAL_ADDRESS,
    LOCAL_PORT,
    REMOTE_ADDRESS,
    REMOTE_PORT,
    Field,
)
from muonsocks.socketbox.rules import Rules
from muonsocks.socketbox.sets import MOST_ENTRIES, Entry, EntrySet, Map, RuleList

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from muonsocks.socketbox.json_value import Node

_MOST_HOPS = 99
_ADDRESSES = {"l_ip": ("l_mask", LOCAL_ADDRESS), "r_ip": ("r_mask", REMOTE_ADDRESS)}
_NUMBERS = {"l_port": LOCAL_PORT, "r_port": REMOTE_PORT, "incoming_socket": LISTENER}
_CONDITIONS = ("l_ip", "l_mask", "r_ip", "r_mask", *_NUMBERS)
_ADDRESS_AND_PORT = (
    LOCAL_ADDRESS.everything << LOCAL_ADDRESS.shift | LOCAL_PORT.everything << LOCAL_PORT.shift
)


def read_rules(node: Node, slots: int, listeners: int, warnings: Iterable[str] = ()) -> Rules:
    """Read the member `rules`, where there are so many slots and listeners, and such warnings
    before. UsageError.
    """
    return _Reader(slots, listeners, warnings).read(node)


class _Reader:
    def __init__(self, slots: int, listeners: int, warnings: Iterable[str]) -> None:
        self._slots = slots
        self._listeners = listeners
        self._entries = 0
        self._warnings = [*warnings]

    def read(self, node: Node) -> Rules:
        start = node.path_of("_start")
        sets = {one.path: self._set(one, node) for one in node.members().values()}
        if start not in sets:
            raise node.error("'_start' is missing", "it is where every connection begins")
        return Rules(sets, start, _MOST_HOPS, warnings=tuple(self._warnings))

    def _set(self, node: Node, above: Node) -> EntrySet:
        members = node.known(("type", "rules"), ("mask",))
        kind = members["type"].text()
        if kind not in ("rule", "map"):
            raise members["type"].error(f"{kind[:60]!r} is no type", "write rule or map")
        mask = self._mask(members["mask"]) if "mask" in members else _ADDRESS_AND_PORT
        entries = [self._entry(item, above) for item in members["rules"].items()]
        if kind == "map":
            return Map(node.path, mask, self._last_of_each_key(entries, mask))
        if "mask" in members:
            self._warnings.append(f"{members['mask'].origin}: only a map has a mask")
        return RuleList(node.path, entries)

    def _mask(self, node: Node) -> int:
        """Read what a map has for a key: the parts that are named, with the bits of their masks."""
        return Entry(_conditions(node.known((), _CONDITIONS)), Verdict((), "")).mask

    def _entry(self, node: Node, above: Node) -> Entry:
        if self._entries == MOST_ENTRIES:
            hint = "let one stand for several, by l_mask or r_mask"
            raise node.error(f"there are more than {MOST_ENTRIES} rules", hint)
        self._entries += 1
        members = node.known(("jump",), _CONDITIONS)
        action = self._jump(members["jump"], above)
        conditions = _conditions(members)
        wanted = conditions.get(LISTENER)
        if wanted and wanted.pattern >= self._listeners:
            why = f"there are only {self._listeners}, which are counted from 0"
            self._warnings.append(f"{members['incoming_socket'].origin}: {why}")
        return Entry(conditions, Verdict((action,), node.origin))

    def _jump(self, node: Node, above: Node) -> Action:
        text = node.text()
        kind, colon, target = text.partition(":")
        if kind == "r" and colon:
            return Jump(above.path_of(target), text if text.isprintable() else repr(text))
        if kind != "o" or not (target.isascii() and target.isdecimal()):
            raise node.error(f"{text[:60]!r} is no jump", "write r:NAME or o:SLOT")
        number = int(target) if len(target) < 20 else self._slots
        if number >= self._slots:
            have = f"there are {self._slots} in outgoing, which are counted from 0"
            raise node.error(f"there is no slot {target[:60]}", have)
        return ToGroup(number)

    def _last_of_each_key(self, entries: list[Entry], mask: int) -> list[Entry]:
        """Of several with the same key, python-socketbox takes the last one."""
        kept: dict[int, Entry] = {}
        replaced = []
        for entry in entries:
            before = kept.get(entry.pattern & mask)
            if before:
                replaced.append((before, entry))
            kept[entry.pattern & mask] = entry
        if replaced:
            before, entry = replaced[0]
            more = f", and {len(replaced) - 1} more like it" if len(replaced) > 1 else ""
            self._warnings.append(
                f"{before.verdict.origin}: {entry.verdict.origin} has the same key and comes "
                f"later: this entry is never used{more}"
            )
        return [*kept.values()]


def _conditions(members: dict[str, Node]) -> dict[Field, Masked]:
    found: dict[Field, Masked] = {}
    for name, (mask_name, field) in _ADDRESSES.items():
        address, mask = members.get(name), members.get(mask_name)
        if address:
            found[field] = _address(address, mask)
        elif mask:
            raise mask.error(f"there is no {name} that it is for", f"write {name}, too")
    for name, field in _NUMBERS.items():
        if name in members:
            value = members[name].number(0, field.everything)
            found[field] = Masked(value, field.everything)
    return found


def _address(address: Node, mask: Node | None) -> Masked:
    text = address.text()
    try:
        found = read_address(text)
    except UsageError as error:
        raise address.error(str(error)) from None
    if not mask:
        return found
    bits = mask.text()
    if ":" not in bits and "." not in bits:
        raise mask.error(f"{bits[:60]!r} is not a mask", "write it as an address is written")
    try:
        return read_masked(text, bits)
    except UsageError as error:
        raise mask.error(str(error)) from None
