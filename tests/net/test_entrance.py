"""Where clients come in: a socket that listens, or one that they are passed to."""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from ends import descriptors, nothing_left_behind
from places import descriptor_limit, in_child
from senders import accepted, pass_on

from muonsocks.errors import RemoteProtocolError
from muonsocks.net.entrance import Intake, Listener, NobodyComes
from muonsocks.net.listen import SocketFile, listen_on, receive_at

DATAGRAM = socket.SOCK_DGRAM
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


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


def test_a_client_that_is_for_somebody_else() -> None:
    """Its socket blocks, though the listener does not."""
    with (
        closing(listen_on(socket.inet_aton("127.0.0.1"), 0)) as sock,
        socket.create_connection(sock.getsockname()) as client,
    ):
        taken, address = Listener(sock, blocks=True).accept()
        with closing(taken):
            assert address == client.getsockname()
            assert os.get_blocking(taken.fileno())
            assert taken.gettimeout() is None
            assert not os.get_inheritable(taken.fileno())


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


def test_others_may_go_on_with_a_listener() -> None:
    with closing(listen_on(socket.inet_aton("127.0.0.1"), 0)) as sock:
        listener = Listener(sock)
        listener.shut()
        assert not listener.waits_for_nobody_else
        with socket.create_connection(sock.getsockname()):
            listener.take()[0].close()


# Clients who are passed


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "receiver")


@pytest.fixture
def receiver(path: str) -> Iterator[Intake]:
    with nothing_left_behind(), closing(receive_at(path)) as sock:
        file = SocketFile(path)
        yield Intake(sock, True, file)
        file.remove()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_client_who_is_passed(receiver: Intake, path: str, host: str) -> None:
    """It is as one that was accepted here."""
    with accepted(host) as (_, conn):
        pass_on(path, conn.fileno())
        taken, peer = receiver.take()
    with closing(taken):
        assert peer.address == socket.inet_pton(taken.family, host)
        assert not taken.getblocking() and not os.get_blocking(taken.fileno())
        assert not os.get_inheritable(taken.fileno())
        assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert taken.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)


def test_who_a_passed_client_is(receiver: Intake, path: str) -> None:
    with accepted() as (client, conn):
        pass_on(path, conn.fileno())
        taken, peer = receiver.take()
        taken.close()
        assert peer.text == "{}:{}".format(*client.getsockname())


def test_a_client_over_a_unix_socket_is_passed(receiver: Intake, path: str) -> None:
    client, conn = socket.socketpair()
    with client, conn:
        pass_on(path, conn.fileno())
        taken, peer = receiver.take()
        with closing(taken):
            assert (peer.text, peer.address, peer.is_shared) == ("unix", None, True)
            assert not os.get_blocking(taken.fileno())


def test_a_passed_client_who_has_gone(receiver: Intake, path: str) -> None:
    """Has reset the connection, and so it is none."""
    with accepted() as (client, conn):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        client.close()
        pass_on(path, conn.fileno())
        with pytest.raises(RemoteProtocolError, match="not connected"):
            receiver.take()


def test_what_is_passed_and_is_no_client(receiver: Intake, path: str) -> None:
    with socket.socket() as fresh, socket.create_server(("127.0.0.1", 0)) as listening:
        with open("/dev/null") as file, socket.socket(type=socket.SOCK_DGRAM) as udp:
            wrong = [(), (file.fileno(),), (udp.fileno(),), (listening.fileno(),)]
            for fds in wrong:
                pass_on(path, *fds)
                with pytest.raises(RemoteProtocolError):
                    receiver.take()
        with socket.socket(socket.AF_UNIX) as unix:
            for nowhere in (fresh, unix):
                pass_on(path, nowhere.fileno())
                with pytest.raises(RemoteProtocolError, match="not connected"):
                    receiver.take()
        with pytest.raises(BlockingIOError):
            receiver.take()


def test_how_strict_a_receiver_is(path: str) -> None:
    with closing(receive_at(path)) as sock, socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.connect(("127.0.0.1", 9))
        pass_on(path, udp.fileno())
        with pytest.raises(RemoteProtocolError, match="no stream"):
            Intake(sock, True, strictness=1).take()
        pass_on(path, udp.fileno())
        with pytest.raises(RemoteProtocolError, match="of no use"):
            Intake(sock, True, strictness=0).take()


def test_none_is_lost_for_want_of_descriptors(receiver: Intake, path: str) -> None:
    def check() -> None:
        with accepted() as (client, conn):
            pass_on(path, conn.fileno())
            with descriptor_limit(0), pytest.raises(OSError) as caught:
                receiver.take()
            assert caught.value.errno == errno.EMFILE
            taken, _ = receiver.take()
            with closing(taken):
                client.send(b"x")
                assert taken.recv(1) == b"x"

    in_child(check)


def test_a_receiver_that_is_shut(receiver: Intake, path: str) -> None:
    """Who has come is taken in, and nobody else can come."""
    with accepted() as (_, conn), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(path)
        pass_on(path, conn.fileno())
        receiver.shut()
        assert receiver.waits_for_nobody_else
        assert not os.path.exists(path)
        with pytest.raises(BrokenPipeError):
            sender.send(b"\0")
        receiver.take()[0].close()
        with pytest.raises(BlockingIOError):
            receiver.take()


def test_a_receiver_of_systemd_is_not_shut(path: str) -> None:
    with closing(receive_at(path)) as sock, accepted() as (_, conn):
        receiver = Intake(sock, is_ours=False)
        receiver.shut()
        assert not receiver.waits_for_nobody_else
        assert os.path.exists(path)
        pass_on(path, conn.fileno())
        receiver.take()[0].close()


def test_who_passes_clients_on_has_gone() -> None:
    """Over a connection there is an end; what has come before it comes first."""
    server, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with closing(ours), accepted() as (_, conn):
        receiver = Intake(ours, is_ours=True)
        with server:
            socket.send_fds(server, [b"\3\0\0\0"], [conn.fileno()])
        receiver.take()[0].close()
        with pytest.raises(NobodyComes):
            receiver.take()
        receiver.shut()
