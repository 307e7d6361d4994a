"""The unix sockets that addresses mean."""

import errno
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from ends import nothing_left_behind

from muonsocks.intercept.conventions import PlaceInFile, UnixPlace
from muonsocks.intercept.unix_places import make_receiver, read_place, take_after

SIZE = PlaceInFile.SIZE


@pytest.fixture(autouse=True)
def leaks_nothing() -> Iterator[None]:
    with nothing_left_behind():
        yield


def in_file(path: Path, offset: int = 0, port: int = 80, is_stream: bool = False) -> PlaceInFile:
    return PlaceInFile(str(path), offset, port, is_stream)


# Where they are


def test_a_place_that_is_known_is_itself() -> None:
    place = UnixPlace("/run/x")
    assert read_place(place) is place


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_place_may_be_in_a_file(tmp_path: Path, is_stream: bool) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(7) + b"/run/_@SB_".ljust(SIZE, b"\0") + b"/another")
    place = read_place(in_file(file, 7, 443, is_stream))
    assert (place.path, place.is_stream) == ("/run/00443", is_stream)


@pytest.mark.parametrize(
    ("content", "number"),
    [
        (b"/run/x", errno.ERANGE),
        (b"/run/x".ljust(SIZE - 1, b"\0"), errno.ERANGE),
        (b"", errno.ERANGE),
        (bytes(SIZE), errno.ENOENT),
        (b"/" * SIZE, errno.ENOENT),
    ],
)
def test_a_file_may_have_none(tmp_path: Path, content: bytes, number: int) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(OSError) as failure:
        read_place(in_file(file))
    assert (failure.value.errno, failure.value.filename) == (number, str(file))


def test_a_file_may_not_be_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_place(in_file(tmp_path / "none"))


# How they are made


@pytest.mark.parametrize(
    ("is_stream", "kind"), [(False, socket.SOCK_DGRAM), (True, socket.SOCK_STREAM)]
)
def test_a_receiver_is_at_its_place(tmp_path: Path, is_stream: bool, kind: int) -> None:
    path = tmp_path / "socket"
    with closing(make_receiver(UnixPlace(str(path), is_stream))) as receiver:
        assert receiver.getsockname() == str(path)
        assert (receiver.type, receiver.getblocking()) == (kind, False)
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with socket.socket(socket.AF_UNIX, kind) as sender:
            sender.connect(str(path))
            assert bool(receiver.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)) == is_stream


@pytest.mark.parametrize("takes_over", [True, False])
def test_a_dead_one_is_replaced(tmp_path: Path, takes_over: bool) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(path)
    with closing(make_receiver(UnixPlace(path, takes_over=takes_over))) as receiver:
        assert receiver.getsockname() == path


@pytest.mark.parametrize("is_stream", [False, True])
def test_one_that_is_served_is_replaced_by_who_takes_over(tmp_path: Path, is_stream: bool) -> None:
    path = str(tmp_path / "socket")
    with closing(make_receiver(UnixPlace(path, is_stream))) as earlier:
        with pytest.raises(OSError, match="in use") as failure:
            make_receiver(UnixPlace(path, is_stream, takes_over=False))
        assert failure.value.errno == errno.EADDRINUSE
        inode = os.stat(path).st_ino
        with closing(make_receiver(UnixPlace(path, is_stream))):
            assert os.stat(path).st_ino != inode
        assert earlier.fileno() >= 0


def test_what_is_no_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("dear to somebody")
    with pytest.raises(OSError, match="in use"):
        make_receiver(UnixPlace(str(path)))
    assert path.read_text() == "dear to somebody"


def test_there_may_be_no_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        make_receiver(UnixPlace(str(tmp_path / "none/socket")))


@pytest.mark.parametrize("blocks", [True, False])
def test_it_blocks_as_long_as_what_it_stands_for(tmp_path: Path, blocks: bool) -> None:
    time = struct.pack("@ll", 7, 250000)
    with (
        closing(make_receiver(UnixPlace(str(tmp_path / "socket")))) as receiver,
        socket.socket() as sock,
    ):
        sock.setblocking(blocks)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, time)
        take_after(receiver, sock)
        assert os.get_blocking(receiver.fileno()) == blocks
        got = receiver.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, len(time))
        seconds, microseconds = struct.unpack("@ll", got)
        assert seconds + microseconds / 1e6 == pytest.approx(7.25, abs=0.01)
