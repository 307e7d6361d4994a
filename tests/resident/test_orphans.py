"""Programs that are left behind: who is their parent, and how they are found."""

import os
import signal
import subprocess

from places import in_child
from real_server import is_alive, until

from muonsocks.resident.orphans import adopt_orphans, orphans, tell_to_end


def leave(*command: str, session: bool) -> int:
    """Have a process start another one, and end; give the number of that."""
    ready, tell = os.pipe()
    if not (between := os.fork()):
        process = subprocess.Popen(command, start_new_session=session)
        os.write(tell, b"%d" % process.pid)
        os._exit(0)
    os.waitpid(between, 0)
    return int(os.read(ready, 20))


def test_orphans() -> None:
    """Those that have a session of their own are programs."""

    def check() -> None:
        assert orphans(os.getpid()) == []
        adopt_orphans()
        other = leave("sleep", "100", session=False)
        program = leave("sleep", "100", session=True)
        assert orphans(os.getpid()) == [program]
        assert program not in orphans(1)
        tell_to_end(program)
        until("it has ended", lambda: not is_alive(program))
        assert orphans(os.getpid()) == [], "it is to be buried, and no more"
        assert os.waitpid(program, 0) == (program, signal.SIGTERM)
        tell_to_end(program)
        assert is_alive(other)
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)

    in_child(check)
