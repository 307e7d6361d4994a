"""What a set finds, how long that takes, and how large it is for others."""

import _pickle

import pytest

from muonsocks.address import parse_address
from muonsocks.socketbox.connection import Connection
from muonsocks.socketbox.grammar import parse_configuration
from muonsocks.socketbox.rules import Rules


def rules_of(text: str) -> Rules:
    return parse_configuration(text.encode(), "box")


def connection(local: str, port: int, remote: str = "192.0.2.200") -> Connection:
    packed = parse_address(local), parse_address(remote)
    assert packed[0] and packed[1]
    return Connection(packed[0], port, packed[1], 40000)


class Counted(int):
    """A connection's number that counts how often it is compared with anything."""

    steps = 0

    def __and__(self, other: int) -> "Counted":
        Counted.steps += 1
        return Counted(int(self) & other)

    def __eq__(self, other: object) -> bool:
        Counted.steps += 1
        return int(self) == other

    def __hash__(self) -> int:
        Counted.steps += 1
        return hash(int(self))


def steps(rules: Rules, key: Connection) -> int:
    key.key = Counted(key.key)
    Counted.steps = 0
    rules.look_up(key)
    return Counted.steps


def large(head: str, count: int) -> Rules:
    lines = [f"ip:10.{n >> 16}.{n >> 8 & 255}.{n & 255} jump-unix:/run/{n}" for n in range(count)]
    return rules_of("\n".join((head, *lines)))


@pytest.mark.parametrize("number", [0, 4999, 9999, 10_000, 60_000])
def test_a_map_takes_no_more_time_for_more_entries(number: int) -> None:
    """Wherever in it the entry is, and if there is none."""
    wanted = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
    head = "rule-set:0\njump-map:0\nmap-set:0 match-lip:128"
    few, many = large(head, 1), large(head, 10_000)
    there = f"jump-unix:/run/{number}" if number < 10_000 else "fail"
    assert many.look_up(connection(wanted, 80)).action.text == there
    least = steps(few, connection("10.0.0.0", 80))
    assert steps(many, connection(wanted, 80)) <= least + 2  # two of 10,000 may share a place
    assert least < 10


def test_steps_are_counted() -> None:
    """A list has more to do, and this is seen."""
    rules = large("rule-set:0", 10_000)
    assert rules.look_up(connection("10.0.39.15", 80)).action.text == "jump-unix:/run/9999"
    assert steps(rules, connection("10.0.39.15", 80)) >= 10_000


def test_the_first_of_a_key_wins() -> None:
    rules = rules_of("rule-set:0\njump-map:0\nmap-set:0\njump-unix:/a\njump-unix:/b\nport:80 fail")
    assert rules.look_up(connection("::1", 80)).action.text == "jump-unix:/a"


def test_a_copy_is_small() -> None:
    """Each worker gets one when the rules are read again, and nobody is served meanwhile."""
    lines = [f"ip:10.0.{n >> 8}.{n & 255} jump-unix:/r/{n}" for n in range(1000)]
    rules = rules_of("\n".join(("map-set:0 match-lip:128", *lines)))
    copy = _pickle.dumps(rules)
    assert len(copy) < 150 * len(lines)
    again = _pickle.loads(copy)
    assert again.text() == rules.text()
