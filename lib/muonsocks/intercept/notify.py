"""System calls of another process that wait for our answer: seccomp_unotify(2).

Whoever reads the memory of the caller has to look afterwards whether the call still waits: if not,
the memory may be that of a process that has got the number since. `Call.read` does.
"""

from __future__ import annotations

import errno
import os
from _socket import socket
from fcntl import ioctl
from struct import Struct

from muonsocks.intercept import kernel
from muonsocks.intercept.calls import Architecture
from muonsocks.intercept.descriptors import Descriptors
from muonsocks.intercept.socket_address import LONGEST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_NOTIFICATION = Struct("=QIIiIQ6Q")  # struct seccomp_notif, with its seccomp_data
_RESPONSE = Struct("=QqiI")  # struct seccomp_notif_resp
_ADDITION = Struct("=QIIII")  # struct seccomp_notif_addfd
_ID = Struct("=Q")

_RECEIVE, _SEND, _IS_VALID, _ADD = 0xC0502100, 0xC0182101, 0x40082102, 0x40182103
_SET_FLAGS, _WAKE_HERE = 0x40082104, 1  # SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP, Linux 6.6
_CONTINUE = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
_IN_PLACE, _AND_ANSWER = 1, 2  # SECCOMP_ADDFD_FLAG_SETFD, _SEND
_ARGUMENTS_OF = {  # of socketcall(2): how many there are in memory
    **dict.fromkeys(("listen",), 2),
    **dict.fromkeys(("socket", "bind", "connect", "accept", "getsockname", "getpeername"), 3),
    **dict.fromkeys(("sendmsg", "recvmsg"), 3),
    **dict.fromkeys(("accept4", "sendmmsg"), 4),
    **dict.fromkeys(("setsockopt", "getsockopt", "recvmmsg"), 5),
    **dict.fromkeys(("sendto", "recvfrom"), 6),
}


class Refused(OSError):
    """What a call is to fail with, by its `errno`, as it would have without us."""

    def __init__(self, number: int) -> None:
        super().__init__(number, os.strerror(number))


class CallGone(Exception):
    """Nobody waits for an answer any more: the caller has been killed, or a signal has come."""


