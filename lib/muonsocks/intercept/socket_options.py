"""What a program has set of a TCP socket, to be set of another one that takes its place."""

from __future__ import annotations

from _socket import (
    AF_INET6,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPPROTO_TCP,
    SO_KEEPALIVE,
    SO_LINGER,
    SO_MARK,
    SO_OOBINLINE,
    SO_PRIORITY,
    SO_RCVBUF,
    SO_RCVLOWAT,
    SO_RCVTIMEO,
    SO_REUSEADDR,
    SO_SNDBUF,
    SO_SNDTIMEO,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_CONGESTION,
    TCP_CORK,
    TCP_KEEPCNT,
    TCP_KEEPIDLE,
    TCP_KEEPINTVL,
    TCP_LINGER2,
    TCP_NODELAY,
    TCP_NOTSENT_LOWAT,
    TCP_SYNCNT,
    TCP_USER_TIMEOUT,
    socket,
)
from contextlib import contextmanager
from errno import ENOPROTOOPT
from sys import byteorder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    Options = dict[tuple[int, int], bytes]

SO_BUF_LOCK = 72  # socket(7) does not have it yet: which buffers have been set, 1 output, 2 input
_IP_TOS, _IP_TTL, _IP_MTU_DISCOVER, _IP_RECVERR = 1, 2, 10, 11
_IPV6_UNICAST_HOPS, _IPV6_MTU_DISCOVER, _IPV6_RECVERR, _IPV6_TCLASS = 16, 23, 25, 67
_SO_TIMESTAMP, _SO_TIMESTAMPNS, _SO_TIMESTAMPING, _SO_BUSY_POLL = 29, 35, 37, 46
_SO_MAX_PACING_RATE, _SO_ZEROCOPY = 47, 60
_TCP_INQ = 36
_LONGEST = 16  # bytes: a struct timeval, or the name of a congestion control

_BUFFERS = ((1, SO_SNDBUF), (2, SO_RCVBUF))
_PLAIN = (
    *((SOL_SOCKET, one) for one in (SO_REUSEADDR, SO_KEEPALIVE, SO_OOBINLINE, SO_LINGER)),
    *((SOL_SOCKET, one) for one in (SO_PRIORITY, SO_MARK, SO_RCVLOWAT, SO_RCVTIMEO, SO_SNDTIMEO)),
    *((SOL_SOCKET, one) for one in (_SO_TIMESTAMP, _SO_TIMESTAMPNS, _SO_TIMESTAMPING)),
    *((SOL_SOCKET, one) for one in (_SO_BUSY_POLL, _SO_MAX_PACING_RATE, _SO_ZEROCOPY)),
    *((IPPROTO_TCP, one) for one in (TCP_NODELAY, TCP_CORK, TCP_KEEPIDLE, TCP_KEEPINTVL)),
    *((IPPROTO_TCP, one) for one in (TCP_KEEPCNT, TCP_SYNCNT, TCP_LINGER2, TCP_CONGESTION)),
    *((IPPROTO_TCP, one) for one in (TCP_USER_TIMEOUT, TCP_NOTSENT_LOWAT)),
    (IPPROTO_TCP, _TCP_INQ),
    *((IPPROTO_IP, one) for one in (_IP_TOS, _IP_TTL, _IP_MTU_DISCOVER, _IP_RECVERR)),
)
_OF_IPV6 = (
    *((IPPROTO_IPV6, one) for one in (_IPV6_UNICAST_HOPS, _IPV6_MTU_DISCOVER)),
    *((IPPROTO_IPV6, one) for one in (_IPV6_RECVERR, _IPV6_TCLASS)),
)

# What whoever connects it would be waiting for: answers of proxies are short.
NOT_BEFORE = frozenset({(SOL_SOCKET, SO_RCVLOWAT)})

_fresh: dict[int, Options] = {}  # by the family


def options_of(sock: socket) -> Options:
    """Give what a socket has that one of its family does not have from the beginning. OSError."""
    family = sock.family
    if family not in _fresh:
        one = socket(family, SOCK_STREAM)
        try:
            _fresh[family] = _all_of(one)
        finally:
            one.close()
    fresh = _fresh[family]
    found = {which: value for which, value in _all_of(sock).items() if fresh.get(which) != value}
    locks = buffer_locks(sock)
    for bit, number in _BUFFERS:
        if locks & bit:
            size = sock.getsockopt(SOL_SOCKET, number) // 2  # the kernel gives twice what was set
            found[SOL_SOCKET, number] = size.to_bytes(4, byteorder)
    return found


def set_options(sock: socket, options: Options) -> None:
    """Set them of another one, where that has them, and as far as we may."""
    for (level, number), value in options.items():
        try:
            sock.setsockopt(level, number, value)
        except OSError:
            continue  # a mark that only another user may set, or an option of another family


@contextmanager
def told_of_each_byte(sock: socket) -> Iterator[None]:
    """Have a socket be readable as soon as there is anything, whatever the program wants: answers
    of proxies are short. OSError.
    """
    enough = sock.getsockopt(SOL_SOCKET, SO_RCVLOWAT)
    if enough <= 1:
        yield
        return
    sock.setsockopt(SOL_SOCKET, SO_RCVLOWAT, 1)
    try:
        yield
    finally:
        if sock.getsockopt(SOL_SOCKET, SO_RCVLOWAT) == 1:  # nobody has set it meanwhile
            sock.setsockopt(SOL_SOCKET, SO_RCVLOWAT, enough)


def buffer_locks(sock: socket) -> int:
    """Say which buffers have been set, and do not grow by themselves; 0 before Linux 5.14, which
    does not tell.
    """
    try:
        return sock.getsockopt(SOL_SOCKET, SO_BUF_LOCK)
    except OSError as error:
        if error.errno == ENOPROTOOPT:
            return 0
        raise


def _all_of(sock: socket) -> Options:
    found = {}
    for level, number in (*_PLAIN, *_OF_IPV6) if sock.family == AF_INET6 else _PLAIN:
        try:
            found[level, number] = sock.getsockopt(level, number, _LONGEST)
        except OSError as error:
            if error.errno != ENOPROTOOPT:
                raise
    return found
