"""A network device whose packets a program takes and makes: tun(4)."""

from __future__ import annotations

import errno
import os
from _socket import if_nametoindex
from fcntl import ioctl
from struct import Struct

_PATH = "/dev/net/tun"
_REQUEST = Struct("=16sH22x")  # struct ifreq: name, flags
_SET_DEVICE = 0x400454CA  # TUNSETIFF
_PACKETS, _BARE = 0x1, 0x1000  # IFF_TUN, IFF_NO_PI
_NAME = "proxied"


def make_device() -> tuple[int, int]:
    """Make one in this network. Gives the descriptor, which does not block, and the number of the
    interface, which is down. OSError, which says what it takes.
    """
    try:
        fd = os.open(_PATH, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _unavailable(error) from None
    try:
        ioctl(fd, _SET_DEVICE, _REQUEST.pack(_NAME.encode(), _PACKETS | _BARE))
    except OSError as error:
        os.close(fd)
        raise _unavailable(error) from None
    return fd, if_nametoindex(_NAME)


def _unavailable(error: OSError) -> OSError:
    reason = f"no datagrams, which take {_PATH}: {error.strerror}"
    return OSError(error.errno or errno.EPERM, reason)
