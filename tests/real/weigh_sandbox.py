"""Weigh what is in muonsocks@.service: what each line costs in time, and what it buys in exposure.

    /usr/bin/python3 weigh_sandbox.py PREFIX [ROUNDS] [TRIED]

PREFIX holds bin/socks-inetd. Boots a systemd (nspawn.py), makes a socket unit for every variant of
the service, and times, in shuffled rounds, from connect() to the first byte of the answer. A line
is weighed on its own, over the bare unit, and in company: what the whole gains without it. Lines
that the unit has not are read from the file TRIED and weighed over the bare unit and on top of the
whole. All are medians of the differences within a round, since the machine may be busy. It is a
tool to run by hand: the table it prints is in the unit, as a comment.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from nspawn import Machine

UNIT = Path(__file__).parents[2] / "units" / "muonsocks@.service"
BARE = ("Environment", "EnvironmentFile", "ExecStart", "StandardInput", "StandardError")
BARE += ("SuccessExitStatus",)
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

Option = tuple[str, ...]  # the lines that belong together


def options(unit: str) -> list[Option]:
    """The lines of [Service], those of one option together."""
    found: dict[str, Option] = {}
    for line in unit.partition("\n[Service]\n")[2].splitlines():
        if "=" in line and not line.startswith("#"):
            name = line.partition("=")[0]
            found[name] = (*found.get(name, ()), line)
    return list(found.values())


def service(chosen: list[Option]) -> str:
    body = "\n".join(line for option in chosen for line in option)
    return f"[Unit]\nCollectMode=inactive-or-failed\n[Service]\n{body}\n"


def exposure(unit: str) -> float:
    """What systemd-analyze says: 0.0 to 10.0."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "weighed@.service")
        path.write_text(unit)
        done = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", "--no-pager", str(path)],
            capture_output=True,
            text=True,
        )
    return float(done.stdout.rpartition("service: ")[2].split()[0])


def measure(units: list[str], prefix: str, rounds: int) -> list[list[float]]:
    """Milliseconds from connect to first byte, for each unit a list with one for each round."""
    with Machine({prefix: "/usr/local"}) as machine:
        for number, unit in enumerate(units):
            machine.put(f"/run/systemd/system/w{number}@.service", unit)
            machine.put(
                f"/run/systemd/system/w{number}.socket",
                f"[Socket]\nListenStream=127.0.0.1:{FIRST_PORT + number}\nAccept=yes\n"
                "TriggerLimitIntervalSec=0\nNoDelay=yes\n",
            )
        machine.run("systemctl daemon-reload")
        machine.run("systemctl start " + " ".join(f"w{n}.socket" for n in range(len(units))))
        client = CLIENT % (FIRST_PORT, FIRST_PORT + len(units), rounds)
        done = machine.run("/usr/bin/python3 -", input=client, timeout=3600)
    return list(json.loads(done.stdout).values())


def difference(these: list[float], those: list[float]) -> float:
    return statistics.median(a - b for a, b in zip(these, those, strict=True))


def main(prefix: str, rounds: str = "30", tried: str = "") -> None:
    whole = options(UNIT.read_text())
    bare = [option for option in whole if option[0].partition("=")[0] in BARE]
    inside = [option for option in whole if option not in bare]
    outside: list[Option] = []
    if tried:
        outside = [tuple(line.split("; ")) for line in Path(tried).read_text().splitlines()]

    alone = [service([*bare, option]) for option in inside + outside]
    company = [service([other for other in whole if other != option]) for option in inside]
    company += [service([*whole, option]) for option in outside]
    ends = [service(bare), service(bare), service(whole), service(whole)]
    bare_1, bare_2, whole_1, whole_2, *rest = measure(
        [*ends, *alone, *company], prefix, int(rounds)
    )

    print(f"bare  {statistics.median(bare_1):.1f} ms, exposure {exposure(ends[0])}")
    print(f"whole {statistics.median(whole_1):.1f} ms, exposure {exposure(ends[2])}")
    print(f"the sandbox adds {difference(whole_1, bare_1):.1f} ms", end="")
    print(f" (again: {difference(whole_2, bare_2):.1f}), and to the quickest", end="")
    print(f" {min(whole_1 + whole_2) - min(bare_1 + bare_2):.1f}")
    print(f"noise {difference(bare_2, bare_1):+.1f} {difference(whole_2, whole_1):+.1f} ms")
    print("alone ms | company ms | exposure")
    for index, option in enumerate(inside + outside):
        costs = difference(rest[index], bare_1)
        saved = rest[len(alone) + index]
        kept = [(a + b) / 2 for a, b in zip(whole_1, whole_2, strict=True)]
        sign = 1 if option in inside else -1
        points = sign * (exposure(company[index]) - exposure(ends[2]))
        line = f"{costs:+5.0f} {sign * difference(kept, saved):+5.0f} {points:6.1f}  "
        print(line + "; ".join(option), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
