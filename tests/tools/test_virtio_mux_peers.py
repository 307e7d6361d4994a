"""virtio-mux with a peer that breaks the protocol: the session ends, and the process lives on."""

import socket
import time
from typing import Any

import pytest
from ends import noise
from programs import (
    SECONDS,
    accept,
    listener,
    read_all,
    socks4,
)
from real_server import resident_memory
from sides import against_guest, against_host

from muonsocks.address import Endpoint
from muonsocks.mux.frames import (
    Answer,
    Credit,
    Done,
    Eof,
    Open,
    Ping,
    decode,
    frames_of,
)

FAR = Endpoint("127.0.0.1", 9)


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        ([b"\0\0\xff\xff\0"], "a frame of 65535 bytes"),
        ([frames_of(5, b"x")], "data of connection 5, which is not open"),
        ([Eof(5)], "a message about connection 5, which is not open"),
        ([Credit(5, 1)], "a message about connection 5, which is not open"),
        ([Open(4096, 1, FAR)], "an OPEN of connection 4096, of 4096"),
        ([Open(1, 1, FAR), Open(1, 1, FAR)], "an OPEN of connection 1, which is open"),
        ([Open(1, 1, FAR), Answer(1, 1, 0, FAR)], "an ANSWER that nobody has asked for"),
        ([Open(1, 1, FAR), frames_of(1, b"x")], "data of connection 1, which is not open"),
        ([b"\xff\xff\1\0\x2a"], "a control message of type 42 with 1 bytes"),
        ([b"\xff\xff\1\0\4"], "a control message of type 4 with 1 bytes"),
    ],
)
def test_a_guest_that_breaks_the_protocol(sent: list[Any], why: str) -> None:
    """The session ends with a reason, and the next one is as good as any."""
    with against_host() as (h, peer), listener() as far:
        peer.meet()
        peer.send(*sent)
        h.await_log(f"the guest is not there any more: it has broken the protocol: {why}")
        while (frame := peer.frame())[1][:1] != b"\x09":
            pass
        assert frame[1] == b"\x09" + why.encode()
        peer.meet()
        peer.send(Open(1, 1 << 18, Endpoint(*far.getsockname())))
        with accept(far) as conn:
            assert peer.frame()[1][:1] == b"\2"
            peer.send(frames_of(1, b"question"))
            assert read_all(conn, 8) == b"question"
            conn.sendall(b"answer")
            assert peer.frame() == (1, b"answer")


def test_a_window_that_is_overrun() -> None:
    with against_host() as (h, peer), listener() as far:
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.meet()
        peer.send(Open(1, 1 << 18, Endpoint(*far.getsockname())))
        with accept(far):
            assert peer.frame()[1][:1] == b"\2"
            for _ in range(100):
                peer.send(frames_of(1, bytes(1 << 16)))
            h.await_log("broken the protocol: connection 1 sends more than its window")


def test_a_peer_that_makes_us_answer_and_does_not_read() -> None:
    """What we have to say is bounded: the session ends, the process stays small."""
    with against_host("--ping-timeout=600") as (h, peer):
        peer.meet()
        before = resident_memory(h.pid)
        ping = Ping(bytes(8)).encode() * 1000
        deadline = time.monotonic() + SECONDS
        while not h.count("it does not read what it is told"):
            assert time.monotonic() < deadline
            peer.send(ping)
        assert resident_memory(h.pid) < before + 30_000


def test_a_flood_of_nothing() -> None:
    """Bytes that are no HELLO are dropped, however many they are."""
    with against_host() as (h, peer):
        assert peer.sock.recv(1)  # it is there, and has said HELLO
        before = resident_memory(h.pid)
        junk = noise(1 << 20)
        for _ in range(64):
            peer.send(junk)
        peer.meet()
        h.await_log("the guest is there")
        assert resident_memory(h.pid) < before + 10_000


def test_a_host_that_answers_nothing_or_nonsense() -> None:
    with against_guest() as (g, peer):
        peer.meet()
        with g.connect() as client:
            client.sendall(socks4("192.0.2.1", 80))
            number, opened = peer.frame()
            assert number == 0xFFFF and decode(opened).destination == Endpoint("192.0.2.1", 80)
            peer.send(Answer(decode(opened).connection, 0, 7, FAR))
            assert read_all(client, 8)[1] == 0x5B
        with g.connect() as client:
            client.sendall(socks4("192.0.2.1", 80))
            connection = decode(peer.frame()[1])
            assert isinstance(connection, Done)  # of the one before
            connection = decode(peer.frame()[1]).connection
            peer.send(Answer(connection, 0, 0, FAR), Answer(connection, 0, 0, FAR))
            assert read_all(client, 8)[1] == 0x5A
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        g.await_log("broken the protocol: an ANSWER that nobody has asked for")


def test_what_is_on_its_way_is_read_before_a_host_ends() -> None:
    """And then it closes: whoever has more to be read then is reset, which QEMU does not bear."""
    with against_host() as (h, peer):
        peer.meet()
        h.await_log("the guest is there")
        h.terminate()
        assert peer.frame()[1] == b"\x09the host is told to stop"
        peer.send(noise(100_000))
        assert peer.sock.recv(1) == b""
