#!/usr/bin/python3
"""The two ends of what client.py measures.

client_ends.py target ADDRESS PORT
    says a byte to whoever comes to PORT, and at the next port as much as is taken
client_ends.py connect|down KIND URL ADDRESS PORT SECONDS
    connects by KIND through the SOCKS5 proxy of URL, again and again, or once and reads; prints
    what was counted, connections or bytes, and in how many seconds, as JSON
"""

import asyncio
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "lib"))

PIECE = 1 << 20  # bytes
WARM_UP = 0.25  # of the time

Connect = Callable[[str, int], socket.socket]


def target(address: str, port: int) -> None:
    listener = socket.create_server((address, port), backlog=1024)
    endless = socket.create_server((address, port + 1))
    threading.Thread(target=_fill, args=(endless,), daemon=True).start()
    print("ready", flush=True)
    while True:
        with listener.accept()[0] as conn:
            try:
                conn.sendall(b"x")
            except OSError:
                pass  # it has gone again


def _fill(listener: socket.socket) -> None:
    zeros = bytes(PIECE)
    while True:
        with listener.accept()[0] as conn:
            try:
                while True:
                    conn.sendall(zeros)
            except OSError:
                pass  # that was enough


def connection_by(kind: str, url: str) -> Connect:
    """Give what connects to a host and a port: as a program writes it."""
    if kind == "no proxy":
        return lambda host, port: socket.create_connection((host, port))
    if kind == "PySocks":
        import socks

        proxy = urlsplit(url)
        return lambda host, port: socks.create_connection(
            (host, port), None, None, socks.SOCKS5, proxy.hostname, proxy.port
        )
    from muonsocks.client import SocksSocket, create_connection

    if kind == "muonsocks":
        return lambda host, port: create_connection((host, port), proxy=url)

    def by_socket(host: str, port: int) -> socket.socket:
        sock = SocksSocket(proxy=url)
        sock.connect((host, port))
        return sock

    return by_socket


def connect(kind: str, url: str, host: str, port: int, seconds: float) -> tuple[int, float]:
    if kind == "asyncio":
        return asyncio.run(_connect_in_asyncio(url, host, port, seconds))
    connect = connection_by(kind, url)
    begin, end = _times(seconds)
    count = 0
    while (now := time.monotonic()) < end:
        connect(host, port).close()
        if now >= begin:
            count += 1
    return count, time.monotonic() - begin


async def _connect_in_asyncio(url: str, host: str, port: int, seconds: float) -> tuple[int, float]:
    from muonsocks.client import open_connection

    begin, end = _times(seconds)
    count = 0
    while (now := time.monotonic()) < end:
        _, writer = await open_connection(host, port, proxy=url)
        writer.close()
        if now >= begin:
            count += 1
    return count, time.monotonic() - begin


def down(kind: str, url: str, host: str, port: int, seconds: float) -> tuple[int, float]:
    buffer = bytearray(PIECE)
    with connection_by(kind, url)(host, port + 1) as sock:
        begin, end = _times(seconds)
        count = 0
        while (now := time.monotonic()) < end:
            size = sock.recv_into(buffer)
            assert size, "it has ended"
            if now >= begin:
                count += size
        return count, time.monotonic() - begin


def _times(seconds: float) -> tuple[float, float]:
    begin = time.monotonic() + seconds * WARM_UP
    return begin, begin + seconds


def main() -> None:
    what, *words = sys.argv[1:]
    if what == "target":
        target(words[0], int(words[1]))
    kind, url, host, port, seconds = words
    load = {"connect": connect, "down": down}[what]
    count, took = load(kind, url, host, int(port), float(seconds))
    print(json.dumps({"count": count, "seconds": took, "error": ""}))


if __name__ == "__main__":
    main()
