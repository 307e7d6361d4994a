"""A program that goes on in the background, and ends in the foreground once it serves."""

from __future__ import annotations

import os

from muonsocks.tools.open_descriptors import is_socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.log import Log


def background(log: Log, for_program: bool = False) -> int:
    """Go on in a child that has left the terminal, and give the descriptor where it says, by a
    newline, that it serves: then the parent ends. If the child ends before, so does the parent, as
    that did. With `for_program` the newline says that it has failed, and a program that is
    executed, for which the descriptor is closed, that it has not.
    """
    ready, tell = os.pipe()
    child = os.fork()
    if child:
        os.close(tell)
        if bool(os.read(ready, 1)) != for_program:
            os._exit(0)
        os._exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 1))
    os.close(ready)
    os.setsid()
    os.chdir("/")
    if not is_socket(0):  # or else it may be one that an option or a rule has named
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, 0)
        if null > 0:
            os.close(null)
    log.after_fork()
    return tell
