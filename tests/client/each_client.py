"""Each kind of client, and what a program is told by it.

for name, client in CLIENTS.items():
    assert met(client, ("www.example.com", 80), proxy, 20).kind == "connected"
"""

import asyncio
import contextlib
import errno
import select
import socket
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from muonsocks.client import ProxyError, SocksSocket, create_connection, open_socket

PATIENCE = 20.0  # s until what has to happen is a hang

Destination = tuple[str, int]


class Told(NamedTuple):
    """What a program gets to know: of a failure its class, errno, reply code, side, and words that
    are in the message; or the first bytes of what is carried.
    """

    kind: str
    number: int = 0
    code: int | None = None
    side: str = ""
    words: str = ""
    carried: bytes = b""


PENDING = Told("still on its way")  # without a time limit


def failing(kind: type[OSError], number: int, words: str = "", code: int | None = None) -> Told:
    return Told(kind.__name__, number, code, getattr(kind, "side", ""), words)


def agrees(got: Told, wanted: Told) -> bool:
    """Say whether this is what was to be told; of a message, some words are."""
    return got._replace(words="") == wanted._replace(words="") and wanted.words in got.words


# Each connects within so many seconds, and gives the socket; None if it is not over by then


def by_create_connection(to: Destination, proxy: Any, seconds: float | None) -> socket.socket:
    return create_connection(to, seconds, proxy=proxy)


@contextlib.contextmanager
def closed_on_failure(sock: SocksSocket) -> Iterator[SocksSocket]:
    try:
        yield sock
    except BaseException:
        sock.close()
        raise


def socket_for(to: Destination, proxy: Any) -> SocksSocket:
    return SocksSocket(socket.AF_INET6 if ":" in to[0] else socket.AF_INET, proxy=proxy)


def by_socket_with_timeout(to: Destination, proxy: Any, seconds: float | None) -> socket.socket:
    with closed_on_failure(socket_for(to, proxy)) as sock:
        sock.settimeout(seconds)
        sock.connect(to)
        return sock


def by_socket_that_does_not_block(
    to: Destination, proxy: Any, seconds: float | None
) -> socket.socket | None:
    with closed_on_failure(socket_for(to, proxy)) as sock:
        sock.setblocking(False)
        assert sock.connect_ex(to) == errno.EINPROGRESS
        if not select.select([], [sock], [], seconds)[1]:
            sock.close()
            return None
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            failure = sock.failure
            assert failure is not None
            assert number in (failure.errno, errno.EHOSTUNREACH)  # that one is getaddrinfo(3)'s
            raise failure
        sock.setblocking(True)
        return sock


def by_asyncio(to: Destination, proxy: Any, seconds: float | None) -> socket.socket:
    return asyncio.run(open_socket(*to, proxy=proxy, timeout=seconds))


Client = Callable[[Destination, Any, float | None], socket.socket | None]
CLIENTS: dict[str, Client] = {
    "create_connection": by_create_connection,
    "SocksSocket": by_socket_with_timeout,
    "non-blocking": by_socket_that_does_not_block,
    "asyncio": by_asyncio,
}


# What comes of it


def met(
    client: Client,
    to: Destination,
    proxy: Any,
    seconds: float | None,
    use: Callable[[socket.socket], bytes] = lambda _: b"",
) -> Told:
    """Come to a proxy, and say what a program is told: `use` gives what is carried."""
    try:
        sock = client(to, proxy, seconds)
    except OSError as error:
        return told(error)
    if sock is None:
        return PENDING
    with sock:
        sock.settimeout(PATIENCE)
        return Told("connected", carried=use(sock))


def told(error: OSError) -> Told:
    message = str(error)
    assert "\n" not in message, message
    code, side = getattr(error, "code", None), getattr(error, "side", "")
    assert side or not isinstance(error, ProxyError)
    return Told(type(error).__name__, error.errno or 0, code, side, error.strerror or "")


def read(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := sock.recv(size - len(data))):
        data += more
    return data
