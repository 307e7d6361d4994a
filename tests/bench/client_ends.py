#!/usr/bin/python3
"""The two ends of what client.py measures.

client_ends.py target ADDRESS PORT
    says a byte to whoever comes to PORT, and at the next port as much as is taken
client_ends.py connect KINDS URL ADDRESS PORT SECONDS
    connects through the SOCKS5 proxy of URL, again and again, a few times by each kind in turn;
    prints how many seconds one took, by its kind, as JSON. KINDS have commas between them.
client_ends.py down KINDS URL ADDRESS PORT SECONDS
    connects by each of them and reads in turn; prints how many bytes came in a second
"""

import asyncio
import contextlib
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
SLICE = 0.1  # s
WARM_UP = 0.5  # of a slice, before it
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
    while True:
        conn, _ = listener.accept()
        threading.Thread(target=_fill_one, args=(conn,), daemon=True).start()


def _fill_one(conn: socket.socket) -> None:
    zeros = bytes(PIECE)
    with conn:
        try:
            while True:
                conn.sendall(zeros)
        except OSError:
            return  # it has gone again


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


def down(kinds: str, url: str, host: str, port: int, seconds: float) -> dict[str, float]:
    """Read from a connection of each kind, in turn for a moment: what else the machine does is the
    same for all of them. What is not read meanwhile fills the buffers, and counts for nobody.
    """
    buffer = bytearray(PIECE)
    slices = {kind: list[float]() for kind in kinds.split(",")}
    with contextlib.ExitStack() as stack:
        socks = {}
        for kind in slices:
            socks[kind] = stack.enter_context(connection_by(kind, url)(host, port + 1))
        end = time.monotonic() + seconds
        while time.monotonic() < end or not all(slices.values()):
            for kind, sock in socks.items():
                begin = time.monotonic() + SLICE * WARM_UP
                count = 0
                while (now := time.monotonic()) < begin + SLICE:
                    size = sock.recv_into(buffer)
                    assert size, "it has ended"
                    if now >= begin:
                        count += size
                slices[kind].append(count / (time.monotonic() - begin))
    return {kind: median(rates) for kind, rates in slices.items()}


def main() -> None:
    what, *words = sys.argv[1:]
    if what == "target":
        target(words[0], int(words[1]))
    kind, url, host, port, seconds = words
    load = {"connect": connect, "down": down}[what]
    print(json.dumps({"error": "", **load(kind, url, host, int(port), float(seconds))}))


if __name__ == "__main__":
    main()
