"""The client on fds 0 and 1: whole programs on every kind, whose peer it is, what fd 2 is."""

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conformance import BOUND_OF_ITS_OWN, Conformance
from ends import (
    KINDS,
    PATIENCE,
    End,
    Ours,
    Outcome,
    at_once,
    descriptors,
    noise,
    nothing_left_behind,
    set_small_buffers,
    tcp_pair,
)
from places import in_child

from muonsocks.net.inherit import Peer, Stdio, keep_stderr_from_peer, peer_of

BIN = Path(__file__).resolve().parents[2] / "bin"


class TestConformance(Conformance):
    """`socks-inetd` as a process: the client on its fds 0 and 1, the far end over TCP."""

    kinds = ("tcp", "unix", "pipes")
    bound = BOUND_OF_ITS_OWN

    def start(
        self, ours: Ours, theirs: End, kind: str, place: Path, early: bytes
    ) -> tuple[End, Callable[[], Outcome]]:
        with socket.socket() as listener:
            listener.settimeout(PATIENCE)
            set_small_buffers(listener)
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            program = subprocess.Popen(
                [BIN / "socks-inetd", "--allow-local"],
                stdin=ours.reader,
                stdout=ours.writer,
                stderr=subprocess.PIPE,
            )
            ours.close()
            port = listener.getsockname()[1].to_bytes(2, "big")
            theirs.send(b"\5\1\0" + b"\5\1\0\1\x7f\0\0\1" + port + early)
            assert theirs.read_exactly(12)[:5] == b"\5\0\5\0\0"
            accepted, _ = listener.accept()
        said: list[str] = []

        def over() -> Outcome:
            if not said:
                said.append(program.communicate(timeout=PATIENCE)[1].decode())
                assert program.returncode == 0, said
            return Outcome.of(said[0])

        return End.of(accepted), over


@pytest.fixture(autouse=True)
def leaks_nothing() -> Iterator[None]:
    with nothing_left_behind():
        yield


# Regular files


@pytest.mark.parametrize("size", [0, 1, 3 << 20])
def test_files_on_both_sides_of_a_program(tmp_path: Path, size: int) -> None:
    """`socks-relay HOST PORT < in > out`: epoll refuses both."""
    (tmp_path / "in").write_bytes(noise(size))
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        open(tmp_path / "in") as stdin,
        open(tmp_path / "out", "w") as stdout,
    ):
        listener.settimeout(PATIENCE)
        program = subprocess.Popen(
            [BIN / "socks-relay", "127.0.0.1", str(listener.getsockname()[1])],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
        )
        far = End.of(listener.accept()[0])
        answer = noise(size, 2)
        received, _ = at_once(far.read_to_end, lambda: far.send(answer))
        far.close()
        said = program.communicate(timeout=PATIENCE)[1].decode()
    assert program.returncode == 0, said
    assert received == (noise(size), "end")
    assert (tmp_path / "out").read_bytes() == answer
    assert Outcome.of(said) == ("closed", size, size)


# Who the peer is

SYSTEMD = {"REMOTE_ADDR": "192.0.2.1", "REMOTE_PORT": "1234"}
UCSPI = {"PROTO": "TCP", "TCPREMOTEIP": "192.0.2.2", "TCPREMOTEPORT": "2345"}


