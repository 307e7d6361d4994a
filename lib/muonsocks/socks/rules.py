"""Where clients may go, and which way: `allow|deny|via URL [COMMAND] [DEST [PORTS]]` lines, as
muonsocks.rules(5) describes them.

    the request says     a rule on a network     a rule on a name    a rule on *
    an address           asks that address       is passed over      matches
    a name               asks each address       asks the name       matches, unless a rule
                                                                     has allowed the name

The first rule that matches decides, for each address of a name on its own. One thing is stricter:
an `allow` for a name leaves its addresses to the rules on networks further down, so that nobody's
name server can point an allowed name at a network that is denied.

A name is not looked up where a proxy on the way does that: it has no addresses here, and rules on
networks are passed over.
"""

from __future__ import annotations

from muonsocks.address import Endpoint, Network, format_address, is_name, is_own_side
from muonsocks.errors import UsageError
from muonsocks.socks.request import COMMAND_NAMES, Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.socks.proxy_address import ProxyAddress

    Chain = tuple[ProxyAddress, ...]

_MOST_RULES = 10_000
_LONGEST_CHAIN = 8
_NUMBERS: dict[str, tuple[int, ...]] = {name: (number,) for number, name in COMMAND_NAMES.items()}
_NUMBERS["resolve"] = (Command.RESOLVE, Command.RESOLVE_PTR)
_FORM = "write allow|deny|via URL [COMMAND] [DEST [PORTS]]"


class Verdict:
    """What rules say of one request: a `refusal`, which is empty if it may be carried out, and then
    the proxies to go `via`, one through the other; none of them is a direct way.
    """

    __slots__ = ("refusal", "via")

    def __init__(self, refusal: str = "", via: Chain = ()) -> None:
        self.refusal = refusal
        self.via = via

    @property
    def resolves(self) -> bool:
        """Whether a proxy on the way looks the destination's name up."""
        return bool(self.via) and self.via[-1].resolves


class Rule:
    """One line of a rules file."""

    __slots__ = ("allow", "commands", "name", "network", "origin", "ports", "via")

    def __init__(
        self,
        allow: bool,
        name: str,
        network: Network | None,
        ports: tuple[tuple[int, int], ...],
        commands: tuple[int, ...] = (),
        via: Chain | None = None,
    ) -> None:
        self.allow = allow
        self.origin = ""  # FILE:LINE, for the log
        self.name = name  # lower case, with a leading dot for a suffix; empty for a network; or *
        self.network = network
        self.ports = ports  # (first, last) each; empty for all
        self.commands = commands  # empty for all
        self.via = via  # None for the way that is usual

    @classmethod
    def parse(cls, words: list[str]) -> Rule:
        """Read one line's words."""
        via, rest = _parse_via(words)
        if via is None:
            if words[0] not in ("allow", "deny"):
                raise UsageError("the line is not a rule", _FORM)
            rest = words[1:]
        commands = _parse_commands(rest[0]) if rest else ()
        if commands:
            rest = rest[1:] or ["*"]
        if len(rest) not in (1, 2):
            raise UsageError("the line is not a rule", _FORM)
        allow = words[0] != "deny"
        ports = _parse_ports(rest[1]) if len(rest) == 2 else ()
        dest = rest[0]
        if _looks_like_network(dest):
            return cls(allow, "", Network.parse(dest), ports, commands, via)
        name = dest.lower().rstrip(".")
        if not is_name(name.encode()) or ("*" in name and name != "*") or "/" in name:
            raise UsageError(f"{dest!r} is no network and no name", "write NAME, .SUFFIX or *")
        return cls(allow, name, None, ports, commands, via)

    def is_about(self, command: int, port: int) -> bool:
        """Say whether the rule is about this command and this port."""
        return (not self.commands or command in self.commands) and (
            not self.ports or any(first <= port <= last for first, last in self.ports)
        )

    def has_name(self, name: str) -> bool:
        """Say whether the rule names `name` (lower case, no final dot), or a suffix of it; or *."""
        rule = self.name
        return (
            name == rule
            or rule == "*"
            or (rule[:1] == "." and (name.endswith(rule) or name == rule[1:]))
        )


def _parse_via(words: list[str]) -> tuple[Chain | None, list[str]]:
    """Read `via URL`, perhaps several times, or `via direct`. None if there is none of it."""
    chain: list[ProxyAddress] = []
    place = 0
    while words[place : place + 1] == ["via"]:
        if len(words) < place + 2:
            raise UsageError("the line ends where a proxy should be", _FORM)
        url = words[place + 1]
        place += 2
        if url == "direct" and place == 2:
            break
        from muonsocks.socks.proxy_address import ProxyAddress

        chain.append(ProxyAddress.parse(url))
    expect_chain(chain)
    return (tuple(chain) if place else None), words[place:]


