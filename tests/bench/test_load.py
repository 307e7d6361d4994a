"""The load counts what comes through, and finds out a proxy that does not do its work."""

import itertools
import json
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
MODES = ["rate", "trips", "down", "up", "idle"]
MESSAGE = 64

pytestmark = [
    pytest.mark.skipif(not shutil.which("cc"), reason="no cc here"),
    pytest.mark.xdist_group("bench"),  # one at a time: each keeps all the CPUs busy
]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> str:
    program = tmp_path_factory.mktemp("bench") / "load"
    strict = ["-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["cc", *strict, "-o", str(program), str(HERE / "load.c")], check=True)
    return str(program)


def run(
    load: str, mode: str, connections: int, proxy: str, *options: str
) -> dict[str, float | str]:
    command = [load, *options, mode, str(connections), "0.5", "0", proxy]
    command += ["127.0.0.1", "127.0.0.2"]
    done = subprocess.run(command, input="\n", capture_output=True, text=True, timeout=60)
    result: dict[str, float | str] = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == bool(result["error"]), done.stderr
    return result


@pytest.mark.parametrize("connections", [1, 7])
@pytest.mark.parametrize("mode", MODES)
def test_without_a_proxy(load: str, mode: str, connections: int) -> None:
    result = run(load, mode, connections, "direct")
    assert result["error"] == ""
    if mode == "idle":
        assert result["count"] == result["total"] == connections
    else:
        assert 0 < float(result["count"]) <= float(result["total"])
        assert 0.5 <= float(result["seconds"]) < 5


@pytest.mark.parametrize("mode", MODES)
def test_beside_blocked_ones(load: str, mode: str) -> None:
    result = run(load, mode, 3, "direct", "-b", "3")
    assert result["error"] == ""
    assert 3 * MESSAGE << 10 < float(result["blocked"]) < 100e6
    assert 0 < float(result["count"]) <= float(result["total"])
    assert run(load, mode, 3, "direct")["blocked"] == 0


@pytest.mark.skipif(not shutil.which("strace"), reason="no strace here")
@pytest.mark.parametrize("mode", ["down", "up"])
@pytest.mark.parametrize(("options", "size"), [([], 65536), (["-w", "4096"], 4096)])
def test_the_size_of_a_write(
    load: str, mode: str, options: list[str], size: int, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    trace = ["strace", "-f", "-qq", "-s", "1", "-e", "trace=sendto", "-o", str(told)]
    command = [*trace, load, *options, mode, "1", "0.3", "0", "direct", "127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    sizes = re.findall(r"sendto\(.*, (\d+), MSG_NOSIGNAL", told.read_text())
    assert len(sizes) > 10
    assert {*sizes} == {str(size)}


RIGHT = ["1", "1", "0", "direct", "127.0.0.1"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly", *RIGHT],
        ["-w", "0", "down", *RIGHT],
        ["-w", "65537", "down", *RIGHT],
        ["-w", "4k", "down", *RIGHT],
        ["-b", "-1", "down", *RIGHT],
        ["-x", "down", *RIGHT],
        ["-w"],
    ],
)
def test_wrong_usage(load: str, arguments: list[str]) -> None:
    done = subprocess.run([load, *arguments], capture_output=True, text=True)
    assert done.returncode == 100
    assert "usage: load" in done.stderr


# Proxies that go wrong

Serve = Callable[[socket.socket, socket.socket], None]


def corrupt(client: socket.socket, target: socket.socket) -> None:
    target.sendall(client.recv(MESSAGE, socket.MSG_WAITALL))
    answer = target.recv(MESSAGE, socket.MSG_WAITALL)
    client.sendall(bytes(byte ^ 1 for byte in answer))  # of none, if the client has ended
    client.recv(1)


def stall(client: socket.socket, target: socket.socket) -> None:
    while client.recv(MESSAGE):
        pass


def cut_off(client: socket.socket, target: socket.socket) -> None:
    client.recv(MESSAGE, socket.MSG_WAITALL)


def cut_short(client: socket.socket, target: socket.socket) -> None:
    client.sendall(target.recv(1 << 16))


def leave_out(client: socket.socket, target: socket.socket) -> None:
    """One byte of a stream, far from its beginning."""
    for i in range(100):
        client.sendall(target.recv(1 << 16, socket.MSG_WAITALL)[i == 50 :])
    client.recv(1)


def turn_round(client: socket.socket, target: socket.socket) -> None:
    """Two chunks of a stream, upwards."""
    while first := client.recv(1 << 16, socket.MSG_WAITALL):
        target.sendall(client.recv(1 << 16, socket.MSG_WAITALL) + first)


@contextmanager
def proxy(serve: Serve, reply: bytes = b"\5\0\0\1" + bytes(6)) -> Iterator[str]:
    """A SOCKS5 proxy that turns to `serve` once it is connected."""

    def one(client: socket.socket) -> None:
        try:
            with client:
                client.recv(3, socket.MSG_WAITALL)
                client.sendall(b"\5\0")
                request = client.recv(10, socket.MSG_WAITALL)
                where = socket.inet_ntoa(request[4:8]), int.from_bytes(request[8:])
                with socket.create_connection(where, 5) as target:
                    client.sendall(reply)
                    serve(client, target)
        except OSError:
            pass  # the client has seen enough

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            client.settimeout(20)
            threading.Thread(target=one, args=[client], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # which wakes accept
            thread.join(5)


@pytest.mark.parametrize(
    ("mode", "serve", "error"),
    [
        ("rate", corrupt, "answer: not what was sent"),
        ("trips", corrupt, "answer: not what was sent"),
        ("idle", corrupt, "answer: not what was sent"),
        ("rate", stall, "answer: stalled"),
        ("trips", cut_off, "answer: the connection has ended"),
        ("down", cut_short, "stream: cut off"),
        ("down", leave_out, "the stream is not what was sent, near byte"),
        ("down", stall, "stream: stalled"),
        ("up", turn_round, "the stream is not what was sent, near byte"),
        ("up", stall, "nothing came through"),
    ],
)
def test_what_goes_wrong_is_told(load: str, mode: str, serve: Serve, error: str) -> None:
    with proxy(serve) as address:
        assert str(run(load, mode, 2, address)["error"]).startswith(error)


def test_a_refusal_is_told(load: str) -> None:
    with proxy(cut_off, reply=b"\5\5\0\1" + bytes(6)) as address:
        assert run(load, "rate", 2, address)["error"] == "SOCKS reply 5"


def test_no_proxy_there(load: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    result = run(load, "trips", 2, f"127.0.0.1:{port}")
    assert result["error"] == "connect: Connection refused"


# Blocked ones beside others

LINE = threading.Lock()


def the_first(blocked: Serve, others: Serve) -> Serve:
    """Serve the first connection, which is blocked, in a way of its own."""
    number = itertools.count()

    def serve(client: socket.socket, target: socket.socket) -> None:
        (others if next(number) else blocked)(client, target)

    return serve


def pass_on(client: socket.socket, target: socket.socket) -> None:
    """Messages there and back, one by one."""
    while data := client.recv(MESSAGE, socket.MSG_WAITALL):
        with LINE:
            target.sendall(data)
            client.sendall(target.recv(MESSAGE, socket.MSG_WAITALL))


def hoard(client: socket.socket, target: socket.socket) -> None:
    """Take all that comes."""
    while target.recv(1 << 20):
        pass


def stop_the_line(client: socket.socket, target: socket.socket) -> None:
    """Have all others wait for the client to read."""
    while data := target.recv(1 << 16):
        with LINE:
            client.sendall(data)


def flow(client: socket.socket, target: socket.socket) -> None:
    """Wait for the client to read, and nobody else."""
    while data := target.recv(1 << 16):
        client.sendall(data)


def lose(client: socket.socket, target: socket.socket) -> None:
    """Some of what was taken is never passed on."""
    client.sendall(target.recv(1 << 16))
    client.recv(1)


def spoil(client: socket.socket, target: socket.socket) -> None:
    """A megabyte, and the first byte is another; then no more."""
    data = bytearray(target.recv(1 << 20, socket.MSG_WAITALL))
    data[0] ^= 1
    client.sendall(data)
    client.recv(1)


def end_later(client: socket.socket, target: socket.socket) -> None:
    """Be blocked for a while, and then gone."""
    client.settimeout(1)
    client.recv(1)


@pytest.mark.parametrize(
    ("blocked", "error"),
    [
        (hoard, "a blocked connection took"),
        (stop_the_line, "nothing came through"),
        (lose, "stream: stalled"),
        (spoil, "the stream is not what was sent, near byte 0"),
        (cut_short, "blocked: the connection has ended"),
        (end_later, "blocked: the connection has ended"),
    ],
)
def test_a_blocked_one_that_goes_wrong_is_told(load: str, blocked: Serve, error: str) -> None:
    with proxy(the_first(blocked, pass_on)) as address:
        result = run(load, "trips", 2, address, "-b", "1")
    assert str(result["error"]).startswith(error)


def test_a_blocked_one_that_blocks_nobody(load: str) -> None:
    with proxy(the_first(flow, pass_on)) as address:
        result = run(load, "trips", 2, address, "-b", "1")
    assert result["error"] == ""
    assert float(result["blocked"]) > 1 << 16
