"""connect(2) under socketbox-preload, to addresses that mean a unix socket, or a link."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from preloaded import SERVER, START, by_variables, preloaded
from programs import PYTHON, SECONDS

CLIENT = """
s = socket(AF_INET6 if ":" in HOST else AF_INET); s.settimeout(TIMEOUT)
say(failure(s.connect, (HOST, 80)))
if not failure(s.getpeername): say(s.getpeername()[:2], s.recv(5), s.getsockopt(SOL_SOCKET, 39))
"""


STREAMS = {"SKBOX_ENABLE_CONNECT": "b1"}
STREAM, IPV4_STREAM = "fe8f::3:1:2", "127.181.1.2"


@contextlib.contextmanager
def listening(root: str, host: str, kind: int = socket.SOCK_STREAM) -> Iterator[socket.socket]:
    """A unix socket that HOST means, with room for one that waits beside the first."""
    path = f"{root}/{'00001' if ':' in host else 'X4001'}/00002_00080"
    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.settimeout(SECONDS)
        listener.bind(path)
        os.chmod(path, 0o666)
        if kind == socket.SOCK_STREAM:
            listener.listen(1)
        yield listener


@pytest.mark.parametrize("blocks", [True, False])
@pytest.mark.parametrize("host", [IPV4_STREAM, STREAM])
def test_connecting_to_a_stream(root: str, host: str, blocks: bool) -> None:
    """It blocks then as it did before."""
    code = CLIENT.replace("TIMEOUT", "None") if blocks else CLIENT
    code += "say(os.get_blocking(s.fileno()))\n"
    with listening(root, host) as listener, by_variables(root, code, host, **STREAMS) as there:
        assert there.line() == "None"
        with listener.accept()[0] as conn:
            conn.sendall(b"hello")
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            assert there.line() == f"{(host, 80)} b'hello' {int(family)}"
            assert there.line() == str(blocks)


def test_too_many_wait_already(root: str) -> None:
    """Who connects is told at once: whoever else calls is not to wait for that."""
    code = """
socks = [socket(AF_INET6) for _ in range(3)]
for s in socks: say(failure(s.connect, (HOST, 80)))
"""
    with listening(root, STREAM), by_variables(root, code, STREAM, **STREAMS) as there:
        assert [there.line() for _ in range(3)] == ["None", "None", "EAGAIN"]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("s = socket(AF_UNIX); s.connect(PATH); say(s.getpeername() == PATH)", "True"),
        (
            "s = socket(AF_INET, SOCK_DGRAM); s.connect((HOST, 80)); say(s.getsockopt(1, SO_TYPE))",
            "2",
        ),
        ("s = socket(); say(failure(s.connect, ('127.0.0.1', 1)))", "ECONNREFUSED"),
    ],
)
def test_what_means_nothing_else_is_what_it_is(root: str, code: str, said: str) -> None:
    with listening(root, IPV4_STREAM) as listener:
        code = f"PATH = {listener.getsockname()!r}\n{code}"
        with by_variables(root, code, IPV4_STREAM, **STREAMS) as there:
            assert there.line() == said


def test_connecting_by_passing(root: str) -> None:
    with by_variables(root, SERVER, "fe8f::2:1:2") as there:
        there.line()
        with by_variables(root, CLIENT, "fe8f::2:1:2", SKBOX_ENABLE_CONNECT="2") as client:
            assert client.line() == "None"
            assert client.line() == "('fe8f::2:1:2', 80) b'hello' 10"
        assert there.line() == "::1 True"


@pytest.mark.parametrize(
    ("host", "connects", "said"),
    [
        ("fe8f::2:1:2", "1", "EINVAL"),
        ("fe8f::2:1:2", "2", "ECONNREFUSED"),
        ("fe8f::3:1:2", "1", "ECONNREFUSED"),
        ("127.181.1.2", "b1", "ECONNREFUSED"),
        ("127.0.0.1", "b2", "ECONNREFUSED"),
    ],
)
def test_nobody_is_there(root: str, host: str, connects: str, said: str) -> None:
    with by_variables(root, CLIENT, host, SKBOX_ENABLE_CONNECT=connects) as there:
        assert there.line() == said


def test_at_the_path_is_something_else(root: str) -> None:
    """Nobody listens there: so it is told, as TCP has nothing else for that."""
    datagrams = listening(root, STREAM, socket.SOCK_DGRAM)
    with datagrams, by_variables(root, CLIENT, STREAM, **STREAMS) as there:
        assert there.line() == "ECONNREFUSED"
    os.rmdir(f"{root}/X4001")
    Path(root, "X4001").touch()
    with by_variables(root, CLIENT, IPV4_STREAM, **STREAMS) as there:
        assert there.line() == "ECONNREFUSED"


def test_addresses_of_links(root: str) -> None:
    # In a network of its own, where an interface has the address and a known number.
    if os.geteuid():
        pytest.skip("networks need root")
    up = "ip link set lo up; ip addr add fe80::1:2/64 dev lo nodad;"
    code = """
number = if_nametoindex("lo"); host = f"fe8f:1:0:{number:x}::1:2"
s = socket(AF_INET6); s.bind((host, 80)); s.listen(); say(s.getsockname())
for timeout in (None, None, 5):
    c = socket(AF_INET6); c.settimeout(timeout); c.connect((host, 80))
    say(c.getpeername()[3] == number, s.accept()[1][0], os.get_blocking(c.fileno()))
s.close(); c = socket(AF_INET6)
say(failure(c.connect, (host, 80)), os.get_blocking(c.fileno()), c.getsockopt(SOL_SOCKET, SO_ERROR))
c.setblocking(False); say(c.connect_ex((host.replace("::1:2", "::1:3"), 80)) == errno.EINPROGRESS)
"""
    made = ("unshare", "-n", "sh", "-c", f'{up} exec "$@"', "sh")
    with preloaded(
        program=(PYTHON, "-c", START + code), before=made, variables={"SKBOX_ENABLE_CONNECT": "1"}
    ) as there:
        assert there.line() == "('fe80::1:2', 80, 0, 1)"
        blocking = [there.line() for _ in range(3)]
        assert blocking == [f"True fe80::1:2 {blocks}" for blocks in (True, True, False)]
        assert there.line() == "ECONNREFUSED True 0"
        assert there.line() == "True"
