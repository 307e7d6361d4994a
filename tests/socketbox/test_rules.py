"""Where connections go: hops, alternatives, addresses, warnings."""

import pytest

from muonsocks.address import parse_address
from muonsocks.socketbox.actions import FAIL, Fail
from muonsocks.socketbox.connection import Connection
from muonsocks.socketbox.grammar import parse_configuration
from muonsocks.socketbox.rules import Decision, Rules
from muonsocks.socketbox.sets import Entry, EntrySet


def rules_of(text: str) -> Rules:
    return parse_configuration(text.encode(), "box")


def connection(local: str, port: int, remote: str = "192.0.2.200") -> Connection:
    packed = parse_address(local), parse_address(remote)
    assert packed[0] and packed[1]
    return Connection(packed[0], port, packed[1], 40000)


def tried(rules: Rules, key: Connection) -> list[str]:
    """Every action that is tried in turn, as text; the last is `fail`."""
    decision = rules.look_up(key)
    found = [decision.action.text]
    while not isinstance(decision.action, Fail):
        decision = decision.otherwise()
        found.append(decision.action.text)
    return found


# Hops


def row(length: int, last: str) -> Rules:
    lines = [f"rule-set:{n}\njump-rule:{n + 1}" for n in range(length - 1)]
    return rules_of("\n".join((*lines, f"rule-set:{length - 1}\n{last}")))


def test_a_hundred_sets_are_looked_up_and_no_more() -> None:
    here = connection("::1", 80)
    assert tried(row(100, "jump-unix:/a"), here) == ["jump-unix:/a", "fail"]
    decision = row(101, "jump-unix:/a").look_up(here)
    assert decision.action is FAIL
    assert decision.why == "the way does not end within 100 sets, the last jump is box:200"


def test_hops_are_counted_over_all_alternatives() -> None:
    """A rule that leads back to itself ends, too."""
    rules = rules_of("rule-set:0\njump-unix:/a else jump-rule:0 else jump-unix:/b")
    assert tried(rules, connection("::1", 80)) == ["jump-unix:/a"] * 100 + ["fail"]


# What comes after what


def alternatives(text: str) -> list[str]:
    return tried(rules_of(text), connection("192.0.2.1", 80))


SECOND = "\nrule-set:1\n"
CHAINS: tuple[tuple[str, list[str]], ...] = (
    ("jump-unix:/a", ["jump-unix:/a", "fail"]),
    ("jump-unix:/a else jump-fd:3 else fail", ["jump-unix:/a", "jump-fd:3", "fail"]),
    ("jump-unix:/a else jump-rule:1" + SECOND + "jump-fd:3", ["jump-unix:/a", "jump-fd:3", "fail"]),
    # who led there has the next one
    ("jump-rule:1 else jump-fd:4" + SECOND + "jump-fd:3", ["jump-fd:3", "jump-fd:4", "fail"]),
    (
        "jump-rule:1 else jump-fd:4" + SECOND + "jump-fd:3 else jump-fd:5",
        ["jump-fd:3", "jump-fd:5", "jump-fd:4", "fail"],
    ),
    (
        "jump-rule:1 else jump-fd:4" + SECOND + "default jump-fd:3",
        ["jump-fd:3", "jump-fd:4", "fail"],
    ),
    # but not where a rule says no, or nothing
    ("jump-rule:1 else jump-fd:4" + SECOND + "fail", ["fail"]),
    ("jump-rule:1 else jump-fd:4" + SECOND + "jump-fd:3 else fail", ["jump-fd:3", "fail"]),
    ("jump-rule:1 else jump-fd:4" + SECOND + "port:81 jump-fd:3", ["fail"]),
    ("jump-rule:1 else jump-fd:4", ["fail"]),
    ("jump-map:0 else jump-fd:4", ["fail"]),
    ("port:80", ["fail"]),
    ("", ["fail"]),
)


