"""The models of the older pair as programs, and the ports they can have."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from classic_guest import ClassicGuest
from classic_host import ClassicHost
from classic_joined import GREETING, accept, ask, port, read, request
from classic_port import PATIENCE, frame

pytestmark = [
    pytest.mark.usefixtures("everything_is_closed"),
    pytest.mark.filterwarnings("error"),  # a socket that only the garbage collector has closed
]

HERE = Path(__file__).parent


@contextmanager
def program(name: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(HERE / name), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_programs(tmp_path: Path, target: socket.socket) -> None:
    wanted = request(target.getsockname())
    with ExitStack() as stack:
        ports = {name: stack.enter_context(socket.socket(socket.AF_UNIX)) for name in ("h", "g")}
        for name, listener in ports.items():
            listener.settimeout(PATIENCE)
            listener.bind(str(tmp_path / name))
            listener.listen()
        host = stack.enter_context(program("classic_host.py", str(tmp_path / "h"), "0"))
        guest = stack.enter_context(program("classic_guest.py", str(tmp_path / "g"), "0"))
        host_port, guest_port = (stack.enter_context(accept(p)) for p in ports.values())

        assert read(host_port, 100) == b"".join(GREETING)
        listening = guest.stdout.readline() if guest.stdout else ""
        address = ("127.0.0.1", int(listening.removeprefix("listening on port ")))
        guest_port.sendall(GREETING[0])
        with socket.create_connection(address, PATIENCE) as sock:
            ask(sock, wanted)
            host_port.sendall(read(guest_port, len(frame(0, wanted))))
            with accept(target) as behind:
                behind.sendall(b"hello")
                guest_port.sendall(read(host_port, 9))
                assert read(sock, 5) == b"hello"
                host_port.close()
                guest_port.close()
                assert behind.recv(1) == sock.recv(1) == b""
        said = [process.communicate(timeout=PATIENCE)[0] for process in (host, guest)]
        assert host.returncode == guest.returncode == 0
    assert said[0].splitlines()[5:] == [f">> 0000 0700 {wanted.hex()}", "<< 0000 0500 68656c6c6f"]
    assert said[1].splitlines()[1:] == [f"<< 0000 0700 {wanted.hex()}", ">> 0000 0500 68656c6c6f"]


def test_a_port_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ClassicHost(tmp_path / "none")
    with socket.socket(socket.AF_UNIX) as refuses:
        refuses.bind(str(tmp_path / "refuses"))
        with pytest.raises(ConnectionRefusedError):
            ClassicHost(tmp_path / "refuses")


def test_an_address_that_is_taken(target: socket.socket) -> None:
    ours, theirs = port()
    with ours, pytest.raises(OSError, match="Address already in use"):
        ClassicGuest(theirs, listen=target.getsockname())
