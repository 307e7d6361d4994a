#!/usr/bin/python3
"""The ends of what intercept.py measures, but for connects.c.

intercept_ends.py pages ADDRESS PORT SIZE
    a page of so many bytes for whoever asks by HTTP
intercept_ends.py slow ADDRESS PORT SECONDS
    a SOCKS5 proxy that takes so long for a connection; it says the byte itself that is at the other
    end
intercept_ends.py together ADDRESS PORT COUNT
    so many connections at once in asyncio, and a byte of each; prints how many seconds it took
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
PIECE = bytes(1 << 20)
LONGEST = 50  # s; connections that are made one after the other take as many as there are
GREETING, CHOICE = b"\5\1\0", b"\5\0"
REQUEST = 10  # bytes, for an IPv4 address
GRANTED = b"\5\0\0\1" + bytes(6)


async def pages(address: str, port: int, size: int) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        left = size
        while left:
            piece = PIECE[:left]
            writer.write(piece)
            await writer.drain()
            left -= len(piece)

    await _serve(answer, address, port)


async def slow(address: str, port: int, seconds: float) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(GREETING))
        writer.write(CHOICE)
        await reader.readexactly(REQUEST)
        await asyncio.sleep(seconds)
        writer.write(GRANTED + b"x")
        await reader.read()

    await _serve(answer, address, port)


async def _serve(answer: Answer, address: str, port: int) -> None:
    async def to_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # it has gone again
        finally:
            writer.close()

    server = await asyncio.start_server(to_the_end, address, port, backlog=1024)
    print("ready", flush=True)
    await server.serve_forever()


async def together(address: str, port: int, count: int) -> None:
    async def one() -> None:
        reader, writer = await asyncio.open_connection(address, port)
        byte = await reader.readexactly(1)
        assert byte == b"x", byte
        writer.close()

    since = time.monotonic()
    async with asyncio.timeout(LONGEST):
        await asyncio.gather(*(one() for _ in range(count)))
    print(time.monotonic() - since)


def main() -> None:
    what, address, port, figure = sys.argv[1:]
    if what == "slow":
        asyncio.run(slow(address, int(port), float(figure)))
    else:
        asyncio.run({"pages": pages, "together": together}[what](address, int(port), int(figure)))


if __name__ == "__main__":
    main()
