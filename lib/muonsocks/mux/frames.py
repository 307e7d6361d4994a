"""What goes over the port: frames, as virtio-mux(7) describes them. No I/O.

    u16 connection   little-endian, as all numbers but those in an address
    u16 length
    length bytes     of that connection's data; of connection 0xffff a control message

A control message is a HELLO, which begins with MAGIC, or it begins with its type:

    HELLO    MAGIC  u16 version  u16 connections  8 bytes number  8 bytes echo
    OPEN     1  u16 connection  u32 window  address
    ANSWER   2  u16 connection  u32 window  u8 code  address
    CREDIT   3  u16 connection  u32 bytes
    EOF      4  u16 connection
    RESET    5  u16 connection  u8 reason
    DONE     6  u16 connection
    PING     7  8 bytes
    PONG     8  the 8 bytes of the PING
    GOODBYE  9  ASCII text

An address is ATYP, address and port as in RFC 1928 section 4.

MAGIC is on the wire in a HELLO and nowhere else: so a receiver finds one behind whatever it has got
of an earlier session, be it half a frame. Its bytes are from 0x80 to 0xfe, while connections and
lengths are below 0x8000: no header has a part in it but by its first byte, behind all the others.
Control messages have no room for it. In data it is divided between two frames.

Half a frame of one who is gone may be what the HELLO of the next one follows, and must not be
completed by it. So a receiver waits with a frame that ends as a HELLO begins, in what it has got so
far; and a sender puts an empty control message behind such a frame, which means nothing.
"""

from __future__ import annotations

from _struct import Struct

from muonsocks.errors import RemoteProtocolError
from muonsocks.socks.request import Event
from muonsocks.socks.socks5 import decode_endpoint, encode_endpoint, endpoint_length

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.address import Endpoint

VERSION = 1
CONTROL = 0xFFFF  # the connection that is none
MOST_CONNECTIONS = 0x8000
LARGEST = 0x7FFC  # bytes in a frame; with its header what a virtio port takes in one write
HEADER = Struct("<HH")
WHOLE = HEADER.size + LARGEST
MAGIC = bytes.fromhex("fea39e96cec7f5efa5d7fca080bc8ca6feebc0f5e0c48bbd95c9bfb8e2a9bac1")
NUMBER = 8  # bytes of a session's number
NO_NUMBER = bytes(NUMBER)
_ALMOST_MAGIC = MAGIC[:-1]  # a header may follow that begins with the rest

_OPEN, _ANSWER, _CREDIT, _EOF, _RESET, _DONE, _PING, _PONG, _GOODBYE = range(1, 10)
_LONGEST_GOODBYE = 200  # bytes of its text

_hello = Struct(f"<{len(MAGIC)}sHH{NUMBER}s{NUMBER}s")
_open = Struct("<BHI")
_answer = Struct("<BHIB")
_credit = Struct("<BHI")
_about = Struct("<BH")
_reset = Struct("<BHB")

NOTHING = HEADER.pack(CONTROL, 0)  # an empty message
HELLO_START = HEADER.pack(CONTROL, _hello.size) + MAGIC
_OF_HELLO_START = frozenset(HELLO_START)
HELLO_SIZE = HEADER.size + _hello.size


class Hello(Event):
    """Either side, at the start: its session's `number`, and in `echo` that of the other side's.

    `connections` is how many a host lets there be, and 0 from a guest.
    """

    __slots__ = ("connections", "echo", "number", "version")

    def __init__(self, version: int, connections: int, number: bytes, echo: bytes) -> None:
        self.version = version
        self.connections = connections
        self.number = number
        self.echo = echo

    def encode(self) -> bytes:
        return _framed(_hello.pack(MAGIC, self.version, self.connections, self.number, self.echo))


