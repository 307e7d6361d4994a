"""The header of the PROXY protocol, versions 1 and 2: who the client is, before the first byte.

(haproxy.org, doc/proxy-protocol.txt.) Where that is not known, because the client did not come over
IPv4 or IPv6, the header says so. Who reads one drives `Reader` as the machines of SOCKS.

    state     what the bytes are                         then
    either    the first one: 'P' or CR                   line, or head
    line      version 1, up to CR LF                     over
    head      version 2: signature and what follows      block
    block     as many bytes as the head has said         over

Over or broken, a reader is "closed".
"""

from __future__ import annotations

from struct import pack

from muonsocks.address import Endpoint, mapped, parse_address
from muonsocks.errors import RemoteProtocolError
from muonsocks.socks.machine import Machine
from muonsocks.socks.request import Event

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_PROXIED = 0x21  # version 2, command PROXY
_TCP = {4: 0x11, 16: 0x21}  # AF_INET or AF_INET6, STREAM
_UNKNOWN = 0

# Writing


def version_1(client: Endpoint | None, local: Endpoint | None) -> bytes:
    """Write a line, of 107 bytes at most. `local` is the address that the client has come to."""
    if client is None or local is None or client.packed is None or local.packed is None:
        return b"PROXY UNKNOWN\r\n"
    hosts = [client.host, local.host]
    if len(client.packed) != len(local.packed):
        hosts = [host if ":" in host else f"::ffff:{host}" for host in hosts]
    family = 6 if ":" in hosts[0] else 4
    text = f"PROXY TCP{family} {' '.join(hosts)} {client.port} {local.port}\r\n"
    return text.encode()


def version_2(client: Endpoint | None, local: Endpoint | None) -> bytes:
    """Write 16, 28 or 52 bytes, in binary. An IPv4 address beside an IPv6 one is IPv4-mapped."""
    if client is None or local is None or client.packed is None or local.packed is None:
        return _SIGNATURE + pack("!BBH", _PROXIED, _UNKNOWN, 0)
    one, other = client.packed, local.packed
    if len(one) != len(other):
        one, other = mapped(one), mapped(other)
    addresses = one + other + pack("!HH", client.port, local.port)
    return _SIGNATURE + pack("!BBH", _PROXIED, _TCP[len(one)], len(addresses)) + addresses


# Reading

_WORD = b"PROXY "
_FIRST = (_WORD[0], _SIGNATURE[0])
_SHORTEST_LINE = len(b"PROXY UNKNOWN\r\n")
_LONGEST_LINE = 107
_HEAD = 16  # bytes of version 2 up to the addresses
_LONGEST_BLOCK = 4096  # bytes of addresses and what else there is: far more than anybody sends
_LOCAL, _PROXY = 0x20, 0x21
_STREAM = 1
_INET, _INET6, _UNIX = 1, 2, 3
_LENGTHS = {_INET: 4, _INET6: 16}  # of an address
_LARGEST_FAMILY, _LARGEST_TRANSPORT = 3, 2
_UNIX_ADDRESSES = 216  # bytes


class Introduction(Event):
    """Proxy to server: who the client is.

    `client` is None if it is nobody that has an address: one that has come to the proxy over a unix
    socket, if `over_unix`; else who has sent this, for a connection of its own, or for a client of
    whom it does not say more.
    """

    __slots__ = ("client", "over_unix")

    def __init__(self, client: Endpoint | None, over_unix: bool = False) -> None:
        self.client = client
        self.over_unix = over_unix


NOBODY_ELSE = Introduction(None)


