"""HTTP's CONNECT (RFC 9110 section 9.3.6, RFC 9112), the client's side alone, no I/O.

    request   we speak
    response  the server says how it went, perhaps after 1xx that only say "wait" -> Reply
    relay     it is over: what comes now is carried, not ours
    closed    a refusal was sent or the server broke the protocol; what follows is of no interest

A response has no length but an empty line at its end, so that it is read in twos: who reads more
would have some of what is carried.
"""

from __future__ import annotations

from binascii import b2a_base64

from muonsocks.address import Endpoint
from muonsocks.errors import LocalProtocolError, RemoteProtocolError
from muonsocks.socks.machine import Machine, name_bytes
from muonsocks.socks.request import Command, Credentials, Event, Reply, ReplyCode, Request

LONGEST_HEAD = 16384  # bytes of all that a server says before it carries anything
_SWITCHING = 101
_SHORTEST = b"HTTP/1.1 200\n\n"

# What is a fault of the destination, and which, is a matter of custom: RFC 9110 leaves it open.
# Most proxies say 502 and 404 for a name that is not known, and 503 for that as for a connection
# that is refused and for their own overload, so that 503 tells nothing. That there is no CONNECT,
# 405 or 501, is no answer to the client, who has asked for nothing unusual.
_REPLY_BY_STATUS = {
    403: ReplyCode.NOT_ALLOWED,
    404: ReplyCode.HOST_UNREACHABLE,
    451: ReplyCode.NOT_ALLOWED,
    502: ReplyCode.HOST_UNREACHABLE,
    504: ReplyCode.TTL_EXPIRED,
}

_DIGITS = b"0123456789"
# What may stand at each place of the status line, up to its reason (RFC 9112 section 4).
_STATUS_LINE = (*(bytes((one,)) for one in b"HTTP/1."), _DIGITS, b" ", *[_DIGITS] * 3, b" \r\n")


class Client(Machine):
    """The client's side of one CONNECT. `status` is what the server has said, 0 before."""

    __slots__ = ("_left", "_login", "status")

    def __init__(self, login: Credentials | None = None) -> None:
        """Show `login` (RFC 7617) with the request, whether it is asked for or not."""
        super().__init__("request")
        self._login = login
        self._left = LONGEST_HEAD
        self.status = 0

    @property
    def wants(self) -> int:
        if self.state != "response":
            return 0
        at_line_end = self._buffer.endswith((b"\n", b"\n\r"))
        return max(len(_SHORTEST) - len(self._buffer), 1 if at_line_end else 2)

    def send(self, event: Event) -> bytes:
        if not isinstance(event, Request) or self.state != "request":
            raise self._out_of_turn(event)
        if event.command != Command.CONNECT:
            raise LocalProtocolError(f"HTTP has no way to say command {event.command}")
        place = _authority(event.destination)
        head = b"CONNECT " + place + b" HTTP/1.1\r\nHost: " + place + b"\r\n"
        if self._login is not None:
            login = b2a_base64(self._login.user + b":" + self._login.password, newline=False)
            head += b"Proxy-Authorization: Basic " + login + b"\r\n"
        self.state = "response"
        return head + b"\r\n"

    def next_event(self) -> Reply | None:
        while self.state == "response":
            for byte, possible in zip(self._buffer, _STATUS_LINE, strict=False):
                if byte not in possible:
                    raise self._fail("the answer is not one of HTTP/1")
            end = _end_of_head(self._buffer)
            least = end or len(self._buffer) + 1
            if least > self._left:
                raise self._fail(f"the answer is longer than {LONGEST_HEAD} bytes")
            if not end:
                return None
            self._left -= end
            status = int(self._take(end)[9:12])
            if status == _SWITCHING or not 100 <= status <= 599:
                raise self._fail(f"the answer has status {status:03}")
            if status >= 200:
                return self._reply(status)
        return None

    def _reply(self, status: int) -> Reply:
        self.status = status
        if status < 300:
            self.state = "relay"  # whatever length the head speaks of, section 9.3.6
            return Reply(ReplyCode.SUCCEEDED)
        self.state = "closed"
        return Reply(_REPLY_BY_STATUS.get(status, ReplyCode.GENERAL_FAILURE))

    def _fail(self, message: str) -> RemoteProtocolError:
        self.state = "closed"
        return RemoteProtocolError(message)


def _authority(destination: Endpoint) -> bytes:
    """Write HOST:PORT. LocalProtocolError if that could be read as something else."""
    if destination.packed is None and any(byte in b":/?#[]@%" for byte in name_bytes(destination)):
        raise LocalProtocolError(f"HTTP has no way to say {destination.host}")
    return str(destination).encode()


def _end_of_head(data: bytes) -> int:
    """Find where a head ends, by its empty line; 0 if that has not come.

    A line may end without a CR, RFC 9112 section 2.2.
    """
    ends = [data.find(mark) + len(mark) for mark in (b"\n\n", b"\n\r\n") if mark in data]
    return min(ends, default=0)
