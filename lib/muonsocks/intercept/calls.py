"""System calls by their names: the numbers that an architecture has for them. No I/O.

A processor may run programs of more than one architecture, each with numbers of its own. Of those
that are not here no call at all can be told apart from another.
"""

from __future__ import annotations

import errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


class Architecture:
    """How programs of a kind call the kernel.

    `audit` is its number (AUDIT_ARCH_ in linux/audit.h), `word` the bytes of a pointer, `limit` the
    first number that is none of its own calls, `multiplexed` the calls that are a number given to
    socketcall(2), and then have their arguments in memory.
    """

    __slots__ = ("audit", "limit", "multiplexed", "names", "numbers", "word")

    def __init__(
        self,
        audit: int,
        numbers: Mapping[str, int],
        word: int = 8,
        limit: int = 0,
        multiplexed: Mapping[str, int] | None = None,
    ) -> None:
        self.audit = audit
        self.numbers = numbers
        self.names = {number: name for name, number in numbers.items()}
        self.word = word
        self.limit = limit
        self.multiplexed = {number: name for name, number in (multiplexed or {}).items()}


_X86_64 = {
    "socket": 41,
    "connect": 42,
    "accept": 43,
    "sendto": 44,
    "recvfrom": 45,
    "sendmsg": 46,
    "recvmsg": 47,
    "bind": 49,
    "listen": 50,
    "getsockname": 51,
    "getpeername": 52,
    "setsockopt": 54,
    "getsockopt": 55,
    "accept4": 288,
    "recvmmsg": 299,
    "sendmmsg": 307,
    "setns": 308,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "seccomp": 317,
    "io_uring_setup": 425,
    "pidfd_open": 434,
    "pidfd_getfd": 438,
    "landlock_create_ruleset": 444,
    "landlock_restrict_self": 446,
}
# asm-generic/unistd.h
_GENERIC = {
    "socket": 198,
    "bind": 200,
    "listen": 201,
    "accept": 202,
    "connect": 203,
    "getsockname": 204,
    "getpeername": 205,
    "sendto": 206,
    "recvfrom": 207,
    "setsockopt": 208,
    "getsockopt": 209,
    "sendmsg": 211,
    "recvmsg": 212,
    "accept4": 242,
    "recvmmsg": 243,
    "setns": 268,
    "sendmmsg": 269,
    "process_vm_readv": 270,
    "process_vm_writev": 271,
    "seccomp": 277,
    "io_uring_setup": 425,
    "pidfd_open": 434,
    "pidfd_getfd": 438,
    "landlock_create_ruleset": 444,
    "landlock_restrict_self": 446,
}
_I386 = {
    "socketcall": 102,
    "recvmmsg": 337,
    "sendmmsg": 345,
    "setns": 346,
    "socket": 359,
    "bind": 361,
    "connect": 362,
    "listen": 363,
    "accept4": 364,
    "getsockopt": 365,
    "setsockopt": 366,
    "getsockname": 367,
    "getpeername": 368,
    "sendto": 369,
    "sendmsg": 370,
    "recvfrom": 371,
    "recvmsg": 372,
    "io_uring_setup": 425,
}
# linux/net.h
_SOCKETCALL = {
    "socket": 1,
    "bind": 2,
    "connect": 3,
    "listen": 4,
    "accept": 5,
    "getsockname": 6,
    "getpeername": 7,
    "sendto": 11,
    "recvfrom": 12,
    "setsockopt": 14,
    "getsockopt": 15,
    "sendmsg": 16,
    "recvmsg": 17,
    "accept4": 18,
    "recvmmsg": 19,
    "sendmmsg": 20,
}
_X32 = 0x40000000  # x86_64 with pointers of four bytes: from here on

X86_64 = Architecture(0xC000003E, _X86_64, limit=_X32)
I386 = Architecture(0x40000003, _I386, word=4, multiplexed=_SOCKETCALL)
AARCH64 = Architecture(0xC00000B7, _GENERIC)
RISCV64 = Architecture(0xC00000F3, _GENERIC)

# By what uname(2) has for the machine; its own first.
OF_MACHINE = {"x86_64": (X86_64, I386), "aarch64": (AARCH64,), "riscv64": (RISCV64,)}


def architectures_of(machine: str) -> tuple[Architecture, ...]:
    """Give those whose programs a machine runs and that are known here, its own first. OSError."""
    try:
        return OF_MACHINE[machine]
    except KeyError:
        known = ", ".join(OF_MACHINE)
        reason = f"this is for the machines {known}, and not for {machine}"
        raise OSError(errno.EOPNOTSUPP, reason) from None
