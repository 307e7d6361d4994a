"""The rules of a JSON document, and connections that are looked up in them."""

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import some

from muonsocks.address import parse_address
from muonsocks.errors import UsageError
from muonsocks.socketbox.actions import Fail, ToGroup
from muonsocks.socketbox.connection import Connection
from muonsocks.socketbox.explain import explain
from muonsocks.socketbox.json_rules import read_rules
from muonsocks.socketbox.json_value import Node
from muonsocks.socketbox.rules import Rules
from muonsocks.socketbox.sets import MOST_ENTRIES

TO_0 = {"jump": "o:0"}


def rules_of(**sets: Any) -> Rules:
    """What is not a set here is the list of what is in one of type rule."""
    document = {
        name: {"type": "rule", "rules": one} if isinstance(one, list) else one
        for name, one in sets.items()
    }
    return read_rules(Node({"rules": document}, "box").members()["rules"], 3, 2)


def connection(local: str, port: int, remote: str, rport: int, listener: int = 0) -> Connection:
    packed = parse_address(local), parse_address(remote)
    assert packed[0] and packed[1]
    return Connection(packed[0], port, packed[1], rport, listener)


HERE = connection("2001:db8::1", 80, "192.0.2.1", 40000, 1)


def slot(rules: Rules, key: Connection = HERE) -> int | None:
    action = rules.look_up(key).action
    return action.number if isinstance(action, ToGroup) else None


@pytest.mark.parametrize(
    ("conditions", "matches"),
    [
        ({}, True),
        ({"l_ip": "2001:db8::1"}, True),
        ({"l_ip": "2001:db8::2"}, False),
        ({"l_ip": "2001:db8::2", "l_mask": "ffff:ffff::"}, True),
        ({"l_ip": "2001:db8::2", "l_mask": "ffff:ffff::2"}, False),
        ({"r_ip": "::ffff:192.0.2.1"}, True),
        ({"r_ip": "192.0.2.1"}, True),
        ({"r_ip": "192.0.2.9", "r_mask": "255.255.255.0"}, True),
        ({"r_ip": "::ffff:192.0.2.9", "r_mask": "::ffff:255.255.255.0"}, True),
        ({"r_ip": "192.0.3.1", "r_mask": "255.255.255.0"}, False),
        ({"l_port": 80}, True),
        ({"l_port": "80"}, True),
        ({"l_port": 81}, False),
        ({"r_port": 40000}, True),
        ({"r_port": 80}, False),
        ({"incoming_socket": 1}, True),
        ({"incoming_socket": 0}, False),
        ({"l_port": 80, "r_port": 1}, False),
    ],
)
def test_conditions(conditions: dict, matches: bool) -> None:
    rules = rules_of(_start=[{**conditions, "jump": "o:2"}])
    assert slot(rules) == (2 if matches else None)
    assert rules.warnings == []


def map_of(rules: list, **mask: Any) -> dict:
    return {"type": "map", "rules": rules, **({"mask": mask} if mask else {})}


TO_MAP = [{"jump": "r:m"}]
ONE = {"l_ip": "2001:db8::1", "l_port": 80, "jump": "o:1"}


@pytest.mark.parametrize(
    ("one", "found"),
    [
        # without a mask it is the local address and the local port
        (map_of([ONE]), True),
        (map_of([{**ONE, "l_port": 81}]), False),
        (map_of([{**ONE, "r_port": 1}]), True),
        (map_of([{"l_ip": "2001:db8::1", "jump": "o:1"}]), False),
        # with one what is named there, and its values mean nothing but for masks
        (map_of([{**ONE, "l_port": 81}], l_ip="::"), True),
        (map_of([{**ONE, "l_ip": "::"}], l_port=0), True),
        (map_of([{**ONE, "r_port": 1}], r_port="0"), False),
        (map_of([{**ONE, "l_ip": "2001:db8::9"}], l_ip="::", l_mask="ffff:ffff::"), True),
        (map_of([{**ONE, "l_ip": "2001:db9::1"}], l_ip="::", l_mask="ffff:ffff::"), False),
        (map_of([{**ONE, "incoming_socket": 1}], incoming_socket=9), True),
        (map_of([{**ONE, "incoming_socket": 0}], incoming_socket=9), False),
        (map_of([ONE], l_ip="::", l_mask="::"), True),
    ],
)
def test_maps(one: dict, found: bool) -> None:
    assert slot(rules_of(_start=TO_MAP, m=one)) == (1 if found else None)


