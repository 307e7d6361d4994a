"""What each kind of client is told, in a network that this runs in: client_driver.py WHAT JSON

JSON is a list of jobs; what is printed is one of results.
    meet    {to, proxy, seconds, size}: connect, and fetch so many bytes; of each client, what it is
            told, with the SHA-256 of what is carried
    bind    {proxy, from}: wait for a connection, which comes from an address; talk both ways
    bounds  {proxy, command, to}: where a proxy says that it listens
    crowd   {proxy, count, to}: so many connections at once in asyncio, to a server here
"""

import asyncio
import errno
import hashlib
import json
import resource
import select
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent / "lib"), str(TESTS / "client")]

from each_client import CLIENTS, PATIENCE, met, read, told  # noqa: E402

from muonsocks.address import Endpoint  # noqa: E402
from muonsocks.client import SocksSocket, open_connection  # noqa: E402
from muonsocks.client.blocking import run  # noqa: E402
from muonsocks.client.errand import Errand  # noqa: E402
from muonsocks.client.proxies import chain_of  # noqa: E402


def meet(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All at once: what is silent takes its time."""

    def come(job: dict[str, Any], client: str) -> list[Any]:
        def fetch(sock: socket.socket) -> bytes:
            sock.sendall(b"GET /%d HTTP/1.0\r\n\r\n" % job["size"])
            answer = b"".join(iter(lambda: sock.recv(1 << 16), b""))
            return answer.partition(b"\r\n\r\n")[2]

        got = met(CLIENTS[client], tuple(job["to"]), job["proxy"], job["seconds"], fetch)
        return [*got[:5], hashlib.sha256(got.carried).hexdigest() if got.carried else ""]

    with ThreadPoolExecutor(12) as threads:
        coming = [{one: threads.submit(come, job, one) for one in CLIENTS} for job in jobs]
        return [{name: one.result() for name, one in job.items()} for job in coming]


def bind(job: dict[str, Any]) -> dict[str, Any]:
    """Both with and without waiting."""
    return {str(waits): bind_once(job["proxy"], job["from"], waits) for waits in (True, False)}


def bind_once(proxy: str, peer: str, waits: bool) -> Any:
    with SocksSocket(proxy=proxy) as sock:
        try:
            return [*talk(listening(sock, peer, waits), peer, waits)]
        except OSError as error:
            return list(told(error)[:5])


def listening(sock: SocksSocket, peer: str, waits: bool) -> SocksSocket:
    sock.settimeout(PATIENCE if waits else 0)
    try:
        sock.listen(peer=(peer, 0))
    except BlockingIOError:
        assert select.select([], [sock], [], PATIENCE)[1]
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            assert sock.failure is not None
            raise sock.failure from None
    return sock


def talk(sock: SocksSocket, peer: str, waits: bool) -> tuple[bool, str, str]:
    """Whether who has come is who is said to, and what each says to the other."""
    where = sock.getsockname()
    with socket.create_connection(where, PATIENCE, (peer, 0)) as far:
        assert waits or select.select([sock], [], [], PATIENCE)[0]
        conn, address = sock.accept()
        with conn:
            conn.settimeout(PATIENCE)
            conn.sendall(b"question")
            heard = read(far, 8)
            far.sendall(b"answer")
            is_right = address == far.getsockname() == conn.getpeername()
            return is_right, heard.decode(), read(conn, 6).decode()


def bounds(job: dict[str, Any]) -> Any:
    chain = chain_of(job["proxy"])
    assert chain
    errand = Errand(job["command"], Endpoint(*job["to"]), chain)
    try:
        granted = run(lambda loop: errand.run(loop, PATIENCE))
    except OSError as error:
        return list(told(error)[:5])
    granted.sock.close()
    assert granted.bound is not None
    return ["bound", granted.bound.host, granted.bound.port > 0]


def crowd(job: dict[str, Any]) -> Any:
    limit = 3 * job["count"]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, max(limit, 4096)))
    return asyncio.run(meeting(job["proxy"], job["count"], job["to"]))


async def meeting(proxy: str, count: int, host: str) -> Any:
    """All are there before any of them speaks."""
    here: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        here.append(1)
        writer.write((await reader.readline()).upper())
        await writer.drain()
        writer.close()

    async def come(number: int) -> tuple[int, asyncio.StreamReader, asyncio.StreamWriter]:
        way = await open_connection(host, port, proxy=proxy, timeout=3 * PATIENCE)
        return number, *way

    async def speak(
        number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        writer.write(b"number %d\n" % number)
        said = await reader.read()
        writer.close()
        await writer.wait_closed()
        return said == b"NUMBER %d\n" % number

    server = await asyncio.start_server(serve, host, 0, backlog=count)
    port = server.sockets[0].getsockname()[1]
    all_of_them = await asyncio.gather(*map(come, range(count)))
    right = await asyncio.gather(*[speak(*one) for one in all_of_them])
    server.close()
    return [len(here), sum(right)]


if __name__ == "__main__":
    what, jobs = sys.argv[1:]
    assert errno.ETIMEDOUT == 110, "the numbers are those of the test"
    if what == "meet":
        results: list[Any] = meet(json.loads(jobs))
    else:
        do = {"bind": bind, "bounds": bounds, "crowd": crowd}[what]
        results = [do(job) for job in json.loads(jobs)]
    print(json.dumps(results))
