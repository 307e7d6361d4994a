"""A real network device, in a network of the test's own."""

import errno
import os
import socket
import struct
from pathlib import Path

import pytest
from places import in_own_network, root_only, sh

from muonsocks.intercept.device import make_device
from muonsocks.intercept.packets import datagram_in

pytestmark = root_only()


@pytest.fixture(autouse=True)
def expect_device() -> None:
    if not Path("/dev/net/tun").exists():
        pytest.skip("there is no /dev/net/tun")


def test_what_goes_to_it_is_read_and_what_is_written_comes_from_it() -> None:
    def there() -> None:
        fd, index = make_device()
        try:
            name = socket.if_indextoname(index)
            assert not os.get_inheritable(fd)
            with pytest.raises(BlockingIOError):
                os.read(fd, 2000)
            with pytest.raises(OSError) as failure:
                os.write(fd, bytes(28))
            assert failure.value.errno in (errno.EIO, errno.EINVAL), "it is down"
            sh(f"ip addr add 192.0.2.1/24 dev {name}; ip link set {name} up")
            with socket.socket(type=socket.SOCK_DGRAM) as sock:
                sock.bind(("192.0.2.1", 0))
                sock.settimeout(5)
                sock.sendto(b"to it", ("192.0.2.9", 99))
                packet = b""
                while not packet.startswith(b"\x45"):  # the kernel has to say something of IPv6
                    packet = os.read(fd, 2000)
                found = datagram_in(packet)
                assert found is not None and found.data == b"to it"
                head = bytearray(packet[:20])
                head[12:20] = packet[16:20] + packet[12:16]
                ports = packet[22:24] + packet[20:22]
                os.write(fd, bytes(head) + ports + struct.pack("!HH", 13, 0) + b"of it")
                assert sock.recvfrom(99) == (b"of it", ("192.0.2.9", 99))
        finally:
            os.close(fd)
        with pytest.raises(OSError):
            socket.if_indextoname(index)

    in_own_network(there)


def test_without_it_the_reason_is_said() -> None:
    def there() -> None:
        sh("mount -t tmpfs tmpfs /dev/net")
        with pytest.raises(FileNotFoundError, match="no datagrams, which take /dev/net/tun: No"):
            make_device()

    in_own_network(there)


def test_what_is_no_device_is_not_left_open() -> None:
    def there() -> None:
        sh("mount -t tmpfs tmpfs /dev/net", "touch /dev/net/tun")
        before = os.listdir("/proc/self/fd")
        with pytest.raises(OSError, match="which take /dev/net/tun: Inappropriate ioctl"):
            make_device()
        assert os.listdir("/proc/self/fd") == before

    in_own_network(there)
