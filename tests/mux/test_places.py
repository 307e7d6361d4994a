"""Places: what a PORT on the command line means, how it is opened, and when it may be later."""

import errno
import fcntl
import os
import socket
import termios
import tty
from collections.abc import Callable
from pathlib import Path
from select import EPOLLIN
from typing import Any

import pytest
from hand import play
from places import descriptor_limit, in_child, in_own_network, root_only, sh

from muonsocks.errors import UsageError
from muonsocks.mux.places import (
    Device,
    StandardStreams,
    UnixSocket,
    _is_virtio,
    place_of,
)
from muonsocks.mux.port import Port
from muonsocks.net.loop import Loop

NOBODY = 65534


def opened(loop: Loop, place: Any) -> Port:
    """Open a place."""

    async def story() -> Any:
        return await place.open(loop)

    port = play(loop, story)
    assert isinstance(port, Port)
    return port


def fails(loop: Loop, place: Any, number: int) -> bool:
    """Open a place, which must fail so; whether it may be there later."""
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError) as failure:
        opened(loop, place)
    assert failure.value.errno == number
    assert set(os.listdir("/proc/self/fd")) == before
    return bool(place.may_come(failure.value))


# What a word means


def test_what_a_port_may_be(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sock"))
        kinds = {
            "-": StandardStreams,
            "/dev/null": Device,
            "/dev/virtio-ports/not.there": Device,
            str(tmp_path / "sock"): UnixSocket,
            str(tmp_path / "not-there"): UnixSocket,
            "@abstract": UnixSocket,
        }
        for text, kind in kinds.items():
            place = place_of(text)
            assert type(place) is kind, text
            assert place.name == (text if text != "-" else "standard input")
            assert place.again is (text != "-")


@pytest.mark.parametrize("what", ["file", "directory", "fifo"])
def test_what_no_port_can_be(tmp_path: Path, what: str) -> None:
    path = tmp_path / what
    if what == "file":
        path.touch()
    elif what == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(UsageError, match=f"{path} is neither a device nor a socket"):
        place_of(str(path))


# A unix socket


def test_a_unix_socket(loop: Loop, tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    place = UnixSocket(path)
    assert fails(loop, place, errno.ENOENT), "it may be there later"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        assert fails(loop, place, errno.ECONNREFUSED), "nobody listens yet"
        listener.listen()
        port = opened(loop, place)
        assert not port.can_return
        with listener.accept()[0] as conn:
            conn.send(b"data")
            room = memoryview(bytearray(1 << 16))
            assert port.read_into(room, EPOLLIN) == (4, True)
            size = port.stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            assert size >= 1 << 20
            assert not os.get_inheritable(port.reader)
        port.close()
    assert fails(loop, place, errno.ECONNREFUSED), "and nobody any more"


def test_a_unix_socket_of_another_kind(loop: Loop, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(tmp_path / "sock"))
        assert not fails(loop, UnixSocket(str(tmp_path / "sock")), errno.EPROTOTYPE)


def test_a_unix_socket_whose_backlog_is_full(loop: Loop, tmp_path: Path) -> None:
    """It is tried for a second."""
    path = str(tmp_path / "sock")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)
        assert fails(loop, UnixSocket(path), errno.ETIMEDOUT)
        listener.accept()[0].close()
        port = opened(loop, UnixSocket(path))
        port.close()


def as_nobody(function: Callable[[], None]) -> None:
    """Call a function in a process of a user without rights."""

    def run() -> None:
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        function()

    in_child(run)


@root_only()
def test_a_unix_socket_that_is_not_for_us(loop: Loop, tmp_path: Path) -> None:
    """It will not be for us later either."""
    path = str(tmp_path / "sock")
    for parent in (tmp_path, *list(tmp_path.parents)[:3]):
        if parent != Path("/tmp"):
            parent.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        os.chmod(path, 0o600)

        def connect() -> None:
            loop = Loop()
            assert not fails(loop, UnixSocket(path), errno.EACCES)

        as_nobody(connect)


@root_only()
def test_a_buffer_without_rights_is_as_large_as_it_may_be(loop: Loop, tmp_path: Path) -> None:
    path = f"@muonsocks-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + path[1:])
        listener.listen()

        def connect() -> None:
            port = opened(Loop(), UnixSocket(path))
            allowed = int(Path("/proc/sys/net/core/wmem_max").read_text())
            size = port.stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            assert size == 2 * min(1 << 20, allowed)

        as_nobody(connect)


# A device


def test_a_terminal(loop: Loop) -> None:
    """All bytes pass as they are; afterwards it is as before."""
    master, slave = os.openpty()
    before = termios.tcgetattr(slave)
    place = Device(os.ttyname(slave))
    port = opened(loop, place)
    assert not port.can_return
    assert port.reader == port.writer, "of two there would be twice as many events"
    assert not os.get_blocking(port.reader) and not os.get_inheritable(port.reader)
    every = bytes(range(256))
    os.write(master, every)
    room, got = memoryview(bytearray(1 << 16)), b""
    while len(got) < 256:
        count, _ = port.read_into(room, EPOLLIN)
        got += bytes(room[:count])
    assert got == every
    assert port.write(every)
    got = b""
    while len(got) < 256:
        got += os.read(master, 1000)
    assert got == every
    port.close()
    assert termios.tcgetattr(slave) == before
    os.close(slave)
    os.close(master)


def test_a_terminal_of_ours_is_not_taken_for_our_terminal(loop: Loop) -> None:
    """A session leader without one would get it, and die with it."""
    master, slave = os.openpty()
    name = os.ttyname(slave)
    os.close(slave)

    def check() -> None:
        os.setsid()
        opened(Loop(), Device(name))
        with pytest.raises(OSError):
            os.close(os.open("/dev/tty", os.O_RDWR))

    in_child(check)
    os.close(master)


def test_raw_is_what_cfmakeraw_makes(loop: Loop) -> None:
    master, slave = os.openpty()
    attributes = termios.tcgetattr(slave)
    attributes[0] |= termios.ISTRIP | termios.INLCR | termios.IGNCR | termios.PARMRK
    attributes[2] = attributes[2] & ~termios.CSIZE | termios.CS7 | termios.PARENB
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    port = opened(loop, Device(os.ttyname(slave)))
    iflag, oflag, cflag, lflag, *_ = termios.tcgetattr(slave)
    tty.setraw(slave)
    theirs = termios.tcgetattr(slave)
    assert lflag & (termios.ECHO | termios.ICANON | termios.ISIG | termios.IEXTEN) == 0
    assert oflag & termios.OPOST == 0 and cflag & termios.CSIZE == termios.CS8
    assert iflag & (termios.ISTRIP | termios.INLCR | termios.IGNCR | termios.IXON) == 0
    assert (oflag, cflag) == (theirs[1], theirs[2])
    port.close()
    os.close(slave)
    os.close(master)


def test_a_device_that_is_not_there(loop: Loop) -> None:
    """It never was: that is an error. Once it was there it may come again."""
    assert not fails(loop, Device("/dev/virtio-ports/not.there"), errno.ENOENT)
    master, slave = os.openpty()
    place = Device(os.ttyname(slave))
    opened(loop, place).close()
    os.close(slave)
    os.close(master)
    with pytest.raises(OSError) as failure:
        opened(loop, place)
    assert place.may_come(failure.value)


@root_only()
def test_a_device_that_somebody_has(loop: Loop) -> None:
    """That is an error too, if it is the first thing."""
    master, slave = os.openpty()
    name = os.ttyname(slave)
    os.chown(slave, NOBODY, NOBODY)
    fcntl.ioctl(slave, termios.TIOCEXCL)
    as_nobody(lambda: _expect(not fails(Loop(), Device(name), errno.EBUSY)))
    os.close(slave)
    os.close(master)


@root_only()
def test_a_device_that_is_not_for_us(loop: Loop) -> None:
    master, slave = os.openpty()
    name = os.ttyname(slave)
    os.chmod(slave, 0o600)
    as_nobody(lambda: _expect(not fails(Loop(), Device(name), errno.EACCES)))
    os.close(slave)
    os.close(master)


def test_a_device_that_leads_nowhere(loop: Loop) -> None:
    """It has no events, and would come to its end again and again."""
    assert not fails(loop, Device("/dev/null"), errno.ENOTTY)


def _expect(condition: bool) -> None:
    assert condition


def test_a_device_and_no_descriptor_for_it(loop: Loop) -> None:
    """Nothing of it stays open, and the terminal is as it was."""
    master, slave = os.openpty()
    before = termios.tcgetattr(slave)
    place = Device(os.ttyname(slave))

    async def story() -> None:
        with descriptor_limit(0), pytest.raises(OSError) as failure:
            await place.open(loop)
        assert failure.value.errno == errno.EMFILE

    play(loop, story)
    assert termios.tcgetattr(slave) == before
    assert not place.may_come(OSError(errno.EMFILE, ""))
    os.close(slave)
    os.close(master)


@pytest.fixture
def hung_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that is lost in the moment between two looks at it."""

    def fails(*_: Any) -> None:
        raise termios.error(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(termios, "tcsetattr", fails)


@pytest.mark.usefixtures("hung_up")
def test_a_terminal_that_cannot_be_made_raw(loop: Loop) -> None:
    """It may be there later if it has been there before."""
    master, slave = os.openpty()
    place = Device(os.ttyname(slave))
    assert not fails(loop, place, errno.EIO)
    place._was_there = True
    assert fails(loop, place, errno.EIO)
    with pytest.raises(OSError, match="cannot be made raw: Input/output error; see that it is"):
        opened(loop, place)
    os.close(slave)
    os.close(master)


# Standard input and output


def stdio_in_child(check: Callable[[Loop, Port], None], reader: int, writer: int) -> None:
    def run() -> None:
        loop = Loop()
        place = StandardStreams()
        port = opened(loop, place)
        assert (port.reader, port.writer) in ((0, 0), (0, 1))
        assert not port.can_return
        assert not place.may_come(OSError(errno.EIO, "")) and not place.again
        check(loop, port)

    in_child(run, fd0=reader, fd1=writer)


def test_a_socket_on_standard_input_and_output() -> None:
    ours, theirs = socket.socketpair()

    def check(_: Loop, port: Port) -> None:
        assert port.stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= 1 << 20
        assert not os.get_blocking(0)
        port.write(b"said")
        port.close()
        assert os.get_blocking(1), "it is the same open file"

    with ours, theirs:
        stdio_in_child(check, ours.fileno(), ours.fileno())
        assert theirs.recv(9) == b"said" and os.get_blocking(ours.fileno())


def test_pipes_on_standard_input_and_output() -> None:
    (reader, their_writer), (their_reader, writer) = os.pipe(), os.pipe()

    def check(_: Loop, port: Port) -> None:
        room = memoryview(bytearray(100_000))
        assert port.read_into(room, EPOLLIN) == (5, True)
        port.write(b"said")
        port.close()

    os.write(their_writer, b"heard")
    stdio_in_child(check, reader, writer)
    assert os.read(their_reader, 9) == b"said"
    assert os.get_blocking(reader) and os.get_blocking(writer)
    for fd in (reader, writer, their_reader, their_writer):
        os.close(fd)


def test_a_terminal_on_standard_input_and_output() -> None:
    master, slave = os.openpty()
    before = termios.tcgetattr(slave)

    def check(_: Loop, port: Port) -> None:
        assert not termios.tcgetattr(0)[3] & termios.ICANON
        port.write(b"a\nb")
        assert os.read(master, 9) == b"a\nb"
        port.close()

    stdio_in_child(check, slave, slave)
    assert termios.tcgetattr(slave) == before and os.get_blocking(slave)
    os.close(slave)
    os.close(master)


# Virtio


@root_only()
@pytest.mark.usefixtures("hung_up")
def test_a_terminal_on_standard_input_and_output_that_cannot_be_made_raw() -> None:
    """It is left as it was."""
    master, slave = os.openpty()

    def run() -> None:
        loop = Loop()
        with pytest.raises(OSError, match="cannot be made raw"):
            opened(loop, StandardStreams())
        assert not loop.handlers

    in_child(run, fd0=slave, fd1=slave)
    assert os.get_blocking(slave)
    os.close(slave)
    os.close(master)


def test_what_is_a_virtio_port(tmp_path: Path) -> None:
    """The kernel tells of a device which subsystem it is of."""
    ours, theirs = socket.socketpair()
    with ours, theirs, open("/dev/null") as null, open(__file__) as file:
        for one in (ours, null, file):
            assert not _is_virtio(one.fileno())

        def elsewhere() -> None:
            sh("mount -t tmpfs none /sys/dev/char")
            number = os.fstat(null.fileno()).st_rdev
            place = Path(f"/sys/dev/char/{os.major(number)}:{os.minor(number)}")
            place.mkdir()
            for name, expected in (("virtio-ports", True), ("tty", False)):
                (place / "subsystem").symlink_to(f"../../../class/{name}")
                assert _is_virtio(null.fileno()) is expected
                (place / "subsystem").unlink()

        in_own_network(elsewhere)


@root_only()
def test_a_virtio_port_can_return() -> None:
    """As a device, and on standard input."""

    master, slave = os.openpty()  # which is not one, but has events

    def elsewhere() -> None:
        number = os.fstat(slave).st_rdev
        sh("mount -t tmpfs none /sys/dev/char")
        place = Path(f"/sys/dev/char/{os.major(number)}:{os.minor(number)}")
        place.mkdir()
        (place / "subsystem").symlink_to("../../../class/virtio-ports")

        def check() -> None:
            loop = Loop()
            port = opened(loop, Device(os.ttyname(slave)))
            assert port.can_return
            port.close()
            assert opened(loop, StandardStreams()).can_return

        in_child(check, fd0=slave, fd1=slave)

    in_own_network(elsewhere)
    os.close(slave)
    os.close(master)
