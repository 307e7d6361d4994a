"""What the tests of the mux have in common: a side that is told bytes, and a peer made by hand.

`Played` is a Mux that a test drives; `wire` and `messages` turn what it says into bytes and back.
What a test compares are plain values: events as tuples, with the numbers of connections in them.
"""

from collections.abc import Iterator
from typing import Any

from muonsocks.address import Endpoint
from muonsocks.mux.classic import Classic
from muonsocks.mux.connection import Connection
from muonsocks.mux.events import Answered, Began, Credited, Data, Ended, Opened, Over, WasReset
from muonsocks.mux.frames import CONTROL, HEADER, Control, Hello, decode
from muonsocks.mux.machine import Mux
from muonsocks.socks.request import Event

MEMORY = 1 << 24
MOST = 100  # connections, as a host has it
V4, V6 = Endpoint("192.0.2.7", 80), Endpoint("2001:db8::7", 8080)
NAME = Endpoint("example.test", 443)
THEIRS = b"theirs01"  # the number of the session, of the side that is made by hand

Frame = tuple[int, bytes]
Said = Control | Frame


def numbers(name: bytes) -> Iterator[bytes]:
    """The numbers of a side's sessions: they all differ, and tell whose they are."""
    count = 0
    while True:
        count += 1
        yield name[:4].ljust(4, b".") + b"%04d" % count


def frames_in(data: bytes) -> list[Frame]:
    """Take bytes apart into whole frames, as virtio-mux(7) has them."""
    frames = []
    while data:
        number, length = HEADER.unpack_from(data)
        assert len(data) >= 4 + length, "half a frame"
        frames.append((number, data[4 : 4 + length]))
        data = data[4 + length :]
    return frames


def messages(data: bytes) -> list[Said]:
    """Read what a side has sent: control messages decoded, and data as (connection, bytes).

    Empty control messages are left out: they mean nothing.
    """
    return [
        decode(body) if number == CONTROL else (number, body)
        for number, body in frames_in(data)
        if body or number != CONTROL
    ]


def wire(*said: Said | bytes) -> bytes:
    """Write control messages, frames of data and raw bytes, one behind the other."""
    parts = []
    for one in said:
        if isinstance(one, bytes):
            parts.append(one)
        elif isinstance(one, tuple):
            parts.append(HEADER.pack(one[0], len(one[1])) + one[1])
        else:
            parts.append(one.encode())
    return b"".join(parts)


def told(event: Event) -> tuple[Any, ...]:
    """An event as a tuple that outlives the buffer its data is in."""
    match event:
        case Began():
            return ("began",)
        case Over():
            return ("over", event.reason)
        case Opened():
            return ("opened", event.connection.number, event.destination)
        case Answered():
            return ("answered", event.connection.number, event.code, event.bound)
        case Data():
            data = b"".join(event.parts)
            assert event.size == len(data)
            return ("data", event.connection.number, data)
        case Credited():
            return ("credited", event.connection.number)
        case Ended():
            return ("ended", event.connection.number)
        case WasReset():
            return ("reset", event.connection.number, event.reason)
    raise AssertionError(f"an event that nobody knows: {event}")


def feed(side: Mux | Classic, data: bytes) -> list[Event]:
    """Give a side bytes, in one piece."""
    assert not data or len(side.room()) >= len(data)
    side.room()[: len(data)] = data
    return side.received(len(data))


def drain(side: Mux | Classic) -> bytes:
    """Take what a side wants to be sent."""
    data = b"".join(side.output)
    side.output.clear()
    return data


class Played:
    """A Mux, and what a driver has of it: `connections` by number, the latest of each."""

    def __init__(self, is_host: bool, memory: int = MEMORY, connections: int = MOST) -> None:
        self.mux = Mux(is_host, connections, memory, numbers(b"ours").__next__)
        self.is_host = is_host
        self.connections: dict[int, Connection] = {}
        self.everyone: list[Connection] = []  # that there has been
        self.owners: list[Any] = []  # those that the last Over told of
        self._numbers = iter(range(1 << 30))

    @classmethod
    def in_session(cls, is_host: bool, memory: int = MEMORY, connections: int = MOST) -> "Played":
        """One that has met the other side."""
        self = cls(is_host, memory, connections)
        self.begin()
        return self

    def begin(self, theirs: bytes = THEIRS) -> None:
        """Let a session begin, with one who has heard our number."""
        before = self.hears(Hello(1, 0 if self.is_host else MOST, theirs, b"whatever"))
        assert ("began",) not in before
        (ours,) = (one for one in self.says() if isinstance(one, Hello))
        assert ours.echo == theirs
        assert self.hears(self.hello(theirs, ours.number)) == [("began",)]
        assert self.says() == []

    def hello(self, number: bytes, echo: bytes = bytes(8)) -> Hello:
        """Write a HELLO of the other side."""
        return Hello(1, 0 if self.is_host else MOST, number, echo)

    def hears(self, *said: Said | bytes) -> list[tuple[Any, ...]]:
        """Tell it something, in one piece, and give the events of that."""
        events = []
        for event in feed(self.mux, wire(*said)):
            events.append(told(event))
            if isinstance(event, Opened):
                self._own(event.connection)
            elif isinstance(event, Over):
                self.owners = event.owners
        return events

    def says(self) -> list[Said]:
        """Take what it says."""
        return messages(drain(self.mux))

    def opens(self, destination: Endpoint = V4) -> Connection:
        """Have a guest open a connection, and take the OPEN."""
        connection = self.mux.open(destination)
        assert connection is not None
        self._own(connection)
        (message,) = self.says()
        assert isinstance(message, Control) and message.connection == connection.number  # type: ignore[union-attr]
        return connection

    def _own(self, connection: Connection) -> None:
        self.connections[connection.number] = connection
        self.everyone.append(connection)
        connection.owner = f"owner {next(self._numbers)}"

    def is_free(self, number: int) -> bool:
        """Whether both sides have let go of a number."""
        return number not in self.mux._connections
