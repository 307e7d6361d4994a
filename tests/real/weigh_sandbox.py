"""Weigh what is in muonsocks@.service: what each line costs in time, and what it buys in exposure.

    /usr/bin/python3 weigh_sandbox.py PREFIX [ROUNDS] [TRIED]

PREFIX holds bin/socks-inetd. Boots a systemd (nspawn.py), makes a socket unit for every variant of the
service, and times, in shuffled rounds, from connect() to the first byte of the answer. A line is weighed
on its own over the bare unit, and again by what the whole gains without it. Lines that the unit has not
are read from the file TRIED and weighed over the bare unit and on top of the whole. Medians; the machine
may be busy. It is a tool to run by hand: the table it prints is in the unit, as a comment.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from nspawn import Machine

UNIT = Path(__file__).parents[2] / "units" / "muonsocks@.service"
BARE = ("EnvironmentFile", "ExecStart", "StandardInput", "StandardError", "SuccessExitStatus")
FIRST_PORT = 2000

CLIENT = """
import json, math, random, socket, time
times = {port: [] for port in range(%d, %d)}
for _ in range(%d):
    for port in random.sample(list(times), len(times)):
        time.sleep(0.03)  # for PID 1 to tidy up after the one before
        start = time.perf_counter()
        try:
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(bytes((5, 1, 0)))
                answer = client.recv(1)
        except OSError:
            answer = b""
        taken = (time.perf_counter() - start) * 1000
        times[port].append(taken if answer else math.nan)
print(json.dumps(times))
"""


def options(unit: str) -> dict[str, list[str]]:
    """The lines of [Service], by option; those of one option belong together."""
    found: dict[str, list[str]] = {}
    for line in unit.partition("[Service]")[2].splitlines():
        if "=" in line and not line.startswith("#"):
            found.setdefault(line.partition("=")[0], []).append(line)
    if "LoadCredential" in found:  # as do these two
        found["LoadCredential"] += found.pop("SetCredential", [])
    return found


def service(lines: dict[str, list[str]]) -> str:
    body = "\n".join(line for option in lines.values() for line in option)
    return f"[Unit]\nCollectMode=inactive-or-failed\n[Service]\n{body}\n"


def exposure(unit: str) -> float:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "weighed@.service")
        path.write_text(unit)
        done = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", "--no-pager", str(path)],
            capture_output=True,
            text=True,
        )
    return float(done.stdout.rpartition("service: ")[2].split()[0])


def measure(variants: list[str], prefix: str, rounds: int) -> list[float]:
    """Milliseconds from connect to first byte, a median for each variant of the service."""
    with Machine({prefix: "/usr/local"}) as machine:
        for number, unit in enumerate(variants):
            machine.put(f"/run/systemd/system/w{number}@.service", unit)
            machine.put(
                f"/run/systemd/system/w{number}.socket",
                f"[Socket]\nListenStream=127.0.0.1:{FIRST_PORT + number}\nAccept=yes\n"
                "TriggerLimitIntervalSec=0\nNoDelay=yes\n",
            )
        machine.run("systemctl daemon-reload")
        machine.run("systemctl start " + " ".join(f"w{n}.socket" for n in range(len(variants))))
        client = CLIENT % (FIRST_PORT, FIRST_PORT + len(variants), rounds)
        done = machine.run("/usr/bin/python3 -", input=client, timeout=3600)
    times: dict[str, list[float]] = json.loads(done.stdout)
    return [statistics.median(taken) for taken in times.values()]


def main(prefix: str, rounds: str = "30", tried: str = "") -> None:
    whole = options(UNIT.read_text())
    bare = {name: lines for name, lines in whole.items() if name in BARE}
    inside = [name for name in whole if name not in BARE]
    outside = Path(tried).read_text().splitlines() if tried else []
    outside = [line.replace("\\n", "\n") for line in outside]

    labels = [" ".join(whole[name]) for name in inside] + outside
    alone = [{**bare, name: whole[name]} for name in inside]
    alone += [{**bare, "tried": [line]} for line in outside]
    against = [{n: w for n, w in whole.items() if n != name} for name in inside]
    against += [{**whole, "tried": [line]} for line in outside]

    units = [service(lines) for lines in (bare, bare, whole, whole, *alone, *against)]
    base, base_again, full, full_again, *rest = measure(units, prefix, int(rounds))
    figure = exposure(units[2])
    print(f"bare {base:.1f} (again {base_again:.1f}) ms, exposure {exposure(units[0])}")
    print(f"whole {full:.1f} (again {full_again:.1f}) ms, exposure {figure}")
    print("alone ms  in whole ms  exposure in whole")
    base, full = min(base, base_again), min(full, full_again)
    for index, label in enumerate(labels):
        own, other = rest[index] - base, full - rest[len(labels) + index]
        points = exposure(service(against[index])) - figure
        print(f"{own:+8.1f}  {other:+11.1f}  {points:+8.1f}  {label}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
