"""Plays a conversation to a protocol machine: from a table, or from bytes and a script.

A book is a table of lines, `>>` from client to server and `<<` back, each with the bytes on the
wire and what they mean. `as_server` and `as_client` hold a machine to it: one table tests both.

    BOOK = ((">>", "05 01 00", MethodOffer(b"\\0")), ("<<", "05 00", MethodChoice(Method.NONE)))

`play` gives a machine any bytes, cut in any way, while a script says for each state in which it is
our turn what we say.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from muonsocks.errors import RemoteProtocolError
from muonsocks.socks import http_connect, socks4, socks5
from muonsocks.socks.machine import Machine
from muonsocks.socks.request import Event

Book = tuple[tuple[str, str, Event], ...]
Script = Mapping[str, Event]

# The states in which a machine waits for its peer, as the tables in the modules have them.
PEERS_TURN: dict[type[Machine], set[str]] = {
    socks4.Server: {"request"},
    socks4.Client: {"answer"},
    socks5.Server: {"offer", "credentials", "request"},
    socks5.Client: {"choice", "verdict", "reply"},
    http_connect.Client: {"response"},
}
_MOST_BYTES = 520  # the longest message is SOCKS4A's request: 8 + 255 + NUL + 255 + NUL
_MOST_BYTES_OF_HTTP = http_connect.LONGEST_HEAD + 1


class Outcome(NamedTuple):
    """All that a machine has said and done."""

    heard: list[Event]
    sent: bytes
    problem: tuple[str, bytes, int | None] | None  # message, reply and code of the error
    state: str


def as_server(machine: Machine, book: Book) -> None:
    """Hold a server's machine to a book."""
    _follow(machine, book, ">>")


def as_client(machine: Machine, book: Book) -> None:
    """Hold a client's machine to a book."""
    _follow(machine, book, "<<")


def _follow(machine: Machine, book: Book, received: str) -> None:
    for direction, digits, event in book:
        data = bytes.fromhex(digits)
        if direction == received:
            machine.receive(data)
            assert machine.next_event() == event, digits
            assert machine.trailing == b"", digits
        else:
            assert machine.send(event) == data, event


def play(machine: Machine, chunks: Iterable[bytes], script: Script) -> Outcome:
    """Give a machine what comes in chunks, say what the script says, and see how it ends.

    What comes behind the end, or behind an error, is given to the machine too.
    """
    heard: list[Event] = []
    sent = speak(machine, script)
    problem = None
    for chunk in chunks:
        machine.receive(chunk)
        try:
            while (event := machine.next_event()) is not None:
                heard.append(event)
                sent += speak(machine, script)
        except RemoteProtocolError as error:
            assert problem is None, "a machine that is closed cannot fail again"
            assert machine.state == "closed"
            problem = (str(error), error.reply, error.code)
        check_wants(machine)
    return Outcome(heard, sent, problem, machine.state)


def speak(machine: Machine, script: Script) -> bytes:
    """Say what the script has for us to say, until it is the peer's turn or over."""
    said = b""
    while machine.state in script:
        said += machine.send(script[machine.state])
    return said


def check_wants(machine: Machine) -> None:
    """A machine wants bytes when it is the peer's turn and only then, and never many."""
    waits = machine.state in PEERS_TURN[type(machine)]
    assert (machine.wants > 0) == waits, machine.state
    is_http = isinstance(machine, http_connect.Client)
    most = _MOST_BYTES_OF_HTTP if is_http else _MOST_BYTES
    assert not waits or len(machine.trailing) + machine.wants <= most


class Wire:
    """A stream of bytes that a reader takes only as many of as its machine wants."""

    def __init__(self, data: bytes) -> None:
        self.unread = data

    def exact_reads(self, machine: Machine) -> Iterator[bytes]:
        while self.unread and (count := machine.wants):
            chunk, self.unread = self.unread[:count], self.unread[count:]
            yield chunk
