"""Programs that are left behind: who is their parent, and how they are found."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from places import in_child, in_own_network, root_only, sh
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


@root_only()
def test_processes_of_others_may_be_hidden() -> None:
    """They are none of ours."""

    def check() -> None:
        sh("mount -t proc -o hidepid=noaccess proc /proc")
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        with pytest.raises(PermissionError):
            Path("/proc/1/stat").read_text()
        adopt_orphans()
        program = leave("sleep", "100", session=True)
        assert orphans(os.getpid()) == [program]
        tell_to_end(program)
        assert os.waitpid(program, 0) == (program, signal.SIGTERM)

    in_own_network(lambda: in_child(check))


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
