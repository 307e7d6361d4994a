"""intercept.py measures what it says, and tells what does not do what it is there for."""

import argparse
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import servers  # noqa: E402
from servers import Place  # noqa: E402

import intercept  # noqa: E402

NAMESPACES = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "true"]
NOBODY = Place("127.0.0.1", 1, Path())  # no proxy is at that port
OURS = {"socksify", "socksify hold", "socksify async", "socksify isolate"}
HELD = OURS | {"proxychains4", "torsocks", "no proxy"}
ROWS = {
    "held by microsocks": HELD,
    "held by muonsocks": HELD,
    "curl down": {"socksify", "curl's own SOCKS"},
    "together": OURS - {"socksify hold"},
}

pytestmark = pytest.mark.xdist_group("bench")  # one at a time: each keeps all the CPUs busy


def need(*programs: str) -> None:
    for name in programs:
        if not shutil.which(name):
            pytest.skip(f"no {name} here: tests/run installs it")


def test_all_rows(tmp_path: Path) -> None:
    need("cc", "curl", "microsocks", "proxychains4", "torsocks")
    if subprocess.run(NAMESPACES, capture_output=True).returncode:
        pytest.skip("no namespaces for us")
    told = tmp_path / "told.json"
    command = [sys.executable, str(HERE / "intercept.py"), "--quick", "--seconds=0.2"]
    done = subprocess.run(
        [*command, "--json", str(told)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    left_out = {name for name in HELD if f"bench: {name} is left out" in done.stderr}
    assert left_out <= {"socksify isolate"}, done.stderr
    found = json.loads(told.read_text())
    rows: dict[str, dict[str, float]] = {}
    for sample in found["samples"]:
        assert "error" not in sample, sample
        rows.setdefault(sample["metric"], {})[sample["server"]] = sample["value"]
    wanted = {metric: kinds - left_out for metric, kinds in ROWS.items()}
    assert {metric: set(values) for metric, values in rows.items()} == wanted
    assert all(value > 0 for values in rows.values() for value in values.values())
    for name in ("held by microsocks", "held by muonsocks"):
        assert min(rows[name], key=rows[name].__getitem__) == "no proxy"
    assert all(seconds > intercept.DELAY for seconds in rows["together"].values())
    goals = {goal["goal"]: goal["reached"] for goal in found["goals"]}
    assert len(goals) == 4
    figures = rows["held by microsocks"]
    assert goals["a held connection by microsocks, µs, 1, to proxychains4"] == pytest.approx(
        figures["socksify"] / figures["proxychains4"], abs=0.001
    )


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> intercept.Bench:
    need("cc")
    monkeypatch.setattr(intercept, "kinds", lambda _: [])
    args = argparse.Namespace(seconds=0.1, targets=["127.0.0.1"])
    return intercept.Bench(args, tmp_path)


@pytest.fixture
def target() -> Iterator[str]:
    port = str(free_ports())
    with servers.serving(intercept.PYTHON, intercept.TARGET, "target", "127.0.0.1", port):
        yield port


def free_ports() -> int:
    """A port of which the next one is free, too."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            try:
                other.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


def test_a_proxy_that_is_not_there(bench: intercept.Bench) -> None:
    """A figure is of connections through it, and none is made up."""
    bench.kinds = intercept.kinds_of_ours()[:2]
    found = bench.connections(NOBODY, [bench.connects, "192.0.2.11", "80", "20"])
    assert set(found) == {"socksify", "socksify hold"}
    for failed in found.values():
        assert isinstance(failed, servers.Failed) and "refused" in str(failed)
        with pytest.raises(servers.Failed):
            intercept.microseconds("held", failed)


def test_the_others_are_measured(
    bench: intercept.Bench, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intercept, "under", lambda kind, _: ["false"] if kind == "false" else [])
    bench.kinds = ["false", "no proxy"]
    found = bench.connections(NOBODY, [bench.connects, "127.0.0.1", target, "20"])
    failed, direct = found["false"], found["no proxy"]
    assert isinstance(failed, servers.Failed)
    assert isinstance(direct, float) and 0 < direct < 1
    assert intercept.microseconds("held", direct) == {"held": direct * 1e6}


@pytest.mark.parametrize("said", [b"y", b""])
def test_a_connection_is_one_to_the_target(bench: intercept.Bench, said: bytes) -> None:
    """Who else answers does not say the byte that the target says."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        words = [bench.connects, "127.0.0.1", str(listener.getsockname()[1]), "1"]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin
            process.stdin.write(b"\n")
            process.stdin.flush()
            with listener.accept()[0] as conn:
                conn.sendall(said)
            told, _ = process.communicate(timeout=10)
    assert process.returncode and not told


def test_what_does_not_end_well_has_no_figure() -> None:
    assert intercept.said_by(["printf", "1.5"]) == "1.5"
    with pytest.raises(servers.Failed, match="sh ended with 3: why"):
        intercept.said_by(["sh", "-c", "echo 1.5; echo why >&2; exit 3"])


def test_what_does_not_run_here_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"torsocks": ["no-such-program"], "proxychains4": ["false"]}
    monkeypatch.setattr(intercept, "under", lambda kind, _: words.get(kind, ["env"]))
    assert intercept.kinds(NOBODY) == [*intercept.kinds_of_ours(), "no proxy"]
    told = capsys.readouterr().err
    assert "torsocks is left out: there is no no-such-program" in told
    assert "proxychains4 is left out" in told
