"""Print what programs send past a proxy: tests/real/leak_table.py [PROGRAM-OR-PART-OF-ITS-NAME]...

Each is run as nobody in a network of its own with one cable, all of whose packets are looked at:
without socksify, and in each of its modes. Needs root, for the networks.
"""

import contextlib
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent / "lib"), *(str(TESTS / room) for room in ("real", "net"))]

import captured  # noqa: E402
from clients import which  # noqa: E402
from leak_programs import (  # noqa: E402
    DECEITS,
    ISOLATED_DECEITS,
    PROGRAMS,
    TRIES_EVERYTHING,
    serve_all,
)


def main(wanted: list[str]) -> int:
    """Run all, or those whose names have one of some words in them; 1 if one has leaked that
    should not."""
    if reason := captured.missing():
        print(reason)
        return 111
    has_leaked = False
    print("Packets that were not to the proxy; and before them the connections that it logged.")
    columns = "".join(f"{mode:>20}" for mode in captured.MODES)
    print(f"{'':34}{'unproxied':>10}{columns}")
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(captured.world())
        serve_all(stack, world)
        for program in [*PROGRAMS, TRIES_EVERYTHING, *DECEITS, *ISOLATED_DECEITS]:
            if wanted and not any(word in program.name for word in wanted):
                continue
            if lacking := [name for name in program.needs if not which(name)]:
                print(f"{program.name:34} there is no {', '.join(lacking)} here")
                continue
            words = program.words(world)
            line = f"{program.name:34}{len(world.run(words).leaks):10}"
            for mode in captured.MODES:
                one = world.run(words, mode)
                failed = f"status {one.status}, " if one.status else ""
                line += f"{failed + str(len(one.proxied)):>15}{len(one.leaks):5}"
                is_promised = mode == "isolate" or program not in ISOLATED_DECEITS
                has_leaked |= bool(one.leaks) and is_promised
            print(line, flush=True)
    return int(has_leaked)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
