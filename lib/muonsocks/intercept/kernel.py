"""The system calls that Python has no name for. Of this room, the one place with ctypes."""

from __future__ import annotations

import ctypes
import os
from ctypes import c_char_p, c_int, c_long, c_size_t, c_uint, c_ulong, c_void_p
from errno import EINVAL
from struct import Struct

from muonsocks.intercept.calls import X86_64, architectures_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ARCHITECTURES = architectures_of(os.uname().machine)
_NUMBERS = ARCHITECTURES[0].numbers
_library = ctypes.CDLL(None, use_errno=True)

_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3
_SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 1 << 5
_LANDLOCK_CREATE_RULESET_VERSION, _LANDLOCK_KNOWS_TCP = 1, 4
_LANDLOCK_ACCESS_NET_CONNECT_TCP = 1 << 1
_AF_UNSPEC = bytes(16)  # an address of no family: connect(2) with it is to disconnect
_SIGNALS_SIZE = 128  # sigset_t
EPOLL_CTL_ADD, EPOLL_CTL_DEL = 1, 2
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000


class _Filter(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", c_char_p)]


class _EpollEvent(ctypes.Structure):
    """struct epoll_event"""

    _pack_ = 1 if ARCHITECTURES[0] is X86_64 else 8
    _fields_ = [("events", ctypes.c_uint32), ("data", ctypes.c_uint64)]


def _declared(name: str, result: Any, *arguments: Any) -> Any:
    function = ctypes.CFUNCTYPE(result, *arguments, use_errno=True)
    return function((name, _library))


def _system_call(name: str, *arguments: Any) -> Any:
    """Make a function of a system call that the library has no function for."""
    function = _declared("syscall", c_long, c_long, *arguments)
    number = _NUMBERS[name]
    return lambda *values: function(number, *values)


_prctl = _declared("prctl", c_int, c_int, c_ulong, c_ulong, c_ulong, c_ulong)
_connect = _declared("connect", c_int, c_int, c_char_p, c_uint)
_epoll_ctl = _declared("epoll_ctl", c_int, c_int, c_int, c_int, c_void_p)
_signalfd = _declared("signalfd", c_int, c_int, c_char_p, c_int)
_unshare = _declared("unshare", c_int, c_int)
_vm = (c_int, c_size_t, c_ulong, c_size_t, c_ulong, c_ulong)
_process_vm_readv = _declared("process_vm_readv", ctypes.c_ssize_t, *_vm)
_process_vm_writev = _declared("process_vm_writev", ctypes.c_ssize_t, *_vm)
_pidfd_getfd = _system_call("pidfd_getfd", c_int, c_int, c_uint)
_seccomp = _system_call("seccomp", c_uint, c_uint, c_void_p)
_landlock_create_ruleset = _system_call("landlock_create_ruleset", c_void_p, c_size_t, c_uint)
_landlock_restrict_self = _system_call("landlock_restrict_self", c_int, c_uint)


def _expect(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


# This process


def adopt_orphans() -> None:
    """Be the parent of all descendants whose own parents end (PR_SET_CHILD_SUBREAPER)."""
    _expect(_prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")


def allow_inspection() -> None:
    """Let processes of the same user read our memory and descriptors (PR_SET_DUMPABLE)."""
    _expect(_prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl")


def leave_no_core() -> None:
    """Let this process end without a core, whatever ends it (PR_SET_DUMPABLE)."""
    _expect(_prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl")


def give_up_privileges_to_come() -> None:
    """Let no program that is executed get rights that we do not have (PR_SET_NO_NEW_PRIVS)."""
    _expect(_prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")


def signal_descriptor(number: int) -> int:
    """Make a descriptor that does not block, and is readable when a signal has come that is blocked
    (signalfd(2)). OSError.
    """
    signals = (1 << number - 1).to_bytes(_SIGNALS_SIZE, "little")
    return _expect(_signalfd(-1, signals, os.O_NONBLOCK | os.O_CLOEXEC), "signalfd")


def unshare(flags: int) -> None:
    """Be in namespaces of our own from now on. OSError."""
    _expect(_unshare(flags), "unshare")


def forbid_tcp_connections() -> bool:
    """Let neither this process nor its children connect a TCP socket themselves, whatever others
    do to their sockets for them (landlock(7)); say whether this kernel can do that: Linux 6.7.
    OSError.
    """
    version = _landlock_create_ruleset(None, 0, _LANDLOCK_CREATE_RULESET_VERSION)
    if version < _LANDLOCK_KNOWS_TCP:
        return False
    handled = (ctypes.c_uint64 * 2)(0, _LANDLOCK_ACCESS_NET_CONNECT_TCP)
    ruleset = _expect(_landlock_create_ruleset(handled, 16, 0), "landlock_create_ruleset")
    try:
        _expect(_landlock_restrict_self(ruleset, 0), "landlock_restrict_self")
    finally:
        os.close(ruleset)
    return True


def install_filter(instructions: bytes, is_killable: bool) -> int:
    """Filter the system calls of this process and its children; give the descriptor over which they
    are told. With `is_killable` no signal but one that kills ends a call that has been told to
    somebody, where the kernel can do that. OSError, EBUSY if there is such a descriptor already.
    """
    program = _Filter(len(instructions) // 8, instructions)
    flags = _SECCOMP_FILTER_FLAG_NEW_LISTENER
    choices = [flags | _SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, flags] if is_killable else [flags]
    result = -1
    for choice in choices:
        result = _seccomp(_SECCOMP_SET_MODE_FILTER, choice, ctypes.byref(program))
        if result >= 0 or ctypes.get_errno() != EINVAL:  # a flag that is not known here
            break
    return _expect(result, "seccomp")


# Others


# Mostly it is an address of a few bytes, and then all that a call needs is here already: to make it
# each time takes as long as the call.
_SMALL = 2048  # bytes
_small = ctypes.create_string_buffer(_SMALL)
_small_bytes = memoryview(_small).cast("B")
_small_at = ctypes.addressof(_small)
_ranges = ctypes.create_string_buffer(48)  # ours, and up to two of theirs
_ours_at = ctypes.addressof(_ranges)
_theirs_at = _ours_at + 16
_ONE, _TWO = Struct("=4Q"), Struct("=6Q")  # struct iovec is two of these


def read_memory(tid: int, address: int, size: int) -> bytes:
    """Read another process's memory, up to where it ends. OSError."""
    if size <= _SMALL:
        _ONE.pack_into(_ranges, 0, _small_at, size, address, size)
        count = _process_vm_readv(tid, _ours_at, 1, _theirs_at, 1, 0)
        return _small_bytes[: _expect(count, "process_vm_readv")].tobytes()
    buffer = ctypes.create_string_buffer(size)
    _ONE.pack_into(_ranges, 0, ctypes.addressof(buffer), size, address, size)
    count = _process_vm_readv(tid, _ours_at, 1, _theirs_at, 1, 0)
    return buffer.raw[: _expect(count, "process_vm_readv")]


def write_memory(tid: int, address: int, data: bytes) -> int:
    """Write another process's memory, up to where it ends or may not be written; give how far that
    was. OSError.
    """
    size = len(data)
    _ONE.pack_into(_ranges, 0, address_of(data), size, address, size)
    count: int = _process_vm_writev(tid, _ours_at, 1, _theirs_at, 1, 0)
    return _expect(count, "process_vm_writev")


def write_two(tid: int, first: tuple[int, bytes], second: tuple[int, bytes]) -> int:
    """Write at two addresses, one after the other, as `write_memory` does, and in one call; no more
    than 2 KiB in all.
    """
    (one, data), (other, more) = first, second
    size, rest = len(data), len(more)
    _small_bytes[: size + rest] = data + more
    _TWO.pack_into(_ranges, 0, _small_at, size + rest, one, size, other, rest)
    count: int = _process_vm_writev(tid, _ours_at, 1, _theirs_at, 2, 0)
    return _expect(count, "process_vm_writev")


def address_of(data: bytes) -> int:
    """Say where the contents of an object are in our memory, and in that of a child."""
    return ctypes.cast(c_char_p(data), c_void_p).value or 0


def descriptor_of(pidfd: int, fd: int) -> int:
    """Get a duplicate of another process's descriptor, closed on exec. OSError."""
    return _expect(_pidfd_getfd(pidfd, fd, 0), "pidfd_getfd")


# Sockets and epolls


def connect(fd: int, address: bytes) -> int:
    """Call connect(2) with an address as the kernel has it; give the errno, 0 if it succeeds."""
    return 0 if _connect(fd, address, len(address)) == 0 else ctypes.get_errno()


def disconnect(fd: int) -> None:
    """Have a socket be as if it had never been connected. OSError."""
    _expect(_connect(fd, _AF_UNSPEC, len(_AF_UNSPEC)), "connect")


def watch(epoll: int, fd: int, events: int, data: int) -> None:
    """Add a descriptor to an epoll, with all the data that is told with its events. OSError."""
    event = _EpollEvent(events, data)
    _expect(_epoll_ctl(epoll, EPOLL_CTL_ADD, fd, ctypes.byref(event)), "epoll_ctl")


def unwatch(epoll: int, fd: int) -> None:
    """Take a descriptor out of an epoll. OSError, ENOENT if it is not in it."""
    _expect(_epoll_ctl(epoll, EPOLL_CTL_DEL, fd, None), "epoll_ctl")