class Open(Event):
    """Guest to host: connect to `destination`. The host may send `window` bytes at first."""

    __slots__ = ("connection", "destination", "window")

    def __init__(self, connection: int, window: int, destination: Endpoint) -> None:
        self.connection = connection
        self.window = window
        self.destination = destination

    def encode(self) -> bytes:
        start = _open.pack(_OPEN, self.connection, self.window)
        return _framed(start + encode_endpoint(self.destination))


class Answer(Event):
    """Host to guest: how that went, as a SOCKS reply. The guest may send `window` bytes at first.

    Unless the code is 0 it is the last the host says of this connection.
    """

    __slots__ = ("bound", "code", "connection", "window")

    def __init__(self, connection: int, window: int, code: int, bound: Endpoint) -> None:
        self.connection = connection
        self.window = window
        self.code = code
        self.bound = bound

    def encode(self) -> bytes:
        start = _answer.pack(_ANSWER, self.connection, self.window, self.code)
        return _framed(start + encode_endpoint(self.bound))


class Credit(Event):
    """Either side: the other one may send so many bytes more."""

    __slots__ = ("connection", "count")

    def __init__(self, connection: int, count: int) -> None:
        self.connection = connection
        self.count = count

    def encode(self) -> bytes:
        return _framed(_credit.pack(_CREDIT, self.connection, self.count))


class _About(Event):
    __slots__ = ("connection",)
    _type: int

    def __init__(self, connection: int) -> None:
        self.connection = connection

    def encode(self) -> bytes:
        return _framed(_about.pack(self._type, self.connection))


class Eof(_About):
    """Either side: it sends no more data, and still takes what the other one sends."""

    __slots__ = ()
    _type = _EOF


class Done(_About):
    """Either side, last: it has let go, as both sides have ended or the other one has let go."""

    __slots__ = ()
    _type = _DONE


class Reset(Event):
    """Either side, last: it has let go of a connection, and what was carried is not the whole."""

    __slots__ = ("connection", "reason")

    def __init__(self, connection: int, reason: int) -> None:
        self.connection = connection
        self.reason = reason

    def encode(self) -> bytes:
        return _framed(_reset.pack(_RESET, self.connection, self.reason))


class _Echo(Event):
    __slots__ = ("token",)
    _type: int

    def __init__(self, token: bytes) -> None:
        self.token = token

    def encode(self) -> bytes:
        return _framed(bytes((self._type,)) + self.token)


class Ping(_Echo):
    """Either side: is the other one there?"""

    __slots__ = ()
    _type = _PING


class Pong(_Echo):
    """The answer to a Ping, with its token."""

    __slots__ = ()
    _type = _PONG


class Goodbye(Event):
    """Either side, last of all: it ends the session, for a reason."""

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def encode(self) -> bytes:
        text = self.reason.encode("ascii", "backslashreplace")[:_LONGEST_GOODBYE]
        return _framed(bytes((_GOODBYE,)) + text)


Control = Hello | Open | Answer | Credit | Eof | Reset | Done | Ping | Pong | Goodbye


def start_of_hello(memory: bytes | bytearray, start: int, end: int) -> int:
    """Say where a HELLO begins of which this may be all that has come so far; `end` if none does.

    It is looked for between `start` and `end`, and by its header and MAGIC.
    """
    place = memory.find(b"\xff", max(end - len(HELLO_START) + 1, start), end)
    while place >= 0:
        if HELLO_START.startswith(memory[place:end]):
            return place
        place = memory.find(b"\xff", place + 1, end)
    return end


def _concluded(frames: bytes) -> bytes:
    """Let a receiver have the last frame at once."""
    end = len(frames)
    return frames if start_of_hello(frames, 0, end) == end else frames + NOTHING


def _framed(message: bytes) -> bytes:
    return _concluded(HEADER.pack(CONTROL, len(message)) + message)


