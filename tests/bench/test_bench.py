"""The benchmark measures what it says, and says what it is worth."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from report import Results  # noqa: E402

MODES = ["rate", "trips", "down", "up", "idle"]
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


MUX_ROWS = {
    "stream": {(f"stream {way}", n) for way in ("down", "up") for n in (4, 16, 64)},
    "blocked": {
        (mode + what, 50) for mode in ("trips", "down") for what in ("", " beside", " kept")
    },
    "idle": {
        (f"{side} {what}", 1000)
        for side in ("guest", "host")
        for what in ("processes", "memory", "alone")
    },
}
MUX_GOALS = {"stream": 4, "blocked": 2, "idle": 2}


@pytest.mark.parametrize("mode", MUX_ROWS)
def test_a_run_of_the_mux(mode: str, tmp_path: Path) -> None:
    in_namespaces("pass")
    if mode == "idle":
        in_namespaces(GROUP)
    told = tmp_path / "told.json"
    command = [
        str(HERE / "mux.py"),
        "--quick",
        "--seconds=0.3",
        "--only",
        mode,
        "--json",
        str(told),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    result = json.loads(told.read_text())
    assert not [sample for sample in result["samples"] if "error" in sample]
    ours = {
        (sample["metric"], sample["n"]): sample["value"]
        for sample in result["samples"]
        if sample["server"] == "virtio-mux"
    }
    assert ours.keys() == MUX_ROWS[mode]
    assert all(value > 0 for value in ours.values())
    goals = result["goals"]
    assert len(goals) == MUX_GOALS[mode]
    assert all(f"| {goal['goal']} " in done.stdout for goal in goals)
    if mode == "blocked":
        for load in ("trips", "down"):
            kept = 100 * ours[f"{load} beside", 50] / ours[load, 50]
            assert ours[f"{load} kept", 50] == pytest.approx(kept)
    if mode == "idle":
        for side in ("guest", "host"):
            processes, memory, alone = (
                ours[f"{side} {what}", 1000] for what in ("processes", "memory", "alone")
            )
            assert 5 < processes < memory < alone < 100


@pytest.mark.skipif(not shutil.which("strace"), reason="no strace here")
@pytest.mark.parametrize(
    ("mode", "lines"),
    [
        ("stream", {f"-w {kib << 10} {way} 1" for kib in (4, 16, 64) for way in ("down", "up")}),
        ("blocked", {f"{b}{mode} 50" for b in ("", "-b 1 ") for mode in ("trips", "down")}),
    ],
)
def test_what_the_mux_is_put_to(mode: str, lines: set[str], tmp_path: Path) -> None:
    """Writes of each size, and each load with a blocked connection and without."""
    in_namespaces("pass")
    told = tmp_path / "told"
    trace = ["strace", "-f", "--seccomp-bpf", "-qq", "-s", "99", "-o", str(told), "-etrace=execve"]
    command = [*trace, str(HERE / "mux.py"), "--rounds=2", "--seconds=0.3", "--only", mode]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    if re.search("stalled|nothing came through", done.stderr):
        pytest.skip("this machine is so busy that nothing moved for as long as was measured")
    loads = re.findall(r'execve\("[^"]*/load", \["[^"]*", (.*?), "0\.3"', told.read_text())
    assert {*loads} == {", ".join(f'"{word}"' for word in line.split()) for line in lines}
    # With the mux and with no proxy, in both rounds.
    assert len(loads) == 2 * 2 * len(lines), done.stderr
    if mode == "blocked":  # before the other in the second round
        assert ["-b" in load for load in loads] == [False, True] * 4 + [True, False] * 4


PAIR = """
import json, os, socket, subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import namespaces, servers
from memory import measured
namespaces.prepare([])
place = servers.Place(namespaces.PROXY, 3000, Path("/run"))
with measured() as guest, measured() as host:
    sides = {"guest": guest, "host": host}
    prepare = lambda command: sides[command.side].enter()
    with servers.running(servers.MUX, place, prepare) as proxy:
        with socket.create_connection((place.address, place.port)) as client:
            client.sendall(b"\\5\\1\\0")
            client.recv(2)  # now there is the guest's worker
            pids = {
                side: (memory.group / "cgroup.procs").read_text().split()
                for side, memory in sides.items()
            }
            tree = proxy.tree()
            words = {
                pid: Path(f"/proc/{pid}/cmdline").read_text().split("\\0") for pid in tree
            }
