"""IP packets: against those that the kernel makes, against a checksum by the book, and damaged."""

import random
import socket
import struct

import pytest

from muonsocks.intercept import packets
from muonsocks.intercept.packets import Datagram, datagram_in

IPV4 = socket.inet_aton("192.0.2.1"), socket.inet_aton("198.51.100.2")
IPV6 = tuple(socket.inet_pton(socket.AF_INET6, one) for one in ("2001:db8::1", "fd00::2"))
FAMILIES = (IPV4, IPV6)


def checksum(data: bytes) -> int:
    """RFC 1071, as it is written there."""
    total = 0
    for place in range(0, len(data), 2):
        total += struct.unpack("!H", data[place : place + 2].ljust(2, b"\0"))[0]
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def is_right(packet: bytes) -> bool:
    """Say whether all checksums are right, and all lengths."""
    if packet[0] >> 4 == 4:
        source, destination = packet[12:16], packet[16:20]
        protocol, body = packet[9], packet[20:]
        if checksum(packet[:20]) or struct.unpack("!H", packet[2:4])[0] != len(packet):
            return False
    else:
        source, destination = packet[8:24], packet[24:40]
        protocol, body = packet[6], packet[40:]
        if struct.unpack("!H", packet[4:6])[0] != len(body):
            return False
    pseudo = source + destination + struct.pack("!II", len(body), protocol)
    if protocol == 17 and struct.unpack("!H", body[4:6])[0] != len(body):
        return False
    return checksum(body if protocol == 1 else pseudo + body) == 0


@pytest.mark.parametrize("addresses", FAMILIES, ids=["ipv4", "ipv6"])
def test_what_is_written_is_right_and_read_again(addresses):
    noise = random.Random(1)
    for size in (*range(70), 1471, 1472, 65487, *(noise.randrange(3000) for _ in range(200))):
        ports = noise.randrange(65536), noise.randrange(65536)
        data = noise.choice((noise.randbytes(size), bytes(size), b"\xff" * size))
        packet = Datagram(addresses[0], ports[0], addresses[1], ports[1], data).packet()
        assert is_right(packet)
        again = datagram_in(memoryview(packet + b"more" * noise.randrange(2)))
        assert again is not None
        assert (again.source, again.destination) == addresses
        assert (again.source_port, again.destination_port) == ports
        assert bytes(again.data) == data


@pytest.mark.parametrize("addresses", FAMILIES, ids=["ipv4", "ipv6"])
def test_a_checksum_is_never_none(addresses):
    """Where it comes to 0, its complement is sent: 0 would say that there is none (RFC 768)."""
    for number in range(65536):
        packet = Datagram(addresses[0], 1, addresses[1], 2, struct.pack("!H", number)).packet()
        found = packet[-4:-2]
        assert found != b"\0\0"
        if found == b"\xff\xff":
            assert datagram_in(memoryview(packet)) is not None
            return
    raise AssertionError("no data have that checksum")


@pytest.mark.parametrize("addresses", FAMILIES, ids=["ipv4", "ipv6"])
def test_an_answer_goes_the_other_way(addresses):
    answer = Datagram(addresses[0], 1000, addresses[1], 53, b"question").answer(b"answer")
    assert (answer.source, answer.source_port) == (addresses[1], 53)
    assert (answer.destination, answer.destination_port) == (addresses[0], 1000)
    assert answer.data == b"answer"


@pytest.mark.parametrize("addresses", FAMILIES, ids=["ipv4", "ipv6"])
def test_what_tells_that_nobody_is_there_quotes_what_has_been_sent(addresses):
    sent = Datagram(addresses[0], 1000, addresses[1], 443, b"hello")
    packet = sent.unreachable()
    assert is_right(packet)
    length = 20 if len(addresses[0]) == 4 else 40
    kind, code = packet[length : length + 2]
    assert (kind, code) == ((3, 3) if length == 20 else (1, 4))
    quoted = packet[length + 8 :]
    assert quoted[length : length + 4] == struct.pack("!HH", 1000, 443)
    assert addresses[0] + addresses[1] in quoted
    assert datagram_in(memoryview(packet)) is None


@pytest.mark.parametrize(("addresses", "most"), [(IPV4, 65507), (IPV6, 65487)])
def test_there_is_a_longest_one(addresses, most):
    assert is_right(Datagram(*addresses[:1], 1, addresses[1], 2, bytes(most)).packet())
    with pytest.raises(ValueError):
        Datagram(addresses[0], 1, addresses[1], 2, bytes(most + 1)).packet()


