"""The load of datagrams counts what comes back, and tells what is not as it was sent."""

import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
HEADER = 10

pytestmark = [
    pytest.mark.skipif(not shutil.which("cc"), reason="no cc here"),
    pytest.mark.xdist_group("bench"),  # one at a time: each keeps all the CPUs busy
]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> str:
    program = tmp_path_factory.mktemp("bench") / "datagrams"
    strict = ["-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["cc", *strict, "-o", str(program), str(HERE / "datagrams.c")], check=True)
    return str(program)


def run(load: str, mode: str, associations: int, proxy: str, *options: str) -> dict[str, float]:
    command = [load, *options, mode, str(associations), "0.5", "0", proxy, "127.0.0.1"]
    done = subprocess.run(command, input="\n", capture_output=True, text=True, timeout=60)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == bool(result["error"]), done.stderr
    return result


@pytest.mark.parametrize("size", [16, 64, 8192, 65497])
@pytest.mark.parametrize("associations", [1, 7])
@pytest.mark.parametrize("mode", ["echo", "idle"])
def test_without_a_proxy(load: str, mode: str, associations: int, size: int) -> None:
    result = run(load, mode, associations, "direct", "-w", str(size))
    assert result["error"] == ""
    assert 0 < result["count"] <= result["total"]
    if mode == "idle":
        assert (result["count"], result["total"]) == (associations, 2 * associations)


Change = Callable[[int, bytes], bytes | None]


@contextmanager
def proxy(change: Change) -> Iterator[str]:
    """A SOCKS5 proxy for one association, which changes what comes back, or (None) loses it."""

    def serve() -> None:
        client, _ = listener.accept()
        with client, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inside:
            inside.bind(("127.0.0.1", 0))
            client.recv(3)
            client.sendall(b"\5\0")
            client.recv(10)
            port = inside.getsockname()[1].to_bytes(2, "big")
            client.sendall(b"\5\0\0\1\x7f\0\0\1" + port)
            inside.settimeout(2)
            number = 0
            try:
                while True:
                    datagram, source = inside.recvfrom(1 << 16)
                    changed = change(number, datagram)
                    number += 1
                    if changed is not None:
                        inside.sendto(changed, source)
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def flipped(datagram: bytes, at: int) -> bytes:
    return datagram[:at] + bytes([datagram[at] ^ 1]) + datagram[at + 1 :]


@pytest.mark.parametrize(
    "change",
    [
        lambda _, datagram: flipped(datagram, 40),
        lambda _, datagram: flipped(datagram, HEADER - 1),
        lambda _, datagram: datagram[:-1],
        lambda _, datagram: datagram + b"x",
    ],
    ids=["payload", "header", "shorter", "longer"],
)
def test_what_is_changed_is_told(load: str, change: Change) -> None:
    with proxy(change) as address:
        assert run(load, "echo", 1, address)["error"] == "a datagram is not what was sent"


def test_what_is_lost_is_counted(load: str) -> None:
    with proxy(lambda number, datagram: datagram if number % 5 else None) as address:
        result = run(load, "echo", 1, address)
    assert result["error"] == ""
    assert result["lost"] > 0 and result["count"] > 0


def test_nothing_comes_back(load: str) -> None:
    with proxy(lambda number, datagram: None) as address:
        assert run(load, "echo", 1, address)["error"] == "nothing came back"


@pytest.mark.parametrize(
    "arguments",
    [[], ["fly", "1", "1", "0", "direct", "127.0.0.1"], ["-w", "15", "echo"], ["-x"]],
)
def test_wrong_usage(load: str, arguments: list[str]) -> None:
    done = subprocess.run([load, *arguments], capture_output=True, text=True)
    assert done.returncode == 100
    assert "usage: datagrams" in done.stderr


NAMESPACES = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "true"]


def test_a_run(tmp_path: Path) -> None:
    if subprocess.run(NAMESPACES, capture_output=True).returncode:
        pytest.skip("no namespaces for us")
    told = tmp_path / "told.json"
    command = [sys.executable, str(HERE / "udp.py"), "--quick", "--seconds=0.3", "--only=echo"]
    done = subprocess.run(
        [*command, "--json", str(told)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    samples = json.loads(told.read_text())["samples"]
    assert not [sample for sample in samples if "error" in sample]
    ours = {(s["metric"], s["n"]) for s in samples if s["server"] == "muonsocks"}
    metrics = [f"echo {size}{what}" for size in (64, 1400, 8192) for what in ("", " cpu")]
    assert ours == {(metric, n) for metric in metrics for n in (1, 16)}
    assert all(sample["value"] > 0 for sample in samples)
