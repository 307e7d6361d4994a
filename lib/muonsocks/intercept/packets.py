"""UDP datagrams in IP packets, as they come from a device and go to it. No I/O.

IPv4 is RFC 791, IPv6 RFC 8200, UDP RFC 768, and what tells that there is nobody RFC 792 and RFC
4443. A packet that is a part of a datagram is not for us: nothing here puts it together.
"""

from __future__ import annotations

from struct import Struct

_IPV4 = Struct("!BBHHHBBH4s4s")
_IPV6 = Struct("!IHBB16s16s")
_UDP = Struct("!HHHH")
_ICMP = Struct("!BBHI")  # type, code, checksum, nothing
_EXTENSIONS = (0, 43, 60)  # hop-by-hop options, routing header, destination options
_UDP_PROTOCOL, _ICMP_PROTOCOL, _ICMPV6_PROTOCOL = 17, 1, 58
_HOPS = 64
_UNREACHABLE = {4: (3, 3), 16: (1, 4)}  # by the bytes of an address: type and code, "port"
_DO_NOT_FRAGMENT = 0x4000
_MOST_EXTENSIONS = 8
LONGEST = 65535  # bytes of a packet


class Datagram:
    """Data between two ports; the addresses are packed. `header` is how far the headers reach that
    the data are behind.
    """

    __slots__ = ("data", "destination", "destination_port", "source", "source_port")

    def __init__(
        self,
        source: bytes,
        source_port: int,
        destination: bytes,
        destination_port: int,
        data: bytes | memoryview,
    ) -> None:
        self.source = source
        self.source_port = source_port
        self.destination = destination
        self.destination_port = destination_port
        self.data = data

    def answer(self, data: bytes | memoryview) -> Datagram:
        """Make one that goes the other way."""
        there, back = self.destination, self.source
        return Datagram(there, self.destination_port, back, self.source_port, data)

    def packet(self) -> bytes:
        """Write it as a packet. ValueError if it is too long for one."""
        length = _UDP.size + len(self.data)
        head = _UDP.pack(self.source_port, self.destination_port, length & 0xFFFF, 0)
        pseudo = _pseudo_header(self.source, self.destination, length, _UDP_PROTOCOL)
        # 0 would be that there is none, and means the same as what is sent instead
        checksum = _complement(_sum(pseudo) + _sum(head) + _sum(self.data)) or 0xFFFF
        body = head[:6] + checksum.to_bytes(2, "big") + self.data
        return _packet(self.source, self.destination, _UDP_PROTOCOL, body)

    def unreachable(self) -> bytes:
        """Write the packet that tells whoever has sent it that nobody is at that port (ICMP)."""
        quoted = Datagram(
            self.source, self.source_port, self.destination, self.destination_port, b""
        ).packet()
        kind, code = _UNREACHABLE[len(self.source)]
        body = _ICMP.pack(kind, code, 0, 0) + quoted
        total, protocol = _sum(body), _ICMP_PROTOCOL
        if len(self.source) == 16:
            protocol = _ICMPV6_PROTOCOL
            total += _sum(_pseudo_header(self.destination, self.source, len(body), protocol))
        body = body[:2] + _complement(total).to_bytes(2, "big") + body[4:]
        return _packet(self.destination, self.source, protocol, body)


def datagram_in(packet: memoryview) -> Datagram | None:
    """Read a packet; None if there is no whole datagram in it, or one that has been damaged."""
    version = packet[0] >> 4 if packet else 0
    if version == 4:
        return _in_ipv4(packet)
    if version == 6:
        return _in_ipv6(packet)
    return None


def _in_ipv4(packet: memoryview) -> Datagram | None:
    if len(packet) < _IPV4.size:
        return None
    first, _, length, _, part, _, protocol, _, source, destination = _IPV4.unpack_from(packet)
    header = 4 * (first & 15)
    if not _IPV4.size <= header <= length <= len(packet) or _sum(packet[:header]) % 0xFFFF:
        return None
    if part & ~_DO_NOT_FRAGMENT or protocol != _UDP_PROTOCOL:
        return None
    return _in_udp(source, destination, packet[header:length])


def _in_ipv6(packet: memoryview) -> Datagram | None:
    if len(packet) < _IPV6.size:
        return None
    _, length, protocol, _, source, destination = _IPV6.unpack_from(packet)
    if length > len(packet) - _IPV6.size:
        return None
    rest = packet[_IPV6.size : _IPV6.size + length]
    for _ in range(_MOST_EXTENSIONS):
        if protocol not in _EXTENSIONS:
            break
        if len(rest) < 8 or len(rest) < 8 * (rest[1] + 1):
            return None
        protocol, rest = rest[0], rest[8 * (rest[1] + 1) :]
    if protocol != _UDP_PROTOCOL:
        return None
    return _in_udp(source, destination, rest)


def _in_udp(source: bytes, destination: bytes, rest: memoryview) -> Datagram | None:
    if len(rest) < _UDP.size:
        return None
    source_port, destination_port, length, checksum = _UDP.unpack_from(rest)
    if not _UDP.size <= length <= len(rest):
        return None
    rest = rest[:length]
    if checksum:
        pseudo = _pseudo_header(source, destination, length, _UDP_PROTOCOL)
        if (_sum(pseudo) + _sum(rest)) % 0xFFFF:
            return None
    elif len(source) == 16:
        return None  # IPv6 has no checksum of its own (RFC 8200 section 8.1)
    return Datagram(source, source_port, destination, destination_port, rest[_UDP.size :])


def _packet(source: bytes, destination: bytes, protocol: int, body: bytes) -> bytes:
    if len(source) == 16:
        if len(body) > LONGEST - _IPV6.size:
            raise ValueError("the datagram is too long for a packet")
        return _IPV6.pack(6 << 28, len(body), protocol, _HOPS, source, destination) + body
    length = _IPV4.size + len(body)
    if length > LONGEST:
        raise ValueError("the datagram is too long for a packet")
    fields = (0x45, 0, length, 0, _DO_NOT_FRAGMENT, _HOPS, protocol)
    checksum = _complement(_sum(_IPV4.pack(*fields, 0, source, destination)))
    return _IPV4.pack(*fields, checksum, source, destination) + body


def _pseudo_header(source: bytes, destination: bytes, length: int, protocol: int) -> bytes:
    """What a checksum is made of besides (RFC 768, RFC 8200 section 8.1); for sums the zeros in
    between are of no account.
    """
    return source + destination + length.to_bytes(4, "big") + protocol.to_bytes(4, "big")


def _sum(data: bytes | memoryview) -> int:
    """Sum up words of 16 bits (RFC 1071). A number to the base of 65536 leaves the sum of its
    digits, divided by 65535. Zeros are all that sums up to 0; else it is 1 to 65535.
    """
    number = int.from_bytes(data, "big") << 8 * (len(data) & 1)
    return (number - 1) % 0xFFFF + 1 if number else 0


def _complement(total: int) -> int:
    return 0xFFFF - ((total - 1) % 0xFFFF + 1 if total else 0)
