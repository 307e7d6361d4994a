"""Each command, once, and the headers of proxies: whether it works, for any way to get served.

    commands.binds(connect, VERSIONS["4"], "192.0.2.1")

`connect` gives a new connection to the proxy. All of it is in the network of the calling thread.
"""

import contextlib
import select
import socket
import struct
from collections.abc import Callable, Iterator

from associated import ASSOCIATE, Associated, associated, far_end
from bound import come, told
from programs import (
    GREETING,
    Client,
    Version,
    accept,
    failure,
    listener,
    read_all,
    socks5,
)

BIND, RESOLVE, RESOLVE_PTR = 2, 0xF0, 0xF1
CLIENT = "203.0.113.7:4711"  # whom a proxy in front of ours says it has
FRONT = b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 1080\r\n"
SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")

UNKNOWN = SIGNATURE + bytes.fromhex("21000000")

Connect = Callable[[], socket.socket]


@contextlib.contextmanager
def _client(connect: Connect, front: bytes = b"") -> Iterator[Client]:
    with connect() as sock:
        sock.sendall(front)
        yield Client(sock.fileno(), sock.fileno(), sock)


def exchange(client: Client, peer: socket.socket) -> None:
    """Pass bytes both ways. The client ends first, then its peer: some launchers need that."""
    client.send(b"question")
    assert read_all(peer, 8) == b"question"
    peer.sendall(b"answer")
    assert client.read(6) == b"answer"
    client.end()
    assert read_all(peer) == b""
    peer.close()
    assert client.rest() == b""


@contextlib.contextmanager
def bound(
    connect: Connect, version: Version, host: str, ours: str = ""
) -> Iterator[tuple[Client, socket.socket]]:
    """BIND, with a peer at `host` that has come; it is waited for at `ours`, if not at the same."""
    with _client(connect) as client:
        client.send(version.greeting + version.request(host, 21, command=BIND))
        assert client.read(len(version.chosen)) == version.chosen
        with come(told(client, version, ours or host), host) as peer:
            assert told(client, version, host) == peer.getsockname()[:2]
            yield client, peer


def binds(connect: Connect, version: Version, host: str, ours: str = "") -> None:
    """BIND, from the beginning to the end."""
    with bound(connect, version, host, ours) as (client, peer):
        exchange(client, peer)


@contextlib.contextmanager
def association(connect: Connect) -> Iterator[Associated]:
    """UDP ASSOCIATE, granted."""
    with _client(connect) as client, associated(client.send, client.read) as made:
        yield made


def associates(connect: Connect, host: str, name: str = "") -> None:
    """UDP ASSOCIATE, with somebody at `host`, who may be called by a name."""
    with association(connect) as made, far_end(host) as far:
        made.exchange(far)
        if name:
            made.send(name, far.getsockname()[1], b"by name")
            assert far.recv(100) == b"by name"


def sends(made: Associated, host: str, *others: str) -> bool:
    """Send to these, and then to `host`: whether there is nobody else who gets it."""
    with contextlib.ExitStack() as stack:
        far, *fars = [stack.enter_context(far_end(one)) for one in (host, *others)]
        for one in (*fars, far):
            made.send(*one.getsockname()[:2], b"data")
        assert far.recv(100) == b"data"
        return not select.select(fars, [], [], 0)[0]


def refuses_to_associate(connect: Connect, code: int) -> None:
    """UDP ASSOCIATE, as it is answered where it cannot be (7) or is not to be (2)."""
    with _client(connect) as client:
        client.send(GREETING + socks5("0.0.0.0", 0, command=ASSOCIATE))
        assert client.rest() == b"\5\0" + failure(code)


def resolves(connect: Connect, name: str, host: str) -> None:
    """RESOLVE, and RESOLVE_PTR back."""
    with _client(connect) as client:
        client.send(GREETING + socks5(name, 0, command=RESOLVE))
        assert client.rest() == b"\5\0\5\0\0\1" + socket.inet_aton(host) + bytes(2)
    with _client(connect) as client:
        client.send(GREETING + socks5(host, 0, command=RESOLVE_PTR))
        called = bytes([len(name)]) + name.encode()
        assert client.rest() == b"\5\0\5\0\0\3" + called + bytes(2)


def connects(connect: Connect, host: str, *, front: bytes = b"", told_of: str = "") -> None:
    """CONNECT, behind a header that says who the client is, or to one who is told of the client, or
    that there is "somebody".
    """
    with listener(host) as far, _client(connect, front) as client:
        client.send(GREETING + socks5(*far.getsockname()[:2]))
        assert client.read(6) == b"\5\0\5\0\0\1"
        client.read(6)
        with accept(far) as conn:
            if told_of:
                header = UNKNOWN if told_of == "somebody" else _header(client, far)
                assert read_all(conn, len(header)) == header
            exchange(client, conn)


def _header(client: Client, far: socket.socket) -> bytes:
    """Write version 2 of the PROXY protocol, for IPv4."""
    assert client.socket
    ends = (client.socket.getsockname(), far.getsockname())
    hosts = b"".join(socket.inet_aton(host) for host, _ in ends)
    return SIGNATURE + b"\x21\x11\0\x0c" + hosts + struct.pack("!HH", *(port for _, port in ends))
