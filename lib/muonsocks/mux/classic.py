"""One side of the mux with a peer that is half of the older pair: its protocol, in its limits.

Frames are as in frames.py, but that is all there is: up to 64 connections, data of up to 4092 bytes
a frame, each frame in a write of its own, no control messages. The first frame of a connection is
the guest's request; the host does not answer it. A frame without data closes a connection, both
directions of it. Nothing bounds what is sent.

The older host greets with five frames on connection 0xffff, and takes nothing in before the last of
them. The older guest waits for a first frame from the host, and does not look at it.
"""

from __future__ import annotations

from muonsocks.errors import RequestFailed
from muonsocks.mux.connection import Connection
from muonsocks.mux.events import Began, Data, Ended, Opened, Over, WasReset
from muonsocks.mux.frames import (
    CONTROL,
    HEADER,
    HELLO_SIZE,
    HELLO_START,
    NO_NUMBER,
    VERSION,
    Hello,
    decode,
)
from muonsocks.mux.intake import Intake
from muonsocks.socks.request import UNSPECIFIED, Event, ReplyCode
from muonsocks.socks.socks5 import decode_endpoint, encode_endpoint, endpoint_length

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from muonsocks.address import Endpoint

CONNECTIONS = 64
LARGEST = 4096 - HEADER.size  # bytes of data in a frame
_LARGEST_TAKEN = 4096  # and in one that is received
_TYPES = (1, 3)  # of addresses: IPv4, and a name
_GREETINGS = 5
_GREETING_SIZE = 16
_WITHOUT_LIMIT = 1 << 40  # bytes of credit
_CUT_SHORT = 0.2  # s without the rest of a frame; a HELLO is repeated no sooner than after that
_REST = 1.0  # s in which what is on its way to a connection that was closed here may still come


def greeting(number: int) -> bytes:
    """Write one of the five frames that the older host begins with."""
    data = bytes((_GREETING_SIZE * number + i) % 256 for i in range(_GREETING_SIZE))
    return HEADER.pack(CONTROL, len(data)) + data


_GREETING_FRAMES = tuple(greeting(number) for number in range(_GREETINGS))
_LAST_GREETING = _GREETING_FRAMES[-1][HEADER.size :]


def is_spoken(piece: bytes, is_host: bool) -> bool:
    """Say whether what was sent in one piece, to a host or a guest, is of the older pair."""
    if is_host:
        return _request_in(piece) is not None
    return piece.startswith(_GREETING_FRAMES)


def _request_in(piece: bytes) -> Endpoint | None:
    """Read the request that a piece begins with, if it does."""
    if len(piece) < HEADER.size:
        return None
    connection, length = HEADER.unpack_from(piece)
    request = piece[HEADER.size : HEADER.size + length]
    return _destination(request) if connection < CONNECTIONS and len(request) == length else None


def _destination(request: bytes) -> Endpoint | None:
    if len(request) < 4 or endpoint_length(request, 0) != len(request):
        return None
    return decode_endpoint(request, 0)


def _is_hello(piece: bytes) -> bool:
    """Say whether that is a HELLO and nothing else. It is looked for where a frame begins; where
    none does, this might be anybody's data, cut there by chance.
    """
    if not piece.startswith(HELLO_START) or len(piece) < HELLO_SIZE:
        return False
    return decode(piece[HEADER.size : HELLO_SIZE]).encode() == piece


class Hailed(Event):
    """The other side says HELLO: from `rest` on, it is one of ours."""

    __slots__ = ("rest",)

    def __init__(self, rest: bytes) -> None:
        self.rest = rest


