"""The numbers of system calls, against the headers of the kernel."""

import errno
import os
import re
from pathlib import Path

import pytest

from muonsocks.intercept.calls import (
    AARCH64,
    I386,
    OF_MACHINE,
    RISCV64,
    X86_64,
    Architecture,
    architectures_of,
)

INCLUDE = Path("/usr/include")
OF_X86 = ("x86_64-linux-gnu/asm", "asm")
HEADERS = {
    "x86_64": (X86_64, [f"{place}/unistd_64.h" for place in OF_X86]),
    "i386": (I386, [f"{place}/unistd_32.h" for place in OF_X86]),
    "aarch64": (AARCH64, ["asm-generic/unistd.h"]),
    "riscv64": (RISCV64, ["asm-generic/unistd.h"]),
}


def defined(paths: list[str], prefix: str) -> dict[str, int]:
    for path in paths:
        if (INCLUDE / path).exists():
            text = (INCLUDE / path).read_text()
            found = re.findall(rf"^#define {prefix}(\w+)\s+\(?(0x[0-9a-fA-F]+|\d+)", text, re.M)
            return {name.lower(): int(value, 0) for name, value in found}
    pytest.skip(f"there is no {paths[0]}, of linux-libc-dev")


@pytest.mark.parametrize("name", HEADERS)
def test_numbers(name: str) -> None:
    architecture, paths = HEADERS[name]
    known = defined(paths, "__NR_")
    assert architecture.numbers == {one: known[one] for one in architecture.numbers}
    assert all(architecture.names[number] == one for one, number in architecture.numbers.items())


def test_the_numbers_of_socketcall() -> None:
    known = defined(["linux/net.h"], "SYS_")
    assert I386.multiplexed == {known[name]: name for name in I386.multiplexed.values()}


def test_the_numbers_of_architectures() -> None:
    """linux/audit.h: the machine of an ELF file, and how many bits and in which order."""
    machines = defined(["linux/elf-em.h"], "EM_")
    little, wide = 0x40000000, 0x80000000
    assert X86_64.audit == machines["x86_64"] | little | wide
    assert I386.audit == machines["386"] | little
    assert AARCH64.audit == machines["aarch64"] | little | wide
    assert RISCV64.audit == machines["riscv"] | little | wide


@pytest.mark.parametrize("architecture", [one for few in OF_MACHINE.values() for one in few])
def test_all_that_may_be_called_otherwise_is_known(architecture: Architecture) -> None:
    """What a machine has as calls of their own and in socketcall(2) is known as both."""
    own = {"socket", "bind", "connect", "listen", "sendto", "sendmsg", "sendmmsg", "accept4"}
    assert own <= set(architecture.numbers)
    if "socketcall" in architecture.numbers:
        assert own <= set(architecture.multiplexed.values())


def test_this_machine_is_known() -> None:
    assert architectures_of(os.uname().machine)[0].numbers["connect"]


def test_a_machine_that_is_not_known_is_named() -> None:
    with pytest.raises(OSError, match=r"for the machines x86_64, .*, and not for vax") as raised:
        architectures_of("vax")
    assert raised.value.errno == errno.EOPNOTSUPP
