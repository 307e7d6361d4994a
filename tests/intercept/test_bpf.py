"""Filters: an emulator of classic BPF, as linux/filter.h has it, against what the rules say."""

import errno
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muonsocks.intercept.bpf import (
    ALLOW,
    NOTIFY,
    Condition,
    Rule,
    assemble,
    equals,
    has_any,
    is_not_null,
    refuse,
    verdict,
)
from muonsocks.intercept.calls import AARCH64, I386, OF_MACHINE, RISCV64, X86_64, Architecture
from muonsocks.intercept.outgoing import RULES

ALL = (X86_64, I386, AARCH64, RISCV64)
ENOSYS = refuse(errno.ENOSYS)


def outcome(program: bytes, audit: int, number: int, arguments: list[int]) -> int:
    """What a filter returns of a call (struct seccomp_data); it has to end."""
    data = struct.pack("=iIQ6Q", number, audit, 0, *arguments)
    instructions = list(struct.iter_unpack("=HBBI", program))
    loaded = at = 0
    while True:
        code, if_true, if_false, k = instructions[at]
        at += 1
        match code:
            case 0x20:  # BPF_LD | BPF_W | BPF_ABS
                assert not k % 4
                [loaded] = struct.unpack_from("=I", data, k)
            case 0x54:  # BPF_ALU | BPF_AND | BPF_K
                loaded &= k
            case 0x15:  # BPF_JMP | BPF_JEQ | BPF_K
                at += if_true if loaded == k else if_false
            case 0x35:  # BPF_JMP | BPF_JGE | BPF_K
                at += if_true if loaded >= k else if_false
            case 0x05:  # BPF_JMP | BPF_JA
                at += k
            case 0x06:  # BPF_RET | BPF_K
                return int(k)
            case _:
                raise AssertionError(f"no instruction {code:#x}")


NAMES = sorted(set(X86_64.numbers) - {"socketcall"})
WORDS = st.one_of(
    st.sampled_from([0, 1, 2, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 64) - 1, 0x20000000]),
    st.integers(0, (1 << 64) - 1),
)
CONDITIONS = st.one_of(
    st.builds(has_any, st.integers(0, 5), st.integers(1, (1 << 32) - 1)),
    st.builds(equals, st.integers(0, 5), st.integers(0, 3)),
    st.builds(is_not_null, st.integers(0, 5)),
    st.builds(
        lambda argument, mask, value, is_equal: Condition(argument, mask, value & mask, is_equal),
        st.integers(0, 5),
        WORDS.filter(bool),
        WORDS,
        st.booleans(),
    ),
)
RULE = st.builds(
    lambda verdict, conditions: Rule(verdict, *conditions),
    st.sampled_from([ALLOW, NOTIFY, ENOSYS, refuse(errno.EPERM)]),
    st.lists(CONDITIONS, max_size=3),
)
ALL_RULES = st.dictionaries(st.sampled_from(NAMES), st.lists(RULE, min_size=1, max_size=4))


@given(
    ALL_RULES, st.sampled_from(ALL), st.sampled_from(NAMES), st.lists(WORDS, min_size=6, max_size=6)
)
def test_a_filter_does_what_the_rules_say(
    rules: dict[str, Any], architecture: Architecture, name: str, arguments: list[int]
) -> None:
    number = architecture.numbers.get(name)
    if number is None:
        return
    program = assemble(rules, ALL)
    expected = verdict(rules.get(name, ()), arguments)
    assert outcome(program, architecture.audit, number, arguments) == expected


@given(ALL_RULES, st.sampled_from([*I386.multiplexed, 99]), st.booleans())
def test_a_call_in_memory_is_told_if_a_rule_may_be_about_it(
    rules: dict[str, Any], number: int, has_more: bool
) -> None:
    """Of socketcall(2) the filter sees which one it is; the upper half of a register is no part."""
    arguments = [number | has_more << 32, 0, 0, 0, 0, 0]
    told = I386.multiplexed.get(number) in rules
    expected = NOTIFY if told else ALLOW
    assert outcome(assemble(rules, ALL), I386.audit, 102, arguments) == expected


@pytest.mark.parametrize("machine", OF_MACHINE)
@pytest.mark.parametrize("rules", [RULES, dict.fromkeys(NAMES, [Rule(NOTIFY, has_any(1, 5))] * 9)])
def test_the_filters_that_there_are(machine: str, rules: dict[str, Any]) -> None:
    """Also of many rules: the kernel takes 4096 instructions, and every jump is one byte."""
    program = assemble(rules, OF_MACHINE[machine])
    assert len(program) // 8 <= 4096
    for architecture in OF_MACHINE[machine]:
        nothing = [0] * 6
        assert outcome(program, architecture.audit, 0, nothing) == ALLOW
        for name in rules:
            number = architecture.numbers.get(name)
            if number is not None:
                expected = verdict(rules[name], nothing)
                assert outcome(program, architecture.audit, number, nothing) == expected


def test_what_is_of_no_known_architecture_fails() -> None:
    program = assemble({}, [X86_64])
    assert outcome(program, X86_64.audit, 42, [0] * 6) == ALLOW
    assert outcome(program, I386.audit, 42, [0] * 6) == ENOSYS
    for number in (0x40000000, 0x40000000 + 42, 0x7FFFFFFF, -1):  # x32, and beyond
        assert outcome(program, X86_64.audit, number, [0] * 6) == ENOSYS


def test_rules_that_are_too_many_are_our_own_fault() -> None:
    with pytest.raises(AssertionError, match="too many"):
        assemble({"connect": [Rule(NOTIFY, has_any(1, 5))] * 99}, [X86_64])


@pytest.mark.parametrize("value", [0, 1, 1 << 32, (1 << 32) - 1, 1 << 63])
def test_a_pointer_is_null_only_in_both_halves(value: int) -> None:
    rules = {"sendto": [Rule(NOTIFY, is_not_null(4))]}
    arguments = [0, 0, 0, 0, value, 0]
    expected = NOTIFY if value else ALLOW
    program = assemble(rules, [X86_64])
    assert outcome(program, X86_64.audit, X86_64.numbers["sendto"], arguments) == expected
