"""The header of the PROXY protocol, versions 1 and 2: who the client is, before the first byte.

(haproxy.org, doc/proxy-protocol.txt.) Where that is not known, because the client did not come over
IPv4 or IPv6, the header says so.
"""

from __future__ import annotations

from struct import pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.address import Endpoint

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_PROXIED = 0x21  # version 2, command PROXY
_TCP = {4: 0x11, 16: 0x21}  # AF_INET or AF_INET6, STREAM
_UNKNOWN = 0


def version_1(client: Endpoint | None, local: Endpoint | None) -> bytes:
    """Write a line, of 107 bytes at most. `local` is the address that the client has come to."""
    if client is None or local is None or client.packed is None or local.packed is None:
        return b"PROXY UNKNOWN\r\n"
    family = 4 if len(client.packed) == 4 else 6
    text = f"PROXY TCP{family} {client.host} {local.host} {client.port} {local.port}\r\n"
    return text.encode()


def version_2(client: Endpoint | None, local: Endpoint | None) -> bytes:
    """Write 16, 28 or 52 bytes, in binary."""
    if client is None or local is None or client.packed is None or local.packed is None:
        return _SIGNATURE + pack("!BBH", _PROXIED, _UNKNOWN, 0)
    addresses = client.packed + local.packed + pack("!HH", client.port, local.port)
    return _SIGNATURE + pack("!BBH", _PROXIED, _TCP[len(client.packed)], len(addresses)) + addresses
