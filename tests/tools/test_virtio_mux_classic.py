"""virtio-mux with either half of the older pair, as its models in tests/mux/ behave."""

import contextlib
import signal
import socket
import threading

import pytest
from classic_guest import ClassicGuest
from classic_host import ClassicHost
from classic_joined import Echo, EchoServer, through
from classic_joined import port as classic_port
from classic_joined import request as classic_request
from ends import noise
from programs import (
    GREETING,
    accept,
    closed_port,
    listener,
    read_all,
    socks4,
    socks5,
)
from real_server import reset, until
from sides import Peer, guest, host


@pytest.mark.parametrize("tells_end", [True, False], ids=["tells", "tells-not"])
@pytest.mark.parametrize("frame_limit", [4096, 4100])
def test_an_older_host(tells_end: bool, frame_limit: int) -> None:
    """64 connections are opened, used, closed and their numbers used again."""
    ours, theirs = classic_port()
    with ours, EchoServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = {"greeting": 0.5, "tells_end": tells_end, "frame_limit": frame_limit}
        with guest((ours.fileno(), ours.fileno())) as g, ClassicHost(theirs, **settings) as half:
            ours.close()
            g.await_log("the host is there")
            for _ in range(3):
                clients = [g.connect() for _ in range(64)]
                for number, client in enumerate(clients):
                    client.sendall(GREETING + socks5(*server.server_address))
                    assert read_all(client, 12) == b"\5\0\5\0\0\1" + bytes(6)
                    client.sendall(noise(5000, number))
                for number, client in enumerate(clients):
                    assert read_all(client, 5000) == noise(5000, number)
                with g.connect() as client:  # there is no room for another one
                    client.sendall(socks4(*server.server_address))
                    assert read_all(client, 8)[1] == 0x5B
                for client in clients:
                    reset(client)
                half.wait_until(lambda: not half.sockets)
        server.shutdown()
    assert "has broken" not in g.log


@pytest.mark.parametrize("tells_end", [True, False], ids=["tells", "tells-not"])
@pytest.mark.parametrize("frame_limit", [4096, 4100])
def test_an_older_guest(tells_end: bool, frame_limit: int) -> None:
    ours, theirs = classic_port()
    with ours, EchoServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = {"tells_end": tells_end, "frame_limit": frame_limit}
        with host((ours.fileno(), ours.fileno())) as h, ClassicGuest(theirs, **settings) as half:
            ours.close()
            half.wait_until(lambda: half.accepting)
            for turn in range(3 if tells_end else 1):
                clients = []
                for number in range(64):
                    clients.append(through(half, classic_request(server.server_address)))
                    if not turn and not number:
                        h.await_log("the guest is there")
                    clients[-1].sendall(noise(5000, number))
                for number, client in enumerate(clients):
                    assert read_all(client, 5000) == noise(5000, number)
                for client in clients:
                    client.close()
                half.wait_until(lambda: not half.sockets)
                if tells_end:
                    until("all are closed", lambda n=turn: h.count("end=") == 64 * (n + 1))
        server.shutdown()


def test_the_bytes_of_a_session_with_an_older_guest() -> None:
    ours, theirs = classic_port()
    with ours, theirs, host((ours.fileno(), ours.fileno())) as h, listener() as far:
        ours.close()
        assert theirs.recv(5000)[:4] == b"\xff\xff\x34\0"  # a HELLO, which it does not look at
        address = socket.inet_aton("127.0.0.1") + far.getsockname()[1].to_bytes(2, "big")
        theirs.send(b"\5\0\7\0\1" + address)
        theirs.send(b"\5\0\2\0hi")
        with accept(far) as conn:
            assert read_all(conn, 2) == b"hi"
            conn.sendall(b"answer")
            frames = iter(lambda: theirs.recv(5000), None)
            assert next(f for f in frames if f[:2] != b"\xff\xff") == b"\5\0\6\0answer"
        assert next(f for f in frames if f[:2] != b"\xff\xff") == b"\5\0\0\0"
        h.await_log("in=2 out=6 .* end=")
        # A connection that cannot be made is closed, as there is no other way to say so.
        refused = socket.inet_aton("127.0.0.1") + closed_port().to_bytes(2, "big")
        theirs.send(b"\5\0\7\0\1" + refused)
        assert next(f for f in frames if f[:2] != b"\xff\xff") == b"\5\0\0\0"


def test_a_host_that_ends_closes_what_an_older_guest_has() -> None:
    """Which would keep it open for ever: it is told nothing else."""
    ours, theirs = classic_port()
    with ours, theirs, host((ours.fileno(), ours.fileno())) as h, listener() as far:
        ours.close()
        address = socket.inet_aton("127.0.0.1") + far.getsockname()[1].to_bytes(2, "big")
        conns = []
        for number in range(3):
            theirs.send(bytes((number, 0, 7, 0, 1)) + address)
            conns.append(accept(far))
        h.signal(signal.SIGTERM)
        frames = [f for f in iter(lambda: theirs.recv(5000), b"") if f[:2] != b"\xff\xff"]
        assert sorted(frames) == [bytes((number, 0, 0, 0)) for number in range(3)]
        assert h.status == 0
        for conn in conns:
            conn.close()


def test_one_of_ours_takes_the_place_of_an_older_guest() -> None:
    ours, theirs = classic_port()
    with ours, theirs, host((ours.fileno(), ours.fileno())) as h, listener() as far:
        ours.close()
        address = socket.inet_aton("127.0.0.1") + far.getsockname()[1].to_bytes(2, "big")
        theirs.send(b"\5\0\7\0\1" + address)
        with accept(far) as conn:
            Peer(theirs, 0).meet()
            with contextlib.suppress(ConnectionResetError):
                assert conn.recv(1) == b""
        h.await_log("the other side has started anew")
