"""Programs that are left behind: who is their parent, and which they are."""

import os
import signal
import subprocess
from itertools import pairwise

from places import in_child
from real_server import is_alive, resident_memory, until

from muonsocks.resident.programs import Programs, adopt_orphans


def leave(*command: str) -> int:
    """Have a process start another one, and end; give the number of that."""
    ready, tell = os.pipe()
    if not (between := os.fork()):
        process = subprocess.Popen(command, start_new_session=True)
        os.write(tell, b"%d" % process.pid)
        os._exit(0)
    os.waitpid(between, 0)
    return int(os.read(ready, 20))


def test_who_is_their_parent() -> None:
    def check() -> None:
        adopt_orphans()
        program = leave("sleep", "100")
        os.kill(program, signal.SIGKILL)
        assert os.waitpid(program, 0) == (program, signal.SIGKILL)

    in_child(check)


def test_what_one_process_notes_the_others_know() -> None:
    programs = Programs()
    assert list(programs) == []
    noted = [1, 2, 4095, 4096, 32768, (1 << 22) - 1]

    def check() -> None:
        for pid in noted:
            programs.add(pid)
            assert pid in programs

    in_child(check)
    assert list(programs) == noted
    for pid, other in pairwise(noted):
        programs.remove(pid)
        assert pid not in programs and other in programs
    assert list(programs) == noted[-1:]
    assert 5 not in programs
    programs.remove(5)


def test_they_are_told_to_end() -> None:
    """With what they have started; what was not noted, or not any more, is left alone."""

    def check() -> None:
        programs = Programs()
        script = "sleep 100 & echo $!; wait"
        shells = [
            subprocess.Popen(
                ("/bin/sh", "-c", script), stdout=subprocess.PIPE, start_new_session=True
            )
            for _ in range(2)
        ]
        pids = [shell.pid for shell in shells]
        below = [int(shell.stdout.readline()) for shell in shells if shell.stdout]
        programs.add(pids[0])
        os.kill(pids[0], signal.SIGSTOP)
        for pid in pids:
            programs.tell_to_end(pid)
        assert os.waitpid(pids[0], 0) == (pids[0], signal.SIGTERM)
        until("what it has started ends", lambda: not is_alive(below[0]))
        programs.tell_to_end(pids[0])
        assert is_alive(pids[1]) and is_alive(below[1])
        programs.add(pids[1])
        programs.tell_to_end(pids[1])
        assert os.waitpid(pids[1], 0) == (pids[1], signal.SIGTERM)

    in_child(check)


def test_numbers_that_are_not_used_take_no_memory() -> None:
    def check() -> None:
        before = resident_memory(os.getpid())
        programs = Programs()
        programs.add(4711)
        assert list(programs) == [4711]
        assert resident_memory(os.getpid()) < before + 1024

    in_child(check)
