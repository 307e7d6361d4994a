"""A program that tries every way past a proxy: python3 leak_hostile.py HOST HOST6 INTERFACE

What it sends by the first way is for port 7001, by the second for 7002, and so on; WAYS has them
all. What the system does not let it do, it leaves.
"""

import ctypes
import errno
import os
import socket
import struct
import sys
import time
from collections.abc import Callable

FIRST_PORT = 7001
PAYLOAD = b"this goes past the proxy"
IPPROTO_DCCP, IPPROTO_SCTP, IPPROTO_UDPLITE, IPPROTO_MPTCP = 33, 132, 136, 262
MSG_FASTOPEN, TCP_FASTOPEN_CONNECT, MCAST_JOIN_GROUP = 0x20000000, 30, 42
SOCK_DCCP = 6
GROUP, GROUP6 = "239.1.2.3", "ff02::1234"
host, host6, interface = (*sys.argv[1:], "", "", "lo")[:3]
libc = ctypes.CDLL(None, use_errno=True)


def udp(family: int = socket.AF_INET, protocol: int = 0) -> socket.socket:
    return socket.socket(family, socket.SOCK_DGRAM, protocol)


def tcp(protocol: int = 0) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol)
    sock.settimeout(2)
    return sock


def index() -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        return 1  # a network without it


def sockaddr(port: int) -> bytes:
    head = socket.AF_INET.to_bytes(2, "little") + port.to_bytes(2, "big")
    return head + socket.inet_aton(host) + bytes(8)


def sendto(port: int) -> None:
    udp().sendto(PAYLOAD, (host, port))


def sendto_by_ipv6(port: int) -> None:
    udp(socket.AF_INET6).sendto(PAYLOAD, (host6, port))


def sendto_mapped(port: int) -> None:
    udp(socket.AF_INET6).sendto(PAYLOAD, (f"::ffff:{host}", port))


def sendmsg(port: int) -> None:
    udp().sendmsg([PAYLOAD], [], 0, (host, port))


def sendmmsg(port: int) -> None:
    name, data = ctypes.create_string_buffer(sockaddr(port)), ctypes.create_string_buffer(PAYLOAD)
    part = ctypes.create_string_buffer(struct.pack("=QQ", ctypes.addressof(data), len(PAYLOAD)), 16)
    header = struct.pack(
        "=QI4xQQQQi4xI4x", ctypes.addressof(name), 16, ctypes.addressof(part), 1, 0, 0, 0, 0
    )
    sock = udp()
    headers = ctypes.create_string_buffer(header, 64)
    if libc.sendmmsg(sock.fileno(), headers, 1, 0) < 0:
        raise OSError(ctypes.get_errno(), "sendmmsg")


def connected(port: int) -> None:
    sock = udp()
    sock.connect((host, port))
    sock.send(PAYLOAD)


def connected_and_written(port: int) -> None:
    sock = udp()
    sock.connect((host, port))
    os.write(sock.fileno(), PAYLOAD)


def broadcast(port: int) -> None:
    sock = udp()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    sock.sendto(PAYLOAD, ("255.255.255.255", port))


def multicast(port: int) -> None:
    udp().sendto(PAYLOAD, (GROUP, port))


def multicast_by_ipv6(port: int) -> None:
    udp(socket.AF_INET6).sendto(PAYLOAD, (GROUP6, port, 0, index()))


def link_local(port: int) -> None:
    udp(socket.AF_INET6).sendto(PAYLOAD, ("fe80::1", port, 0, index()))


def light(port: int) -> None:
    udp(protocol=IPPROTO_UDPLITE).sendto(PAYLOAD, (host, port))


def fast_open(port: int) -> None:
    tcp().sendto(PAYLOAD, MSG_FASTOPEN, (host, port))


def fast_open_by_sendmsg(port: int) -> None:
    tcp().sendmsg([PAYLOAD], [], MSG_FASTOPEN, (host, port))


def fast_open_at_connect(port: int) -> None:
    sock = tcp()
    sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
    sock.connect((host, port))
    sock.send(PAYLOAD)


