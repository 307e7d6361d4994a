"""What sendmsg(2) is given, in the memory of a real child."""

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from typing import Any

import pytest
from filtered import LIBRARY, child, next_call

from muonsocks.intercept.bpf import NOTIFY, Rule
from muonsocks.intercept.messages import LARGEST, read_data, read_message, size_of
from muonsocks.intercept.notify import Call, Refused

SEND = {"sendmsg": [Rule(NOTIFY)]}
NAME = b"\2\0\0\x35\xc0\0\2\x35" + bytes(8)
UDP, SEGMENT, CREDENTIALS = 17, 103, struct.pack("=Qii", 20, 1, 2) + bytes(8)


def control(level: int, kind: int, data: bytes) -> bytes:
    """A struct cmsghdr with what is in it, cmsg(3)."""
    return struct.pack("=Qii", 16 + len(data), level, kind) + data + bytes(-len(data) % 8)


class Sent:
    """A message that a child sends; `look` is called with the call and where the message is."""

    def __init__(
        self,
        parts: tuple[bytes, ...] = (b"data",),
        name: bytes = NAME,
        controls: bytes = b"",
        name_length: int | None = None,
        count: int | None = None,
        size: int | None = None,
    ) -> None:
        buffers = [ctypes.create_string_buffer(part, len(part)) for part in parts]
        vector = b"".join(
            struct.pack("=QQ", ctypes.addressof(one), len(one) if size is None else size)
            for one in buffers
        )
        iovec, where = ctypes.create_string_buffer(vector), ctypes.create_string_buffer(name)
        held = ctypes.create_string_buffer(controls, max(1, len(controls)))
        header = struct.pack(
            "=QI4xQQQQ8x",
            ctypes.addressof(where),
            len(name) if name_length is None else name_length,
            ctypes.addressof(iovec),
            len(parts) if count is None else count,
            ctypes.addressof(held) if controls else 0,
            len(controls),
        )
        self.header = ctypes.create_string_buffer(header, len(header))
        self._kept = buffers, iovec, where, held

    def look(self, look: Callable[[Call, int], Any]) -> Any:
        def program(_: object) -> None:
            LIBRARY.sendmsg(0, self.header, 0)

        with child(SEND, program) as (listener, _):
            call = next_call(listener)
            assert size_of(call) == len(self.header)
            return look(call, call.arguments[1])


def test_its_parts_are_put_together() -> None:
    message = Sent((b"one ", b"", b"two")).look(read_message)
    assert (message.name, message.data, message.segment) == (NAME, b"one two", 0)


def test_it_need_not_have_a_name() -> None:
    assert Sent(name_length=0).look(read_message).name is None


def test_no_name_is_longer_than_any_address() -> None:
    assert len(Sent(name=bytes(500)).look(read_message).name) == 128


@pytest.mark.parametrize(
    ("controls", "segment"),
    [
        (control(UDP, SEGMENT, struct.pack("=H", 1200)), 1200),
        (CREDENTIALS + control(UDP, SEGMENT, struct.pack("=H", 9)), 9),
        (control(UDP, 104, struct.pack("=H", 7)) + control(1, SEGMENT, b"ab"), 0),
        (b"too short for one", 0),
    ],
)
def test_how_it_is_cut(controls: bytes, segment: int) -> None:
    if controls == b"too short for one":
        controls = controls[:15]
    assert Sent(controls=controls).look(read_message).segment == segment


@pytest.mark.parametrize(
    ("sent", "number"),
    [
        (Sent(count=1025), errno.EMSGSIZE),
        (Sent((b"x",) * 2, size=LARGEST // 2 + 1), errno.EMSGSIZE),
        (Sent(size=1 << 63), errno.EMSGSIZE),
        (Sent(name_length=1 << 31), errno.EINVAL),
        (Sent(controls=bytes(4097)), errno.ENOBUFS),
        (Sent(controls=struct.pack("=Qii", 15, UDP, SEGMENT)), errno.EINVAL),
        (Sent(controls=struct.pack("=Qii", 17, UDP, SEGMENT)), errno.EINVAL),
        (Sent(controls=struct.pack("=Qii", 1 << 63, UDP, SEGMENT)), errno.EINVAL),
    ],
)
def test_what_the_kernel_would_not_take(sent: Sent, number: int) -> None:
    with pytest.raises(Refused) as failure:
        sent.look(read_message)
    assert failure.value.errno == number, os.strerror(failure.value.errno)


def test_memory_that_is_not_there() -> None:
    for place in (8, 1 << 62):
        with pytest.raises(Refused) as failure:
            Sent().look(lambda call, _, place=place: read_message(call, place))
        assert failure.value.errno == errno.EFAULT


def test_data_may_be_as_long_as_a_datagram() -> None:
    def look(call: Call, at: int) -> None:
        assert read_data(call, at, 0) == b""
        with pytest.raises(Refused) as failure:
            read_data(call, at, LARGEST + 1)
        assert failure.value.errno == errno.EMSGSIZE

    Sent().look(look)
