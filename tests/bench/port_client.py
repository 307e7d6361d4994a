"""The client of port.py, in the guest: prints the seconds that something took.

    port_client.py MODE AMOUNT PORT [TARGET]

PORT is one of 127.0.0.1. With a TARGET, that is a SOCKS server, which is to connect to that port of
the host's 127.0.0.1.

    D   the server sends AMOUNT bytes
    U   it is sent AMOUNT bytes, and says when it has them
    E   it sends back 64 bytes, AMOUNT times, one after the other: the median
"""

import socket
import statistics
import struct
import sys
import time

REQUEST = struct.Struct("!cQ")  # mode, bytes
PIECE = 1 << 18
MESSAGE = 64


def receive(connection: socket.socket, size: int = REQUEST.size) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise EOFError(f"the connection has ended after {len(data)} bytes of {size}")
        data += piece
    return data


def take(connection: socket.socket, size: int) -> None:
    """Receive so many bytes, and drop them."""
    buffer = memoryview(bytearray(PIECE))
    while size > 0:
        count = connection.recv_into(buffer[: min(size, PIECE)])
        if not count:
            raise EOFError(f"the connection has ended {size} bytes too early")
        size -= count


def send(connection: socket.socket, size: int) -> None:
    data = bytes(PIECE)
    while size > 0:
        size -= connection.send(data[: min(size, PIECE)])


def connect(port: int, target: int | None) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if target is not None:
        address = socket.inet_aton("127.0.0.1") + target.to_bytes(2, "big")
        connection.sendall(b"\5\1\0" + b"\5\1\0\1" + address)  # RFC 1928, without authentication
        code = receive(connection, 12)[3]
        if code:
            sys.exit(f"reply {code}")
    return connection


def main(mode: str, amount: int, port: int, target: int | None = None) -> None:
    connection = connect(port, target)
    connection.sendall(REQUEST.pack(mode.encode(), amount))
    start = time.perf_counter()
    if mode == "D":
        take(connection, amount)
    elif mode == "U":
        send(connection, amount)
        receive(connection, 1)
    else:
        trips = []
        for _ in range(amount):
            begin = time.perf_counter()
            connection.sendall(bytes(MESSAGE))
            receive(connection, MESSAGE)
            trips.append(time.perf_counter() - begin)
        print(statistics.median(trips))
        return
    print(time.perf_counter() - start)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
