"""The name server: sockets, and whoever answers."""

import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest
from ends import nothing_left_behind

from muonsocks.intercept import nameserver
from muonsocks.intercept.nameserver import Nameserver, on_loopback
from muonsocks.net.loop import Loop
from muonsocks.net.task import Waitable


@contextmanager
def serving(
    loop: Loop, answer: Callable[[bytes], Awaitable[bytes]], errors: list[BaseException]
) -> Iterator[list[socket.socket]]:
    """Give a client for each of its sockets."""
    server = Nameserver(loop, on_loopback(), answer, errors.append)
    clients = []
    for family, endpoint in server.endpoints.items():
        client = socket.socket(family, socket.SOCK_DGRAM)
        client.connect(endpoint.sockaddr)
        client.settimeout(10)
        clients.append(client)
    yield clients
    server.close()
    for client in clients:
        client.close()


async def reversed_of(message: bytes) -> bytes:
    if message == b"bad":
        raise ValueError(message)
    return b"" if message == b"silence" else message[::-1]


def test_each_gets_an_answer() -> None:
    with nothing_left_behind():
        loop, errors = Loop(), list[BaseException]()
        with serving(loop, reversed_of, errors) as clients:
            assert clients
            for client in clients:
                for message in (b"bad", b"silence", b"abc", b"\0" * 40000, b""):
                    client.send(message)
            loop.run(loop.sleep(0.1))
            for client in clients:
                assert client.recv(65535) == b"cba"
                assert client.recv(65535) == b"\0" * 40000
                with pytest.raises(BlockingIOError):
                    client.setblocking(False)
                    client.recv(9)
        assert [type(error) for error in errors] == [ValueError] * len(clients)
        loop.close()


def test_only_so_many_are_answered_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nameserver, "MOST", 3)
    waiting: list[Waitable] = []

    async def in_time(message: bytes) -> bytes:
        if message == b"wait":
            waiting.append(Waitable())
            await waiting[-1]
        return message

    loop, errors = Loop(), list[BaseException]()
    with serving(loop, in_time, errors) as clients:
        client = clients[0]
        for message in (b"wait", b"wait", b"now", b"wait", b"lost", b"wait"):
            client.send(message)
        loop.run(loop.sleep(0.05))
        assert len(waiting) == 3 and client.recv(9) == b"now"
        for one in waiting:
            one.wake()
        client.send(b"again")
        loop.run(loop.sleep(0.05))
        assert [client.recv(9) for _ in range(4)] == [b"wait"] * 3 + [b"again"]
    assert not errors
    loop.close()
