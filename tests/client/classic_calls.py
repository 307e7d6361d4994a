"""For tests of the classic library: a program that has done nothing yet, and what proxies say."""

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from programs import accept, listener, read_all
from upstream import Script

from muonsocks.client import rsocks
from muonsocks.client.classic_socket import program

HOST = "192.0.2.7"  # which nobody has to reach: the proxies are the tests' own
BOUND = ("203.0.113.9", 4711)
_VARIABLES = ("all_proxy", "SOCKS_SERVER", "SOCKS4_SERVER", "SOCKS5_SERVER", "no_proxy")


def forget_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the classic library begin anew, and the environment name no proxies."""
    program.__init__()  # type: ignore[misc]
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def reply(code: int = 0, host: str = BOUND[0], port: int = BOUND[1]) -> bytes:
    return struct.pack("!BBBB4sH", 5, code, 0, 1, socket.inet_aton(host), port)


CONNECT: Script = [3, b"\5\0", 10, reply()]
BIND: Script = [3, b"\5\0", 10, reply()]
PEER = reply(0, HOST, 20)


class Hand:
    """A proxy that is played by hand, step by step."""

    def __init__(self) -> None:
        self.listener = listener()
        self.url = f"socks5h://127.0.0.1:{self.listener.getsockname()[1]}"

    def take_request(self) -> socket.socket:
        """Let a client come so far that it waits for the reply; gives the connection to it."""
        conn = accept(self.listener)
        assert read_all(conn, 3) == b"\5\1\0"
        conn.sendall(b"\5\0")
        assert len(read_all(conn, 10)) == 10
        return conn


@contextmanager
def hand() -> Iterator[Hand]:
    proxy = Hand()
    with proxy.listener:
        yield proxy


def reach(host: str = HOST, port: int = 21) -> socket.socket:
    """Rconnect somewhere; gives the socket."""
    sock = socket.socket()
    rsocks.Rconnect(sock, (host, port))
    return sock


def listening(host: str = HOST, sock: socket.socket | None = None) -> tuple[socket.socket, Any]:
    """Go through the sequence up to where Raccept is due; gives the socket, and what it is told."""
    sock = sock or socket.socket()
    rsocks.Rbind(sock, ("", 0), host)
    bound = rsocks.Rgetsockname(sock)
    rsocks.Rlisten(sock, 1)
    return sock, bound