def test_an_entry_of_a_map_may_have_a_mask_of_its_own() -> None:
    entry = {"l_ip": "2001:db8::1", "l_mask": "ffff::", "l_port": 80, "jump": "o:1"}
    rules = rules_of(_start=TO_MAP, m=map_of([entry]))
    assert slot(rules) is None
    assert slot(rules, connection("2001::", 80, "::1", 1)) == 1


def test_the_last_of_a_key_wins() -> None:
    """As it does in python-socketbox; in a list it is the first."""
    last = {**ONE, "r_port": 7, "jump": "o:2"}
    rules = rules_of(_start=TO_MAP, m=map_of([ONE, last, last]))
    assert slot(rules) == 2
    assert rules.warnings == [
        "box: rules.m.rules[0]: box: rules.m.rules[1] has the same key and comes later: "
        "this entry is never used, and 1 more like it",
        "box: rules.m.rules[2]: the remote port is no part of the key of rules.m: "
        "a condition on it has no effect",
    ]
    assert slot(rules_of(_start=[ONE, last])) == 1
    assert rules.text().splitlines() == [
        "rules._start",
        "r:m",
        "rules.m",
        "match-lip:128",
        "match-lport",
        "ip:2001:db8::1 port:80 rport:7 o:2",
    ]


def test_hops() -> None:
    """One less than in a file of rules: 99 sets."""

    def row(length: int) -> Rules:
        sets = {str(n): [{"jump": f"r:{n + 1}"}] for n in range(1, length)}
        return rules_of(_start=[{"jump": "r:1"}], **sets, **{str(length): [TO_0]})

    assert slot(row(98)) == 0
    assert slot(row(99)) is None
    why = row(99).look_up(HERE).why
    assert why.startswith("the way does not end within 99 sets, the last jump is box: rules['98']")


def test_names_may_be_anything() -> None:
    names = ("", "a b", "x\ny", "r:x", "_start2")
    for name in names:
        assert slot(rules_of(_start=[{"jump": f"r:{name}"}], **{name: [TO_0]})) == 0


def test_a_jump_to_nowhere() -> None:
    rules = rules_of(_start=[{"jump": "r:x\ny"}])
    decision = rules.look_up(HERE)
    assert isinstance(decision.action, Fail)
    assert decision.why == "there is no rules['x\\ny']"
    assert rules.warnings == [
        "box: rules._start.rules[0]: 'r:x\\ny': there is no rules['x\\ny']: "
        "connections that get there are closed"
    ]


def test_other_oddities() -> None:
    start = {"type": "rule", "mask": {"l_port": 1}, "rules": [{"incoming_socket": 2, **TO_0}]}
    assert rules_of(_start=start).warnings == [
        "box: rules._start.rules[0].incoming_socket: there are only 2, which are counted from 0",
        "box: rules._start.mask: only a map has a mask",
    ]


def test_it_can_be_explained() -> None:
    mask = {"l_ip": "::", "l_mask": "ffff::ff", "incoming_socket": 0}
    entry = {"l_ip": "2001::1", "incoming_socket": 1, "jump": "o:1"}
    rules = rules_of(_start=[{"l_port": 7, **TO_0}, {"jump": "r:m"}], m=map_of([entry], **mask))
    assert explain(rules, HERE)[1:] == [
        "hop 1: rules._start, 2 entries",
        "  box: rules._start.rules[0]: port:7 o:0: no, the local port is 80",
        "  box: rules._start.rules[1]: r:m: matches",
        "hop 2: rules.m, 1 entry",
        "  the key by incoming_socket match-lip:ffff::ff is incoming_socket:1 ip:2001::1",
        "  box: rules.m.rules[0]: incoming_socket:1 ip:2001::1 o:1: matches",
        "decision: o:1 (box: rules.m.rules[0])",
        "if that is full or not there:",
        "then: fail (there is no other receiver)",
    ]


