"""socketbox.conf(5): its samples do what it says, and it names every token and every key."""

import re
from pathlib import Path

import pytest

from muonsocks.address import parse_address
from muonsocks.socketbox import json_configuration, json_rules
from muonsocks.socketbox.actions import Fail
from muonsocks.socketbox.connection import Connection
from muonsocks.socketbox.grammar import LARGEST_FILE, parse_configuration
from muonsocks.socketbox.keywords import ELSE, USAGE
from muonsocks.socketbox.rules import Rules
from muonsocks.socketbox.sets import MOST_ENTRIES

PAGE = (Path(__file__).resolve().parents[2] / "man/socketbox.conf.5").read_text()
FIRST, SPARE, LARGE = (
    parse_configuration(block.encode(), "page")
    for block in re.findall(r"^\.Bd -literal.*\n((?s:.*?))^\.Ed$", PAGE, re.M)
)


def tried(rules: Rules, local: str, port: int, remote: str = "2001:db8::7") -> list[str]:
    packed = parse_address(local), parse_address(remote)
    assert packed[0] and packed[1]
    decision = rules.look_up(Connection(packed[0], port, packed[1], 40000))
    found = []
    while not isinstance(decision.action, Fail):
        found.append(decision.action.text.removeprefix("jump-unix:/run/"))
        decision = decision.otherwise()
    return found


@pytest.mark.parametrize("rules", [FIRST, SPARE, LARGE])
def test_nothing_is_odd(rules: Rules) -> None:
    assert rules.warnings == []


def test_first_sample() -> None:
    assert tried(FIRST, "192.0.2.1", 443) == ["web.sock"]
    assert tried(FIRST, "192.0.2.1", 8000) == ["other.sock"]
    assert tried(FIRST, "2001:db8::1", 8999) == ["other.sock"]
    assert tried(FIRST, "2001:db8::1", 80) == []


def test_sample_with_a_spare_receiver() -> None:
    assert tried(SPARE, "192.0.2.1", 80) == ["a.sock", "b.sock", "spare.sock"]
    assert tried(SPARE, "192.0.2.2", 80) == ["c.sock"]
    assert tried(SPARE, "192.0.2.3", 80) == []


def test_large_sample() -> None:
    assert tried(LARGE, "2001:db8:1::80", 80) == ["www.sock"]
    assert tried(LARGE, "2001:db8:1::25", 25) == ["mail.sock", "jump-unix:@mail2"]
    assert tried(LARGE, "2001:db8:1::22", 22) == ["jump-fd:3"]
    assert tried(LARGE, "2001:db8:1::22", 443) == ["web.sock"]
    assert tried(LARGE, "192.0.2.1", 443) == ["web.sock"]
    assert tried(LARGE, "2001:db8:1::80", 80, "198.51.100.7") == []


def test_every_token_is_there() -> None:
    tokens, _, _ = PAGE.partition("\n.Sh JSON\n")
    listed = re.findall(r"^\.It Cm (\S+)( :)?", tokens, re.M)
    assert sorted(name for name, _ in listed) == sorted((*USAGE, ELSE))
    assert {name for name, colon in listed if colon} == {n for n, u in USAGE.items() if ":" in u}


def test_every_key_is_there() -> None:
    keys, _, _ = PAGE.partition("\n.Sh JSON\n")[2].partition("\n.Sh ")
    named = set(re.findall(r"^\.(?:It )?Cm ([\w-]+)", keys, re.M))
    source = "".join(Path(one.__file__).read_text() for one in (json_configuration, json_rules))
    known = re.findall(r"(?:known\(|(?:needed|flags|_CONDITIONS) = )(.*)", source)
    assert set(re.findall(r'"([\w-]+)"', "".join(known))) <= named
    assert named <= set(re.findall(r'"([\w-]+)"', source)) | {"_start"}


def test_limits_are_as_said() -> None:
    assert LARGEST_FILE == 8 << 20
    assert f"at most 8 MiB, and all sets together at most {MOST_ENTRIES:,} entries" in PAGE
