"""The models of the older pair's halves work with each other, and have its faults: what the
multiplexer has to live with is really there when it is tested against them.
"""

import select
import socket
from typing import Any

import pytest
from classic import CONNECTIONS
from classic_joined import (
    GREETING,
    accept,
    client,
    connection_of_guest,
    connection_of_host,
    pair,
    read,
    request,
    through,
)
from classic_port import PATIENCE, frame
from ends import at_once, noise

pytestmark = [
    pytest.mark.usefixtures("everything_is_closed"),
    pytest.mark.filterwarnings("error"),  # a socket that only the garbage collector has closed
]

# The two halves with each other.


def test_all_connections_opened_used_closed_and_again(echo: tuple[str, int]) -> None:
    with pair() as (host, guest):
        for turn in (1, 2):
            clients = [through(guest, request(echo)) for _ in range(CONNECTIONS)]
            host.wait_until(lambda: len(host.sockets) == CONNECTIONS)
            scripts = [noise(10_000, seed) for seed in range(CONNECTIONS)]
            for sock, script in zip(clients, scripts, strict=True):
                sock.sendall(script)
            assert [read(sock, 10_000) for sock in clients] == scripts
            for sock in clients:
                sock.close()
            host.wait_until(lambda: not host.sockets)
            guest.wait_until(lambda: not guest.sockets)
            for number in range(CONNECTIONS):
                assert guest.sent(number).count(request(echo)) == turn
                assert guest.sent(number)[-1] == b""
        with through(guest, request(echo)) as sock:
            sock.sendall(b"once more")
            assert read(sock, 9) == b"once more"
        assert [w.data for w in guest.log if not w.sent][1:5] == GREETING[1:]


def test_a_connection_too_many_is_closed_at_once(echo: tuple[str, int]) -> None:
    with pair() as (_, guest):
        clients = [through(guest, request(echo)) for _ in range(CONNECTIONS)]
        with client(guest) as one_more:
            assert one_more.recv(1) == b""
        for sock in clients:
            sock.close()


def test_much_data_both_ways(echo: tuple[str, int]) -> None:
    with pair() as (host, guest), through(guest, request(echo)) as sock:
        script = noise(3_000_000)
        _, answer = at_once(lambda: sock.sendall(script), lambda: read(sock, len(script)))
        assert answer == script
        frames = [wire.data for wire in host.log + guest.log if wire.sent]
        assert max(map(len, frames)) == 4096
        assert all(len(data) == 4 + int.from_bytes(data[2:4], "little") for data in frames)


def test_the_target_closes(target: socket.socket) -> None:
    wanted = request(target.getsockname())
    with pair() as (host, guest), through(guest, wanted) as sock:
        with accept(target) as behind:
            behind.sendall(b"farewell")
        assert read(sock, 8) == b"farewell"
        assert sock.recv(1) == b""
        guest.wait_until(lambda: not guest.sockets)
        assert host.sent(0) == [b"farewell", b""]
        assert guest.sent(0) == [wanted]


def test_by_name(echo: tuple[str, int]) -> None:
    with pair() as (_, guest), through(guest, request(echo, b"localhost")) as sock:
        sock.sendall(b"by name")
        assert read(sock, 7) == b"by name"
        assert guest.sent(0)[0] == b"\x03\x09localhost" + echo[1].to_bytes(2, "big")


def test_an_end_may_remain_untold(target: socket.socket) -> None:
    wanted = request(target.getsockname())
    with pair(tells_end=False) as (_, guest):
        with through(guest, wanted):
            behind = accept(target)
        guest.wait_until(lambda: not guest.sockets)
        with behind, through(guest, wanted):
            assert behind.recv(100) == wanted, "the old connection has the new one's request"
            assert guest.sent(0) == [wanted, wanted]


# What both have in common. `connection` has connId 3.