@pytest.mark.parametrize(
    "environ, text, address",
    [
        (SYSTEMD, "192.0.2.1:1234", "192.0.2.1"),
        (UCSPI, "192.0.2.2:2345", "192.0.2.2"),
        (SYSTEMD | UCSPI, "192.0.2.1:1234", "192.0.2.1"),
        ({"REMOTE_ADDR": "2001:db8::1", "REMOTE_PORT": "1"}, "[2001:db8::1]:1", "2001:db8::1"),
        ({"REMOTE_ADDR": "::ffff:192.0.2.3", "REMOTE_PORT": "1"}, "192.0.2.3:1", "192.0.2.3"),
        ({"REMOTE_ADDR": "fe80::1%eth0", "REMOTE_PORT": "1"}, "[fe80::1]:1", "fe80::1"),
        ({"REMOTE_ADDR": "192.0.2.1"}, "192.0.2.1:0", "192.0.2.1"),
        ({"REMOTE_ADDR": "192.0.2.1", "REMOTE_PORT": "\u0661"}, "192.0.2.1:0", "192.0.2.1"),
        ({"REMOTE_ADDR": "192.0.2.1", "REMOTE_PORT": "-1"}, "192.0.2.1:0", "192.0.2.1"),
        ({"PROTO": "SSL", "SSLREMOTEIP": "192.0.2.4", "SSLREMOTEPORT": "5"}, "192.0.2.4:5", None),
        # What only looks like it: none of these says anything about the peer.
        ({"REMOTEIP": "192.0.2.5", "REMOTEPORT": "6"}, "stdin", None),
        ({"PROTO": "TCP"}, "stdin", None),
        ({"PROTO": "UNIX", "TCPREMOTEIP": "192.0.2.6"}, "stdin", None),
        ({"REMOTE_ADDR": "", "REMOTE_PORT": "7"}, "stdin", None),
        ({"REMOTE_HOST": "192.0.2.7"}, "stdin", None),
        ({}, "stdin", None),
    ],
)
def test_peer_of_the_environment(environ: dict[str, str], text: str, address: str | None) -> None:
    peer = peer_of(None, environ)
    assert peer.text == text
    if address:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        assert peer.address == socket.inet_pton(family, address)


def test_peer_of_a_unix_listener_of_systemd() -> None:
    """REMOTE_ADDR is then the path of the client's socket, if it has bound one."""
    with pytest.MonkeyPatch.context():
        peer = peer_of(None, {"REMOTE_ADDR": "/run/client"})
    assert peer.address is None


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_peer_of_the_socket_itself(host: str) -> None:
    """As under inetd, where the environment says nothing; dual-stack sockets say it mapped."""
    with (
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener,
        socket.create_connection((host, listener.getsockname()[1])) as client,
        listener.accept()[0] as accepted,
    ):
        port = client.getsockname()[1]
        for sock in (accepted, client):
            peer = peer_of(sock, {})
            assert peer.address == socket.inet_pton(
                socket.AF_INET6 if ":" in host else socket.AF_INET, host
            )
        assert peer_of(accepted, {}).text == (f"[::1]:{port}" if ":" in host else f"{host}:{port}")
        assert peer_of(accepted, SYSTEMD).text == "192.0.2.1:1234"


def test_peer_that_is_gone_and_unix_peer() -> None:
    ours, theirs = tcp_pair()
    End.of(theirs).reset()
    with pytest.raises(ConnectionResetError):
        ours.recv(1)
    assert (peer_of(ours, {}).text, peer_of(ours, {}).address) == ("gone", None)
    ours.close()
    ours, theirs = socket.socketpair()
    assert (peer_of(ours, {}).text, peer_of(ours, {}).address) == ("unix", None)
    ours.close()
    theirs.close()


def test_peer_must_be_an_address() -> None:
    """What is none is not believed: the next source is asked."""
    assert Peer.at("client.example", 80) is None
    assert Peer.at("1.2.3.4 user=root", 80) is None
    environ = {"REMOTE_ADDR": "nonsense", "PROTO": "TCP", "TCPREMOTEIP": "[2001:db8::1]"}
    assert peer_of(None, environ).text == "[2001:db8::1]:0"
    assert peer_of(None, {"REMOTE_ADDR": "nonsense"}).text == "stdin"


# Where the log may go


def same_file(one: int, other: int) -> bool:
    return os.path.samestat(os.fstat(one), os.fstat(other))


