#!/usr/bin/python3
"""Print what a program is told by each kind of client when a proxy does what it should not, and in
how long: tests/client/hostile_table.py [SECONDS]

SECONDS is the time limit (0.3). Of the clients that say the same there is one row.
"""

import errno
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent / "lib"), *(str(TESTS / room) for room in ("client", "socks"))]

import hostile  # noqa: E402
from each_client import CLIENTS, Told, agrees  # noqa: E402
from hostile import CASES  # noqa: E402


def row(case: str, said: str, clients: list[tuple[str, float]]) -> str:
    times = ", ".join(f"{client} {1000 * took:.0f} ms" for client, took in clients)
    return f"| {case} | {said} | {times} |"


def words(told: Told, proxy: str) -> str:
    if told.carried:
        return f"connected; reads {told.carried!r}"
    if not told.number:
        return told.kind
    number = errno.errorcode[told.number]
    code = "" if told.code is None else f", code {told.code}"
    return f"{told.kind}, {number}{code}, side {told.side}: {told.words.replace(proxy, 'PROXY')}"


def main(seconds: float) -> int:
    hostile.warm_up()
    wrong = 0
    print("| the proxy | the program is told | in how long |\n|---|---|---|")
    for name, case in CASES.items():
        rows: dict[str, list[tuple[str, float]]] = {}
        for client in CLIENTS:
            told, took, proxy = hostile.meet(client, case, seconds)
            wrong += not agrees(told, hostile.expected(client, case))
            rows.setdefault(words(told, proxy), []).append((client, took))
        for said, clients in rows.items():
            print(row(name, said, clients))
    print(f"\n{len(CASES)} cases, {len(CLIENTS)} clients, {wrong} not as expected")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if sys.argv[1:] else 0.3))