@pytest.fixture(params=[connection_of_host, connection_of_guest])
def connection(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_the_second_frame_of_a_read_is_lost(connection: Any, target: socket.socket) -> None:
    with connection(target) as (_, ours, sock):
        ours.send(frame(3, b"first") + frame(3, b"second"))
        ours.send(frame(3, b"third"))
        assert read(sock, 10) == b"firstthird"


def test_a_split_frame_is_garbled(connection: Any, target: socket.socket) -> None:
    with connection(target) as (_, ours, sock):
        ours.send(frame(3, b"0123456789"))
        whole = frame(3, b"abcdefghij")
        ours.send(whole[:8])
        ours.send(whole[8:])  # connId "ef"
        ours.send(frame(3, b"end"))
        assert read(sock, 23) == b"0123456789" + b"abcd456789" + b"end"


def test_a_split_header_is_garbled(connection: Any, target: socket.socket) -> None:
    with connection(target) as (_, ours, sock):
        ours.send(frame(3, b"0123456789"))
        ours.send(frame(3, b"ab")[:2])  # of length 10 still
        ours.send(frame(3, b"ab")[2:])  # connId 2, length "ab"
        ours.send(frame(3, b"end"))
        assert read(sock, 23) == b"0123456789" * 2 + b"end"


def test_a_frame_longer_than_the_buffer_is_cut(connection: Any, target: socket.socket) -> None:
    data = noise(4096)
    for limit in (4096, 4100):
        with connection(target, frame_limit=limit) as (_, ours, sock):
            ours.send(frame(3, data))
            ours.send(frame(3, b"end"))
            assert read(sock, limit - 1) == data[: limit - 4] + b"end"
            sock.sendall(data)
            assert ours.recv(5000) == frame(3, data[: limit - 4])


def test_an_empty_frame_closes_and_is_not_answered(connection: Any, target: socket.socket) -> None:
    with connection(target) as (half, ours, sock):
        ours.send(frame(3, b""))
        assert sock.recv(1) == b""
        half.wait_until(lambda: 3 not in half.sockets)
        half.close()
        assert b"" not in half.sent(3)


def test_an_end_is_an_empty_frame(connection: Any, target: socket.socket) -> None:
    with connection(target) as (half, ours, sock):
        sock.sendall(b"last")
        sock.shutdown(socket.SHUT_WR)
        assert ours.recv(5000) == frame(3, b"last")
        assert ours.recv(5000) == frame(3, b"")
        assert sock.recv(1) == b"", "it knows no half-closed connection"
        half.wait_until(lambda: 3 not in half.sockets)


def test_one_that_does_not_read_stalls_the_port(connection: Any, target: socket.socket) -> None:
    with connection(target, frame_limit=65_539) as (half, ours, sock):
        half.wait_until(lambda: 3 in half.sockets)
        half.sockets[3].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # takes a part at a time
        ours.setblocking(False)
        poll = select.poll()
        poll.register(ours, select.POLLOUT)
        count = 0
        while poll.poll(500):
            count += ours.send(frame(3, bytes(65_535))) - 4
            assert count < 50_000_000, "it is not stalled"
        ours.settimeout(PATIENCE)
        _, data = at_once(lambda: ours.send(frame(3, b"end")), lambda: read(sock, count + 3))
        assert data == bytes(count) + b"end"


def test_the_end_of_the_port_is_the_end_of_all(connection: Any, target: socket.socket) -> None:
    with connection(target) as (half, ours, sock):
        ours.close()
        half.wait_until(lambda: half.over)
        assert sock.recv(1) == b""
        half.wait_until(lambda: not half.sockets)


def test_closed_while_it_waits_for_a_target_to_read(connection: Any, target: socket.socket) -> None:
    with connection(target) as (half, ours, _):
        poll = select.poll()
        poll.register(ours, select.POLLOUT)
        while poll.poll(200):
            ours.send(frame(3, bytes(4092)))
        half.close()
        assert not half.sockets
