"""What sendmsg(2) and sendmmsg(2) are given, read from a program's memory: struct msghdr."""

from __future__ import annotations

import errno
from struct import Struct

from muonsocks.intercept.notify import Call, Refused
from muonsocks.intercept.socket_address import LONGEST

_HEADERS = {8: Struct("=QI4xQQQQ8x"), 4: Struct("=6I4x")}  # by the bytes of a pointer
_PARTS = {8: Struct("=QQ"), 4: Struct("=II")}  # struct iovec
_CONTROLS = {8: Struct("=Qii"), 4: Struct("=Iii")}  # struct cmsghdr
_MOST_PARTS = 1024  # UIO_MAXIOV
_LONGEST_CONTROL = 4096  # bytes
LARGEST = 65535  # bytes of a datagram
_SOL_UDP, _UDP_SEGMENT = 17, 103


class Message:
    """A datagram to be sent: to `name`, a socket address, or None for where the socket is connected
    to. `segment` is the bytes of each piece that it is to be sent in, or 0: of what else is said of
    how it is sent nothing is kept.
    """

    __slots__ = ("data", "name", "name_at", "segment")

    def __init__(self, name: bytes | None, name_at: int, data: bytes, segment: int = 0) -> None:
        self.name = name
        self.name_at = name_at
        self.data = data
        self.segment = segment


def size_of(call: Call) -> int:
    """Give the bytes of a struct msghdr."""
    return _HEADERS[call.architecture.word].size


def read_message(call: Call, place: int) -> Message:
    """Read one that is sent. Refused as the kernel would."""
    word = call.architecture.word
    header = _HEADERS[word]
    name_at, length, parts_at, count, control_at, control_length = header.unpack(
        call.read(place, header.size)
    )
    name = _read_name(call, name_at, length)
    data = _read_parts(call, parts_at, count)
    segment = 0
    if control_at and control_length:
        if control_length > _LONGEST_CONTROL:
            raise Refused(errno.ENOBUFS)
        segment = _segment(call.read(control_at, control_length), word)
    return Message(name, name_at, data, segment)


def _read_name(call: Call, place: int, length: int) -> bytes | None:
    """Read a socket address; None if there is none."""
    length &= 0xFFFFFFFF
    if not place or not length:
        return None
    if length >> 31:
        raise Refused(errno.EINVAL)
    return call.read(place, min(length, LONGEST))


def read_data(call: Call, place: int, size: int) -> bytes:
    """Read what is to be sent in a datagram."""
    if size > LARGEST:
        raise Refused(errno.EMSGSIZE)
    return call.read(place, size)


def _read_parts(call: Call, place: int, count: int) -> bytes:
    if count > _MOST_PARTS:
        raise Refused(errno.EMSGSIZE)
    part = _PARTS[call.architecture.word]
    parts = [*part.iter_unpack(call.read(place, count * part.size))]
    if sum(size for _, size in parts) > LARGEST:
        raise Refused(errno.EMSGSIZE)
    return b"".join(call.read(start, size) for start, size in parts)


def _segment(control: bytes, word: int) -> int:
    """Find UDP_SEGMENT, udp(7)."""
    head = _CONTROLS[word]
    place = 0
    while len(control) - place >= head.size:
        length, level, kind = head.unpack_from(control, place)
        if length < head.size or length > len(control) - place:
            raise Refused(errno.EINVAL)
        if (level, kind) == (_SOL_UDP, _UDP_SEGMENT):
            return int.from_bytes(control[place + head.size : place + head.size + 2], "little")
        place += (length + word - 1) // word * word
    return 0
