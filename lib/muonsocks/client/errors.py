"""What can go wrong on the way through proxies, as a program is told it: a family of OSErrors.

    ProxyError                  all of them
      ProxyUnreachable            no connection to a proxy
      ProxyMisbehaved             a proxy breaks the protocol, or hangs up
      LoginRefused                a proxy wants a password, or another one
      RequestRefused              a proxy will not, or cannot, do what is asked
      ProxyTimedOut               time was up before a proxy had answered; a TimeoutError
      DestinationUnreachable      a proxy says that there is no way to the destination
        DestinationRefused          that it refuses the connection; a ConnectionRefusedError
        DestinationTimedOut         that it does not answer; a TimeoutError
      NameNotFound                a name that is looked up here has no address; a socket.gaierror

Each has the `side` at fault, "proxy", "destination" or "here", and the reply `code` (RFC 1928
section 6) if a proxy has given one. `errno` is what a connection without a proxy would have had.
"""

from __future__ import annotations

import errno
import os
from _socket import EAI_NONAME, gaierror

from muonsocks.errors import (
    DialError,
    NameNotResolved,
    NotAdmittedByProxy,
    ProxyFailed,
    ProxyNotReached,
    RequestFailed,
)
from muonsocks.socks.request import ReplyCode


class ProxyError(OSError):
    """Something has gone wrong on the way through proxies."""

    side = "proxy"

    def __init__(self, number: int, reason: str, code: int | None = None) -> None:
        super().__init__(number, reason)
        self.code = code


class ProxyUnreachable(ProxyError):
    """There is no connection to a proxy; `errno` says why."""


class ProxyMisbehaved(ProxyError):
    """A proxy breaks the protocol (EPROTO), or hangs up in the middle (ECONNRESET)."""


class LoginRefused(ProxyError):
    """A proxy wants a user and a password, or others (EACCES)."""


class RequestRefused(ProxyError):
    """A proxy will not or cannot do what it is asked for, for reasons of its own."""


class ProxyTimedOut(ProxyError, TimeoutError):
    """Time was up before a proxy had answered (ETIMEDOUT)."""


class DestinationUnreachable(ProxyError):
    """A proxy says that there is no way to the destination, by reply code 3 to 6."""

    side = "destination"


class DestinationRefused(DestinationUnreachable, ConnectionRefusedError):
    """A proxy says that the destination refuses the connection, by reply code 5 (ECONNREFUSED)."""


class DestinationTimedOut(DestinationUnreachable, TimeoutError):
    """A proxy says that the destination does not answer, by reply code 6 (ETIMEDOUT)."""


class NameNotFound(ProxyError, gaierror):
    """A name that is to be looked up here has no address that could be gone to (EAI_NONAME)."""

    side = "here"


# RFC 1928 does not say what connect(2) would; this is the other half of request.reply_code.
_BY_CODE: dict[int, tuple[type[ProxyError], int]] = {
    ReplyCode.NOT_ALLOWED: (RequestRefused, errno.EACCES),
    ReplyCode.NETWORK_UNREACHABLE: (DestinationUnreachable, errno.ENETUNREACH),
    ReplyCode.HOST_UNREACHABLE: (DestinationUnreachable, errno.EHOSTUNREACH),
    ReplyCode.CONNECTION_REFUSED: (DestinationRefused, errno.ECONNREFUSED),
    ReplyCode.TTL_EXPIRED: (DestinationTimedOut, errno.ETIMEDOUT),
    ReplyCode.COMMAND_NOT_SUPPORTED: (RequestRefused, errno.EOPNOTSUPP),
    ReplyCode.ADDRESS_TYPE_NOT_SUPPORTED: (RequestRefused, errno.EAFNOSUPPORT),
    ReplyCode.IDENTITY_REFUSED: (RequestRefused, errno.EACCES),
}


def told(error: OSError) -> OSError:
    """Make what a program is told of an error from the rooms below."""
    reason = error.strerror or str(error)
    if isinstance(error, RequestFailed):
        kind, number = _BY_CODE.get(error.code, (RequestRefused, errno.ECONNABORTED))
        return kind(number, reason, error.code)
    if isinstance(error, NameNotResolved):
        return NameNotFound(EAI_NONAME, reason)
    if isinstance(error, ProxyFailed):
        number = error.errno or 0
        if number == errno.ETIMEDOUT:
            return ProxyTimedOut(number, reason)
        if isinstance(error, NotAdmittedByProxy):
            return LoginRefused(errno.EACCES, reason)
        if isinstance(error, ProxyNotReached):
            return ProxyUnreachable(number or errno.EHOSTUNREACH, reason)
        return ProxyMisbehaved(number or errno.EPROTO, reason)
    if isinstance(error, DialError):
        return OSError(error.errno, reason)  # without proxies: of the class that has this number
    return error


def timed_out() -> TimeoutError:
    """Make the error of a wait that was too long for whoever waited, as `socket` has it."""
    return TimeoutError("timed out")


def in_progress() -> BlockingIOError:
    """Make the error of what goes on by itself, as connect(2) has it."""
    return BlockingIOError(errno.EINPROGRESS, os.strerror(errno.EINPROGRESS))


def try_again() -> BlockingIOError:
    """Make the error of what would have to wait, as recv(2) has it."""
    return BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def number_of(error: OSError) -> int:
    """Give the errno of an error, as connect_ex() and SO_ERROR have it."""
    number = error.errno or errno.EIO
    if isinstance(error, TimeoutError):
        return error.errno or errno.EAGAIN
    return number if number > 0 else errno.EHOSTUNREACH  # of getaddrinfo(3), which has its own
