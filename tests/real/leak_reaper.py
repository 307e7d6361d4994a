"""Run a command, and wait until all are gone that came of it, daemons too: reaper.py COMMAND...

Ends as the command did; with 99 if others had to be killed, as they went on for too long.
"""

import ctypes
import os
import signal
import sys

PATIENCE = 20  # seconds, for what is left when the command has ended
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36

library = ctypes.CDLL(None)
library.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(word) for word in file.read().split()]


def end_all(*_: object) -> None:
    global has_killed
    has_killed = True
    signal.alarm(1)  # for those that are ours only now
    for pid in children():
        os.kill(pid, signal.SIGKILL)


has_killed = False
signal.signal(signal.SIGALRM, end_all)
command = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
status = 0
while True:
    try:
        pid, ended = os.wait()
    except ChildProcessError:
        break
    if pid == command:
        status = os.waitstatus_to_exitcode(ended)
        signal.alarm(PATIENCE)
sys.exit(99 if has_killed else status if status >= 0 else 128 - status)
