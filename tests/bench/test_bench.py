"""The benchmark measures what it says, and finds out a proxy that does not do its work."""

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
sys.path.insert(0, str(HERE))
from report import Results  # noqa: E402

MODES = ["rate", "trips", "down", "up", "idle"]
MESSAGE = 64
NAMESPACES = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc"]

pytestmark = [
    pytest.mark.skipif(not shutil.which("cc"), reason="no cc here"),
    pytest.mark.xdist_group("bench"),  # one at a time: each keeps all the CPUs busy
]


GROUP = """
import subprocess, sys
sys.path.insert(0, sys.argv[1])
from memory import measured
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
try:
    with measured() as memory:
        pass
except (OSError, subprocess.SubprocessError) as error:
    sys.exit(f"no memory cgroup: {error}")
"""


def in_namespaces(script: str) -> str:
    """Run a script in namespaces of its own and give what it prints; skip if it says why it cannot.

    A script that raises has found a fault.
    """
    command = [*NAMESPACES, sys.executable, "-c", script, str(HERE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr, done.stderr
    if done.returncode:
        pytest.skip(f"not here: {done.stderr.strip()}")
    return done.stdout


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> str:
    program = tmp_path_factory.mktemp("bench") / "load"
    strict = ["-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["cc", *strict, "-o", str(program), str(HERE / "load.c")], check=True)
    return str(program)


def run(load: str, mode: str, connections: int, proxy: str) -> dict[str, float | str]:
    command = [load, mode, str(connections), "0.5", "0", proxy, "127.0.0.1", "127.0.0.2"]
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


@pytest.mark.parametrize("arguments", [[], ["fly", "1", "1", "0", "direct", "127.0.0.1"]])
def test_wrong_usage(load: str, arguments: list[str]) -> None:
    done = subprocess.run([load, *arguments], capture_output=True, text=True)
    assert done.returncode == 100
    assert done.stderr.startswith("usage: load")


@pytest.mark.skipif(not shutil.which("microsocks"), reason="no microsocks here")
@pytest.mark.parametrize("mode", MODES)
def test_a_run(mode: str, tmp_path: Path) -> None:
    in_namespaces("pass")
    if mode == "idle":
        in_namespaces(GROUP)
    told = tmp_path / "told.json"
    command = [str(HERE / "bench.py"), "--quick", "--seconds=0.5", "--only", mode]
    command += ["--servers=microsocks", "--ours=microsocks", "--json", str(told)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    samples = json.loads(told.read_text())["samples"]
    assert not [sample for sample in samples if "error" in sample]
    found = [s for s in samples if s["server"] == "microsocks" and s["metric"].startswith(mode)]
    assert found and all(sample["value"] > 0 for sample in found)
    assert "microsocks / no proxy" in done.stdout or mode == "idle"


def test_the_memory_is_that_of_the_server_alone() -> None:
    """A child has 1000 sockets and 20 MiB; whoever measures has more, and does not count."""
    in_namespaces(GROUP)
    child = """if True:
        import socket, sys
        pairs = [socket.socketpair() for _ in range(500)]
        data = bytearray(b"x" * (20 << 20))
        sys.stdout.write("ready")
        sys.stdout.flush()
        sys.stdin.read()
    """
    told = in_namespaces(
        GROUP
        + f"""
import json, socket
with measured() as memory:
    child = subprocess.Popen(
        [sys.executable, "-c", {child!r}],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=memory.enter,
    )
    child.stdout.read(5)
    pairs = [socket.socketpair() for _ in range(2000)]
    data = bytearray(b"x" * (200 << 20))
    json.dump([memory.processes(), memory.kernel(), memory.settled()], sys.stdout)
    child.communicate()
"""
    )
    processes, kernel, both = json.loads(told)
    assert 20 << 20 < processes < 40 << 20
    assert 1000 << 10 < kernel < 4000 << 10
    assert both == pytest.approx(processes + kernel, rel=0.1)


# Proxies that go wrong

Serve = Callable[[socket.socket, socket.socket], None]


def corrupt(client: socket.socket, target: socket.socket) -> None:
    target.sendall(client.recv(MESSAGE, socket.MSG_WAITALL))
    answer = bytearray(target.recv(MESSAGE, socket.MSG_WAITALL))
    answer[-1] ^= 1
    client.sendall(answer)
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


# The report


def sample(metric: str, server: str, number: int, **result: float | str) -> dict[str, object]:
    return {"metric": metric, "n": 64, "server": server, "round": number, **result}


def test_ratios_are_of_the_same_round() -> None:
    samples = [
        sample("rate", server, number, value=value * speed)
        for number, speed in enumerate([1.0, 3.0, 100.0])  # of the machine
        for server, value in (("microsocks", 100.0), ("ours", 170.0), ("dante", 200.0))
    ]
    results = Results(samples, "ours")
    [goal] = results.goals()
    assert goal["goal"] == "connections/s, 64, to microsocks"
    assert (goal["reached"], goal["range"], goal["verdict"]) == (1.7, [1.7, 1.7], "aim")
    assert results.against_dante() == "better than dante in 0 of 1 rows: all but: connections/s, 64"
    assert "|  510 |" in results.table()


def test_an_error_takes_the_place_of_the_rate() -> None:
    samples = [sample("rate", "microsocks", number, value=1.0) for number in range(3)]
    samples += [sample("rate", "ours", number, value=2.0) for number in range(2)]
    samples.append(sample("rate", "ours", 2, error="answer: stalled"))
    results = Results(samples, "ours")
    assert results.goals() == []
    assert "| 1 of 3 failed |" in results.table()
    assert "failed: connections/s, 64, ours: answer: stalled" in results.table()
