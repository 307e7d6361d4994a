"""One side of the mux: from the port's bytes to events, from what is to be said to bytes. No I/O.

A session begins when each side has heard its own number in the other's HELLO: nothing stale can
have that. A HELLO with another number, wherever it comes, means that the other side has started
anew; all connections of the session before it are then over.

A connection, on either side:

    opened      the guest has sent OPEN and the host has received it, but there is no answer yet
    answered    data goes both ways, in each as much as there is credit for
    ended       of a direction: EOF has been sent or received
    let go      RESET or DONE has been sent, or an ANSWER that is a failure: it is the last word

Either side may send its last word RESET at any time, and answers that of the other with DONE if it
has not let go yet. DONE is also said once both directions have ended. When both sides have let go
the number is free for another connection.
"""

from __future__ import annotations

from muonsocks.errors import RemoteProtocolError
from muonsocks.mux.connection import Connection, ResetReason
from muonsocks.mux.events import Answered, Began, Credited, Data, Ended, Opened, Over, WasReset
from muonsocks.mux.frames import (
    CONTROL,
    HEADER,
    HELLO_SIZE,
    HELLO_START,
    LARGEST,
    MAGIC,
    MOST_CONNECTIONS,
    NO_NUMBER,
    VERSION,
    Answer,
    Control,
    Credit,
    Done,
    Eof,
    Goodbye,
    Hello,
    Open,
    Ping,
    Pong,
    Reset,
    decode,
    start_of_hello,
)
from muonsocks.mux.intake import Intake
from muonsocks.mux.windows import Windows
from muonsocks.socks.request import UNSPECIFIED, Event, ReplyCode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from muonsocks.address import Endpoint

_LONGEST_WAIT = HELLO_SIZE + len(HELLO_START)  # bytes that are looked at again, if there are more
_MOST_CREDIT = 1 << 31  # bytes; more than any buffer, and nothing overflows


