"""To register with a server: the test is the server, and holds every byte."""

import errno
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from ends import nothing_left_behind

from muonsocks.net.passing import receive_first
from muonsocks.net.registration import register

SECONDS = 20.0


@pytest.fixture
def control(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(str(tmp_path / "control"))
        sock.listen(1)
        sock.settimeout(SECONDS)
        yield sock


@contextmanager
def answering(control: socket.socket, answer: Callable[[socket.socket], None]) -> Iterator[None]:
    """Serve one registration in a thread."""

    def serve() -> None:
        conn = control.accept()[0]
        with conn:
            conn.settimeout(SECONDS)
            answer(conn)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_the_bytes(control: socket.socket) -> None:
    asked: list[bytes] = []
    reader, writer = os.pipe()

    def answer(conn: socket.socket) -> None:
        asked.append(conn.recv(100))
        conn.send(bytes.fromhex("80000000"))
        socket.send_fds(conn, [bytes.fromhex("03000000")], [writer])
        assert conn.recv(100) == b"", "it says nothing more, and closes"

    with answering(control, answer), closing(register(control.getsockname(), 0x1020304, 5)) as sock:
        assert not sock.getblocking() and not os.get_inheritable(sock.fileno())
        looks = select.poll()
        looks.register(sock, select.POLLIN)
        assert looks.poll(SECONDS * 1000)
        fd = receive_first(sock)
        assert fd is not None
        os.write(fd, b"x")
        os.close(fd)
    assert asked == [bytes.fromhex("0100000001020304")]
    assert os.read(reader, 10) == b"x"
    os.close(reader)
    os.close(writer)


def failure(control: socket.socket, answer: Callable[[socket.socket], None]) -> tuple[int, str]:
    def ask() -> tuple[int, str]:
        with pytest.raises(OSError) as caught:
            register(path, 7, 0.2)
        assert caught.value.filename == path
        assert caught.value.errno is not None
        return caught.value.errno, caught.value.strerror

    path = control.getsockname()
    with nothing_left_behind(), answering(control, answer):
        return ask()


def test_a_server_that_does_not_agree(control: socket.socket) -> None:
    number, reason = failure(control, lambda conn: conn.recv(100) and None)
    assert number == errno.EACCES
    assert reason == "the server does not take us as group 7: is it another user's, or taken?"


@pytest.mark.parametrize("said", ["81000000", "80000001", "800000", "8000000000", "03000000"])
def test_a_server_that_says_something_else(control: socket.socket, said: str) -> None:
    def answer(conn: socket.socket) -> None:
        conn.recv(100)
        conn.send(bytes.fromhex(said))

    number, reason = failure(control, answer)
    assert (number, reason) == (errno.EPROTO, f"the server has answered {said}, not 80000000")


def test_a_server_that_says_nothing(control: socket.socket) -> None:
    over = threading.Event()

    def answer(conn: socket.socket) -> None:
        conn.recv(100)
        over.wait(SECONDS)

    def end() -> None:
        over.set()

    timer = threading.Timer(1.0, end)
    timer.start()
    try:
        assert failure(control, answer) == (errno.ETIMEDOUT, "no answer within 0.2 s")
    finally:
        end()
        timer.cancel()


def test_a_server_that_does_not_even_accept(control: socket.socket) -> None:
    control.listen(0)
    path = control.getsockname()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as first:
        first.connect(path)
        with nothing_left_behind(), pytest.raises(TimeoutError) as caught:
            register(path, 0, 0.1)
        assert caught.value.errno == errno.ETIMEDOUT


def test_no_server(tmp_path: Path) -> None:
    path = str(tmp_path / "control")
    with nothing_left_behind(), pytest.raises(FileNotFoundError) as caught:
        register(path, 0, 1)
    assert caught.value.filename == path


def test_an_abstract_name() -> None:
    name = f"registration-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
        control.bind(f"\0{name}")
        control.listen(1)
        control.settimeout(SECONDS)

        def answer(conn: socket.socket) -> None:
            conn.recv(100)
            conn.send(bytes.fromhex("80000000"))

        with answering(control, answer):
            register(f"@{name}", 0, 5).close()