@pytest.mark.parametrize(
    "fds, was_peer",
    [
        (("a", "a", "a"), True),  # inetd
        (("a", "b", "b"), True),
        (("a", "b", "a"), True),
        (("a", "a", "b"), False),  # systemd, tcpserver
        (("a", "b", "c"), False),
        (("closed", "b", "b"), True),
        (("a", "closed", "b"), False),
        (("closed", "closed", "b"), False),
    ],
)
@pytest.mark.parametrize("kind", ["socket", "pipe", "file"])
def test_stderr_is_kept_from_the_peer(
    tmp_path: Path, kind: str, fds: tuple[str, ...], was_peer: bool
) -> None:
    opened: dict[str, Any] = {}
    for name in "abc":
        if kind == "socket":
            opened[name] = socket.socketpair()[0].detach()
        elif kind == "pipe":
            reader, opened[name] = os.pipe()
            os.close(reader)
        else:
            opened[name] = os.open(tmp_path / name, os.O_CREAT | os.O_RDWR)

    def check() -> None:
        before = os.fstat(2)
        open_before = descriptors()
        assert keep_stderr_from_peer() is was_peer
        if was_peer:
            assert os.readlink("/proc/self/fd/2") == "/dev/null"
        else:
            assert os.path.samestat(before, os.fstat(2))
        assert descriptors().keys() == open_before.keys()
        for fd, name in enumerate(fds[:2]):
            assert name == "closed" or same_file(fd, opened[name])

    numbers = {f"fd{i}": opened.get(name, -1) for i, name in enumerate(fds)}
    in_child(check, **numbers)
    for fd in opened.values():
        os.close(fd)


@pytest.mark.parametrize("closed", [(2,), (0, 2), (0, 1, 2)])
def test_stderr_that_is_closed_becomes_no_socket_of_ours(closed: tuple[int, ...]) -> None:
    def check() -> None:
        assert keep_stderr_from_peer() is False
        assert os.readlink("/proc/self/fd/2") == "/dev/null"
        for fd in closed[:-1]:
            with pytest.raises(OSError):
                os.fstat(fd)

    in_child(check, **{f"fd{fd}": -1 for fd in closed})


@pytest.mark.parametrize("device", ["/dev/null", "pty"])
def test_stderr_on_a_device_stays(device: str) -> None:
    """A terminal is shared by all three, and somebody sits before it."""
    fd, master = (os.open(device, os.O_RDWR), -1) if device != "pty" else os.openpty()[::-1]

    def check() -> None:
        before = os.fstat(2)
        assert keep_stderr_from_peer() is False
        assert os.path.samestat(before, os.fstat(2))

    in_child(check, fd0=fd, fd1=fd, fd2=fd)
    os.close(fd)
    if master >= 0:
        os.close(master)


def test_nothing_of_the_log_reaches_the_client() -> None:
    """inetd makes all three descriptors the client; what it sends is garbage and is logged."""
    ours, theirs = tcp_pair()
    program = subprocess.Popen([BIN / "socks-inetd"], stdin=ours, stdout=ours, stderr=ours)
    ours.close()
    client = End.of(theirs)
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    client.end_output()
    assert client.read_to_end() == (b"", "end")
    assert program.wait(PATIENCE) == 0
    client.close()


# Standard input and output


@pytest.mark.parametrize("closed", [0, 1])
def test_descriptor_that_is_closed(closed: int) -> None:
    ours, theirs = socket.socketpair()

    def check() -> None:
        with pytest.raises(OSError, match="not open"):
            Stdio()
        assert os.get_blocking(1 - closed)

    numbers = {"fd0": ours.fileno(), "fd1": ours.fileno()} | {f"fd{closed}": -1}
    in_child(check, **numbers)
    ours.close()
    theirs.close()


@pytest.mark.parametrize("kind", ["tcp", "unix", "pipes", "pty"])
def test_what_stdio_makes_of_it(kind: str) -> None:
    """One stream on one socket, or on two descriptors; restored even after they are closed."""
    ours, client = KINDS[kind].make(Path())

    def check() -> None:
        stdio = Stdio()
        is_socket = kind in ("tcp", "unix")
        assert (stdio.stream.reader, stdio.stream.writer) == (0, 0 if is_socket else 1)
        assert (stdio.socket is not None) == is_socket
        assert not os.get_blocking(0)
        assert not os.get_blocking(1)
        if kind == "tcp":
            assert stdio.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert stdio.socket.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)
        stdio.restore()
        assert os.get_blocking(0)
        assert os.get_blocking(1)
        stdio.stream.close()
        stdio.restore()

    for fd in {ours.reader, ours.writer}:
        os.set_blocking(fd, True)
    in_child(check, fd0=ours.reader, fd1=ours.writer)
    ours.close()
    client.close()