left = [int(pid) for pid in os.listdir("/proc") if pid.isdigit()]
json.dump({"pids": pids, "words": words, "left": left, "me": os.getpid()}, sys.stdout)
"""


def test_each_side_of_the_pair_is_counted_and_none_is_left() -> None:
    in_namespaces(GROUP)
    told = json.loads(in_namespaces(PAIR))
    assert {side: len(pids) for side, pids in told["pids"].items()} == {"guest": 2, "host": 1}
    for side, pids in told["pids"].items():
        assert all(side in told["words"][pid] for pid in pids)
    assert len(told["words"]) == 3
    assert told["left"] == [told["me"]]


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
    settled = memory.settled()
    both = memory.processes(), memory.kernel()
    json.dump([*both, settled, memory.with_files(), memory.alone()], sys.stdout)
    child.communicate()
"""
    )
    processes, kernel, both, with_files, alone = json.loads(told)
    assert 20 << 20 < processes < 40 << 20
    assert 1000 << 10 < kernel < 4000 << 10
    assert both == pytest.approx(processes + kernel, rel=0.1)
    assert processes < with_files < alone  # Python's own files are whoever's runs it
    assert 2 << 20 < alone - processes < 20 << 20


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


def test_a_goal_can_be_a_figure() -> None:
    about = {"server": "ours", "n": 16}
    values = {"stream down": [1400.0, 1600.0, 1700.0], "stream up": [1600.0, 1400.0, 1499.0]}
    samples = [
        {"metric": metric, **about, "round": number, "value": value}
        for metric, found in values.items()
        for number, value in enumerate(found)
    ]
    samples.append({**samples[0], "server": "no proxy", "value": 9000.0})
    results = Results(samples, "ours")
    down, up = results.goals()
    assert down["goal"] == "1 stream down, MB/s, 16 KiB writes"
    assert (down["reached"], down["range"], down["verdict"]) == (1600, [1400, 1700], "aim")
    assert (up["reached"], up["floor"], up["verdict"]) == (1499, 1500, "short")
    assert "| 1,500 | 1,500 |   1,600 | 1,400-1,700 |   aim |" in results.goals_table()


def test_a_run_of_the_box() -> None:
    """Also beside another one, which here is the same."""
    box = HERE.parents[1] / "bin" / "socketbox"
    command = [str(HERE / "socketbox.py"), "--connections=400", "--rounds=2", f"--other={box}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr
    rows = re.findall(r"^(\S.*\S) {2,}(\d+\.\d) +(\d+\.\d) +(\d+\.\d)$", done.stdout, re.M)
    names = ["accept and close", "socketbox -q", "socketbox", "socketbox -q, a map of 10,000"]
    assert [row[0] for row in rows] == [*names, "the other one"]
    for _, middle, least, most in rows:
        assert float(least) <= float(middle) <= float(most)


@pytest.mark.parametrize(("value", "verdict"), [(19.9, "aim"), (20.0, "aim"), (20.1, "short")])
def test_less_can_be_better(value: float, verdict: str) -> None:
    found: dict[str, object] = {"metric": "guest memory", "n": 1000, "server": "ours", "round": 0}
    [goal] = Results([{**found, "value": value}], "ours").goals()
    assert goal["verdict"] == verdict


def test_an_error_takes_the_place_of_the_rate() -> None:
    samples = [sample("rate", "microsocks", number, value=1.0) for number in range(3)]
    samples += [sample("rate", "ours", number, value=2.0) for number in range(2)]
    samples.append(sample("rate", "ours", 2, error="answer: stalled"))
    results = Results(samples, "ours")
    assert results.goals() == []
    assert "| 1 of 3 failed |" in results.table()
    assert "failed: connections/s, 64, ours: answer: stalled" in results.table()
