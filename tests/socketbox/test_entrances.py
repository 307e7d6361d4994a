"""Where connections come in that are passed on: what the rules are told of them."""

import os
import socket
from contextlib import closing
from pathlib import Path

import pytest
from ends import nothing_left_behind
from senders import accepted, pass_on

from muonsocks.errors import RemoteProtocolError
from muonsocks.net.entrance import NobodyComes
from muonsocks.net.listen import SocketFile, receive_at
from muonsocks.socketbox.connection import (
    LISTENER,
    LOCAL_ADDRESS,
    LOCAL_PORT,
    REMOTE_ADDRESS,
    REMOTE_PORT,
)
from muonsocks.socketbox.entrances import Arrival, AsTheyCome, NumberedListener, Upstream


def seen(sock: socket.socket, arrival: Arrival) -> tuple[str, int, str, int, int]:
    key = arrival.connection(sock).key
    return (
        LOCAL_ADDRESS.format(LOCAL_ADDRESS.of(key)),
        LOCAL_PORT.of(key),
        REMOTE_ADDRESS.format(REMOTE_ADDRESS.of(key)),
        REMOTE_PORT.of(key),
        LISTENER.of(key),
    )


@pytest.mark.parametrize("host", ["127.0.0.7", "::1", "::ffff:127.0.0.7"])
def test_a_connection(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = family == socket.AF_INET6
    with socket.create_server((host, 0), family=family, dualstack_ipv6=both) as listener:
        listener.setblocking(False)
        with socket.create_connection(listener.getsockname()[:2]) as client:
            sock, arrival = NumberedListener(listener, 3).take()
            with closing(sock):
                us, port = client.getsockname()[:2]
                plain = host.removeprefix("::ffff:")
                assert seen(sock, arrival) == (
                    plain,
                    listener.getsockname()[1],
                    us.removeprefix("::ffff:"),
                    port,
                    3,
                )
                assert os.get_blocking(sock.fileno())
                assert not os.get_inheritable(sock.fileno())
                assert sock.gettimeout() is None
                with pytest.raises(BlockingIOError):
                    NumberedListener(listener).take()


def test_the_file_of_a_socket(tmp_path: Path) -> None:
    """It is removed while the socket is there, and nobody can have its number."""
    path = tmp_path / "place" / "s"
    path.parent.mkdir()
    for directory in ("there", "not there"):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            listener.setblocking(False)
            front = NumberedListener(listener, 0, SocketFile(str(path)))
            if directory == "not there":
                path.unlink()
                path.parent.rmdir()
            front.shut()
            assert not path.exists()
            with pytest.raises(BlockingIOError):
                front.take()


def test_a_connection_over_a_unix_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        client.connect(str(tmp_path / "s"))
        sock, arrival = NumberedListener(listener, 1).take()
        with closing(sock):
            assert seen(sock, arrival) == ("::", 0, "::", 0, 1)
            assert (arrival.text, arrival.address) == ("unix", None)


def test_a_client_that_has_gone() -> None:
    """Was there, and is looked up as any other."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            name = client.getsockname()
        sock, arrival = NumberedListener(listener).take()
        with closing(sock):
            assert seen(sock, arrival)[2:4] == name


def test_a_client_who_is_left_alone(tmp_path: Path) -> None:
    with closing(receive_at(str(tmp_path / "r"))) as sock, accepted() as (_, conn):
        pass_on(str(tmp_path / "r"), conn.fileno())
        taken, _ = AsTheyCome(sock, True).take()
        with closing(taken):
            assert os.get_blocking(taken.fileno())
            assert not taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_where_anything_may_be_passed(tmp_path: Path) -> None:
    with (
        nothing_left_behind(),
        closing(receive_at(str(tmp_path / "r"))) as sock,
        open("/dev/null") as file,
    ):
        pass_on(str(tmp_path / "r"), file.fileno())
        taken, peer = AsTheyCome(sock, True, strictness=0).take()
        assert os.readlink(f"/proc/self/fd/{taken.fileno()}") == "/dev/null"
        assert (peer.text, peer.address) == ("unknown", None)
        for _ in range(2):
            taken.close()
            assert taken.fileno() == -1
        pass_on(str(tmp_path / "r"), file.fileno())
        with pytest.raises(RemoteProtocolError, match="no socket"):
            AsTheyCome(sock, True).take()


def test_what_another_one_passes() -> None:
    """As it is; what is no connection is dropped, and its end is told."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    handed = Upstream(ours)
    with ours, theirs, socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as client:
            accepted, _ = listener.accept()
            with accepted, socket.socket() as unconnected:
                socket.send_fds(theirs, [b"\3\0\0\0"], [accepted.fileno()])
                socket.send_fds(theirs, [b"\3\0\0\0"], [unconnected.fileno()])
            sock, arrival = handed.take()
            with closing(sock):
                assert seen(sock, arrival) == (*listener.getsockname(), *client.getsockname(), 0)
                assert os.get_blocking(sock.fileno())
        with pytest.raises(RemoteProtocolError, match="not connected"):
            handed.take()
        one, other = socket.socketpair()
        with one, other:
            socket.send_fds(theirs, [b"\3\0\0\0"], [one.fileno()])
            sock, arrival = handed.take()
            with closing(sock):
                assert seen(sock, arrival) == ("::", 0, "::", 0, 0)
        with open("/dev/null") as file:
            for _ in range(2):
                socket.send_fds(theirs, [b"\3\0\0\0"], [file.fileno()])
            with pytest.raises(RemoteProtocolError, match="no socket"):
                handed.take()
            sock, arrival = Upstream(ours, 0).take()
            with closing(sock):
                assert seen(sock, arrival) == ("::", 0, "::", 0, 0)
        theirs.close()
        with pytest.raises(NobodyComes):
            handed.take()