@pytest.mark.parametrize(("text", "wanted"), CHAINS)
def test_alternatives(text: str, wanted: list[str]) -> None:
    assert alternatives(f"rule-set:0\n{text}") == wanted


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("rule-set:0\njump-unix:/a", "box:2"),
        ("rule-set:0\n\nfail", "box:3"),
        ("rule-set:0\nport:81 fail\ndefault fail", "box:3"),
        ("rule-set:0\nport:81 fail", "rule-set:0 has nothing for it, and no default"),
        ("rule-set:0\njump-map:4", "there is no map-set:4"),
        ("", "there is no rule-set:0"),
        ("rule-set:0\njump-rule:0", "the way does not end within 100 sets, the last jump is box:2"),
    ],
)
def test_why(text: str, why: str) -> None:
    assert rules_of(text).look_up(connection("192.0.2.1", 80)).why == why


def test_why_there_is_nothing_else() -> None:
    decision = rules_of("rule-set:0\njump-unix:/a").look_up(connection("192.0.2.1", 80))
    decision = decision.otherwise()
    assert (decision.action, decision.why) == (FAIL, "there is no other receiver")


def test_a_look_up_can_be_watched() -> None:
    rules = rules_of("rule-set:0\njump-map:0\nmap-set:0\ndefault jump-unix:/a else jump-rule:0")
    seen: list[tuple[int, str, str]] = []

    def note(hop: int, there: EntrySet, found: Entry | None) -> None:
        seen.append((hop, there.name, found.text if found else ""))

    decision = rules.look_up(connection("::1", 80), note)
    assert seen == [(1, "rule-set:0", "jump-map:0"), (2, "map-set:0", "")]
    decision.otherwise(note)
    assert seen[2:] == [(3, "rule-set:0", "jump-map:0"), (4, "map-set:0", "")]


# What is odd


@pytest.mark.parametrize(
    ("text", "warnings"),
    [
        ("rule-set:0\nfail", []),
        ("rule-set:1\nfail", ["there is no rule-set:0: every connection is closed"]),
        (
            "rule-set:0\njump-rule:5\njump-rule:5\ndefault jump-unix:/a else jump-map:0",
            [
                f"box:{line}: {jump}: there is no {name}: connections that get there are closed"
                for line, jump, name in (
                    (2, "jump-rule:5", "rule-set:5"),
                    (4, "jump-map:0", "map-set:0"),
                )
            ],
        ),
        (
            "rule-set:0\nmap-set:1 match-lip:32\nip:2001:db8::1 fail\nip:2001:db8::2 jump-fd:3",
            [
                "box:4: the key in map-set:1 is that of box:3, which comes first: this entry is "
                "never used"
            ],
        ),
        (
            "rule-set:0\nmap-set:1 match-lip:32\n" + "ip:2001:db8::1 jump-fd:3\n" * 3,
            [
                "box:4: the key in map-set:1 is that of box:3, which comes first: this entry is "
                "never used, and 1 more like it"
            ],
        ),
        (
            "rule-set:0\nmap-set:1 match-lip:32\nip:2001:db8::1 rport:7 fail",
            [
                "box:3: the remote port is no part of the key of map-set:1: a condition on it has "
                "no effect"
            ],
        ),
        (
            "rule-set:0\nmap-set:1\nip:2001:db8::1 fail",
            [
                "box:3: the local address is no part of the key of map-set:1: a condition on it "
                "has no effect"
            ],
        ),
        (
            "rule-set:0\nmap-set:1 match-lip:128 match-lport\nip:::1 fail\nport:1 ip:::1 f:\nf:",
            [
                "box:5: the local address is in the key of map-set:1, and this entry is for zero "
                "there, as it does not say it",
                "box:3: the local port is in the key of map-set:1, and this entry is for zero "
                "there, as it does not say it",
            ],
        ),
    ],
)
def test_warnings(text: str, warnings: list[str]) -> None:
    assert rules_of(text).warnings == warnings


def test_warnings_are_not_without_end() -> None:
    lines = [f"jump-rule:{n}" for n in range(1, 152)]
    found = rules_of("\n".join(("rule-set:0", *lines))).warnings
    assert len(found) == 101
    assert found[-1] == "and 51 more warnings like these"
    assert len(rules_of("\n".join(("rule-set:0", *lines[:100]))).warnings) == 100


def test_otherwise_may_be_asked_again() -> None:
    """Who waits with a decision can still go on from it."""
    first = rules_of("rule-set:0\njump-unix:/a else jump-unix:/b").look_up(connection("::1", 80))
    assert isinstance(first, Decision)
    for _ in range(2):
        assert first.otherwise().action.text == "jump-unix:/b"
