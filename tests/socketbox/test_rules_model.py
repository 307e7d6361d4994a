"""Look-ups against an interpreter of the specification that is as plain as can be; and what is
read, printed and read again.
"""

import ipaddress

from hypothesis import given
from hypothesis import strategies as st
from strategies import many

from muonsocks.address import parse_address
from muonsocks.socketbox.actions import FAIL, Fail, Jump, ToPath, Verdict
from muonsocks.socketbox.conditions import Condition, Masked, Spans
from muonsocks.socketbox.connection import (
    LOCAL_ADDRESS,
    LOCAL_PORT,
    REMOTE_ADDRESS,
    REMOTE_PORT,
    Connection,
)
from muonsocks.socketbox.grammar import parse_configuration
from muonsocks.socketbox.rules import Rules
from muonsocks.socketbox.sets import Entry, Map, RuleList

Tokens = list[str]
Ends = tuple[str, int, str, int]  # local address and port, remote address and port


def rules_of(text: str) -> Rules:
    return parse_configuration(text.encode(), "box")


def tried(rules: Rules, key: Connection) -> list[str]:
    """Every action that is tried in turn, as text; the last is `fail`."""
    decision = rules.look_up(key)
    found = [decision.action.text]
    while not isinstance(decision.action, Fail):
        decision = decision.otherwise()
        found.append(decision.action.text)
    return found


# The specification, word by word. It reads tokens that are written in full.


class Closed(Exception):
    pass


class Naive:
    def __init__(self, lines: list[Tokens]) -> None:
        self.sets: dict[str, dict] = {}
        here, in_default = "", False
        for tokens in lines:
            entry: dict = {}
            actions: Tokens = []
            for token in tokens:
                word, _, value = token.partition(":")
                if word in ("rule-set", "map-set"):
                    here, in_default, actions = token, False, []
                    self.sets.setdefault(token, {"entries": [], "default": None, "match": {}})
                elif word.startswith("match-"):
                    self.sets[here]["match"][word] = value
                elif word == "default":
                    in_default = True
                elif word in ("ip", "rip", "port", "rport"):
                    entry[word] = value
                elif word in ("jump-unix", "jump-fd", "jump-rule", "jump-map", "fail"):
                    if actions and actions[-1] != "else":
                        actions = []
                    actions = [*actions, token]
                    if in_default:
                        self.sets[here]["default"] = actions
                elif word == "else":
                    actions = [*actions, token]
                    if in_default:
                        self.sets[here]["default"] = actions
            if not in_default and (entry or actions):
                self.sets[here]["entries"].append((entry, actions or ["fail"]))

    def tried(self, ends: Ends) -> Tokens:
        found: Tokens = []
        visited: Tokens = []

        def act(actions: Tokens) -> None:
            for action in actions:
                if action.startswith(("jump-rule:", "jump-map:")):
                    look_in(action.replace("jump-rule", "rule-set").replace("jump-map", "map-set"))
                elif action.startswith("fail"):
                    raise Closed
                elif action != "else":
                    found.append(action)

        def look_in(name: str) -> None:
            visited.append(name)
            if len(visited) > 100 or name not in self.sets:
                raise Closed
            for entry, actions in self.sets[name]["entries"]:
                if self.matches(name, entry, ends):
                    act(actions)
                    return
            if not self.sets[name]["default"]:
                raise Closed
            act(self.sets[name]["default"])

        try:
            look_in("rule-set:0")
        except Closed:
            pass
        return [*found, "fail"]

    def matches(self, name: str, entry: dict, ends: Ends) -> bool:
        there = dict(zip(("ip", "port", "rip", "rport"), ends, strict=True))
        if name.startswith("rule-set"):
            return all(self.satisfies(there[word], asked) for word, asked in entry.items())
        key = self.sets[name]["match"]
        for word in ("ip", "rip"):
            bits = int(key.get(f"match-l{word[-2:]}" if word == "ip" else "match-rip", 0))
            if in_bits(there[word])[:bits] != in_bits(entry.get(word, "::"))[:bits]:
                return False
        for word, match in (("port", "match-lport"), ("rport", "match-rport")):
            if match in key and int(there[word]) != int(entry.get(word, 0)):
                return False
        return True

    def satisfies(self, there: str | int, asked: str) -> bool:
        if isinstance(there, int):
            spans = [part.split("-") for part in asked.split(",")]
            return any(int(span[0]) <= there <= int(span[-1]) for span in spans)
        if "-" in asked:
            first, last = asked.split("-")
            return in_bits(first) <= in_bits(there) <= in_bits(last)
        address, _, mask = asked.partition("/")
        if not mask:
            return in_bits(there) == in_bits(address)
        if ":" in mask:
            counts = f"{int(ipaddress.IPv6Address(mask)):0128b}"
        elif "." in mask:
            counts = "1" * 96 + f"{int(ipaddress.IPv4Address(mask)):032b}"
        else:
            counts = "1" * (int(mask) + (0 if ":" in address else 96))
        pairs = zip(in_bits(there), in_bits(address), counts.ljust(128, "0"), strict=True)
        return all(a == b for a, b, count in pairs if count == "1")