def expect_chain(chain: list[ProxyAddress]) -> None:
    """Hold that there are not too many proxies to go through. UsageError."""
    if len(chain) > _LONGEST_CHAIN:
        raise UsageError(f"there are more than {_LONGEST_CHAIN} proxies in one chain")


def _parse_commands(word: str) -> tuple[int, ...]:
    """Read commands with commas between; none if the word says something else."""
    names = word.split(",")
    if not all(name in _NUMBERS for name in names):
        return ()
    return tuple(number for name in names for number in _NUMBERS[name])


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
    """All rules, whether this host's own side is open to clients, and the proxies that are gone
    through where no rule says otherwise.
    """

    __slots__ = ("_allow_local", "_allowed", "_rules", "has_ways", "usual_way")

    def __init__(
        self, rules: tuple[Rule, ...] = (), allow_local: bool = False, via: Chain = ()
    ) -> None:
        self._rules = rules
        self._allow_local = allow_local
        self._allowed = Verdict("", via)
        self.usual_way = via
        self.has_ways = bool(via) or any(rule.via for rule in rules)  # besides the direct one

    def of_address(self, command: int, destination: Endpoint, address: bytes) -> Verdict:
        """Judge a command for the packed `address`, one of the destination's or the only one."""
        if not self._allow_local and is_own_side(address):
            own = "is on this host's own side, see --allow-local"
            return Verdict(f"{format_address(address)} {own}")
        if not self._rules:
            return self._allowed
        name = _name_of(destination)
        by_name: Rule | None = None  # what has allowed the name
        for rule in self._rules:
            if not rule.is_about(command, destination.port):
                continue
            if rule.network is not None:
                if address not in rule.network:
                    continue
            elif by_name is not None or not (rule.has_name(name) if name else rule.name == "*"):
                continue
            if not rule.allow:
                return _denied(rule)
            if rule.network is not None or rule.name == "*":
                return self._allowed_by(by_name or rule)
            by_name = rule
        return self._allowed if by_name is None else self._allowed_by(by_name)

    def of_name(self, command: int, destination: Endpoint) -> Verdict | None:
        """Judge a command for a name, as far as that can be done before it is looked up: it is
        refused, or it goes where a proxy looks it up. None if it is to be looked up here.
        """
        if not self._rules:
            return self._allowed if self._allowed.resolves else None
        name, depends = _name_of(destination), False
        for rule in self._rules:
            if not rule.is_about(command, destination.port):
                continue
            if rule.network is not None:
                depends = depends or rule.allow
            elif rule.has_name(name):
                verdict = self._allowed_by(rule) if rule.allow else _denied(rule)
                if rule.allow:
                    return verdict if verdict.resolves else None
                # What only an address could be allowed by is not looked up for that if names are
                # not, as a rule.
                return None if depends and not self._allowed.resolves else verdict
        return self._allowed if self._allowed.resolves else None

    def of_command(self, command: int) -> Verdict:
        """Judge a command whose destinations are not known: it is refused if all would be, and else
        goes the way of those that no rule on some of them is about.
        """
        some_may = False
        for rule in self._rules:
            if not rule.commands or command in rule.commands:
                if rule.name != "*" or rule.ports:
                    some_may = some_may or rule.allow
                elif rule.allow:
                    return self._allowed_by(rule)
                else:
                    return self._allowed if some_may else _denied(rule)
        return self._allowed

    def way_of_all(self, command: int) -> Chain:
        """Give the proxies that a command goes through, whatever its destinations; none if that
        depends on them, or there is no such way.
        """
        ways: set[Chain] = set()
        for rule in self._rules:
            if not rule.commands or command in rule.commands:
                if rule.allow:
                    ways.add(self._allowed_by(rule).via)
                if rule.name == "*" and not rule.ports:
                    break
        else:
            ways.add(self.usual_way)
        return ways.pop() if len(ways) == 1 else ()

    def _allowed_by(self, rule: Rule) -> Verdict:
        return self._allowed if rule.via is None else Verdict("", rule.via)


def _name_of(destination: Endpoint) -> str:
    return destination.host.lower().rstrip(".") if destination.packed is None else ""


def _denied(rule: Rule) -> Verdict:
    return Verdict(f"denied by {rule.origin}")


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