JUMP_HINT = "write r:NAME or o:SLOT"
ADDRESS_HINT = "write an IPv4 or IPv6 address in full"


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        ({}, ": 'jump' is missing"),
        ({"jump": 0}, ".jump: a string is expected, and this is a number"),
        ({"jump": "x:web"}, f".jump: 'x:web' is no jump; {JUMP_HINT}"),
        ({"jump": "r"}, f".jump: 'r' is no jump; {JUMP_HINT}"),
        ({"jump": "o:"}, f".jump: 'o:' is no jump; {JUMP_HINT}"),
        ({"jump": "o:-1"}, f".jump: 'o:-1' is no jump; {JUMP_HINT}"),
        ({"jump": "o:\u0661"}, f".jump: 'o:\u0661' is no jump; {JUMP_HINT}"),
        (
            {"jump": "o:3"},
            ".jump: there is no slot 3; there are 3 in outgoing, which are counted from 0",
        ),
        ({"jump": "o:" + "9" * 5000}, ".jump: there is no slot " + "9" * 60 + "; there are 3"),
        ({**TO_0, "port": 80}, ".port: there is no such key; known are jump, l_ip, l_mask"),
        ({**TO_0, "l_ip": "x"}, f".l_ip: 'x' is not an address; {ADDRESS_HINT}"),
        ({**TO_0, "l_ip": "::1/64"}, ".l_ip: '::1/64' is not an address"),
        ({**TO_0, "r_ip": 1}, ".r_ip: a string is expected, and this is a number"),
        ({**TO_0, "r_ip": "::1", "r_mask": 1}, ".r_mask: a string is expected"),
        ({**TO_0, "r_ip": "::1", "r_mask": "64"}, ".r_mask: '64' is not a mask"),
        ({**TO_0, "r_ip": "::1", "r_mask": "255.0.0.0"}, ".r_mask: '255.0.0.0' is not a mask"),
        (
            {**TO_0, "r_ip": "1.2.3.4", "r_mask": "255.0.0"},
            ".r_mask: '255.0.0' is not a mask; write an address",
        ),
        (
            {**TO_0, "l_ip": "::1", "r_mask": "::"},
            ".r_mask: there is no r_ip that it is for; write r_ip, too",
        ),
        ({**TO_0, "l_port": 65536}, ".l_port: the number is out of range; write 0 to 65535"),
        ({**TO_0, "r_port": "http"}, ".r_port: a number is expected, and this is a string"),
        (
            {**TO_0, "incoming_socket": 1 << 32},
            ".incoming_socket: the number is out of range; write 0 to 4294967295",
        ),
    ],
)
def test_wrong_entries(entry: dict, error: str) -> None:
    for kind in ("rule", "map"):
        with pytest.raises(UsageError) as caught:
            rules_of(_start=[TO_0], web={"type": kind, "rules": [TO_0, entry]})
        assert str(caught.value).startswith(f"box: rules.web.rules[1]{error}")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sets", "error"),
    [
        ({}, "rules: '_start' is missing; it is where every connection begins"),
        ({"_start": 1}, "rules._start: an object is expected, and this is a number"),
        ({"_start": {"rules": []}}, "rules._start: 'type' is missing"),
        ({"_start": {"type": "map"}}, "rules._start: 'rules' is missing"),
        (
            {"_start": {"type": "list", "rules": []}},
            "rules._start.type: 'list' is no type; write rule or map",
        ),
        ({"_start": {"type": "map", "rules": {}}}, "rules._start.rules: a list is expected"),
        (
            {"_start": {"type": "map", "rules": [], "default": "o:0"}},
            "rules._start.default: there is no such key; known are type, rules, mask",
        ),
        ({"_start": map_of([], jump="o:0")}, "rules._start.mask.jump: there is no such key"),
        ({"_start": map_of([], r_mask="::")}, "rules._start.mask.r_mask: there is no r_ip"),
        ({"_start": [1]}, "rules._start.rules[0]: an object is expected"),
    ],
)
def test_wrong_sets(sets: dict, error: str) -> None:
    with pytest.raises(UsageError) as caught:
        rules_of(**sets)
    assert str(caught.value).startswith(f"box: {error}")


