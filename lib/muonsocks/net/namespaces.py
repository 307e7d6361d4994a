"""Network namespaces: which network the sockets are made in that a thread makes."""

from __future__ import annotations

import os
from ctypes import CDLL, get_errno

_CLONE_NEWNET = 0x40000000  # setns(2): that it is a network and nothing else

_library = CDLL(None, use_errno=True)


def enter_network(path: str) -> None:
    """Be in the network namespace of a file, /run/netns/NAME say, from now on. What is open stays
    where it is. OSError that names the file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _library.setns(fd, _CLONE_NEWNET) < 0:
            number = get_errno()
            raise OSError(number, os.strerror(number), path)
    finally:
        os.close(fd)
