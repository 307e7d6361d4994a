#!/usr/bin/python3
"""other_process.py: in a PID namespace, has two processes after each other that have one id, and
looks into both. Prints what was found in each at one and the same descriptor.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "lib"))
from muonsocks.intercept.descriptors import Descriptors

PLACE = 100
LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


def start(content: bytes) -> tuple[int, int]:
    """Start a process with something to be read at PLACE; give its id, and what it waits for."""
    to_child, for_child = os.pipe()
    reading, writing = os.pipe()
    os.write(writing, content)
    os.dup2(reading, PLACE)
    pid = os.fork()
    if not pid:
        os.close(for_child)
        os.read(to_child, 1)
        os._exit(0)
    for fd in (to_child, reading, writing, PLACE):
        os.close(fd)
    return pid, for_child


def main() -> None:
    descriptors = Descriptors()
    first = 0
    for content in (b"first", b"second"):
        if first:
            LAST_PID.write_text(str(first - 1))
        pid, life = start(content)
        assert pid == (first or pid), "somebody else has got the number"
        first = pid
        for _ in range(2):
            fd = descriptors.get(pid, PLACE)
            print(os.read(fd, 3).decode())
            os.close(fd)
        os.close(life)
        os.waitpid(pid, 0)
        try:
            descriptors.get(pid, PLACE)
        except ProcessLookupError:
            print("gone")
    descriptors.close()
    print(sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[3:-1])


if __name__ == "__main__":
    main()
