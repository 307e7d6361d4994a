"""To register with a server that passes connections on: the protocol, and its receiving side.

Over a connection of messages the receiver says which group it is, the server agrees, and from then
on each message is a connection. Numbers are big endian:

    to the server     1, 0, 0, 0, and the number of the group in four bytes
    to the receiver   128, 0, 0, 0    it is registered, until either side closes
                      3, 0, 0, 0      and a descriptor: a connection

A server that does not agree closes.
"""

from __future__ import annotations

import errno
from _socket import (
    AF_UNIX,
    MSG_NOSIGNAL,
    SO_RCVTIMEO,
    SO_SNDTIMEO,
    SOCK_SEQPACKET,
    SOL_SOCKET,
    socket,
)
from struct import pack

from muonsocks.net.stream import unix_address

REQUEST = b"\1\0\0\0"  # and the group
AGREED = b"\x80\0\0\0"
CONNECTION = b"\3\0\0\0"  # with a descriptor
LARGEST_GROUP = 0xFFFFFFFF
_LONGEST = 128  # bytes of an answer


def register(path: str, group: int, seconds: float) -> socket:
    """Register as a group with the server whose control socket is at `path` (with @ in front, in
    the abstract namespace). Gives the socket that connections come to; it does not block.

    OSError, which has the path: EACCES if the server does not agree, ETIMEDOUT if it has not
    answered after so many seconds, EPROTO if it has said anything else.
    """
    sock = socket(AF_UNIX, SOCK_SEQPACKET)
    try:
        patience = pack("ll", int(seconds), int(seconds % 1 * 1e6))  # struct timeval
        sock.setsockopt(SOL_SOCKET, SO_SNDTIMEO, patience)  # which is for connect(2) too
        sock.setsockopt(SOL_SOCKET, SO_RCVTIMEO, patience)
        _agree(sock, path, group)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        if isinstance(error, BlockingIOError):
            raise OSError(errno.ETIMEDOUT, f"no answer within {seconds:g} s", path) from None
        raise OSError(error.errno, error.strerror, path) from None
    except BaseException:
        sock.close()
        raise
    return sock


def _agree(sock: socket, path: str, group: int) -> None:
    sock.connect(unix_address(path))
    sock.send(REQUEST + group.to_bytes(4, "big"), MSG_NOSIGNAL)
    answer = sock.recv(_LONGEST)
    if not answer:
        reason = f"the server does not take us as group {group}: is it another user's, or taken?"
        raise OSError(errno.EACCES, reason)
    if answer != AGREED:
        raise OSError(errno.EPROTO, f"the server has answered {answer.hex()}, not {AGREED.hex()}")