class Classic:
    """One side, as machine.Mux is one with a peer of ours: both are a Speaker."""

    is_classic = True
    is_sign = True
    is_strange = False
    limit = CONNECTIONS

    def __init__(self, is_host: bool, memory: int, clock: Callable[[], float]) -> None:
        """`memory` is in bytes, and `clock` gives the time in s."""
        self._is_host = is_host
        self._memory = memory
        self._clock = clock
        self._heard = clock()  # when there was something last
        self._waits = 0  # bytes of data that have not been passed on
        self._intake = Intake()
        self._connections: dict[int, Connection] = {}
        self._free = list(range(CONNECTIONS))
        self._rests = [-_REST] * CONNECTIONS  # since when, of each number
        self.is_up = is_host
        self.output: list[bytes] = []

    @property
    def is_full(self) -> bool:
        """Whether no more is to be read for now. Then all connections have to wait."""
        return self._waits > self._memory

    # Sessions

    def greet(self) -> None:
        """Say nothing: an older host greets for its part, and an older guest has been greeted."""

    def ping(self, token: bytes) -> None:
        """Say HELLO, as a host: a guest that has been started anew waits for that, and to any other
        it means nothing. There is no way to ask for a sign of life.
        """
        if self._is_host:
            self.output.append(Hello(VERSION, CONNECTIONS, token, NO_NUMBER).encode())

    def lose(self, reason: str) -> Over:
        """End the session."""
        owners = [one.owner for one in self._connections.values() if one.owner is not None]
        for one in list(self._connections.values()):
            self._let_go(one)
        self.output.clear()
        self.is_up = False
        return Over(reason, owners)

    def say_goodbye(self, reason: str) -> Over:
        """End the session, and close what there is: that is all the other side can be told."""
        said = list(self.output)
        said += [one_frame(number, b"") for number in self._connections]
        over = self.lose(reason)
        self.output += said
        return over

    # Input

    def room(self) -> memoryview:
        """Give room to read into; data of earlier events is not to be used any more."""
        return self._intake.room()

    def received(self, count: int) -> list[Event]:
        """Take the bytes that were read into the first part of the room, and say what they mean."""
        intake, events = self._intake, list[Event]()
        first, before = intake.end, self._heard
        intake.end += count
        self._heard = self._clock()
        if self._heard - before >= _CUT_SHORT and _is_hello(bytes(intake.view[first : intake.end])):
            intake.start = first  # there will be no rest of what was before
        while intake.end - intake.start >= HEADER.size:
            number, length = HEADER.unpack_from(intake.memory, intake.start)
            if length > _LARGEST_TAKEN or (number >= CONNECTIONS and number != CONTROL):
                intake.start = intake.end  # it is out of step; the next frame begins a piece
                break
            start = intake.start + HEADER.size
            if start + length > intake.end:
                break
            if intake.memory.startswith(HELLO_START, intake.start):
                events.append(self.lose("the other side has started anew"))
                events.append(Hailed(bytes(intake.view[intake.start : intake.end])))
                intake.start = intake.end
                break
            intake.start = start + length
            self._read_frame(number, intake.view[start : start + length], events)
        return events

    def _read_frame(self, number: int, data: memoryview, events: list[Event]) -> None:
        if number == CONTROL:
            if not self.is_up and data == _LAST_GREETING:
                self.is_up = True
                events.append(Began())
            return
        connection = self._connections.get(number)
        if connection is None:
            destination = _destination(bytes(data)) if self._is_host else None
            if destination is not None:
                events.append(Opened(self._new(number), destination))
            elif data and number < CONNECTIONS:
                self._rests[number] = self._heard  # it does not know yet that this is closed
        elif not data:
            self._let_go(connection)
            events += Ended(connection), WasReset(connection, 0)
        else:
            self._waits += len(data)
            connection.unreturned += len(data)
            events.append(Data(connection, data))

    # What one side says of a connection

    def pause(self) -> float:
        """Say how long (s) it is until a number that rests may be used again; 0 if none does."""
        since = min((self._rests[one] for one in self._free), default=-_REST)
        return max(since + _REST - self._clock(), 0.0)

    def open(self, destination: Endpoint) -> Connection | None:
        """Send a request, if there may be one more; it has no answer, as if all went well.

        A number that was closed here rests until nothing has come for it for a while: the host does
        not say when it knows, and what it has sent until then is not for the next one.
        RequestFailed if it would not know what is meant.
        """
        request = encode_endpoint(destination)
        if request[0] not in _TYPES:
            reason = "the host is of the older pair, and knows no IPv6 addresses"
            raise RequestFailed(ReplyCode.ADDRESS_TYPE_NOT_SUPPORTED, reason)
        until = self._clock() - _REST
        number = next((one for one in self._free if self._rests[one] <= until), None)
        if not self.is_up or number is None:
            return None
        connection = self._new(number)
        self.output.append(one_frame(connection.number, request))
        return connection

    def _new(self, number: int) -> Connection:
        connection = Connection(number, _WITHOUT_LIMIT, _WITHOUT_LIMIT)
        connection.answered = True
        self._free.remove(number)
        self._connections[number] = connection
        return connection

    def answer(self, connection: Connection, code: int, bound: Endpoint = UNSPECIFIED) -> None:
        """Close what cannot be connected; of success the guest is sure."""
        if code != ReplyCode.SUCCEEDED:
            self.reset(connection, 0)

    def end(self, connection: Connection) -> None:
        """Close it, at a host: what the guest may still have to say cannot be told apart.

        A guest says nothing: it would get no answer.
        """
        if self._is_host:
            self.reset(connection, 0)

    def reset(self, connection: Connection, reason: int) -> None:
        """Close it. Harmless when that has been done."""
        if not connection.let_go_here:
            self._let_go(connection)
            self._rests[connection.number] = self._clock()
            self.output.append(one_frame(connection.number, b""))

    def consume(self, connection: Connection, count: int) -> None:
        """Note that data has gone on its way, or been dropped."""
        connection.unreturned -= count
        self._waits -= count

    def release(self, connection: Connection) -> None:
        """Forget the owner of a connection, and close it if that has not been done."""
        connection.owner = None
        self.reset(connection, 0)
        self._waits -= connection.unreturned
        connection.unreturned = 0

    def _let_go(self, connection: Connection) -> None:
        connection.let_go()
        connection.let_go_there = True
        del self._connections[connection.number]
        self._free.append(connection.number)


def one_frame(number: int, data: bytes) -> bytes:
    """Make a frame of data that fits into one."""
    return HEADER.pack(number, len(data)) + data
