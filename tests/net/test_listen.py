"""Listening sockets: what is set on them, what systemd hands over, and what is said of them."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from ends import nothing_left_behind
from places import in_child, in_own_network, root_only, sh

from muonsocks.errors import UsageError
from muonsocks.net import listen
from muonsocks.net.listen import (
    SocketFile,
    inherited,
    is_for_this_host,
    listen_at,
    listen_on,
    name_of,
    receive_at,
)

LOOPBACK, LOOPBACK_6 = bytes([127, 0, 0, 1]), bytes(15) + b"\1"
OPTIONS = [(socket.IPPROTO_TCP, socket.TCP_NODELAY), (socket.SOL_SOCKET, socket.SO_OOBINLINE)]


@pytest.fixture(autouse=True)
def leaks_nothing() -> Iterator[None]:
    with nothing_left_behind():
        yield


def packed(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


@pytest.mark.parametrize("address", [LOOPBACK, LOOPBACK_6], ids=["IPv4", "IPv6"])
def test_accepted_sockets_inherit_what_is_set(address: bytes) -> None:
    with closing(listen_on(address, 0)) as listener:
        assert not listener.getblocking() and not os.get_inheritable(listener.fileno())
        with socket.create_connection(listener.getsockname()[:2]):
            fd, _ = listener._accept()
            with socket.socket(fileno=fd) as accepted:
                for level, option in OPTIONS:
                    assert accepted.getsockopt(level, option), (level, option)


@root_only()
def test_ipv6_is_for_itself_alone() -> None:
    """So that an IPv4 listener fits on the same port, and no client is ::ffff:192.0.2.1."""

    def check() -> None:
        with closing(listen_on(bytes(16), 1080)):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", 1080))
            listen_on(bytes(4), 1080).close()

    in_own_network(check)


@root_only()
def test_a_port_can_be_taken_again_at_once() -> None:
    """Though connections of the last time are still in TIME_WAIT."""

    def check() -> None:
        with (
            closing(listen_on(LOOPBACK, 1080)) as listener,
            socket.create_connection(("127.0.0.1", 1080)) as client,
        ):
            fd, _ = listener._accept()
            os.close(fd)  # first: it is the one that waits
            assert client.recv(1) == b""
        listen_on(LOOPBACK, 1080).close()

    in_own_network(check)


@pytest.mark.parametrize(
    ("address", "where"),
    [
        ("127.0.0.1", "127.0.0.1:{}"),
        ("::1", "[::1]:{}"),
    ],
)
def test_an_address_in_use(address: str, where: str) -> None:
    with closing(listen_on(packed(address), 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(OSError) as raised:
            listen_on(packed(address), port)
    where = where.format(port)
    assert raised.value.errno == errno.EADDRINUSE
    assert raised.value.strerror == f"cannot listen on {where}: Address already in use"


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_an_address_that_is_not_ours(address: str) -> None:
    with pytest.raises(OSError, match=r"cannot listen on .*:1: Cannot assign") as raised:
        listen_on(packed(address), 1)
    assert raised.value.errno == errno.EADDRNOTAVAIL


@root_only()
def test_a_host_without_ipv6() -> None:
    def check() -> None:
        sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1")
        with pytest.raises(OSError, match=r"cannot listen on .::1.:1: Cannot assign"):
            listen_on(LOOPBACK_6, 1)

    in_own_network(check)


# Sockets of systemd


def inherit(*sockets: socket.socket, pid: int | None = None) -> list[socket.socket]:
    """Be started by systemd with these sockets, in a child: it is to be called there."""
    kept = [os.dup(sock.fileno()) for sock in sockets]
    for number, fd in enumerate(kept, 3):
        os.dup2(fd, number)
    os.environ["LISTEN_PID"] = str(os.getpid() if pid is None else pid)
    os.environ["LISTEN_FDS"] = str(len(sockets))
    return list(inherited())  # type: ignore[arg-type]


def tcp(host: str) -> socket.socket:
    return socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else 2)


def unix(place: Path, kind: int = socket.SOCK_STREAM) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.bind(str(place / "socket"))
    if kind != socket.SOCK_DGRAM:
        sock.listen()
    return sock


def test_sockets_of_systemd(tmp_path: Path) -> None:
    with tcp("127.0.0.1") as ours, tcp("::1") as ours_6, unix(tmp_path) as ours_unix:

        def check() -> None:
            found = inherit(ours, ours_6, ours_unix)
            assert [sock.fileno() for sock in found] == [3, 4, 5]
            assert [name_of(sock) for sock in found] == [
                f"127.0.0.1:{ours.getsockname()[1]}",
                f"[::1]:{ours_6.getsockname()[1]}",
                f"unix:{tmp_path}/socket",
            ]
            for sock in found:
                assert not sock.getblocking() and not os.get_inheritable(sock.fileno())
                assert not os.get_blocking(sock.fileno())
            for sock in found[:2]:
                for level, option in OPTIONS:
                    assert sock.getsockopt(level, option)

        in_child(check)


def test_sockets_of_another_process() -> None:
    """The variables are for whoever has LISTEN_PID: a child of that is not meant."""
    with tcp("127.0.0.1") as ours:

        def check() -> None:
            assert inherit(ours, pid=1) == []
            assert os.get_inheritable(3)

        in_child(check)


def test_no_sockets_of_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LISTEN_PID", raising=False)
    assert inherited() == []


KINDS = ["connected", "datagram", "unix datagram", "seqpacket", "not listening", "file", "vsock"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_socket_to_accept_from(kind: str, tmp_path: Path) -> None:
    """One line says which unit setting is meant."""

    if kind == "vsock":
        try:
            socket.socket(socket.AF_VSOCK).close()
        except OSError as error:
            pytest.skip(f"no vsock here: {error.strerror}")

    def check() -> None:
        wrong: socket.socket
        if kind == "connected":
            wrong = socket.socketpair()[0]
        elif kind == "datagram":
            wrong = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        elif kind == "unix datagram":
            wrong = unix(tmp_path, socket.SOCK_DGRAM)
        elif kind == "seqpacket":
            wrong = unix(tmp_path, socket.SOCK_SEQPACKET)
        elif kind == "vsock":
            wrong = socket.socket(socket.AF_VSOCK)
            wrong.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
            wrong.listen()
        elif kind == "file":
            wrong = open("/dev/null")  # type: ignore[assignment]  # noqa: SIM115
        else:
            wrong = socket.socket()
        with pytest.raises(UsageError, match=r"^descriptor 4 is no .*; use ListenStream=$"):
            inherit(tcp("127.0.0.1"), wrong)

    in_child(check)


def test_seqpacket_where_that_is_wanted(tmp_path: Path) -> None:
    with unix(tmp_path, socket.SOCK_SEQPACKET) as ours:

        def check() -> None:
            os.dup2(os.dup(ours.fileno()), 3)
            os.environ["LISTEN_PID"], os.environ["LISTEN_FDS"] = str(os.getpid()), "1"
            [sock] = inherited(socket.SOCK_SEQPACKET)
            assert name_of(sock) == f"unix:{tmp_path}/socket"

        in_child(check)


def test_sockets_of_systemd_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "systemd.daemon", None)
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    with pytest.raises(UsageError, match="python3-systemd"):
        inherited()


# Who can reach a listener


@pytest.mark.parametrize("rest", ["", "\udcff"], ids=["text", "bytes"])
def test_name_of_an_abstract_socket(rest: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"\0muonsocks-{os.getpid()}{rest}")
        assert name_of(sock) == f"unix:@muonsocks-{os.getpid()}{rest}"
        assert is_for_this_host(sock)


OWN = ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"]
OPEN = ["0.0.0.0", "::", "::ffff:0.0.0.0", "169.254.7.7", "192.0.2.7", "2001:db8::7", "fe80::7"]


@root_only()
def test_who_is_on_this_host() -> None:
    """Link-local is not: the link has other hosts."""

    def check() -> None:
        for address in OWN + OPEN:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            if address in OPEN and "0.0.0.0" not in address and address != "::":
                sh(f"ip addr add {address} dev lo {'nodad' if ':' in address else ''}")
            with socket.socket(family) as sock:
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                    sock.bind((address, 0, 0, socket.if_nametoindex("lo")))
                else:
                    sock.bind((address, 0))
                assert is_for_this_host(sock) == (address in OWN), address

    in_own_network(check)


# Unix sockets of messages


def test_a_socket_file_that_nobody_serves_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    listen_at(path).close()
    with closing(listen_at(path)) as listener, socket.socket(socket.AF_UNIX, 5) as client:
        client.connect(path)
        os.close(listener._accept()[0])


@pytest.mark.parametrize("kind", [socket.SOCK_SEQPACKET, socket.SOCK_STREAM])
def test_one_that_somebody_serves_is_left(tmp_path: Path, kind: int) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, kind) as other:
        other.bind(path)
        other.listen()
        before = os.lstat(path).st_ino
        with pytest.raises(OSError) as raised:
            listen_at(path)
        assert (raised.value.errno, raised.value.filename) == (errno.EADDRINUSE, path)
        assert os.lstat(path).st_ino == before


def test_an_abstract_name_that_is_taken() -> None:
    name = f"@muonsocks-test-{os.getpid()}"
    with closing(listen_at(name)), pytest.raises(OSError) as raised:
        listen_at(name)
    assert raised.value.errno == errno.EADDRINUSE


def test_any_other_file_is_left(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(OSError) as raised:
        listen_at(str(path))
    assert raised.value.errno == errno.EADDRINUSE
    assert path.read_text() == "precious"


class Slow(socket.socket):
    """One that is bound, and does not listen before something has been done."""

    def bind(self, address: Any) -> None:
        super().bind(address)
        self.then()

    def then(self) -> None:
        pytest.fail("what?")


@pytest.mark.parametrize("mask", [0o22, 0o777])
def test_one_that_does_not_listen_yet_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: int
) -> None:
    path, failures = str(tmp_path / "socket"), []

    def then(_: Slow) -> None:
        monkeypatch.setattr(listen, "socket", socket.socket)
        with pytest.raises(OSError) as raised:
            listen_at(path)
        failures.append((raised.value.errno, raised.value.filename))

    monkeypatch.setattr(listen, "socket", Slow)
    monkeypatch.setattr(Slow, "then", then)
    before = os.umask(mask)
    try:
        with closing(listen_at(path)):
            assert failures == [(errno.EADDRINUSE, path)]
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                client.connect(path)
            assert os.listdir(tmp_path) == ["socket"]
    finally:
        assert os.umask(before) == mask


def test_two_that_find_a_dead_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them replaces it."""
    path, failures = str(tmp_path / "socket"), []
    listen_at(path).close()
    look = listen._is_stale

    def look_slowly(path: str) -> bool:
        found = look(path)
        with pytest.raises(OSError) as raised:
            receive_at(path)
        failures.append((raised.value.errno, raised.value.filename))
        return found

    monkeypatch.setattr(listen, "_is_stale", look_slowly)
    with (
        closing(receive_at(path)) as receiver,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
    ):
        assert failures == [(errno.EADDRINUSE, path)]
        sender.sendto(b"word", path)
        assert receiver.recv(10) == b"word"


