"""A client's association: its socket, where that sends to, and the header of what is sent."""

import contextlib
import socket
import struct
from collections.abc import Callable, Iterator

from programs import GREETING, SECONDS, address_bytes, socks5

ASSOCIATE = 3
ANY = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}


def header(host: str, port: int) -> bytes:
    """Write what stands before the data (RFC 1928 section 7)."""
    return b"\0\0\0" + address_bytes(host) + struct.pack("!H", port)


def endpoint(data: bytes) -> tuple[tuple[str, int], bytes]:
    """Read address and port, from the type on; give what is behind them, too."""
    family, end = {1: (socket.AF_INET, 5), 4: (socket.AF_INET6, 17)}[data[0]]
    host = socket.inet_ntop(family, data[1:end])
    return (host, int.from_bytes(data[end : end + 2], "big")), data[end + 2 :]


class Associated:
    """What a client has when it was granted one."""

    def __init__(self, relay: tuple[str, int], source: str = "") -> None:
        self.relay = relay
        family = socket.AF_INET6 if ":" in relay[0] else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.settimeout(SECONDS)
        if source:
            self.socket.bind((source, 0))

    def send(self, host: str, port: int, data: bytes) -> None:
        """Send data somewhere."""
        self.socket.sendto(header(host, port) + data, self.relay)

    def receive(self) -> tuple[tuple[str, int], bytes]:
        """Give where the next datagram comes from, and its data."""
        datagram, source = self.socket.recvfrom(1 << 16)
        assert source[:2] == self.relay
        assert datagram[:3] == b"\0\0\0"
        return endpoint(datagram[3:])

    def exchange(self, far: socket.socket, data: bytes = b"question") -> None:
        """Have data arrive, and an answer come back."""
        host, port = far.getsockname()[:2]
        self.send(host, port, data)
        arrived, source = far.recvfrom(1 << 16)
        assert arrived == data
        far.sendto(b"answer to " + data[:10], source)
        assert self.receive() == ((host, port), b"answer to " + data[:10])

    def close(self) -> None:
        self.socket.close()


def ask(
    send: Callable[[bytes], object],
    read: Callable[[int], bytes],
    host: str = "0.0.0.0",
    port: int = 0,
    greeting: bytes = GREETING,
) -> bytes:
    """Ask for an association, and give the reply up to the address type."""
    send(greeting + socks5(host, port, command=ASSOCIATE))
    assert read(2) == b"\5\0"
    return read(4)


@contextlib.contextmanager
def associated(
    send: Callable[[bytes], object],
    read: Callable[[int], bytes],
    host: str = "0.0.0.0",
    port: int = 0,
    source: str = "",
) -> Iterator[Associated]:
    """Get one, by what sends to and reads from a SOCKS server."""
    reply = ask(send, read, host, port)
    assert reply[:3] == b"\5\0\0", reply
    rest = reply[3:] + read(6 if reply[3] == 1 else 18)
    association = Associated(endpoint(rest)[0], source)
    try:
        yield association
    finally:
        association.close()


@contextlib.contextmanager
def far_end(host: str = "127.0.0.1") -> Iterator[socket.socket]:
    """A socket that datagrams are sent to."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as far:
        far.bind((host, 0))
        far.settimeout(SECONDS)
        yield far