class Mux:
    """One side. What is in `output` is to be sent, in its order, before anything else."""

    is_classic = False
    is_full = False  # each connection has its own bound

    def __init__(
        self, is_host: bool, connections: int, memory: int, fresh: Callable[[], bytes]
    ) -> None:
        """`connections` are those that a host lets there be, `memory` (bytes) bounds what may wait
        here for those who are to get it, and `fresh` gives the random number of a session.
        """
        self._is_host = is_host
        self._most = connections if is_host else 0
        self._fresh = fresh
        self._windows = Windows(memory)
        self._intake = Intake()
        self._number = fresh()
        self._theirs = self._echoed = NO_NUMBER
        self._connections: dict[int, Connection] = {}
        self._free: list[int] = []
        self._unused = 0  # this number and those above have not been used yet
        self.is_up = False
        self.is_strange = False  # what was received last: it is of one who does not say HELLO
        self.limit = 0  # of connections, as the other side has it
        self.output: list[bytes] = []

    # Sessions

    def greet(self) -> None:
        """Say HELLO: at the start, and again from time to time while the session is not up."""
        self._echoed = self._theirs
        self.output.append(Hello(VERSION, self._most, self._number, self._theirs).encode())

    def lose(self, reason: str) -> Over:
        """End the session, for a reason that the port or the clock has given."""
        owners = [one.owner for one in self._connections.values() if one.owner is not None]
        for one in self._connections.values():
            one.let_go()
            one.let_go_there = True
        self._connections.clear()
        self.output.clear()
        self.is_up = False
        self._number = self._fresh()
        self._theirs = self._echoed = NO_NUMBER
        return Over(reason, owners)

    def say_goodbye(self, reason: str) -> Over:
        """End the session, and tell the other side why."""
        over = self.lose(reason)
        self.output.append(Goodbye(reason).encode())
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
        self._theirs = hello.number
        self.limit = min(hello.connections, MOST_CONNECTIONS)
        if self._echoed != hello.number:
            self.greet()  # else it has been answered, and will be again in time
        if hello.echo != self._number:
            return
        self.is_up = True
        self._free.clear()
        self._unused = 0
        events.append(Began(self.limit))

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
        limit = self._hear_hellos(seen, events)
        self.is_strange = not self.is_up and self._theirs == NO_NUMBER
        if self.is_up:
            limit = min(limit, start_of_hello(intake.memory, intake.start, intake.end))
            try:
                self._read_frames(limit, events)
            except RemoteProtocolError as error:
                events.append(self.lose(f"it has broken the protocol: {error}"))
                self.output.append(Goodbye(str(error)).encode())
        if not self.is_up:
            intake.start = max(intake.start, min(limit, intake.end - HELLO_SIZE + 1))
        return events

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
        if isinstance(message, Credit):
            connection = self._find(message.connection)
            if connection.let_go_here:
                return
            before = connection.credit
            connection.credit = before + message.count
            if connection.credit > _MOST_CREDIT:
                raise RemoteProtocolError("more credit than there can be")
            if not before and message.count:
                events.append(Credited(connection))
        elif isinstance(message, Eof):
            self._hear_end(self._find(message.connection), events)
        elif isinstance(message, Done):
            self._hear_done(self._find(message.connection))
        elif isinstance(message, Reset):
            self._hear_reset(self._find(message.connection), message.reason, events)
        elif isinstance(message, Open):
            self._hear_open(message, events)
        elif isinstance(message, Answer):
            self._hear_answer(message, events)
        elif isinstance(message, Ping):
            self.output.append(Pong(message.token).encode())
        elif isinstance(message, Hello):
            if message.echo != self._number:
                self.greet()
        elif isinstance(message, Goodbye):
            events.append(self.lose(f"the other side has ended it: {message.reason}"))

    def _find(self, number: int) -> Connection:
        connection = self._connections.get(number)
        if connection is None or connection.let_go_there:
            raise RemoteProtocolError(f"a message about connection {number}, which is not open")
        return connection

    def _hear_open(self, message: Open, events: list[Event]) -> None:
        number = message.connection
        if not self._is_host:
            raise RemoteProtocolError("an OPEN from a host")
        if number >= self._most:
            raise RemoteProtocolError(f"an OPEN of connection {number}, of {self._most}")
        if number in self._connections:
            raise RemoteProtocolError(f"an OPEN of connection {number}, which is open")
        connection = Connection(number, message.window, self._windows.take())
        self._connections[number] = connection
        events.append(Opened(connection, message.destination))

    def _hear_answer(self, message: Answer, events: list[Event]) -> None:
        connection = self._find(message.connection)
        if self._is_host or connection.answered:
            raise RemoteProtocolError("an ANSWER that nobody has asked for")
        connection.answered = True
        if message.code != ReplyCode.SUCCEEDED:
            connection.let_go_there = True
        if not connection.let_go_here:
            connection.credit = message.window
            events.append(Answered(connection, message.code, message.bound))
        if connection.let_go_there:
            self._let_go(connection)

    def _hear_end(self, connection: Connection, events: list[Event]) -> None:
        if connection.ended_there or not connection.answered:
            raise RemoteProtocolError(f"an EOF of connection {connection.number} out of turn")
        connection.ended_there = True
        if not connection.let_go_here:
            events.append(Ended(connection))
            if connection.ended_here:
                self._let_go(connection)

    def _hear_reset(self, connection: Connection, reason: int, events: list[Event]) -> None:
        connection.let_go_there = True
        if not connection.let_go_here:
            events.append(WasReset(connection, reason))
        self._let_go(connection)

    def _hear_done(self, connection: Connection) -> None:
        if not connection.let_go_here:
            raise RemoteProtocolError(f"a DONE of connection {connection.number} out of turn")
        connection.let_go_there = True
        self._let_go(connection)

    # What one side says of a connection

    def open(self, destination: Endpoint) -> Connection | None:
        """Ask the host for a connection, if there may be one more."""
        if not self.is_up:
            return None
        if self._free:
            number = self._free.pop(0)
        elif self._unused < self.limit:
            number = self._unused
            self._unused += 1
        else:
            return None
        connection = Connection(number, 0, self._windows.take())
        self._connections[number] = connection
        self.output.append(Open(number, connection.window, destination).encode())
        return connection

    def pause(self) -> float:
        """Say how long (s) it is until there may be one more, if that is so: numbers need no rest
        here, as each side says when it is done with one.
        """
        return 0.0

    def answer(self, connection: Connection, code: int, bound: Endpoint = UNSPECIFIED) -> None:
        """Tell the guest how that went; unless the code is 0 there is no more to say."""
        if connection.let_go_here:
            return
        connection.answered = True
        window = connection.window if code == ReplyCode.SUCCEEDED else 0
        self.output.append(Answer(connection.number, window, code, bound).encode())
        if code != ReplyCode.SUCCEEDED:
            connection.let_go()

    def end(self, connection: Connection) -> None:
        """Say that no more data comes. The last of it is in the output already."""
        if connection.ended_here or connection.let_go_here:
            return
        connection.ended_here = True
        self.output.append(Eof(connection.number).encode())
        if connection.ended_there:
            self._let_go(connection)

    def reset(self, connection: Connection, reason: int) -> None:
        """Let go of a connection, whatever its state. Harmless when that has been done."""
        if not connection.let_go_here:
            connection.let_go()
            self.output.append(Reset(connection.number, reason).encode())

    def consume(self, connection: Connection, count: int) -> None:
        """Note that data has gone on its way and leaves room for more."""
        connection.unreturned += count
        if connection.ended_there or connection.let_go_there or connection.let_go_here:
            return
        if 2 * connection.unreturned < connection.window:
            return  # a few large messages are cheaper than many small ones
        if credit := self._windows.renew(connection):
            self.output.append(Credit(connection.number, credit).encode())

    def drop(self, connection: Connection, count: int) -> None:
        """Note that data has been dropped: there is no more credit for it."""

    def release(self, connection: Connection) -> None:
        """Forget what the owner of a connection has; it is reset if it has not come to its end."""
        connection.owner = None
        self.reset(connection, ResetReason.UNKNOWN)
        self._windows.give_back(connection)

    def _let_go(self, connection: Connection) -> None:
        """Say the last word if it has not been said, and free the number if both have."""
        if not connection.let_go_here:
            connection.let_go()
            self.output.append(Done(connection.number).encode())
        if connection.let_go_there:
            del self._connections[connection.number]
            if not self._is_host:  # it is the guest that uses it again
                self._free.append(connection.number)
