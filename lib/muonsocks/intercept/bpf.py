"""Which system calls are let through, refused, or told to us: rules, and a filter of them. No I/O.

The kernel runs the filter at every call (seccomp(2), and classic BPF as in linux/filter.h). It sees
the number of the call and its arguments, but no memory that they point to. A call without rules is
let through, and so is one that none of its rules is about; the first rule that is decides.

    {"connect": (Rule(NOTIFY),),
     "sendto": (Rule(refuse(errno.EOPNOTSUPP), has_any(3, MSG_FASTOPEN)),
                Rule(NOTIFY, is_not_null(4)))}
"""

from __future__ import annotations

import errno
from struct import Struct

from muonsocks.intercept.calls import Architecture

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    Rules = Mapping[str, Sequence["Rule"]]

# linux/seccomp.h: what a filter returns
ALLOW = 0x7FFF0000
NOTIFY = 0x7FC00000
_ERRNO = 0x00050000

_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN, _JUMP = 0x20, 0x54, 0x15, 0x35, 0x06, 0x05
_INSTRUCTION = Struct("=HBBI")  # struct sock_filter: code, jump if true, jump if false, k
_NUMBER, _AUDIT, _ARGUMENTS = 0, 4, 16  # places in struct seccomp_data
_HALF = 0xFFFFFFFF
_WHOLE = 0xFFFFFFFF_FFFFFFFF


def refuse(number: int) -> int:
    """Give what a filter returns to have a call fail with an errno."""
    return _ERRNO | number


class Condition:
    """Something about an argument, counted from 0: that the bits of `mask` are those of `value`,
    or, if not `is_equal`, that they are not.
    """

    __slots__ = ("argument", "is_equal", "mask", "value")

    def __init__(self, argument: int, mask: int, value: int, is_equal: bool = True) -> None:
        self.argument = argument
        self.mask = mask
        self.value = value
        self.is_equal = is_equal

    def holds(self, arguments: Sequence[int]) -> bool:
        """Say whether it is so of these arguments."""
        return (arguments[self.argument] & self.mask == self.value) == self.is_equal


def equals(argument: int, value: int, mask: int = _HALF) -> Condition:
    """An argument that is an int, or some bits of it, has a value."""
    return Condition(argument, mask, value)


def has_any(argument: int, bits: int) -> Condition:
    """An argument that is an int has at least one of some bits."""
    return Condition(argument, bits, 0, is_equal=False)


def is_not_null(argument: int) -> Condition:
    """An argument that is a pointer is not null."""
    return Condition(argument, _WHOLE, 0, is_equal=False)


class Rule:
    """What becomes of a call of which all the conditions hold."""

    __slots__ = ("conditions", "verdict")

    def __init__(self, verdict: int, *conditions: Condition) -> None:
        self.verdict = verdict
        self.conditions = conditions


def joined(*several: Rules) -> Rules:
    """Give the rules of all these, of the first ones first."""
    names = dict.fromkeys(name for rules in several for name in rules)
    return {name: tuple(one for rules in several for one in rules.get(name, ())) for name in names}


def verdict(rules: Iterable[Rule], arguments: Sequence[int]) -> int:
    """Say what becomes of a call with these arguments, as the filter does."""
    for rule in rules:
        if all(condition.holds(arguments) for condition in rule.conditions):
            return rule.verdict
    return ALLOW


def assemble(rules: Rules, architectures: Iterable[Architecture]) -> bytes:
    """Make the filter: calls of other architectures than these fail with ENOSYS, and so does what
    is beyond the numbers of one.
    """
    program = _Program()
    for architecture in architectures:
        program.load(_AUDIT)
        is_it = program.jump(_EQUAL, architecture.audit)
        skip = program.add(_JUMP, 0)  # which may be far
        program.land(is_it, if_true=True)
        _assemble_one(program, rules, architecture)
        program.returns(ALLOW)
        program.land_far(skip)
    program.returns(refuse(errno.ENOSYS))
    return program.bytes()


def _assemble_one(program: _Program, rules: Rules, architecture: Architecture) -> None:
    program.load(_NUMBER)
    if architecture.limit:
        skip = program.jump(_AT_LEAST, architecture.limit)
        program.returns(refuse(errno.ENOSYS))
        program.land_else(skip)
    for name, rules_of_call in rules.items():
        number = architecture.numbers.get(name)
        if number is not None:
            skip = program.jump(_EQUAL, number)
            _assemble_rules(program, rules_of_call)
            program.land_else(skip)  # with the number still loaded
    if architecture.multiplexed:
        skip = program.jump(_EQUAL, architecture.numbers["socketcall"])
        # Its other arguments are in memory, which only we can read.
        told = [number for number, name in architecture.multiplexed.items() if name in rules]
        _assemble_rules(program, [Rule(NOTIFY, equals(0, number)) for number in told])
        program.land_else(skip)


def _assemble_rules(program: _Program, rules: Iterable[Rule]) -> None:
    for rule in rules:
        misses = [place for one in rule.conditions for place in _assemble_condition(program, one)]
        program.returns(rule.verdict)
        for place, if_true in misses:
            program.land(place, if_true)
    program.returns(ALLOW)


def _assemble_condition(program: _Program, condition: Condition) -> list[tuple[int, bool]]:
    """Give the jumps that are taken where it does not hold."""
    misses: list[tuple[int, bool]] = []
    holds: list[int] = []
    halves = [half for half in (0, 1) if condition.mask >> 32 * half & _HALF]
    for half in halves:
        mask = condition.mask >> 32 * half & _HALF
        program.load(_ARGUMENTS + 8 * condition.argument + 4 * half)  # little-endian
        if mask != _HALF:
            program.add(_AND, mask)
        place = program.jump(_EQUAL, condition.value >> 32 * half & _HALF)
        if condition.is_equal:
            misses.append((place, False))
        elif half == halves[-1]:
            misses.append((place, True))
        else:
            holds.append(place)  # one half that differs will do
    for place in holds:
        program.land_else(place)
    return misses


class _Program:
    """A filter in the making. All jumps lead forward; with a condition, not far."""

    __slots__ = ("_instructions",)

    def __init__(self) -> None:
        self._instructions: list[list[int]] = []

    def add(self, code: int, k: int) -> int:
        self._instructions.append([code, 0, 0, k])
        return len(self._instructions) - 1

    def load(self, place: int) -> None:
        self.add(_LOAD, place)

    def returns(self, what: int) -> None:
        self.add(_RETURN, what)

    def jump(self, code: int, k: int) -> int:
        """Compare what is loaded; both ways lead to the next instruction, up to a `land`."""
        return self.add(code, k)

    def land(self, place: int, if_true: bool) -> None:
        """Let a jump lead to the instruction that comes next."""
        distance = len(self._instructions) - place - 1
        assert distance < 256, "the rules of one call are too many"
        self._instructions[place][1 if if_true else 2] = distance

    def land_else(self, place: int) -> None:
        self.land(place, False)

    def land_far(self, place: int) -> None:
        """Let a jump without a condition lead to the instruction that comes next."""
        self._instructions[place][3] = len(self._instructions) - place - 1

    def bytes(self) -> bytes:
        """Give the filter as the kernel takes it."""
        return b"".join(_INSTRUCTION.pack(*one) for one in self._instructions)
