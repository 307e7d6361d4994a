"""What becomes of a program that goes on in the background: the status it ends with, and where its
child is.
"""

import os
from collections.abc import Callable

import pytest

from muonsocks.log import Log
from muonsocks.tools.background import background


def status_of(story: Callable[[int], None], for_program: bool = False) -> int:
    """Run a program whose child does this with the descriptor that it gets, and ends with 7."""
    pid = os.fork()
    if pid == 0:
        try:
            story(background(Log("test"), for_program))
        finally:
            os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(
    ("story", "for_program", "status"),
    [
        (lambda tell: os.write(tell, b"\n"), False, 0),
        (lambda tell: None, False, 7),
        (lambda tell: os._exit(0), False, 1),
        (lambda tell: os.kill(os.getpid(), 9), False, 1),
        (lambda tell: os.execvp("true", ["true"]), True, 0),
        (lambda tell: os.write(tell, b"\n"), True, 7),
    ],
)
def test_status(story: Callable[[int], None], for_program: bool, status: int) -> None:
    assert status_of(story, for_program) == status


def test_where_it_is() -> None:
    reader, writer = os.pipe()
    try:

        def tell_all(tell: int) -> None:
            where = (os.getcwd(), os.readlink("/proc/self/fd/0"), os.getsid(0) == os.getpid())
            os.write(writer, repr(where).encode())
            os.write(tell, b"\n")

        assert status_of(tell_all) == 0
        assert os.read(reader, 1000).decode() == repr(("/", "/dev/null", True))
    finally:
        os.close(reader)
        os.close(writer)
