"""The table against a model of it: who stands for whom, who is given up, and when."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from muonsocks.address import format_address, parse_address
from muonsocks.client import fake_addresses
from muonsocks.client.fake_addresses import FakeAddresses, is_fake


def test_addresses_of_a_name() -> None:
    table = FakeAddresses()
    assert format_address(table.ipv4_of("a.example")) == "198.18.0.1"
    assert format_address(table.ipv6_of("b.example")) == "fd6d:756f:6e73:6f63::2"
    assert format_address(table.ipv6_of("a.example")) == "fd6d:756f:6e73:6f63::1"
    assert len(table) == 2
    assert table.name_of(b"\xc6\x12\0\2") == "b.example"


@pytest.mark.parametrize(
    ("address", "fake"),
    [
        ("198.18.0.0", True),
        ("198.19.255.255", True),
        ("198.17.255.255", False),
        ("198.20.0.0", False),
        ("::ffff:198.18.0.1", True),
        ("fd6d:756f:6e73:6f63:ffff:ffff:ffff:ffff", True),
        ("fd6d:756f:6e73:6f64::", False),
        ("::1", False),
    ],
)
def test_which_addresses_stand_for_names(address: str, fake: bool) -> None:
    packed = parse_address(address)
    assert packed is not None
    assert is_fake(packed) == fake
    assert FakeAddresses().name_of(packed) is None


@pytest.mark.parametrize("most", [0, -1, 1 << 17])
def test_a_table_of_an_impossible_size(most: int) -> None:
    with pytest.raises(ValueError, match="names"):
        FakeAddresses(most)


def test_the_least_recently_asked_for_is_given_up() -> None:
    table = FakeAddresses(2)
    first, second = table.ipv4_of("first"), table.ipv4_of("second")
    assert table.ipv4_of("first") == first
    third = table.ipv4_of("third")
    assert [table.name_of(one) for one in (first, second, third)] == ["first", None, "third"]
    assert third not in (first, second)
    assert table.ipv4_of("second") not in (first, second, third)
    assert len(table) == 2


def test_addresses_come_again_when_all_have_been_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_addresses, "_LAST", 5)
    table = FakeAddresses(3)
    kept = table.ipv4_of("kept")
    for number in range(50):
        recent = table.ipv4_of(f"name{number}")
        assert table.name_of(recent) == f"name{number}"
        assert table.ipv4_of("kept") == kept
        assert len(table) <= 3
    assert table.name_of(kept) == "kept"


def test_all_addresses_are_of_the_network() -> None:
    table = FakeAddresses((1 << 17) - 2)
    given = {table.ipv4_of(str(number)) for number in range((1 << 17) - 2)}
    assert len(given) == len(table) == (1 << 17) - 2
    assert all(map(is_fake, given))
    assert b"\xc6\x12\0\0" not in given and b"\xc6\x13\xff\xff" not in given


@given(st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16))
def test_no_address_stands_for_what_nobody_asked_for(packed: bytes) -> None:
    assert FakeAddresses().name_of(packed) is None


class Model(RuleBasedStateMachine):
    """Any order of questions, in a table of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.table = FakeAddresses(4)
        self.recent: list[str] = []
        self.given: dict[str, tuple[bytes, bytes]] = {}

    @rule(name=st.sampled_from("abcdefgh"))
    def ask(self, name: str) -> None:
        both = self.table.ipv4_of(name), self.table.ipv6_of(name)
        if name in self.recent:
            assert both == self.given[name]
            self.recent.remove(name)
        self.recent = [*self.recent, name][-4:]
        self.given[name] = both

    @invariant()
    def each_address_stands_for_its_name(self) -> None:
        assert len(self.table) == len(self.recent)
        for name, both in self.given.items():
            expected = name if name in self.recent else None
            assert {self.table.name_of(one) for one in both} == {expected}


def test_against_a_model() -> None:
    run_state_machine_as_test(Model)