def in_bits(address: str) -> str:
    """The 128 bits of an address, an IPv4 one as it is mapped."""
    text = address if ":" in address else f"::ffff:{address}"
    return f"{int(ipaddress.IPv6Address(text)):0128b}"


# What is drawn: a few addresses and ports, so that much of it matches

ADDRESSES = ("::", "::1", "2001:db8::1", "2001:db8::2", "2001:db8:1::", "127.0.0.9", "192.0.2.1")
ADDRESSES += ("192.0.2.2", "::ffff:192.0.2.1", "::ffff:c000:202", "0.0.0.0", "255.255.255.255")
PORTS = (0, 80, 81, 443, 65535)
addresses = st.sampled_from(ADDRESSES)
ports = st.sampled_from(PORTS)
MASKS = ("ffff:ffff:ffff::", "::ffff", "::", "ffff::1", "::ffff:255.255.255.0")


def networks(address: str) -> st.SearchStrategy[str]:
    if ":" in address:
        lengths = st.sampled_from(("0", "16", "32", "96", "120", "127", "128"))
        return st.builds("{}/{}".format, st.just(address), lengths | st.sampled_from(MASKS))
    lengths = st.sampled_from(("0", "8", "24", "31", "32", "255.255.255.0", "0.0.0.3", *MASKS))
    return st.builds("{}/{}".format, st.just(address), lengths)


def ranges(ends: tuple[str, str]) -> str:
    return "-".join(sorted(ends, key=in_bits))


def one_kind(ends: tuple[str, str]) -> bool:
    packed = [parse_address(end) for end in ends]
    return len(packed[0] or b"") == len(packed[1] or b"")


rule_addresses = (
    addresses
    | addresses.flatmap(networks)
    | st.tuples(addresses, addresses).filter(one_kind).map(ranges)
)
port_spans = st.tuples(ports, ports).map(lambda ends: f"{min(ends)}-{max(ends)}")
rule_ports = ports.map(str) | st.lists(ports.map(str) | port_spans, min_size=1, max_size=3).map(
    ",".join
)
numbers = st.integers(0, 3).map(str)
finals = st.sampled_from(("jump-unix:/a", "jump-unix:@b", "jump-unix:c", "jump-fd:7", "fail"))
jumps = st.builds("{}:{}".format, st.sampled_from(("jump-rule", "jump-map")), numbers)


@st.composite
def chains(draw: st.DrawFn) -> Tokens:
    """An action, or some with `else` between; sometimes one before, which does not count."""
    tokens: Tokens = draw(st.sampled_from(([], [], [], ["jump-unix:/lost"])))
    some_more = finals.filter(lambda action: action != "fail") | jumps
    for action in draw(st.lists(some_more, max_size=2)):
        tokens = [*tokens, action, "else"]
    return [*tokens, draw(finals | jumps)]


@st.composite
def entries(draw: st.DrawFn, in_map: bool) -> Tokens:
    """The tokens of an entry in any order, but for its actions."""
    tokens: Tokens = []
    for word in draw(st.lists(st.sampled_from(("ip", "rip", "port", "rport")), max_size=3)):
        values = addresses if in_map else rule_addresses
        if "port" in word:
            values = ports.map(str) if in_map else rule_ports
        tokens.append(f"{word}:{draw(values)}")
    place = draw(st.integers(0, len(tokens)))
    tokens[place:place] = draw(chains() if not tokens or draw(st.integers(0, 9)) else st.just([]))
    return tokens


lips = st.sampled_from(("0", "32", "64", "120", "128"))
keys = (
    lips.map("match-lip:{}".format)
    | lips.map("match-rip:{}".format)
    | st.sampled_from(("match-lport", "match-rport"))
)


@st.composite
def sections(draw: st.DrawFn) -> list[Tokens]:
    """A set from its token on, or what comes in addition to one."""
    in_map = draw(st.booleans())
    head = [f"{'map' if in_map else 'rule'}-set:{draw(numbers)}"]
    if in_map:
        head += draw(st.lists(keys, max_size=3))
    lines = [head, *draw(st.lists(entries(in_map), max_size=4))]
    if draw(st.booleans()):
        lines += [["default", *draw(chains())]]
    if draw(st.integers(0, 3)) == 0:
        return [[token for line in lines[:2] for token in line], *lines[2:]]
    return lines


@st.composite
def configurations(draw: st.DrawFn) -> list[Tokens]:
    """Sections, of which one is a rule list that leads anywhere."""
    start = [
        ["rule-set:0"],
        *draw(st.lists(entries(False), max_size=2)),
        draw(jumps.map(lambda j: [j])),
    ]
    return [*start, *(line for one in draw(st.lists(sections(), max_size=6)) for line in one)]


