"""SOCKS5 (RFC 1928) with no authentication or user and password (RFC 1929), both sides, no I/O.

The server's states, and what each expects:

    offer        the client offers methods          -> MethodOffer
    choose       we owe a MethodChoice
    credentials  the client names user and password -> Credentials
    judge        we owe a CredentialsVerdict
    request      the client asks                    -> Request
    answer       we owe a Reply
    relay        it is over: what comes now is carried, not ours
    closed       a refusal was sent or the client broke the protocol

The client's states are the other halves: offer (we speak) -> choice -> credentials (we speak)
-> verdict -> request (we speak) -> reply -> relay, or closed.
"""

from __future__ import annotations

from muonsocks.address import Endpoint, is_name
from muonsocks.errors import LocalProtocolError, RemoteProtocolError
from muonsocks.socks.machine import Machine, name_bytes, port_bytes
from muonsocks.socks.request import (
    UNSPECIFIED,
    Command,
    Credentials,
    CredentialsVerdict,
    Event,
    Method,
    MethodChoice,
    MethodOffer,
    Reply,
    ReplyCode,
    Request,
)

VERSION = 5
_PASSWORD_VERSION = 1  # the version of the subnegotiation, RFC 1929 section 2
_IPV4, _NAME, _IPV6 = 1, 3, 4
_ADDRESS_LENGTH = {_IPV4: 4, _IPV6: 16}


def encode_reply(code: int, bound: Endpoint = UNSPECIFIED) -> bytes:
    """Write a reply, RFC 1928 section 6."""
    if code == ReplyCode.IDENTITY_REFUSED:
        code = ReplyCode.NOT_ALLOWED
    return bytes((VERSION, code, 0)) + encode_endpoint(bound)


def encode_endpoint(endpoint: Endpoint) -> bytes:
    """Write ATYP, address and port, RFC 1928 sections 4 and 5."""
    packed = endpoint.packed
    if packed is not None:
        kind = b"\1" if len(packed) == 4 else b"\4"
        return kind + packed + endpoint.port.to_bytes(2, "big")
    name = name_bytes(endpoint)
    return bytes((_NAME, len(name))) + name + port_bytes(endpoint)


def decode_endpoint(message: bytes, start: int) -> Endpoint | None:
    """Read ATYP, address and port, which begin at `start` and end with the message.

    None for what cannot be a name. The type has been looked at, and fits the length.
    """
    port = int.from_bytes(message[-2:], "big")
    if message[start] != _NAME:
        return Endpoint.at(message[start + 1 : -2], port)
    name = message[start + 2 : -2]
    return Endpoint(name.decode("ascii"), port) if is_name(name) else None


def endpoint_length(message: bytes | bytearray | memoryview, start: int) -> int:
    """Say how long ATYP, address and port are that begin at `start`; 0 for an unknown type."""
    kind = message[start]
    if kind == _NAME:
        return 4 + message[start + 1]
    return 3 + _ADDRESS_LENGTH.get(kind, -3)


class _Machine(Machine):
    __slots__ = ()

    def _fail(
        self, message: str, reply: bytes = b"", code: int | None = None
    ) -> RemoteProtocolError:
        self.state = "closed"
        return RemoteProtocolError(message, reply, code)

    def _expect_version(
        self, version: int, what: str, reply: bytes = b"", code: int | None = None
    ) -> None:
        if self._buffer and self._buffer[0] != version:
            raise self._fail(f"{what} has version {self._buffer[0]}, not {version}", reply, code)

    def _message_length(self) -> int:
        """How long a request or reply (they look alike) is at least, by what is there."""
        buffer = self._buffer
        if len(buffer) < 4:
            return 4
        if buffer[3] == _NAME:
            return 7 + buffer[4] if len(buffer) > 4 else 7
        return 6 + _ADDRESS_LENGTH.get(buffer[3], -2)


_STATE_AFTER = {Method.NONE: "request", Method.PASSWORD: "credentials"}