class Listener:
    """Where the calls of all processes come in that have a filter, which is over `fd`. What those
    processes have open is had by `descriptors`.
    """

    __slots__ = ("_architectures", "descriptors", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.descriptors = Descriptors()
        self._architectures = {one.audit: one for one in kernel.ARCHITECTURES}

    def wake_here(self) -> None:
        """Have whoever is woken, of the caller and us, go on where the other one has just stopped:
        another processor would have to be woken itself. OSError.
        """
        try:
            ioctl(self.fd, _SET_FLAGS, _WAKE_HERE)
        except OSError as error:
            if error.errno != errno.EINVAL:  # before Linux 6.6
                raise

    def receive(self) -> Call | None:
        """Take a call; None if the one that was there is gone. To be called when `fd` is readable,
        or it waits. OSError.
        """
        buffer = bytearray(_NOTIFICATION.size)
        try:
            ioctl(self.fd, _RECEIVE, buffer)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        identity, tid, _, number, audit, _, *arguments = _NOTIFICATION.unpack(buffer)
        architecture = self._architectures[audit]  # the filter refuses all others
        return Call(self, identity, tid, architecture, number, arguments)

    def close(self) -> None:
        """Let every call that waits, and every one to come, fail with ENOSYS."""
        os.close(self.fd)
        self.descriptors.close()


class Call:
    """A call. It is answered once: by `succeed`, `fail`, `go_on`, `give` or `hand_in`.

    `tid` is the thread that calls. All methods raise CallGone where there is nobody any more, and
    OSError as what they are made of.
    """

    __slots__ = ("_listener", "architecture", "arguments", "identity", "name", "number", "tid")

    def __init__(
        self,
        listener: Listener,
        identity: int,
        tid: int,
        architecture: Architecture,
        number: int,
        arguments: Sequence[int],
    ) -> None:
        self._listener = listener
        self.identity = identity
        self.tid = tid
        self.architecture = architecture
        self.number = number
        self.arguments = arguments
        self.name = architecture.names.get(number, "")  # "" for what no rule can be about

    def unwrap(self) -> None:
        """Be the call that a socketcall(2) stands for."""
        kind = self.architecture.multiplexed.get(self.arguments[0], "")
        count = _ARGUMENTS_OF.get(kind, 0)
        data = self.read(self.arguments[1], count * self.architecture.word)
        word = self.architecture.word
        words = [int.from_bytes(data[at : at + word], "little") for at in range(0, len(data), word)]
        self.name = kind
        self.arguments = words + [0] * (6 - len(words))

    def is_waiting(self) -> bool:
        """Say whether somebody still waits for an answer."""
        try:
            ioctl(self._listener.fd, _IS_VALID, _ID.pack(self.identity))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def expect_waiting(self) -> None:
        """Raise CallGone if nobody waits for an answer any more."""
        if not self.is_waiting():
            raise CallGone

    # The caller's memory

    def read(self, address: int, size: int) -> bytes:
        """Read the caller's memory. OSError; Refused if there is not as much."""
        try:
            data = kernel.read_memory(self.tid, address, size) if size else b""
        except OSError as error:
            self.expect_waiting()
            if error.errno == errno.EFAULT:
                raise Refused(errno.EFAULT) from None
            raise
        self.expect_waiting()
        if len(data) < size:
            raise Refused(errno.EFAULT)
        return data

    def write(self, address: int, data: bytes) -> None:
        """Write the caller's memory. OSError; Refused if it may not be written."""
        self.expect_waiting()
        try:
            count = kernel.write_memory(self.tid, address, data) if data else 0
        except OSError as error:
            if error.errno == errno.EFAULT:
                raise Refused(errno.EFAULT) from None
            raise
        if count < len(data):
            raise Refused(errno.EFAULT)

    def read_address(self, address: int, length: int) -> bytes:
        """Read a socket address, as connect(2) is given it: `length` is an argument. OSError;
        Refused if that cannot be.
        """
        size = int_of(length)
        if not 0 <= size <= LONGEST:
            raise Refused(errno.EINVAL)
        return self.read(address, size)

    def read_int(self, address: int) -> int:
        """Read an int."""
        return int.from_bytes(self.read(address, 4), "little", signed=True)

    def write_int(self, address: int, value: int) -> None:
        """Write an int."""
        self.write(address, value.to_bytes(4, "little", signed=True))

    def room_at(self, address: int) -> int:
        """Read how much room there is for something. Refused if that cannot be."""
        room = self.read_int(address)
        if room < 0:
            raise Refused(errno.EINVAL)
        return room

    def write_address(self, address: int, length_at: int, name: bytes) -> None:
        """Write a socket address as getsockname(2) does: as much as there is room for, and how long
        it is.
        """
        room = self.room_at(length_at)
        self.write_two((address, name[:room]), (length_at, len(name).to_bytes(4, "little")))

    def write_option(self, value: bytes) -> None:
        """Write the value of an option as getsockopt(2) does: as much as there is room for, and how
        long that is.
        """
        at, length_at = self.arguments[3:5]
        value = value[: self.room_at(length_at)]
        self.write_two((at, value), (length_at, len(value).to_bytes(4, "little")))

    def write_two(self, first: tuple[int, bytes], second: tuple[int, bytes]) -> None:
        """Write the caller's memory at two addresses, as `write` does at one."""
        self.expect_waiting()
        try:
            count = kernel.write_two(self.tid, first, second)
        except OSError as error:
            if error.errno == errno.EFAULT:
                raise Refused(errno.EFAULT) from None
            raise
        if count < len(first[1]) + len(second[1]):
            raise Refused(errno.EFAULT)

    # The caller's descriptors

    @property
    def fd(self) -> int:
        """The first argument, as a descriptor."""
        return int_of(self.arguments[0])

    def descriptor(self, fd: int) -> int:
        """Get a duplicate of a descriptor. OSError; Refused if there is none."""
        got = self._unconfirmed(fd)
        if not self.is_waiting():
            os.close(got)
            raise CallGone
        return got

    def _unconfirmed(self, fd: int) -> int:
        if fd < 0:
            raise Refused(errno.EBADF)
        try:
            return self._listener.descriptors.get(self.tid, fd)
        except ProcessLookupError:
            raise CallGone from None
        except OSError as error:
            if error.errno == errno.EBADF:
                raise Refused(errno.EBADF) from None
            raise

    def duplicate(self, is_confirmed: bool = True) -> socket:
        """Get a duplicate of the socket that the first argument is. OSError; Refused if it is
        none. Unless it `is_confirmed`, it may be anybody's until `read` is done.
        """
        fd = self.descriptor(self.fd) if is_confirmed else self._unconfirmed(self.fd)
        try:
            return socket(fileno=fd)
        except OSError as error:
            os.close(fd)
            raise Refused(error.errno or errno.ENOTSOCK) from None

    def put(self, sock: socket, fd: int, is_closed_on_exec: bool) -> None:
        """Let a descriptor of the caller's be a socket from now on."""
        flags = os.O_CLOEXEC if is_closed_on_exec else 0
        self._add(_IN_PLACE, sock.fileno(), fd, flags)

    def give(self, fd: int, is_closed_on_exec: bool) -> None:
        """Answer with a new descriptor, which is ours, too."""
        self._add(_AND_ANSWER, fd, 0, os.O_CLOEXEC if is_closed_on_exec else 0)

    def hand_in(self, fd: int, is_closed_on_exec: bool) -> None:
        """The same in two steps, for a call that only a signal that kills can end. When we are
        stopped or frozen amid the one step, the call has returned 0, and nothing has been given.
        """
        self.succeed(self._add(0, fd, 0, os.O_CLOEXEC if is_closed_on_exec else 0))

    def _add(self, how: int, ours: int, theirs: int, flags: int) -> int:
        return self._ioctl(_ADD, _ADDITION.pack(self.identity, how, ours, theirs, flags))

    # Answers

    def succeed(self, value: int = 0) -> None:
        """Let the call have returned a value."""
        self._ioctl(_SEND, _RESPONSE.pack(self.identity, value, 0, 0))

    def fail(self, number: int) -> None:
        """Let the call have failed with an errno."""
        self._ioctl(_SEND, _RESPONSE.pack(self.identity, 0, -number, 0))

    def go_on(self) -> None:
        """Let the kernel do the call. It reads all that is in memory once more, where it may have
        been changed: nothing may depend on what we have read there.
        """
        self._ioctl(_SEND, _RESPONSE.pack(self.identity, 0, 0, _CONTINUE))

    def _ioctl(self, what: int, argument: bytes) -> int:
        try:
            result: int = ioctl(self._listener.fd, what, bytearray(argument))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINPROGRESS):  # gone, or answered
                raise CallGone from None
            raise
        return result


def int_of(argument: int) -> int:
    """Give an argument that is an int."""
    return (argument & 0xFFFFFFFF ^ 0x80000000) - 0x80000000
