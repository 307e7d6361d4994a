"""The connections of one side of the mux: what is heard of each, and said. No I/O.

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
from muonsocks.mux.events import Answered, Credited, Ended, Opened, WasReset
from muonsocks.mux.frames import Answer, Credit, Done, Eof, Open, Reset
from muonsocks.mux.windows import Windows
from muonsocks.socks.request import UNSPECIFIED, Event, ReplyCode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from muonsocks.address import Endpoint

    About = Credit | Eof | Done | Reset | Open | Answer

_MOST_CREDIT = 1 << 31  # bytes; more than any buffer, and nothing overflows


class Connections:
    """All of one side, in one session after the other. What is in `output` is to be sent."""

    def __init__(self, is_host: bool, connections: int, memory: int) -> None:
        self._is_host = is_host
        self._most = connections if is_host else 0
        self._windows = Windows(memory)
        self._connections: dict[int, Connection] = {}
        self._free: list[int] = []
        self._unused = 0  # this number and those above have not been used yet
        self.is_up = False
        self.limit = 0  # of connections, as the other side has it
        self.output: list[bytes] = []

    def _begin(self) -> None:
        """Use all numbers again, from the first one on."""
        self._free.clear()
        self._unused = 0

    def _cut_off(self) -> list[Any]:
        """Let go of all without a word, and give their owners."""
        owners = [one.owner for one in self._connections.values() if one.owner is not None]
        for one in self._connections.values():
            one.let_go()
            one.let_go_there = True
        self._connections.clear()
        return owners

    # What one side hears of a connection

    def _hear(self, message: About, events: list[Event]) -> None:
        """Take a message about a connection. RemoteProtocolError if it is not its turn."""
        if isinstance(message, Credit):
            self._hear_credit(self._find(message.connection), message.count, events)
        elif isinstance(message, Eof):
            self._hear_end(self._find(message.connection), events)
        elif isinstance(message, Done):
            self._hear_done(self._find(message.connection))
        elif isinstance(message, Reset):
            self._hear_reset(self._find(message.connection), message.reason, events)
        elif isinstance(message, Open):
            self._hear_open(message, events)
        else:
            self._hear_answer(message, events)

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
        connection = Connection(number, _bounded(message.window), self._windows.take())
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
            connection.credit = _bounded(message.window)
            events.append(Answered(connection, message.code, message.bound))
        if connection.let_go_there:
            self._let_go(connection)

    def _hear_credit(self, connection: Connection, count: int, events: list[Event]) -> None:
        if not connection.answered:
            raise RemoteProtocolError(f"a CREDIT of connection {connection.number} out of turn")
        if connection.let_go_here:
            return
        before = connection.credit
        connection.credit = _bounded(before + count)
        if not before and count:
            events.append(Credited(connection))

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
        """Say 0 (s): numbers need no rest here, as each side says when it is done with one."""
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
        """Note that data has gone on its way, or been dropped, and leaves room for more."""
        connection.unreturned += count
        if connection.ended_there or connection.let_go_there or connection.let_go_here:
            return
        if 2 * connection.unreturned < connection.window:
            return  # a few large messages are cheaper than many small ones
        if credit := self._windows.renew(connection):
            self.output.append(Credit(connection.number, credit).encode())

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


def _bounded(credit: int) -> int:
    """Give what is no more credit than a connection may have. RemoteProtocolError."""
    if credit > _MOST_CREDIT:
        raise RemoteProtocolError("more credit than there can be")
    return credit