SHORT = {
    "port:": "p:",
    "rport:": "rp:",
    "jump-unix:": "jump-u:",
    "jump-rule:": "jump-ru:",
    "match-lip:": "match-li:",
    "rule-set:": "ru:",
    "map-set:": "map:",
    "ip:": "i:",
}


@st.composite
def spelled(draw: st.DrawFn, lines: list[Tokens]) -> str:
    """Tokens as somebody may write them."""
    text = draw(st.sampled_from(("", "# first\n\n", " \t \n")))
    for tokens in lines:
        for token in tokens:
            word, colon, value = token.partition(":")
            shorter = SHORT.get(f"{word}:") if colon and draw(st.booleans()) else None
            if value.isdecimal() and word.startswith(("port", "rport", "jump-r", "jump-m")):
                value = draw(st.sampled_from(("", "0", "+", "+00"))) + value
            text += draw(st.sampled_from(("", " ", "\t", " \t")))
            text += (shorter or word + colon) + value + draw(st.sampled_from((" ", "  ", "\t")))
        text += draw(
            st.sampled_from(("\n", "\n", "\r\n", "# said\n", " # fail\n\n", "#fail else\n"))
        )
    return text


@st.composite
def ends(draw: st.DrawFn) -> Ends:
    return draw(addresses), draw(ports), draw(addresses), draw(ports)


def packed(address: str, mapped: bool) -> bytes:
    """Either of the two forms an IPv4 address comes in."""
    found = parse_address(address)
    assert found
    return bytes(10) + b"\xff\xff" + found if len(found) == 4 and mapped else found


@many
@given(st.data())
def test_lookups_are_those_of_the_specification(data: st.DataObject) -> None:
    lines = data.draw(configurations())
    rules = rules_of(data.draw(spelled(lines)))
    naive = Naive(lines)
    for _ in range(5):
        end = data.draw(ends())
        mapped = data.draw(st.booleans())
        key = Connection(packed(end[0], mapped), end[1], packed(end[2], not mapped), end[3])
        assert tried(rules, key) == naive.tried(end), (rules.text(), end)


Shape = dict[str, tuple]


def shape(rules: Rules) -> Shape:
    """All that a model has, but for the lines it is from."""

    def said(verdict: Verdict | None) -> list[tuple] | None:
        if not verdict:
            return None
        return [(type(action), action.text) for action in verdict.actions]

    def asked(condition: Condition) -> object:
        if isinstance(condition, Masked):
            return condition.pattern, condition.mask
        return condition.spans

    return {
        name: (
            type(one),
            one.size,
            one.mask if isinstance(one, Map) else None,
            said(one.default),
            [
                ({f.name: asked(c) for f, c in entry.conditions.items()}, said(entry.verdict))
                for entry in one.entries
            ],
        )
        for name, one in rules.sets.items()
    }


@many
@given(st.data())
def test_what_is_printed_is_what_was_read(data: st.DataObject) -> None:
    rules = rules_of(data.draw(spelled(data.draw(configurations()))))
    again = rules_of(rules.text())
    assert shape(again) == shape(rules)
    assert again.text() == rules.text()
    assert again.limits == rules.limits


masks = st.integers(0, 128).map(lambda bits: (1 << 128) - (1 << bits)) | st.integers(0, 2**128 - 1)
wide = st.integers(0, 2**128 - 1) | st.integers(0, 2**32 - 1).map(lambda n: n | 0xFFFF << 32)


@st.composite
def models(draw: st.DrawFn) -> Rules:
    """Rules of any addresses, made by hand and not by the parser."""
    conditions: dict = {}
    for field in (LOCAL_ADDRESS, REMOTE_ADDRESS):
        kind = draw(st.integers(0, 2))
        if kind == 1:
            conditions[field] = Masked(draw(wide), draw(masks))
        elif kind == 2:
            low = draw(wide)
            top = 0xFFFFFFFFFFFF if low >> 32 == 0xFFFF else low | (1 << 100)
            high = draw(st.integers(low + 1, max(top, low + 1)))
            if (low >> 32 == 0xFFFF) == (high >> 32 == 0xFFFF) and high < 1 << 128:
                conditions[field] = Spans(((low, high),))
    for field in (LOCAL_PORT, REMOTE_PORT):
        port = draw(st.integers(0, 65534))
        kind = draw(st.integers(0, 2))
        if kind == 1:
            conditions[field] = Masked(port, 65535)
        elif kind == 2:
            conditions[field] = Spans(((port, port + 1), (0, 0)))
    verdict = Verdict((ToPath("/a"), Jump("map-set:7", "jump-map:7"), FAIL), "")
    one = RuleList("rule-set:0", [Entry(conditions, verdict)], verdict, draw(st.integers(1, 9)))
    return Rules({"rule-set:0": one}, "rule-set:0", limits=("max-rules:3", "max-maps:8"))


@many
@given(models())
def test_any_model_is_printed_so_that_it_can_be_read(rules: Rules) -> None:
    again = rules_of(rules.text())
    assert shape(again) == shape(rules)
    assert again.limits == rules.limits
