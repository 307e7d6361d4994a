"""What has been passed: connections are let in, anything else is refused and closed."""

import os
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest
from ends import nothing_left_behind, tcp_pair

from muonsocks.errors import RemoteProtocolError, UsageError
from muonsocks.net import passed

# What is closed by being forgotten only was not closed.
pytestmark = [
    pytest.mark.filterwarnings("error::ResourceWarning"),
    pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def leaks_nothing() -> Iterator[None]:
    with nothing_left_behind():
        yield


def test_connections_are_made_sockets() -> None:
    with ExitStack() as stack:
        kept = [stack.enter_context(sock) for sock in (*tcp_pair(), *socket.socketpair())]
        made = passed.stream_sockets([os.dup(sock.fileno()) for sock in kept])
        assert [sock.getsockname() for sock in made] == [sock.getsockname() for sock in kept]
        assert all(os.get_blocking(sock.fileno()) for sock in kept)
        for sock in made:
            sock.close()


def test_multipath_tcp_is_a_connection() -> None:
    try:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, passed._IPPROTO_MPTCP)
    except OSError as error:
        pytest.skip(f"no MPTCP here: {error.strerror}")
    with listener:
        assert not passed.is_connection(made_listening(listener))
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            assert accepted.proto == passed._IPPROTO_MPTCP
            assert passed.is_connection(accepted)


def made_listening(sock: socket.socket) -> socket.socket:
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock


def detached(sock: socket.socket, *others: socket.socket) -> int:
    for other in others:
        other.close()
    return sock.detach()


def an_epoll() -> int:
    made = select.epoll()
    try:
        return os.dup(made.fileno())
    finally:
        made.close()


UNFIT: dict[str, Callable[[], int]] = {
    "a file": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "a path": lambda: os.open("/etc/passwd", os.O_PATH),
    "a directory": lambda: os.open("/", os.O_RDONLY),
    "a terminal": lambda: os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY),
    "a counter": lambda: os.eventfd(0),
    "an epoll": an_epoll,
    "a TCP listener": lambda: detached(made_listening(socket.socket())),
    "a UDP socket": lambda: detached(socket.socket(type=socket.SOCK_DGRAM)),
    "a unix datagram socket": lambda: detached(
        *socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ),
    "a connection of messages": lambda: detached(
        *socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ),
    "a netlink socket": lambda: detached(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
}


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("what", UNFIT)
def test_anything_else_is_refused(what: str, place: int) -> None:
    """And the good ones beside it are closed with it."""
    fds = [detached(*socket.socketpair()) for _ in range(2)]
    fds.insert(place, UNFIT[what]())
    with pytest.raises(RemoteProtocolError, match="that is passed is"):
        passed.stream_sockets(fds)


# By how strict a receiver of socketbox is


def a_mapped_connection() -> int:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        client = socket.create_connection(("127.0.0.1", listener.getsockname()[1]))
        return detached(listener.accept()[0], client)


FIT: dict[str, Callable[[], int]] = {
    "TCP": lambda: detached(*tcp_pair()),
    "TCP over IPv6": a_mapped_connection,
    "unix": lambda: detached(*socket.socketpair()),
}
SOCKETS = {what for what in UNFIT if " socket" in what or what.endswith(("listener", "messages"))}
LEAST = {  # strict enough to refuse it
    **dict.fromkeys(FIT, 9),
    **{what: int(what in SOCKETS) for what in UNFIT},
    "a TCP listener": 2,
    "a vsock stream": 2,
}


def a_vsock() -> int:
    try:
        return detached(socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM))
    except OSError as error:
        pytest.skip(f"no vsock here: {error.strerror}")


@pytest.mark.parametrize("strictness", [0, 1, 2, 3])
@pytest.mark.parametrize("what", LEAST)
def test_strictness(what: str, strictness: int) -> None:
    """A socket is left as it is, blocking or not; what is refused is closed."""
    make = {**FIT, **UNFIT, "a vsock stream": a_vsock}[what]
    for blocking in (True, False):
        fd = make()
        if "path" not in what:
            os.set_blocking(fd, blocking)
        if strictness >= LEAST[what]:
            with pytest.raises(RemoteProtocolError, match="that is passed is"):
                passed.connection_of(fd, strictness)
        else:
            with closing(passed.connection_of(fd, strictness)) as sock:
                assert sock.fileno() == fd
                assert os.get_blocking(fd) is blocking


def test_default_strictness() -> None:
    with pytest.raises(RemoteProtocolError, match="is a listener"):
        passed.connection_of(UNFIT["a TCP listener"]())


@pytest.mark.parametrize(
    ("text", "strictness"), [(None, 2), ("", 2), ("0", 0), ("1", 1), ("2", 2), ("9", 2), ("10", 2)]
)
def test_strictness_in_the_environment(text: str | None, strictness: int) -> None:
    environ = {} if text is None else {"SKBOX_STRICT_STREAM_MODE": text}
    assert passed.strictness(environ) == strictness


@pytest.mark.parametrize("text", ["no", "-1", "1x", " 1", "\u0661", "1" * 5000])
def test_strictness_that_makes_no_sense(text: str) -> None:
    with pytest.raises(UsageError, match="it must be 0, 1 or 2") as raised:
        passed.strictness({"SKBOX_STRICT_STREAM_MODE": text})
    assert len(str(raised.value)) < 150
