"""Where clients come in: what a worker gets of a socket that listens."""

import errno
import os
import socket
from contextlib import closing
from pathlib import Path

import pytest
from ends import descriptors

from muonsocks.net.entrance import Listener
from muonsocks.net.listen import listen_on


def test_a_client_over_tcp() -> None:
    with closing(listen_on(socket.inet_aton("127.0.0.1"), 0)) as sock:
        listener = Listener(sock)
        assert listener.fileno() == sock.fileno()
        with socket.create_connection(sock.getsockname()) as client:
            taken, peer = listener.take()
            with closing(taken):
                host, port = client.getsockname()
                assert (peer.text, peer.address) == (f"{host}:{port}", socket.inet_aton(host))
                assert (taken.family, taken.proto) == (socket.AF_INET, socket.IPPROTO_TCP)
                assert not taken.getblocking()
                assert not os.get_inheritable(taken.fileno())
                with pytest.raises(BlockingIOError):
                    taken.recv(1)


def test_a_client_over_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as sock, socket.socket(socket.AF_UNIX) as client:
        sock.bind(path)
        sock.listen()
        sock.setblocking(False)
        client.connect(path)
        taken, peer = Listener(sock).take()
        with closing(taken):
            assert (peer.text, peer.address) == ("unix", None)
            assert taken.family == socket.AF_UNIX


def test_nobody_is_there() -> None:
    with closing(listen_on(socket.inet_aton("127.0.0.1"), 0)) as sock:
        before = descriptors()
        with pytest.raises(BlockingIOError):
            Listener(sock).take()
        assert descriptors() == before


def test_it_is_closed() -> None:
    sock = listen_on(socket.inet_aton("127.0.0.1"), 0)
    listener = Listener(sock)
    listener.close()
    assert listener.fileno() == sock.fileno() == -1
    with pytest.raises(OSError) as caught:
        listener.take()
    assert caught.value.errno == errno.EBADF