def test_options_and_extensions_are_passed_over():
    packet = Datagram(*IPV4[:1], 7, IPV4[1], 9, b"data").packet()
    head = b"\x46" + packet[1:2] + struct.pack("!H", len(packet) + 4) + packet[4:10] + b"\0\0"
    head += packet[12:20] + b"\1\1\1\0"
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    found = datagram_in(memoryview(head + packet[20:]))
    assert found is not None and bytes(found.data) == b"data" and found.source_port == 7

    packet = Datagram(IPV6[0], 7, IPV6[1], 9, b"data").packet()
    options = b"\x3c\0" + bytes(6) + b"\x11\1" + bytes(14)
    length = struct.pack("!H", len(packet) - 40 + len(options))
    packet = packet[:4] + length + b"\0" + packet[7:40] + options + packet[40:]
    found = datagram_in(memoryview(packet))
    assert found is not None and bytes(found.data) == b"data" and found.source_port == 7


def test_extensions_that_do_not_end_are_none():
    packet = Datagram(IPV6[0], 7, IPV6[1], 9, b"data").packet()
    for kind in (0, 43, 60):
        for size in range(64):  # and what is there says that there is more
            rest = bytes([kind, 7]) + bytes(size)
            for length in range(len(rest)):
                head = packet[:4] + struct.pack("!H", length) + bytes([kind]) + packet[7:40]
                assert datagram_in(memoryview(head + rest[:length])) is None


def test_parts_and_other_protocols_are_none():
    packet = Datagram(*IPV4[:1], 7, IPV4[1], 9, b"data").packet()
    for part in (0x2000, 1, 0x1FFF):
        head = packet[:6] + struct.pack("!H", part) + packet[8:10] + b"\0\0" + packet[12:20]
        head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
        assert datagram_in(memoryview(head + packet[20:])) is None
    head = packet[:9] + b"\6\0\0" + packet[12:20]
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    assert datagram_in(memoryview(head + packet[20:])) is None
    packet = Datagram(IPV6[0], 7, IPV6[1], 9, b"data").packet()
    assert datagram_in(memoryview(packet[:6] + b"\x2c" + packet[7:])) is None
    assert datagram_in(memoryview(b"")) is None


@pytest.mark.parametrize("addresses", FAMILIES, ids=["ipv4", "ipv6"])
def test_what_is_damaged_or_cut_is_none(addresses):
    packet = Datagram(addresses[0], 7, addresses[1], 9, b"some data").packet()
    for length in range(len(packet)):
        assert datagram_in(memoryview(packet[:length])) is None
    start = 40 if len(addresses[0]) == 16 else 0  # an IPv6 header has no checksum of its own
    for place in range(start, len(packet)):
        for bit in range(8):
            damaged = bytearray(packet)
            damaged[place] ^= 1 << bit
            assert datagram_in(memoryview(damaged)) is None, (place, bit)


def test_ipv4_may_do_without_a_checksum_and_ipv6_may_not():
    packet = Datagram(*IPV4[:1], 7, IPV4[1], 9, b"data").packet()
    assert datagram_in(memoryview(packet[:26] + b"\0\0" + packet[28:])) is not None
    packet = Datagram(IPV6[0], 7, IPV6[1], 9, b"data").packet()
    assert datagram_in(memoryview(packet[:46] + b"\0\0" + packet[48:])) is None


def test_no_packet_whatever_is_in_it_raises_anything():
    noise = random.Random(2)
    samples = [Datagram(one[0], 7, one[1], 9, bytes(30)).packet() for one in FAMILIES]
    for _ in range(20000):
        if noise.randrange(2):
            packet = bytearray(noise.randbytes(noise.randrange(100)))
            if packet:
                packet[0] = noise.choice((0x40, 0x45, 0x46, 0x4F, 0x60)) | packet[0] & 0xF
        else:
            packet = bytearray(noise.choice(samples))
            for _ in range(noise.randrange(1, 4)):
                packet[noise.randrange(len(packet))] = noise.randrange(256)
            if noise.randrange(2) and packet[0] >> 4 == 4:  # past the first look
                packet[10:12] = b"\0\0"
                header = 4 * (packet[0] & 15)
                packet[10:12] = struct.pack("!H", checksum(bytes(packet[:header])))
        found = datagram_in(memoryview(packet))
        assert found is None or len(found.data) <= len(packet) - 28


def test_the_sum_is_that_of_the_book():
    noise = random.Random(3)
    for size in range(200):
        for data in (noise.randbytes(size), bytes(size), b"\xff" * size):
            assert packets._complement(packets._sum(data)) == checksum(data)
