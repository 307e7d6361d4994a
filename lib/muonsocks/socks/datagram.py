"""The header of a datagram that a SOCKS5 server relays (RFC 1928 section 7), no I/O.

    RSV (2)  FRAG (1)  ATYP (1)  address (4, 16, or a length byte and a name)  port (2)  data

From the client it says where the data are to go, and to the client where they come from. What is
in RSV means nothing. A datagram that is a fragment is not for us: nothing here puts it together.
"""

from __future__ import annotations

from muonsocks.errors import RemoteProtocolError
from muonsocks.socks.socks5 import decode_endpoint, encode_endpoint, endpoint_length

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.address import Endpoint

LONGEST_HEADER = 3 + 1 + 1 + 255 + 2
_SHORTEST = 3 + 1 + 1 + 2  # up to the address, an empty name and a port
_START = 3  # of ATYP


def header_length(datagram: bytes | bytearray | memoryview, length: int) -> int:
    """Say how long the header is of a datagram of so many bytes; 0 if that is none.

    More bytes may be there: they do not belong to it.
    """
    if length < _SHORTEST:
        return 0
    end = _START + endpoint_length(datagram, _START)
    return end if _START < end <= length else 0


def last_header(
    datagram: bytes | bytearray | memoryview, start: int, end: int, count: int
) -> tuple[int, int]:
    """Say where the last of so many headers begins and ends, which stand one behind the other in
    what lies from `start` to `end`. (0, 0) if they do not, or it is a fragment.
    """
    datagram = memoryview(datagram)
    while length := header_length(datagram[start:end], end - start):
        if datagram[start + 2]:
            break
        count -= 1
        if not count:
            return start, start + length
        start += length
    return 0, 0


def decode_header(header: bytes) -> Endpoint:
    """Read a whole header, and nothing behind it. RemoteProtocolError."""
    if header_length(header, len(header)) != len(header) or not header:
        raise RemoteProtocolError("the datagram has no header")
    if header[2]:
        raise RemoteProtocolError("the datagram is a fragment")
    endpoint = decode_endpoint(header, _START)
    if endpoint is None:
        raise RemoteProtocolError("the datagram has no valid name")
    return endpoint


def encode_header(endpoint: Endpoint) -> bytes:
    """Write a header. LocalProtocolError for what cannot be a name."""
    return b"\0\0\0" + encode_endpoint(endpoint)
