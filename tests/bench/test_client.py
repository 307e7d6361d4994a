"""client.py measures what it says, and tells what does not do what it is there for."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
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
    for name in ("muonsocks", "dante"):  # which are sums with the same nc
        assert rows[f"start by {name}"]["nc + python3 -IS"] > 2
    goals = {goal["goal"]: goal["reached"] for goal in found["goals"]}
    assert len(goals) == 7
    figures = rows["connect by microsocks"]
    assert goals["a connection by microsocks, µs, 1, to PySocks"] == pytest.approx(
        figures["muonsocks"] / figures["PySocks"], abs=0.001
    )


@pytest.mark.parametrize("kind", sorted(CONNECT))
def test_a_proxy_that_is_not_there(kind: str) -> None:
    """A figure is of connections through it, and none is made up."""
    ends = [client.PYTHON, client.ENDS, "connect", kind]
    where = ["socks5h://127.0.0.1:1", "127.0.0.1", "1", "0.1"]
    done = subprocess.run([*ends, *where], capture_output=True, text=True, timeout=60)
    assert done.returncode and done.stdout == ""
    assert "refused" in done.stderr or "No module named 'socks'" in done.stderr


def test_a_program_without_its_answer() -> None:
    assert client.run_time(["printf", "x"], b"x") > 0
    for command, answer in ((["true"], b"x"), (["printf", "xx"], b"x"), (["false"], b"")):
        with pytest.raises(servers.Failed):
            client.run_time(command, answer)
