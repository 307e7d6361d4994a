"""The program's process before it is that: it gets a filter, and waits at a gate until somebody
answers its calls. And the other side of the gate, which gets what it has made.
"""

from __future__ import annotations

import errno
import os
from _signal import (
    SIG_DFL,
    SIG_SETMASK,
    getsignal,
    pthread_sigmask,
    signal,
    valid_signals,
)
from _socket import socket
from array import array

from muonsocks.intercept import kernel
from muonsocks.intercept.in_front import FAILED
from muonsocks.intercept.notify import Listener

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    # Becomes the program, or gives an exit status if that cannot be.
    Become = Callable[[], int]

_READY, _LONGEST_WORD = b"\0", 400  # and the numbers of descriptors, or else why not
_PROBE = bytes(16)  # at the same place in the memory of a child
_CONTAINER = "a container may need the capability SYS_PTRACE, or a seccomp profile that allows it"


def be_program(
    gate: socket,
    become: Become,
    instructions: bytes,
    prepare: Callable[[], list[int]] | None,
    is_killable: bool,
    mask: set[int],
) -> NoReturn:
    """Make what `prepare` does, then the filter; tell the other side; be the program when that lets
    it, with the signals of `mask` blocked. Nobody is there to answer if the gate is closed.
    """
    status = FAILED
    try:
        try:
            others = prepare() if prepare is not None else []
            word = _READY + array("i", [install(instructions, is_killable), *others]).tobytes()
        except OSError as error:
            word = (error.strerror or str(error)).encode()[:_LONGEST_WORD]
        os.write(gate.fileno(), word)  # which no filter is about
        if os.read(gate.fileno(), 1):
            for number in valid_signals():
                if callable(getsignal(number)):
                    signal(number, SIG_DFL)  # as exec(3) does; one may have come already
            pthread_sigmask(SIG_SETMASK, mask)
            status = become()
    finally:
        os._exit(status)


def install(instructions: bytes, is_killable: bool = True) -> int:
    """Install the filter. With CAP_SYS_ADMIN setuid programs go on to work; without, they get no
    rights from then on, as the kernel asks for that (NO_NEW_PRIVS). OSError, which says what is in
    the way.
    """
    try:
        try:
            return kernel.install_filter(instructions, is_killable)
        except OSError as error:
            if error.errno != errno.EACCES:
                raise
        kernel.give_up_privileges_to_come()  # what only CAP_SYS_ADMIN does without
        return kernel.install_filter(instructions, is_killable)
    except OSError as error:
        if error.errno == errno.EBUSY:
            reason = "another one answers for this process already: it cannot be run in itself"
            raise OSError(error.errno, reason) from None
        raise failed("seccomp", error) from None


def received(pid: int, gate: socket) -> tuple[Listener, list[int]]:
    """Get the listener, and the other descriptors, from the process that has made them.
    OSError, which says what it takes.
    """
    data = gate.recv(_LONGEST_WORD) or b"the process has been killed"
    if data[:1] != _READY:
        raise OSError(errno.EPERM, data.decode("utf-8", "replace"))
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        raise failed("pidfd_open", error) from None
    got: list[int] = []
    try:
        for number in memoryview(data[1:]).cast("i"):
            got.append(kernel.descriptor_of(pidfd, number))
    except OSError as error:
        for fd in got:
            os.close(fd)
        raise failed("pidfd_getfd", error) from None
    finally:
        os.close(pidfd)
    try:
        place = kernel.address_of(_PROBE)
        kernel.write_memory(pid, place, kernel.read_memory(pid, place, len(_PROBE)))
    except OSError as error:
        for fd in got:
            os.close(fd)
        raise failed("process_vm_readv or process_vm_writev", error) from None
    return Listener(got[0]), got[1:]


def failed(what: str, error: OSError) -> OSError:
    """Give an error that says which call it is that has failed, and what it takes."""
    number = error.errno or errno.EPERM
    if number == errno.EPERM:
        reason = f"{what} is not permitted here; {_CONTAINER}"
    elif number == errno.ENOSYS:
        reason = f"{what} is not there; it takes Linux 5.14, and a sandbox that has it, too"
    else:
        reason = f"{what}: {os.strerror(number)}"
    return OSError(number, reason)