class Reader(Machine):
    """The server's side: it has nothing to say."""

    __slots__ = ("_length",)

    def __init__(self) -> None:
        super().__init__("either")
        self._length = 0  # of the block

    @staticmethod
    def begins(first: int) -> bool:
        """Say whether a header may begin with this byte. SOCKS does not."""
        return first in _FIRST

    @property
    def wants(self) -> int:
        """How many bytes more the peer is sure to send before this header is over."""
        have = len(self._buffer)
        if self.state == "line":
            return max(_SHORTEST_LINE - have, 1 if self._buffer.endswith(b"\r") else 2)
        if self.state == "block":
            return self._length - have
        return {"either": 1, "head": _HEAD - have}.get(self.state, 0)

    def next_event(self) -> Introduction | None:
        """Give what the header says, once all of it is there. RemoteProtocolError."""
        if self.state == "either" and self._buffer:
            if not self.begins(self._buffer[0]):
                raise self._broken("no PROXY header")
            self.state = "line" if self._buffer[0] == _WORD[0] else "head"
        if self.state == "line":
            return self._line()
        if self.state == "head" and not self._has_head():
            return None
        if self.state == "block":
            return self._block()
        return None

    def send(self, event: Event) -> bytes:
        """Fail: who reads a header does not answer it. LocalProtocolError."""
        raise self._out_of_turn(event)

    def _broken(self, why: str) -> RemoteProtocolError:
        self.state = "closed"
        return RemoteProtocolError(why)

    def _line(self) -> Introduction | None:
        start = self._buffer[:_LONGEST_LINE]
        if not start.startswith(_WORD[: len(start)]):
            raise self._broken("no PROXY header")
        line, end, _ = start.partition(b"\r\n")
        if b"\n" in line or b"\r" in (line if end else line[:-1]):
            raise self._broken("a PROXY header has a CR or LF alone")
        if not end:
            if len(start) == _LONGEST_LINE:
                raise self._broken(f"a PROXY header has no end in {_LONGEST_LINE} bytes")
            return None
        said = _said_by(line)
        if said is None:
            raise self._broken(f"a PROXY header makes no sense: {line!r}")
        self._take(len(line) + len(end))
        self.state = "closed"
        return said

    def _has_head(self) -> bool:
        """Whether the head of version 2 is there, and has been taken."""
        start = self._buffer[: len(_SIGNATURE)]
        if start != _SIGNATURE[: len(start)]:
            raise self._broken("no PROXY header")
        if len(self._buffer) < _HEAD:
            return False
        what, length = self._buffer[12], int.from_bytes(self._buffer[14:_HEAD], "big")
        family, transport = divmod(self._buffer[13], 16)
        if what not in (_LOCAL, _PROXY):
            raise self._broken(f"a PROXY header has version and command {what:#04x}")
        if length > _LONGEST_BLOCK:
            raise self._broken(f"a PROXY header of {_HEAD + length} bytes is too long")
        if what == _PROXY and (family > _LARGEST_FAMILY or transport > _LARGEST_TRANSPORT):
            raise self._broken(f"a PROXY header has addresses of type {self._buffer[13]:#04x}")
        if length < self._least(what, family, transport):
            raise self._broken("a PROXY header is too short for its addresses")
        self._length = _HEAD + length
        self.state = "block"
        return True

    def _least(self, what: int, family: int, transport: int) -> int:
        """How long the block of addresses must be, if it is to be used."""
        if what == _LOCAL or transport != _STREAM:
            return 0
        if family == _UNIX:
            return _UNIX_ADDRESSES
        return 2 * _LENGTHS[family] + 4 if family in _LENGTHS else 0

    def _block(self) -> Introduction | None:
        if len(self._buffer) < self._length:
            return None
        header = self._take(self._length)
        self.state = "closed"
        family, transport = divmod(header[13], 16)
        if header[12] == _LOCAL or transport != _STREAM:
            return NOBODY_ELSE
        if family == _UNIX:
            return Introduction(None, over_unix=True)
        if family not in _LENGTHS:
            return NOBODY_ELSE
        length = _LENGTHS[family]
        ports = _HEAD + 2 * length
        port = int.from_bytes(header[ports : ports + 2], "big")
        return Introduction(Endpoint.at(header[_HEAD : _HEAD + length], port))


def _said_by(line: bytes) -> Introduction | None:
    """Read a line of version 1 without its end; None if it makes no sense."""
    words = line.split(b" ")
    if words[1] == b"UNKNOWN":  # whatever follows
        return NOBODY_ELSE
    if len(words) != 6 or words[1] not in (b"TCP4", b"TCP6") or not line.isascii():
        return None
    _, family, *hosts, one, other = (word.decode() for word in words)
    if not all((":" in host) == (family == "TCP6") and parse_address(host) for host in hosts):
        return None
    if not (_is_port(one) and _is_port(other)):
        return None
    return Introduction(Endpoint(hosts[0], int(one)))


def _is_port(text: str) -> bool:
    """Whether this is a port as the protocol writes one: without a zero in front."""
    is_number = text.isascii() and text.isdecimal() and len(text) <= 5
    return is_number and (text == "0" or text[0] != "0") and int(text) < 65536