def multipath(port: int) -> None:
    tcp(IPPROTO_MPTCP).connect((host, port))


def stream(port: int) -> None:
    tcp().connect((host, port))


def stream_to_link_local(port: int) -> None:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    sock.setblocking(False)
    sock.connect(("fe80::1", port, 0, index()))


def dccp(port: int) -> None:
    sock = socket.socket(socket.AF_INET, SOCK_DCCP, IPPROTO_DCCP)
    sock.setblocking(False)
    sock.connect((host, port))


def sctp(port: int) -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_SCTP)
    sock.setblocking(False)
    sock.connect((host, port))


def sctp_of_many(port: int) -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_SEQPACKET, IPPROTO_SCTP)
    sock.setblocking(False)
    sock.sendto(PAYLOAD, (host, port))


def ping(port: int) -> None:
    sock = udp(protocol=socket.IPPROTO_ICMP)
    sock.sendto(b"\x08" + bytes(7) + PAYLOAD, (host, 0))


def ping_by_ipv6(port: int) -> None:
    sock = udp(socket.AF_INET6, socket.IPPROTO_ICMPV6)
    sock.sendto(b"\x80" + bytes(7) + PAYLOAD, (host6, 0))


def join(port: int) -> None:
    member = struct.pack("=4s4si", socket.inet_aton(GROUP), bytes(4), index())
    udp().setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)


def join_by_tcp(port: int) -> None:
    member = struct.pack("=4s4si", socket.inet_aton(GROUP), bytes(4), index())
    tcp().setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)


def join_by_name_of_group(port: int) -> None:
    member = struct.pack("=I4xHH4s120x", index(), socket.AF_INET, 0, socket.inet_aton(GROUP))
    udp().setsockopt(socket.IPPROTO_IP, MCAST_JOIN_GROUP, member)


def join_by_ipv6(port: int) -> None:
    member = socket.inet_pton(socket.AF_INET6, GROUP6) + struct.pack("=I", index())
    udp(socket.AF_INET6).setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, member)


def raw(port: int) -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
    sock.sendto(struct.pack("!HHHH", port, port, 8 + len(PAYLOAD), 0) + PAYLOAD, (host, 0))


def raw_and_connected(port: int) -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
    sock.connect((host, 0))
    sock.send(struct.pack("!HHHH", port, port, 8 + len(PAYLOAD), 0) + PAYLOAD)


def raw_by_ipv6(port: int) -> None:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_UDP)
    sock.sendto(struct.pack("!HHHH", port, port, 8 + len(PAYLOAD), 1) + PAYLOAD, (host6, 0))


def frame(port: int) -> None:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sock.bind((interface, 0x0800))
    total = 28 + len(PAYLOAD)
    header = struct.pack("!BBHIBBH4s4s", 0x45, 0, total, 0, 9, 17, 0, bytes(4), bytes(4))
    datagram = struct.pack("!HHHH", port, port, 8 + len(PAYLOAD), 0) + PAYLOAD
    sock.send(b"\2\0\0\0\0\1\2\0\0\0\0\2\x08\0" + header + datagram)


WAYS: list[Callable[[int], None]] = [
    sendto,
    sendto_by_ipv6,
    sendto_mapped,
    sendmsg,
    sendmmsg,
    connected,
    connected_and_written,
    broadcast,
    multicast,
    multicast_by_ipv6,
    link_local,
    light,
    fast_open,
    fast_open_by_sendmsg,
    fast_open_at_connect,
    multipath,
    stream,
    stream_to_link_local,
    dccp,
    sctp,
    sctp_of_many,
    ping,
    ping_by_ipv6,
    join,
    join_by_tcp,
    join_by_name_of_group,
    join_by_ipv6,
    raw,
    raw_and_connected,
    raw_by_ipv6,
    frame,
]

if __name__ == "__main__":
    for number, way in enumerate(WAYS):
        try:
            way(FIRST_PORT + number)
            print(f"{way.__name__}: done")
        except OSError as error:
            print(f"{way.__name__}: {errno.errorcode.get(error.errno or 0, error)}")
    time.sleep(0.5)  # the kernel tells of groups later, and nobody of that
