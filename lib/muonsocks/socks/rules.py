"""Where clients may go: `allow|deny DEST [PORTS]` lines, as muonsocks.rules(5) describes them.

    the request says     a rule on a network     a rule on a name    a rule on *
    an address           asks that address       is passed over      matches
    a name               asks each address       asks the name       matches, unless a rule
                                                                     has allowed the name

The first rule that matches decides, for each address of a name on its own. One thing is stricter:
an `allow` for a name leaves its addresses to the rules on networks further down, so that nobody's
name server can point an allowed name at a network that is denied.
"""

from __future__ import annotations

from muonsocks.address import Endpoint, Network, format_address, is_name, is_own_side
from muonsocks.errors import UsageError

_MOST_RULES = 10_000


class Rule:
    """One line of a rules file."""

    __slots__ = ("allow", "name", "network", "origin", "ports")

    def __init__(
        self, allow: bool, name: str, network: Network | None, ports: tuple[tuple[int, int], ...]
    ) -> None:
        self.allow = allow
        self.origin = ""  # FILE:LINE, for the log
        self.name = name  # lower case, with a leading dot for a suffix; empty for a network; or *
        self.network = network
        self.ports = ports  # (first, last) each; empty for all

    @classmethod
    def parse(cls, words: list[str]) -> Rule:
        """Read one line's words."""
        if len(words) not in (2, 3) or words[0] not in ("allow", "deny"):
            raise UsageError("the line is not a rule", "write allow|deny DEST [PORTS]")
        allow = words[0] == "allow"
        ports = _parse_ports(words[2]) if len(words) == 3 else ()
        dest = words[1]
        if _looks_like_network(dest):
            return cls(allow, "", Network.parse(dest), ports)
        name = dest.lower().rstrip(".")
        if not is_name(name.encode()) or ("*" in name and name != "*") or "/" in name:
            raise UsageError(f"{dest!r} is no network and no name", "write NAME, .SUFFIX or *")
        return cls(allow, name, None, ports)

    def has_port(self, port: int) -> bool:
        """Say whether the rule is about this port."""
        return not self.ports or any(first <= port <= last for first, last in self.ports)

    def has_name(self, name: str) -> bool:
        """Say whether the rule names `name` (lower case, no final dot), or a suffix of it."""
        rule = self.name
        return name == rule or (rule[:1] == "." and (name.endswith(rule) or name == rule[1:]))


def _looks_like_network(dest: str) -> bool:
    return ":" in dest or "/" in dest or dest.replace(".", "").isdecimal()


def _parse_ports(text: str) -> tuple[tuple[int, int], ...]:
    ports = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not dash:
            last = first
        if not (first.isascii() and first.isdecimal() and last.isascii() and last.isdecimal()):
            raise UsageError(f"{part!r} is not a port", "write 80, 80,443 or 8000-8999")
        if len(first) > 5 or len(last) > 5:
            raise UsageError(f"{part[:20]!r} is not a range of ports", "write 0 to 65535")
        low, high = int(first), int(last)
        if not low <= high <= 65535:
            raise UsageError(f"{part!r} is not a range of ports", "write the lower one first")
        ports.append((low, high))
    return tuple(ports)


class Rules:
    """All rules, and whether this host's own side is open to clients."""

    __slots__ = ("_allow_local", "_rules")

    def __init__(self, rules: tuple[Rule, ...] = (), allow_local: bool = False) -> None:
        self._rules = rules
        self._allow_local = allow_local

    def refusal(self, destination: Endpoint, address: bytes | None) -> str:
        """Say why a client may not go to the packed `address`, one of the destination's.

        Empty if it may. With None for the address: why it may not go there whatever the
        addresses are; empty too if that depends on them.
        """
        if address is not None and not self._allow_local and is_own_side(address):
            return f"{format_address(address)} is on this host's own side, see --allow-local"
        name = destination.host.lower().rstrip(".") if destination.packed is None else ""
        name_is_allowed = False
        for rule in self._rules:
            if not rule.has_port(destination.port):
                continue
            if rule.network is not None:
                if address is None:
                    if rule.allow:
                        return ""
                    continue
                decides = address in rule.network
            else:
                decides = not name_is_allowed and (rule.name == "*" or rule.has_name(name))
            if not decides:
                continue
            if not rule.allow:
                return f"denied by {rule.origin}"
            if rule.network is not None or rule.name == "*":
                return ""
            name_is_allowed = True
        return ""


def parse_rules(text: str, source: str) -> tuple[Rule, ...]:
    """Read a rules file. Raises UsageError with `source`, line number and reason."""
    rules: list[Rule] = []
    for number, line in enumerate(text.split("\n"), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            if len(rules) == _MOST_RULES:
                raise UsageError(f"there are more than {_MOST_RULES} rules")
            rule = Rule.parse(words)
            rule.origin = f"{source}:{number}"
            rules.append(rule)
        except UsageError as error:
            raise UsageError(f"{source}:{number}: {error}") from None
    return tuple(rules)