def test_too_many_rules() -> None:
    half = [TO_0] * (MOST_ENTRIES // 2)
    assert len(rules_of(_start=half, a=half).sets) == 2
    with pytest.raises(UsageError, match=r"rules\.b\.rules\[0\]: there are more than 100000 rules"):
        rules_of(_start=half, a=half, b=[TO_0])


# Against an interpreter that does what python-socketbox is said to do

ADDRESSES = ("::1", "2001:db8::1", "2001:db8:1::", "::ffff:192.0.2.1", "::ffff:192.0.2.2")
MASKS = ("ffff:ffff::", "::ffff:ffff", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00")
addresses, masks = st.sampled_from(ADDRESSES), st.sampled_from(MASKS)
ports = st.sampled_from((80, 443))
parts = {
    "l_ip": addresses,
    "r_ip": addresses,
    "l_port": ports,
    "r_port": ports,
    "incoming_socket": st.integers(0, 1),
}


@st.composite
def asked(draw: st.DrawFn) -> dict:
    names = draw(st.lists(st.sampled_from(sorted(parts)), max_size=2, unique=True))
    found = {name: draw(parts[name]) for name in names}
    for name in ("l_ip", "r_ip"):
        if name in found and draw(st.booleans()):
            found[f"{name[0]}_mask"] = draw(masks)
    return found


jumps = st.sampled_from(("o:0", "o:1", "o:2", "r:_start", "r:a", "r:b", "r:none"))


@st.composite
def one_set(draw: st.DrawFn) -> dict:
    entry = st.builds(lambda conditions, jump: {**conditions, "jump": jump}, asked(), jumps)
    found = {"type": draw(st.sampled_from(("rule", "map"))), "rules": draw(st.lists(entry))}
    if found["type"] == "map" and draw(st.booleans()):
        found["mask"] = draw(asked())
    return found


def canonical(given: dict) -> tuple[list[int], list[int]]:
    """What is compared, and by which bits."""
    values, bits = [], []
    for name in ("incoming_socket", "l_ip", "l_port", "r_ip", "r_port"):
        value, mask = given.get(name, 0), (1 << 128) - 1 if name in given else 0
        if name.endswith("ip") and value:
            value = int(ipaddress.IPv6Address(value))
            mask = int(ipaddress.IPv6Address(given.get(f"{name[0]}_mask", mask)))
        values.append(value & mask)
        bits.append(mask)
    return values, bits


def naive(sets: dict, there: dict) -> int | None:
    name, values = "_start", canonical(there)[0]
    for _ in range(99):
        if name not in sets:
            return None
        jump = None
        if sets[name]["type"] == "map":
            everything = canonical({"l_ip": "::1", "l_port": 1})[1]
            mask = canonical(sets[name]["mask"])[1] if "mask" in sets[name] else everything
            for entry in sets[name]["rules"]:
                own = canonical(entry)[0]
                if all(a & m == b & m for a, b, m in zip(values, own, mask, strict=True)):
                    jump = entry["jump"]
        else:
            for entry in reversed(sets[name]["rules"]):
                own, mask = canonical(entry)
                if all(a & m == b for a, b, m in zip(values, own, mask, strict=True)):
                    jump = entry["jump"]
        if jump is None:
            return None
        if jump.startswith("o:"):
            return int(jump[2:])
        name = jump[2:]
    return None


@some
@given(st.data())
def test_lookups(data: st.DataObject) -> None:
    sets = {name: data.draw(one_set()) for name in ("_start", "a", "b")}
    rules = rules_of(**sets)
    for _ in range(4):
        there = {name: data.draw(part) for name, part in parts.items()}
        key = connection(*(there[name] for name in ("l_ip", "l_port", "r_ip", "r_port")))
        key.key |= there["incoming_socket"] << 288
        assert slot(rules, key) == naive(sets, there)
