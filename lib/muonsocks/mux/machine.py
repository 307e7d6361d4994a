"""One side of the mux: from the port's bytes to events, from what is to be said to bytes. No I/O.

A session begins when each side has heard its own number in the other's HELLO: nothing stale can
have that. A HELLO with another number, wherever it comes, means that the other side has started
anew; all connections of the session before it are then over.
"""

from __future__ import annotations

from muonsocks.errors import RemoteProtocolError
from muonsocks.mux.events import Began, Data, Over
from muonsocks.mux.frames import (
    CONTROL,
    HEADER,
    HELLO_SIZE,
    HELLO_START,
    LARGEST,
    MAGIC,
    MOST_CONNECTIONS,
    NO_NUMBER,
    NOTHING,
    VERSION,
    Control,
    Goodbye,
    Hello,
    Ping,
    Pong,
    decode,
    start_of_hello,
)
from muonsocks.mux.intake import Intake
from muonsocks.mux.life import Connections
from muonsocks.socks.request import Event

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_LONGEST_WAIT = HELLO_SIZE + len(HELLO_START)  # bytes that are looked at again, if there are more


class Mux(Connections):
    """One side. What is in `output` is to be sent, in its order, before anything else."""

    is_classic = False
    is_full = False  # each connection has its own bound

    def __init__(
        self, is_host: bool, connections: int, memory: int, fresh: Callable[[], bytes]
    ) -> None:
        """`connections` are those that a host lets there be, `memory` (bytes) bounds what may wait
        here for those who are to get it, and `fresh` gives the random number of a session.
        """
        super().__init__(is_host, connections, memory)
        self._fresh = fresh
        self._intake = Intake()
        self._number = fresh()
        self._theirs = self._echoed = NO_NUMBER
        self._meaningless = 0  # bytes of HELLOs, and of empty messages, in what was received last
        self.is_sign = False  # of life, what was received last
        self.is_strange = False  # what was received last: of no session, and without a HELLO

    # Sessions

    def greet(self) -> None:
        """Say HELLO: at the start, and again from time to time while the session is not up."""
        self._echoed = self._theirs
        self.output.append(Hello(VERSION, self._most, self._number, self._theirs).encode())

    def lose(self, reason: str) -> Over:
        """End the session, for a reason that the port or the clock has given."""
        owners = self._cut_off()
        self.output.clear()
        self.is_up = False
        self._number = self._fresh()
        self._theirs = self._echoed = NO_NUMBER
        return Over(reason, owners)

    def say_goodbye(self, reason: str) -> Over:
        """End the session, and tell the other side why, behind what it is to hear before that."""
        return self._say_goodbye(reason, reason)

    def _say_goodbye(self, reason: str, words: str) -> Over:
        said = list(self.output) if self.is_up else []
        over = self.lose(reason)
        self.output += *said, Goodbye(words).encode()
        return over

    def ping(self, token: bytes) -> None:
        """Ask for a sign of life."""
        self.output.append(Ping(token).encode())

    def _meet(self, hello: Hello, events: list[Event]) -> None:
        """Hear a HELLO while there is no session, or the first one of another."""
        if not hello.version:
            return
        if self._is_host == (hello.connections > 0):
            who = "host" if self._is_host else "guest"
            events.append(Over(f"the other side is a {who}, too", []))
            return
        self.is_sign, self.is_strange = True, False
        self._theirs = hello.number
        self.limit = min(hello.connections, MOST_CONNECTIONS)
        if self._echoed != hello.number:
            self.greet()  # else it has been answered, and will be again in time
        if hello.echo != self._number:
            return
        self.is_up = True
        self._begin()
        events.append(Began())

    # Input

    def room(self) -> memoryview:
        """Give room to read into; data of earlier events is not to be used any more."""
        return self._intake.room()

    def received(self, count: int) -> list[Event]:
        """Take the bytes that were read into the first part of the room, and say what they mean."""
        intake = self._intake
        seen = max(intake.end - _LONGEST_WAIT, intake.start)
        intake.end += count
        events: list[Event] = []
        self.is_sign = self.is_strange = not self.is_up
        self._meaningless = 0
        limit = self._hear_hellos(seen, events)
        if self.is_up:
            limit = min(limit, start_of_hello(intake.memory, intake.start, intake.end))
            start = intake.start
            try:
                self._read_frames(limit, events)
            except RemoteProtocolError as error:
                reason = f"it has broken the protocol: {error}"
                events.append(self._say_goodbye(reason, str(error)))
            # Who says HELLO again and again has no session: it has not heard the answer.
            if intake.start - start > self._meaningless or not self._is_half_a_hello():
                self.is_sign = True
        if not self.is_up:
            intake.start = max(intake.start, min(limit, intake.end - HELLO_SIZE + 1))
        return events

    def _is_half_a_hello(self) -> bool:
        """Whether what is left may be that, or the half of an empty message; or is nothing."""
        start = self._intake.start
        left = bytes(self._intake.view[start : min(self._intake.end, start + len(HELLO_START))])
        return HELLO_START.startswith(left) or NOTHING.startswith(left)

    def _hear_hellos(self, seen: int, events: list[Event]) -> int:
        """Find the HELLOs that begin a session, and give how far there may be frames.

        A HELLO may be torn, too, and another one follow in the middle of it.
        """
        intake = self._intake
        memory, end = intake.memory, intake.end
        magic = memory.find(MAGIC, seen, end)
        while magic >= 0:
            start = magic - HEADER.size
            following = memory.find(MAGIC, magic + len(MAGIC), end)
            if (
                start >= intake.start
                and memory.startswith(HELLO_START, start)
                and not 0 <= following - HEADER.size < start + HELLO_SIZE
            ):
                whole = start + HELLO_SIZE
                if end < whole or start_of_hello(memory, magic + len(MAGIC), end) < whole:
                    return start
                hello = decode(bytes(intake.view[start + HEADER.size : start + HELLO_SIZE]))
                assert isinstance(hello, Hello)
                if not self.is_up or hello.number != self._theirs:
                    if self.is_up:
                        events.append(self.lose("the other side has started anew"))
                    intake.start = start + HELLO_SIZE
                    self._meet(hello, events)
            magic = following
        return end

    def _read_frames(self, limit: int, events: list[Event]) -> None:
        intake = self._intake
        memory, view, start = intake.memory, intake.view, intake.start
        connections, unpack = self._connections, HEADER.unpack_from
        current = -1
        data: Data | None = None
        try:
            while limit - start >= 4:
                number, length = unpack(memory, start)
                end = start + 4 + length
                if length > LARGEST:
                    raise RemoteProtocolError(f"a frame of {length} bytes")
                if end > limit:
                    return
                part = view[start + 4 : end]
                start = end
                if number == CONTROL:
                    current = -1
                    if length:
                        self._control(decode(bytes(part)), events)
                    else:
                        self._meaningless += HEADER.size
                    if not self.is_up:
                        return
                    continue
                if number != current:
                    current, data = number, None
                connection = connections.get(number)
                if connection is None or not connection.answered:
                    raise RemoteProtocolError(f"data of connection {number}, which is not open")
                connection.left -= length
                if connection.left < 0:
                    raise RemoteProtocolError(f"connection {number} sends more than its window")
                if connection.ended_there:
                    raise RemoteProtocolError(f"connection {number} sends more after its end")
                if connection.let_go_here or not length:
                    continue
                if data is not None:
                    data.parts.append(part)
                    data.size += length
                else:
                    data = Data(connection, part)
                    events.append(data)
        finally:
            intake.start = start

    def _control(self, message: Control, events: list[Event]) -> None:
        if not isinstance(message, (Ping, Pong, Hello, Goodbye)):
            self._hear(message, events)
        elif isinstance(message, Ping):
            self.output.append(Pong(message.token).encode())
        elif isinstance(message, Hello):
            self._meaningless += HELLO_SIZE
            if message.echo != self._number:
                self.greet()
        elif isinstance(message, Goodbye):
            events.append(self.lose(f"the other side has ended it: {message.reason}"))
