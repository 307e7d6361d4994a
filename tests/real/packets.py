"""What leaves a network, packet by packet: all that goes through its only cable.

begin, end = here(open_capture, "inner", True), there(open_capture, "outer", False)
capture = Capture(begin, end, here(open_marks, "inner"))
leaks = [leak for packet in capture.packets() if (leak := packet.leak(proxy))]
"""

import ctypes
import ipaddress
import socket
import struct
from collections import Counter
from typing import NamedTuple

_ETH_P_ALL, _ETH_P_IP, _ETH_P_IPV6 = 3, 0x0800, 0x86DD
ETH_P_MARK = 0x88B5  # for experiments of one's own (IEEE 802)
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
_SNAPPED = 128  # bytes of a packet that are kept
_ROOM = 64 << 20
_IP_PROTOCOLS = {1: "ICMP", 2: "IGMP", 6: "TCP", 17: "UDP", 33: "DCCP", 58: "ICMPv6", 132: "SCTP"}
_MLD_REPORT = 143
_HOP_BY_HOP = 0
_SYN, _ACK = 2, 16
PATIENCE = 30  # seconds

Address = tuple[str, int]


class Packet(NamedTuple):
    """A frame, and who sent what where; a port is 0 where there is none."""

    frame: bytes
    kind: str
    destination: Address
    begins: int = 0  # a connection, from this port

    def leak(self, proxy: Address) -> str:
        """Say what it is if it is neither for the proxy nor the kernel's own; empty otherwise."""
        if self.kind == "TCP" and self.destination == proxy:
            return ""
        if self.kind == "MLD of the kernel":
            return ""
        host, port = self.destination
        return f"{self.kind} to {host} port {port}: {self.frame[:80].hex(' ', 4)}"


def parse(frame: bytes) -> Packet:
    """Read a frame of Ethernet."""
    kind = int.from_bytes(frame[12:14], "big")
    packet = frame[14:]
    if kind == _ETH_P_IP and len(packet) >= 20:
        header = 4 * (packet[0] & 15)
        # of a later fragment there is no port
        is_whole = not int.from_bytes(packet[6:8], "big") & 0x1FFF
        return _parse_ip(frame, packet[9], packet[16:20], packet[header:] if is_whole else b"")
    if kind == _ETH_P_IPV6 and len(packet) >= 40:
        protocol, body = packet[6], packet[40:]
        if protocol == _HOP_BY_HOP and len(body) >= 8:
            protocol, body = body[0], body[8 + 8 * body[1] :]
            if protocol == 58 and body and body[0] == _MLD_REPORT and _is_of_kernel(body):
                return Packet(frame, "MLD of the kernel", ("", 0))
        return _parse_ip(frame, protocol, packet[24:40], body)
    name = {0x0806: "ARP"}.get(kind, f"Ethernet {kind:#06x}")
    return Packet(frame, name, (frame[:6].hex(":"), 0))


def _parse_ip(frame: bytes, protocol: int, destination: bytes, body: bytes) -> Packet:
    port = 0
    if protocol in (6, 17, 33, 132, 136) and len(body) >= 4:
        port = int.from_bytes(body[2:4], "big")
    begins = 0
    if protocol == 6 and len(body) >= 20 and body[13] & (_SYN | _ACK) == _SYN:
        begins = int.from_bytes(body[:2], "big")
    name = _IP_PROTOCOLS.get(protocol, f"IP protocol {protocol}")
    return Packet(frame, name, (str(ipaddress.ip_address(destination)), port), begins)


def _is_of_kernel(report: bytes) -> bool:
    """Say whether a report (RFC 3810 section 5.2) has only groups that an interface is in by having
    addresses: those of their solicitations.
    """
    count, place = int.from_bytes(report[6:8], "big"), 8
    for _ in range(count):
        record = report[place : place + 20]
        if len(record) < 20 or record[4:17] != bytes.fromhex("ff0200000000000000000001ff"):
            return False
        place += 20 + 4 * record[1] + 16 * int.from_bytes(record[2:4], "big")
    return True


def open_capture(interface: str, is_outgoing: bool) -> socket.socket:
    """Open what takes in the beginning of all that goes out of an interface of the network of this
    thread, or else of all that arrives there.
    """
    kept, left = (1, 0) if is_outgoing else (0, 1)
    instructions = (  # classic BPF
        (0x28, 0, 0, 0xFFFFF004),  # load SKF_AD_PKTTYPE
        (0x15, kept, left, socket.PACKET_OUTGOING),
        (0x06, 0, 0, 0),
        (0x06, 0, 0, _SNAPPED),
    )
    data = b"".join(struct.pack("=HBBI", *one) for one in instructions)
    held = ctypes.create_string_buffer(data)
    program = struct.pack("=HxxxxxxQ", len(instructions), ctypes.addressof(held))
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
    sock.bind((interface, _ETH_P_ALL))
    sock.settimeout(PATIENCE)
    return sock


def open_marks(interface: str) -> socket.socket:
    """Open what sends frames from an interface of the network of this thread."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.bind((interface, 0))
    return sock


class Capture:
    """All that goes through a cable. `begin` sees what goes into it, but for what a program sends
    by a way of its own (packet(7), PACKET_QDISC_BYPASS); `end` what comes out, of which the kernel
    drops what is too much at once. `marks` sends into it.
    """

    def __init__(self, begin: socket.socket, end: socket.socket, marks: socket.socket) -> None:
        self._ends = (begin, end)
        self._marks = marks
        self._count = 0

    def packets(self) -> list[Packet]:
        """Give what either end has seen since the last time."""
        self._count += 1
        mark = bytes(12) + ETH_P_MARK.to_bytes(2, "big") + self._count.to_bytes(46, "big")
        self._marks.send(mark)
        begin, end = (Counter(_up_to(mark, sock)) for sock in self._ends)
        return [parse(frame) for frame in (begin | end).elements()]


def _up_to(mark: bytes, sock: socket.socket) -> list[bytes]:
    frames = list(iter(lambda: sock.recv(_SNAPPED), mark))
    statistics = sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
    _, dropped = struct.unpack("=II", statistics)
    assert not dropped, f"{dropped} packets have not been looked at"
    return frames
