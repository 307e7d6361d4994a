"""A client of BIND and its peer: what is told, who comes, what they say to each other."""

import socket

from programs import SECONDS, Client, Version, read_all

HERE = "127.0.0.1"


def told(client: Client | socket.socket, version: Version, host: str = HERE) -> tuple[str, int]:
    """Read a reply that says where somebody is, or is waited for."""
    length = len(version.success(host, 0))
    reply = client.read(length) if isinstance(client, Client) else read_all(client, length)
    start = length - 2 if version.name == "5" else 2
    port = int.from_bytes(reply[start : start + 2], "big")
    assert reply == version.success(host, port)
    assert port
    return host, port


def come(where: tuple[str, int], source: str) -> socket.socket:
    return socket.create_connection(where, SECONDS, (source, 0))


def exchange(client: Client, peer: socket.socket) -> None:
    client.send(b"question")
    assert read_all(peer, 8) == b"question"
    peer.sendall(b"answer")
    peer.shutdown(socket.SHUT_WR)
    assert client.rest() == b"answer"
    client.end()
    assert read_all(peer) == b""


def is_turned_away(where: tuple[str, int], source: str) -> bool:
    """Come, and say whether that is answered by a reset; it may be faster than we are."""
    try:
        with come(where, source) as stranger:
            stranger.recv(1)
            return False
    except ConnectionResetError:
        return True