class Server(_Machine):
    """The server's side of one SOCKS5 handshake."""

    __slots__ = ("owes_two",)
    version = "5"

    def __init__(self, state: str = "offer") -> None:
        """Begin with the client's first byte, or in state "answer" with its request read."""
        super().__init__(state)
        self.owes_two = False  # replies: one to BIND, and one when the peer connects

    @property
    def wants(self) -> int:
        return max(0, self._length() - len(self._buffer))

    def _length(self) -> int:
        """How long the client's message is at least; 0 when it is our turn."""
        buffer = self._buffer
        if self.state == "request":
            return self._message_length()
        if self.state == "offer":
            return 2 + buffer[1] if len(buffer) > 1 else 2
        if self.state == "credentials":
            if len(buffer) < 2:
                return 3  # version and two lengths at the least
            user_end = 2 + buffer[1]
            return user_end + 1 + (buffer[user_end] if len(buffer) > user_end else 0)
        return 0

    def next_event(self) -> Event | None:
        if not self._buffer:
            return None
        if self.state == "offer":
            return self._next_offer()
        if self.state == "request":
            return self._next_request()
        if self.state == "credentials":
            return self._next_credentials()
        return None

    def _next_offer(self) -> MethodOffer | None:
        buffer = self._buffer
        if buffer[0] != VERSION:
            raise self._fail(f"the greeting has version {buffer[0]}, not {VERSION}")
        end = 2 + buffer[1] if len(buffer) > 1 else 2
        if len(buffer) < end:
            return None
        self.state = "choose"
        self._buffer = buffer[end:]
        return MethodOffer(buffer[2:end])

    def _next_credentials(self) -> Credentials | None:
        refusal = bytes((_PASSWORD_VERSION, 1))
        self._expect_version(_PASSWORD_VERSION, "the user and password message", refusal)
        length = self._length()
        if len(self._buffer) < length:
            return None
        message = self._take(length)
        user_end = 2 + message[1]
        self.state = "judge"
        return Credentials(message[2:user_end], message[user_end + 1 :])

    def _next_request(self) -> Request | None:
        buffer = self._buffer
        if buffer[0] != VERSION:
            problem = f"the request has version {buffer[0]}, not {VERSION}"
            raise self._refusal(problem, ReplyCode.GENERAL_FAILURE)
        if len(buffer) > 3 and buffer[3] not in (_IPV4, _NAME, _IPV6):
            problem = f"the request has address type {buffer[3]}"
            raise self._refusal(problem, ReplyCode.ADDRESS_TYPE_NOT_SUPPORTED)
        end = self._message_length()
        if len(buffer) < end:
            return None
        message = buffer[:end]
        self._buffer = buffer[end:]
        destination = decode_endpoint(message, 3)
        if destination is None:
            raise self._refusal("the request has no valid name", ReplyCode.HOST_UNREACHABLE)
        self.state = "answer"
        self.owes_two = message[1] == Command.BIND
        return Request(message[1], destination)

    def _refusal(self, message: str, code: int) -> RemoteProtocolError:
        return self._fail(message, encode_reply(code), code)

    def send(self, event: Event) -> bytes:
        if isinstance(event, Reply) and self.state == "answer":
            answer = encode_reply(event.code, event.bound)
            if event.code != ReplyCode.SUCCEEDED:
                self.state = "closed"
            elif self.owes_two:
                self.owes_two = False
            else:
                self.state = "relay"
            return answer
        if isinstance(event, MethodChoice) and self.state == "choose":
            self.state = _STATE_AFTER.get(event.method, "closed")
            return bytes((VERSION, event.method))
        if isinstance(event, CredentialsVerdict) and self.state == "judge":
            self.state = "request" if event.accepted else "closed"
            return bytes((_PASSWORD_VERSION, 0 if event.accepted else 1))
        raise self._out_of_turn(event)


class Client(_Machine):
    """The client's side of one SOCKS5 handshake."""

    __slots__ = ("_awaits_second_reply", "_offered")

    def __init__(self) -> None:
        super().__init__("offer")
        self._offered = b""
        self._awaits_second_reply = False

    @property
    def wants(self) -> int:
        return max(0, self._length() - len(self._buffer))

    def _length(self) -> int:
        if self.state == "reply":
            return self._message_length()
        return 2 if self.state in ("choice", "verdict") else 0

    def send(self, event: Event) -> bytes:
        if isinstance(event, MethodOffer) and self.state == "offer":
            if not 0 < len(event.methods) < 256:
                raise LocalProtocolError("an offer has 1 to 255 methods")
            self._offered = event.methods
            self.state = "choice"
            return bytes((VERSION, len(event.methods))) + event.methods
        if isinstance(event, Credentials) and self.state == "credentials":
            if len(event.user) > 255 or len(event.password) > 255:
                raise LocalProtocolError("user and password have at most 255 bytes each")
            self.state = "verdict"
            user = bytes((_PASSWORD_VERSION, len(event.user))) + event.user
            return user + bytes((len(event.password),)) + event.password
        if isinstance(event, Request) and self.state == "request":
            self._awaits_second_reply = event.command == Command.BIND
            message = bytes((VERSION, event.command, 0)) + encode_endpoint(event.destination)
            self.state = "reply"
            return message
        raise self._out_of_turn(event)

    def next_event(self) -> Event | None:
        if self.state == "choice":
            return self._next_choice()
        if self.state == "verdict":
            return self._next_verdict()
        if self.state == "reply":
            return self._next_reply()
        return None

    def _next_choice(self) -> MethodChoice | None:
        self._expect_version(VERSION, "the server's choice of method")
        if self.wants:
            return None
        method = self._take(2)[1]
        if method == Method.NO_ACCEPTABLE:
            self.state = "closed"
        elif method not in self._offered:
            raise self._fail(f"the server chose method {method}, which was not offered")
        else:
            self.state = "credentials" if method == Method.PASSWORD else "request"
        return MethodChoice(method)

    def _next_verdict(self) -> CredentialsVerdict | None:
        self._expect_version(_PASSWORD_VERSION, "the server's verdict on the password")
        if self.wants:
            return None
        accepted = self._take(2)[1] == 0
        self.state = "request" if accepted else "closed"
        return CredentialsVerdict(accepted)

    def _next_reply(self) -> Reply | None:
        self._expect_version(VERSION, "the reply")
        if len(self._buffer) > 3 and self._buffer[3] not in (_IPV4, _NAME, _IPV6):
            raise self._fail(f"the reply has address type {self._buffer[3]}")
        if self.wants:
            return None
        message = self._take(self._length())
        code = message[1]
        bound = decode_endpoint(message, 3)
        if bound is None:
            # Some servers say an empty name with a failure; with a success it leaves us blind.
            if code == ReplyCode.SUCCEEDED:
                raise self._fail("the reply has no valid bound address")
            bound = UNSPECIFIED
        if code != ReplyCode.SUCCEEDED:
            self.state = "closed"
        elif self._awaits_second_reply:
            self._awaits_second_reply = False
        else:
            self.state = "relay"
        return Reply(code, bound)
