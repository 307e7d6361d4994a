"""Descriptors that are open when socketbox starts, and over which connections can be passed on."""

from __future__ import annotations

import os
from _socket import AF_UNIX, socket
from stat import S_ISSOCK

from muonsocks.errors import UsageError
from muonsocks.tools.command_line import descriptor


def receiving_socket(text: str) -> int:
    """Give the descriptor of -i, which has to be a unix socket that leads somewhere. UsageError."""
    fd = descriptor(text, "-i")
    if fd == 2:
        raise UsageError("-i: descriptor 2 is for the log", "give another one, say 3")
    hint = "give one end of a unix socket"
    try:
        sock = socket(fileno=fd)
    except OSError:
        raise UsageError(f"-i: descriptor {fd} is no unix socket", hint) from None
    try:
        if sock.family != AF_UNIX:
            raise UsageError(f"-i: descriptor {fd} is no unix socket", hint)
        sock.getpeername()
    except OSError:
        raise UsageError(f"-i: descriptor {fd} is not connected", hint) from None
    finally:
        sock.detach()
    return fd


def open_descriptors() -> frozenset[int]:
    """Give those that rules may name: all that are open, but for standard streams, unless those are
    sockets, too; and never the one that the log goes to.
    """
    fds = frozenset(int(name) for name in os.listdir("/proc/self/fd")) - {2}
    return frozenset(fd for fd in fds if is_socket(fd) or (fd > 2 and _is_open(fd)))


def is_socket(fd: int) -> bool:
    """Say whether a descriptor is open, and a socket."""
    return _is_open(fd) and S_ISSOCK(os.fstat(fd).st_mode)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False  # the list was read from it, say
    return True
