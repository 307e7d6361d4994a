"""Serves the virtio port in the virtual machine, with plain reads and writes.

A request is its kind, a number of bytes, and whether to look at them:

    R  as many bytes follow; the answer is their SHA-256 digest, or 32 zeros
    S  the answer is as many bytes, and their digest
    E  each of as many bytes is sent back as it comes

What comes while the host is away, and how a write waits, is the port's own: read(2) returns nothing
for a host that is not there, which is no end, and a write is taken whole or not at all.
"""

import hashlib
import os
import select
import struct
from collections.abc import Iterator

PATH = "/dev/virtio-ports/org.muonsocks.0"
REQUEST = struct.Struct("<cQ?")
DIGEST = 32  # bytes
MOST_WRITTEN = 32768  # bytes; the port takes no more at once
BLOCK = bytes(range(251)) * 261  # of a length that divides nothing the kernel counts in


class Port:
    """The port, without blocking; `read` and `write` wait for what they need."""

    def __init__(self) -> None:
        self.descriptor = os.open(PATH, os.O_RDWR | os.O_NONBLOCK)
        self._epoll = select.epoll()
        # the edges only: while the host is away a level-triggered one always has something to say
        edges = select.EPOLLIN | select.EPOLLOUT | select.EPOLLET
        self._epoll.register(self.descriptor, edges)

    def read(self, most: int) -> bytes:
        """What there is, of `most` bytes at most and one at least."""
        while True:
            try:
                data = os.read(self.descriptor, most)
            except BlockingIOError:
                data = b""
            if data:
                return data
            self._epoll.poll()

    def write(self, data: bytes) -> None:
        for at in range(0, len(data), MOST_WRITTEN):
            while True:
                try:
                    os.write(self.descriptor, data[at : at + MOST_WRITTEN])
                    break
                except BlockingIOError:
                    self._epoll.poll()


def pieces(size: int) -> Iterator[bytes]:
    """So many bytes that neither side need send the other first."""
    while size > 0:
        yield BLOCK[:size]
        size -= len(BLOCK)


def serve(port: Port) -> None:
    request = b""
    while len(request) < REQUEST.size:
        request += port.read(REQUEST.size - len(request))
    kind, size, looks = REQUEST.unpack(request)
    digest = hashlib.sha256()
    if kind == b"S":
        for piece in pieces(size):
            if looks:
                digest.update(piece)
            port.write(piece)
    while kind != b"S" and size > 0:
        data = port.read(min(size, 65536))
        size -= len(data)
        if kind == b"E":
            port.write(data)
        elif looks:
            digest.update(data)
    if kind != b"E":
        port.write(digest.digest() if looks else bytes(DIGEST))


if __name__ == "__main__":
    port = Port()
    print("ready", flush=True)
    while True:
        serve(port)
