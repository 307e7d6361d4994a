"""Where sockets seem to be connected to."""

import socket

from muonsocks.intercept.peers import Peers


def test_a_socket_is_known_by_all_its_descriptors_and_no_other_is() -> None:
    peers = Peers()
    with socket.socket() as one, socket.socket() as other:
        assert peers.name_of(one) is None
        peers.remember(one, b"name")
        with one.dup() as same:
            assert peers.name_of(same) == b"name"
        assert peers.name_of(other) is None
        peers.remember(one, b"new")
        assert (peers.name_of(one), len(peers)) == (b"new", 1)
        peers.forget(one)
        peers.forget(one)
        assert peers.name_of(one) is None


def test_when_it_is_full_the_oldest_is_forgotten() -> None:
    peers = Peers(most=2)
    socks = [socket.socket() for _ in range(3)]
    for sock in socks:
        peers.remember(sock, b"name")
    assert [peers.name_of(sock) for sock in socks] == [None, b"name", b"name"]
    for sock in socks:
        sock.close()
