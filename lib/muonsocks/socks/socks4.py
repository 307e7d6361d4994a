"""SOCKS4 and its extension 4A for names, both sides, no I/O.

The sources are the two notes by Ying-Da Lee, "SOCKS: A protocol for TCP proxy across firewalls"
and "SOCKS 4A: A Simple Extension to SOCKS 4 Protocol".

    request  the server expects:  4, command, port (2), IPv4 address (4), user id, NUL
             and if the address is 0.0.0.x with x not 0:  name, NUL (that is 4A)
    answer   the server owes:     0, code, port (2), IPv4 address (4); two of them for BIND
    relay    it is over: what comes now is carried, not ours
    closed   a refusal was sent or the peer broke the protocol
"""

from __future__ import annotations

from muonsocks.address import Endpoint, is_name
from muonsocks.errors import LocalProtocolError, RemoteProtocolError
from muonsocks.socks.machine import Machine, name_bytes, port_bytes
from muonsocks.socks.request import UNSPECIFIED, Command, Event, Reply, ReplyCode, Request

VERSION = 4
_GRANTED, _REJECTED, _NO_IDENTD = 0x5A, 0x5B, 0x5C
_LONGEST = 255  # bytes of a user id or a name, as in SOCKS5; SOCKS4 itself sets no limit


def encode_reply(code: int, bound: Endpoint = UNSPECIFIED) -> bytes:
    """Write a reply; a bound IPv6 address has no place in it and is written as zeros."""
    if bound.packed is None or len(bound.packed) != 4:
        bound = UNSPECIFIED
    if code == ReplyCode.SUCCEEDED:
        code = _GRANTED
    elif code != ReplyCode.IDENTITY_REFUSED:
        code = _REJECTED
    return bytes((0, code)) + port_bytes(bound) + (bound.packed or b"")


def _name_follows(address: bytes) -> bool:
    return address[:3] == b"\0\0\0" and address[3] != 0


class _Machine(Machine):
    __slots__ = ("owes_two",)

    def __init__(self, state: str) -> None:
        super().__init__(state)
        self.owes_two = False  # replies: one to BIND, and one when the peer connects

    def _after_reply(self, code: int) -> None:
        if code != ReplyCode.SUCCEEDED:
            self.state = "closed"
        elif self.owes_two:
            self.owes_two = False
        else:
            self.state = "relay"


class Server(_Machine):
    """The server's side of one SOCKS4 or 4A handshake; `version` is "4a" once a name is seen."""

    __slots__ = ("version",)

    def __init__(self, state: str = "request") -> None:
        """Begin with the client's first byte, or in state "answer" with its request read."""
        super().__init__(state)
        self.version = "4"

    @property
    def wants(self) -> int:
        if self.state != "request":
            return 0
        # Only the fixed part has a length; a user id or a name ends with its NUL.
        return max(1, 9 - len(self._buffer))

    def next_event(self) -> Event | None:
        if self.state != "request":
            return None
        buffer = self._buffer
        if buffer and buffer[0] != VERSION:
            raise self._fail(f"the request has version {buffer[0]}, not 4")
        if len(buffer) < 9:
            return None
        end = self._end_of_text(8, "user id")
        if end is None:
            return None
        user, address = buffer[8:end], buffer[4:8]
        port = int.from_bytes(buffer[2:4], "big")
        if not _name_follows(address):
            destination = Endpoint.at(address, port)
        else:
            self.version = "4a"
            start = end + 1
            end = self._end_of_text(start, "name")
            if end is None:
                return None
            name = buffer[start:end]
            if not is_name(name):
                raise self._fail("the request has no valid name")
            destination = Endpoint(name.decode("ascii"), port)
        self._take(end + 1)
        self.state = "answer"
        self.owes_two = buffer[1] == Command.BIND
        return Request(buffer[1], destination, user)

    def _end_of_text(self, start: int, what: str) -> int | None:
        """Find the NUL that ends the text at `start`; None if it has not come yet."""
        end = self._buffer.find(0, start, start + _LONGEST + 1)
        if end >= 0:
            return end
        if len(self._buffer) > start + _LONGEST:
            raise self._fail(f"the {what} is longer than {_LONGEST} bytes")
        return None

    def _fail(self, message: str) -> RemoteProtocolError:
        self.state = "closed"
        if self._buffer[0] != VERSION:
            return RemoteProtocolError(message)
        code = ReplyCode.GENERAL_FAILURE
        return RemoteProtocolError(message, encode_reply(code), code)

    def send(self, event: Event) -> bytes:
        if not isinstance(event, Reply) or self.state != "answer":
            raise self._out_of_turn(event)
        self._after_reply(event.code)
        return encode_reply(event.code, event.bound)


class Client(_Machine):
    """The client's side of one SOCKS4 or 4A handshake: 4A where the destination is a name."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__("request")

    @property
    def wants(self) -> int:
        return max(0, 8 - len(self._buffer)) if self.state == "answer" else 0

    def send(self, event: Event) -> bytes:
        if not isinstance(event, Request) or self.state != "request":
            raise self._out_of_turn(event)
        destination = event.destination
        if len(event.user) > _LONGEST or b"\0" in event.user:
            raise LocalProtocolError("a user id has at most 255 bytes, none of them NUL")
        name = b""
        packed = destination.packed
        if packed is None:
            packed = b"\0\0\0\1"
            name = name_bytes(destination) + b"\0"
        elif len(packed) != 4 or _name_follows(packed):
            raise LocalProtocolError(f"SOCKS4 has no way to say {destination.host}")
        self.state = "answer"
        self.owes_two = event.command == Command.BIND
        head = bytes((VERSION, event.command)) + port_bytes(destination)
        return head + packed + event.user + b"\0" + name

    def next_event(self) -> Event | None:
        if self.state != "answer":
            return None
        if self._buffer and self._buffer[0] != 0:
            self.state = "closed"
            raise RemoteProtocolError(f"the reply has version {self._buffer[0]}, not 0")
        if len(self._buffer) < 8:
            return None
        message = self._take(8)
        code = {
            _GRANTED: ReplyCode.SUCCEEDED,
            _NO_IDENTD: ReplyCode.NOT_ALLOWED,
            ReplyCode.IDENTITY_REFUSED: ReplyCode.NOT_ALLOWED,
        }.get(message[1], ReplyCode.GENERAL_FAILURE)
        self._after_reply(code)
        return Reply(code, Endpoint.at(message[4:], int.from_bytes(message[2:4], "big")))
