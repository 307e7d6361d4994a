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
from leak_programs import PROGRAMS, serve_all  # noqa: E402


def main(wanted: list[str]) -> int:
    """Run all, or those whose names have one of some words in them; 1 if one has leaked."""
    if reason := captured.missing():
        print(reason)
        return 111
    has_leaked = False
    print(f"{'':22}{'none':>10} packets past the proxy")
    columns = "".join(f"{mode:>26}" for mode in captured.MODES)
    print(f"{'program':22}{'':>10}{columns}   connections by the proxy, packets past it")
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(captured.world())
        serve_all(stack, world)
        for program in PROGRAMS:
            if wanted and not any(word in program.name for word in wanted):
                continue
            if lacking := [name for name in program.needs if not which(name)]:
                print(f"{program.name:22} there is no {', '.join(lacking)} here")
                continue
            words = program.words(world)
            line = f"{program.name:22}{len(world.run(words).leaks):10}"
            for mode in captured.MODES:
                one = world.run(words, mode)
                failed = f" status {one.status}" if one.status else ""
                line += f"{failed + f' {len(one.proxied)} of {program.connections}':>18}{len(one.leaks):8}"
                has_leaked |= bool(one.leaks)
            print(line, flush=True)
    return int(has_leaked)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