def test_a_lock_that_is_left(tmp_path: Path) -> None:
    """By a program that was killed."""
    path = tmp_path / "socket"
    beside = tmp_path / ".socket.lock"
    beside.touch()
    listen_at(str(path)).close()
    assert not beside.exists()
    beside.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError) as raised:
        listen_at(str(path))
    assert (raised.value.errno, raised.value.filename) == (errno.ELOOP, str(beside))
    assert not (tmp_path / "elsewhere").exists()


def test_a_lock_that_has_just_been_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was opened is no lock any more."""
    path = str(tmp_path / "socket")
    lock, times = listen.flock, [1]

    def flock(fd: int, how: int) -> None:
        if times:
            times.pop()
            os.unlink(tmp_path / ".socket.lock")
        lock(fd, how)
        attempts.append(fd)

    attempts: list[int] = []
    monkeypatch.setattr(listen, "flock", flock)
    listen_at(path).close()
    assert len(attempts) == 2


def test_where_there_is_no_directory(tmp_path: Path) -> None:
    path = str(tmp_path / "no" / "socket")
    with pytest.raises(OSError) as raised:
        listen_at(path)
    assert (raised.value.errno, raised.value.filename) == (errno.ENOENT, path)


# Unix sockets of datagrams


@pytest.mark.parametrize("mask", [0, 0o22, 0o777])
def test_datagrams_come_from_owner_and_group(tmp_path: Path, mask: int) -> None:
    path = str(tmp_path / "socket")
    before = os.umask(mask)
    try:
        receive_at(path).close()
        with (
            closing(receive_at(path)) as receiver,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
        ):
            assert os.lstat(path).st_mode & 0o7777 == 0o660
            sender.sendto(b"word", path)
            assert receiver.recv(10) == b"word"
            assert not os.get_inheritable(receiver.fileno())
            with pytest.raises(BlockingIOError):
                receiver.recv(10)
    finally:
        assert os.umask(before) == mask


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_STREAM])
def test_one_that_somebody_serves_takes_no_datagrams(tmp_path: Path, kind: int) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, kind) as other:
        other.bind(path)
        if kind != socket.SOCK_DGRAM:
            other.listen()
        before, mask = os.lstat(path).st_ino, os.umask(0o22)
        with pytest.raises(OSError) as raised:
            receive_at(path)
        assert (raised.value.errno, raised.value.filename) == (errno.EADDRINUSE, path)
        assert (os.lstat(path).st_ino, os.umask(mask)) == (before, 0o22)


# The file of a unix socket


def test_a_socket_file_is_removed_once(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with closing(receive_at(str(path))):
        file = SocketFile(str(path))
        file.remove()
        assert not path.exists()
    with closing(receive_at(str(path))):  # which may well have the same number
        file.remove()
        assert path.is_socket()


@pytest.mark.parametrize("what", ["nothing", "a socket", "a file", "no directory"])
def test_what_is_in_its_place_is_left(tmp_path: Path, what: str) -> None:
    path = tmp_path / "place" / "socket"
    path.parent.mkdir()
    with closing(receive_at(str(path))):
        file = SocketFile(str(path))
        path.unlink()
        if what == "a socket":
            receive_at(str(path)).close()
        elif what == "a file":
            path.write_text("precious")
        elif what == "no directory":
            path.parent.rmdir()
        file.remove()
        assert path.exists() == (what in ("a socket", "a file"))


def test_what_is_in_its_place_later_never_has_its_number(tmp_path: Path) -> None:
    """Also when nobody is bound to it any more: it has been removed and was replaced then."""
    path = tmp_path / "socket"
    receive_at(str(path)).close()
    file = SocketFile(str(path))
    path.unlink()
    for number in range(20):
        with socket.socket(socket.AF_UNIX) as other:  # ext4 gives the number again at once
            other.bind(str(path))
        file.remove()
        assert path.is_socket()
        if number < 19:
            file = SocketFile(str(path))
            path.unlink()


@root_only()
def test_a_file_that_cannot_be_removed() -> None:
    """Its directory is not ours any more. That is no reason not to end."""
    with TemporaryDirectory() as place:
        path = Path(place, "socket")

        def check() -> None:
            with closing(receive_at(str(path))):
                file = SocketFile(str(path))
                os.setresuid(*(65534,) * 3)
                assert path.exists()
                file.remove()

        Path(place).chmod(0o755)
        in_child(check)
        assert path.exists()


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with closing(receive_at("socket")):
        file = SocketFile("socket")
        monkeypatch.chdir("elsewhere")
        file.remove()
    assert not (tmp_path / "socket").exists()


def test_an_abstract_name_has_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"@muonsocks-test-{os.getpid()}"
    Path(name).touch()
    with closing(receive_at(name)) as receiver:
        SocketFile(name).remove()
        assert receiver.getsockname() == name.replace("@", "\0").encode()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"word", receiver.getsockname())
    assert Path(name).exists()


def test_a_socket_file_with_a_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has that at once: who changed it later could be led to another file."""
    monkeypatch.delattr(os, "chmod")
    before = os.umask(0)
    try:
        with closing(listen_at(str(tmp_path / "s"), socket.SOCK_STREAM, 7, 0o640)) as sock:
            assert (tmp_path / "s").stat().st_mode & 0o7777 == 0o640
            assert sock.type == socket.SOCK_STREAM
            assert os.umask(0) == 0
    finally:
        os.umask(before)
