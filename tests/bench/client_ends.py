#!/usr/bin/python3
"""The two ends of what client.py measures.

client_ends.py target ADDRESS PORT
    says a byte to whoever comes to PORT, and at the next port as much as is taken
client_ends.py connect KINDS URL ADDRESS PORT SECONDS
    connects through the SOCKS5 proxy of URL, again and again, a few times by each kind in turn;
    prints how many seconds one took, by its kind, as JSON. KINDS have commas between them.
client_ends.py down KIND URL ADDRESS PORT SECONDS
    connects by one of them and reads; prints how many bytes came in a second
"""

import asyncio
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "lib"))

PIECE = 1 << 20  # bytes
WARM_UP = 0.25  # of the time
BATCH = 10  # connections

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


def batch_by(kind: str, url: str, host: str, port: int) -> Callable[[], object]:
    """Give what makes BATCH connections, one after the other."""
    if kind == "asyncio":
        loop = asyncio.new_event_loop()
        return lambda: loop.run_until_complete(_batch_in_asyncio(url, host, port))
    connect = connection_by(kind, url)

    def batch() -> None:
        for _ in range(BATCH):
            connect(host, port).close()

    return batch


async def _batch_in_asyncio(url: str, host: str, port: int) -> None:
    from muonsocks.client import open_connection

    for _ in range(BATCH):
        _, writer = await open_connection(host, port, proxy=url)
        writer.close()


def connect(kinds: str, url: str, host: str, port: int, seconds: float) -> dict[str, float]:
    batches = {kind: batch_by(kind, url, host, port) for kind in kinds.split(",")}
    took: dict[str, list[float]] = {kind: [] for kind in batches}
    end = time.monotonic() + seconds
    while time.monotonic() < end or not all(times[1:] for times in took.values()):
        for kind, batch in batches.items():
            since = time.monotonic()
            batch()
            took[kind].append((time.monotonic() - since) / BATCH)
    return {kind: median(times[1:]) for kind, times in took.items()}  # the first one warms up


def down(kind: str, url: str, host: str, port: int, seconds: float) -> dict[str, float]:
    buffer = bytearray(PIECE)
    with connection_by(kind, url)(host, port + 1) as sock:
        begin = time.monotonic() + seconds * WARM_UP
        count = 0
        while (now := time.monotonic()) < begin + seconds:
            size = sock.recv_into(buffer)
            assert size, "it has ended"
            if now >= begin:
                count += size
        return {kind: count / (time.monotonic() - begin)}


def main() -> None:
    what, *words = sys.argv[1:]
    if what == "target":
        target(words[0], int(words[1]))
    kind, url, host, port, seconds = words
    load = {"connect": connect, "down": down}[what]
    print(json.dumps({"error": "", **load(kind, url, host, int(port), float(seconds))}))


if __name__ == "__main__":
    main()