def decode(message: bytes) -> Control:
    """Read a control message. RemoteProtocolError says what is wrong with it."""
    kind = message[0] if message else 0
    size = len(message)
    if kind == _CREDIT and size == _credit.size:
        return Credit(*_credit.unpack(message)[1:])
    if kind in _ABOUT and size == _about.size:
        return _ABOUT[kind](_about.unpack(message)[1])
    if kind == _OPEN and _ends_with_address(message, _open.size):
        destination = decode_endpoint(message, _open.size)
        if destination is None:
            raise RemoteProtocolError("an OPEN with a name that is none")
        _, connection, window = _open.unpack_from(message)
        return Open(connection, window, destination)
    if kind == _ANSWER and _ends_with_address(message, _answer.size):
        bound = decode_endpoint(message, _answer.size)
        if bound is None:
            raise RemoteProtocolError("an ANSWER with a name that is none")
        _, connection, window, code = _answer.unpack_from(message)
        return Answer(connection, window, code, bound)
    if kind == _RESET and size == _reset.size:
        return Reset(*_reset.unpack(message)[1:])
    if kind in _ECHO and size == 1 + NUMBER:
        return _ECHO[kind](message[1:])
    if kind == _GOODBYE and size <= 1 + _LONGEST_GOODBYE:
        text = message[1:].decode("ascii", "replace")
        return Goodbye("".join(c if " " <= c <= "~" else "?" for c in text))
    if kind == MAGIC[0] and size == _hello.size and message.startswith(MAGIC):
        return Hello(*_hello.unpack(message)[1:])
    raise RemoteProtocolError(f"a control message of type {kind} with {size} bytes")


_ABOUT: dict[int, type[Eof] | type[Done]] = {_EOF: Eof, _DONE: Done}
_ECHO: dict[int, type[Ping] | type[Pong]] = {_PING: Ping, _PONG: Pong}


def _ends_with_address(message: bytes, start: int) -> bool:
    return len(message) > start + 3 and start + endpoint_length(message, start) == len(message)


class Batch:
    """Room for the data of one connection, and for headers between, so that both are one write.

    Data is read into a prefix of `places`; `frames` makes frames of it, there and then.
    """

    __slots__ = ("_memory", "_view", "places", "size")

    def __init__(self, frames: int) -> None:
        """Make room for so many whole frames; `size` is what they carry, in bytes."""
        self._memory = bytearray(frames * WHOLE + len(NOTHING))
        self._view = memoryview(self._memory)
        self.places = [
            self._view[start + HEADER.size : start + WHOLE]
            for start in range(0, frames * WHOLE, WHOLE)
        ]
        self.size = frames * LARGEST

    def places_for(self, count: int) -> list[memoryview]:
        """Give room for `count` bytes, at least 1 and at most `size`."""
        whole, rest = divmod(count, LARGEST)
        places = self.places[:whole]
        if rest:
            places.append(self.places[whole][:rest])
        return places

    def frames(self, connection: int, count: int) -> memoryview:
        """Make frames of the `count` bytes that are in the first places, ready to be written."""
        whole, rest = divmod(count, LARGEST)
        memory, end = self._memory, whole * WHOLE
        for start in range(0, end, WHOLE):
            HEADER.pack_into(memory, start, connection, LARGEST)
        if rest:
            HEADER.pack_into(memory, end, connection, rest)
            end += HEADER.size + rest
        if memory.find(_ALMOST_MAGIC, 0, end) >= 0:
            data = b"".join(self.places_for(count))
            return memoryview(frames_of(connection, data))
        if memory[end - 1] in _OF_HELLO_START and start_of_hello(memory, 0, end) < end:
            memory[end : end + len(NOTHING)] = NOTHING
            end += len(NOTHING)
        return self._view[:end]


def frames_of(connection: int, data: bytes) -> bytes:
    """Make frames of data, of which each has less than all of MAGIC but its last byte."""
    parts: list[bytes] = []
    start = 0
    while start < len(data):
        end = min(start + LARGEST, len(data))
        magic = data.find(_ALMOST_MAGIC, start, end)
        if magic >= 0:
            end = magic + len(_ALMOST_MAGIC) // 2
        parts += HEADER.pack(connection, end - start), data[start:end]
        start = end
    return _concluded(b"".join(parts))
