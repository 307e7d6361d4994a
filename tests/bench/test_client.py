"""client.py measures what it says, and tells what does not do what it is there for."""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from upstream import Upstream

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import client_ends  # noqa: E402
import servers  # noqa: E402

import client  # noqa: E402

NAMESPACES = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "true"]
START = {"muonsocks", "nc + python3 -IS", "nc + python3"}
CONNECT = {"muonsocks", "PySocks", "no proxy", "SocksSocket", "asyncio"}
ROWS = {
    "start by muonsocks": START,
    "start by dante": START,
    "connect by muonsocks": CONNECT,
    "connect by microsocks": CONNECT,
    "client down": {"muonsocks", "PySocks", "no proxy"},
}

pytestmark = pytest.mark.xdist_group("bench")  # one at a time: each keeps all the CPUs busy


def need(*programs: str) -> None:
    if subprocess.run(NAMESPACES, capture_output=True).returncode:
        pytest.skip("no namespaces for us")
    for name in programs:
        if not shutil.which(name):
            pytest.skip(f"no {name} here: tests/run installs it")
    if subprocess.run([client.PYTHON, "-c", "import socks"], capture_output=True).returncode:
        pytest.skip("no PySocks here: tests/run installs it")


def test_all_rows(tmp_path: Path) -> None:
    need("nc", "microsocks", "danted")
    told = tmp_path / "told.json"
    command = [sys.executable, str(HERE / "client.py"), "--quick", "--seconds=0.2"]
    done = subprocess.run(
        [*command, "--json", str(told)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(told.read_text())
    rows: dict[str, dict[str, float]] = {}
    for sample in found["samples"]:
        assert "error" not in sample, sample
        rows.setdefault(sample["metric"], {})[sample["server"]] = sample["value"]
    assert {metric: set(values) for metric, values in rows.items()} == ROWS
    assert all(value > 0 for values in rows.values() for value in values.values())
    goals = {goal["goal"]: goal["reached"] for goal in found["goals"]}
    assert len(goals) == 7
    figures = rows["connect by microsocks"]
    assert goals["a connection by microsocks, µs, 1, to PySocks"] == pytest.approx(
        figures["muonsocks"] / figures["PySocks"], abs=0.001
    )


def test_what_socks_connect_is_held_against(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """nc and the interpreter, together."""

    def run_time(command: list[str], answer: bytes = b"") -> float:
        name = Path(command[0]).name
        assert answer == (b"" if name == "python3" else b"x")
        return {"socks-connect": 1.0, "nc": 2.0, "python3": 10.0 * len(command)}[name]

    monkeypatch.setattr(client, "run_time", run_time)
    args = argparse.Namespace(seconds=0.01, targets=["192.0.2.11"])
    found = client.Bench(args, tmp_path).starts(servers.Place("192.0.2.1", 1080, tmp_path))
    assert found == {"muonsocks": 1, "nc + python3 -IS": 42, "nc + python3": 32}


@pytest.mark.parametrize("kind", sorted(CONNECT))
def test_a_proxy_that_is_not_there(kind: str) -> None:
    """A figure is of connections through it, and none is made up."""
    ends = [client.PYTHON, client.ENDS, "connect", kind]
    where = ["socks5h://127.0.0.1:1", "127.0.0.1", "1", "0.1"]
    done = subprocess.run([*ends, *where], capture_output=True, text=True, timeout=60)
    assert done.returncode and done.stdout == ""
    assert "refused" in done.stderr or "No module named 'socks'" in done.stderr


WHAT_CONNECTS = {
    "muonsocks": "socket.socket",
    "PySocks": "socks.socksocket",
    "SocksSocket": "muonsocks.client.socks_socket.SocksSocket",
}


@pytest.mark.parametrize("kind", WHAT_CONNECTS)
def test_each_kind_is_what_it_says(kind: str) -> None:
    need()
    with Upstream([3, b"\5\0", 10, b"\5\0\0\1" + bytes(6)]) as upstream:
        connect = client_ends.connection_by(kind, str(upstream.url("socks5h")))
        with connect("192.0.2.1", 80) as sock:
            made = type(sock)
        assert f"{made.__module__}.{made.__qualname__}" == WHAT_CONNECTS[kind]
        assert upstream.heard[0].endswith(b"\5\1\0\1\xc0\0\2\1\0\x50")


def test_a_program_without_its_answer() -> None:
    assert client.run_time(["printf", "x"], b"x") > 0
    for command, answer in ((["true"], b"x"), (["printf", "xx"], b"x"), (["false"], b"")):
        with pytest.raises(servers.Failed):
            client.run_time(command, answer)
