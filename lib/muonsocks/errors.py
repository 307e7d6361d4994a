"""The errors that more than one room raises or catches.

Library code raises; only sessions, servers and tools log.
"""

from __future__ import annotations

import errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


# What this host can run out of; ENOSPC is epoll's limit on what all may watch together
SHORTAGES = (
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOBUFS,
    errno.EAGAIN,
    errno.ENOSPC,
)


class UsageError(ValueError):
    """The command line, a file or the environment asks for something that cannot be.

    Tools print it as one line, with the hint of what to do instead, and exit with 100.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}; {hint}" if hint else message)


class LocalProtocolError(Exception):
    """We drove a protocol machine wrongly: a fault in this program, never in the peer."""


class RemoteProtocolError(Exception):
    """The peer broke the protocol.

    `reply` holds the bytes that it has earned on the wire (empty where the protocol has none),
    `code` the reply code in them, as RFC 1928 section 6 numbers it, for the log.
    """

    def __init__(self, message: str, reply: bytes = b"", code: int | None = None) -> None:
        super().__init__(message)
        self.reply = reply
        self.code = code


class RefusedByRule(Exception):
    """A rule, or the ban of this host's own addresses, forbids the destination."""


class NameNotResolved(OSError):
    """The name has no address that could be tried. `strerror` says why; `errno` is ETIMEDOUT if
    that took too long.
    """

    def __init__(self, reason: str, number: int | None = None) -> None:
        super().__init__(number, reason)


class RequestFailed(OSError):
    """Who was asked to carry a request out has answered with a reply code, and no success."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(None, reason)
        self.code = code


class RequestImpossible(RequestFailed):
    """The protocol of who is to be asked has no way to say the request: nobody has been asked."""


class DialError(OSError):
    """No address of the destination could be reached.

    `errno` is the one that says most about the destination; `failures` has every attempt in the
    order in which it ended, as (address, errno).
    """

    def __init__(self, number: int, reason: str, failures: Sequence[tuple[str, int]]) -> None:
        super().__init__(number, reason)
        self.failures = failures


class ProxyFailed(DialError):
    """A proxy on the way cannot be reached, or has not done its part; of the destination that says
    nothing. `strerror` begins with the proxy, `errno` is 0 if it was no call of ours that failed.
    """

    def __init__(
        self, reason: str, number: int = 0, failures: Sequence[tuple[str, int]] = ()
    ) -> None:
        super().__init__(number, reason, failures)


class ProxyNotReached(ProxyFailed):
    """There is no connection to a proxy."""


class NotAdmittedByProxy(ProxyFailed):
    """A proxy wants a password, or another one."""


class NobodyCame(OSError):
    """A peer that was waited for has not connected in time."""

    def __init__(self, reason: str | None) -> None:
        super().__init__(errno.ETIMEDOUT, reason)


class NotAdmitted(Exception):
    """A proxy does not let us in: it wants a password, or another one."""


def in_one_line(error: UsageError | OSError) -> str:
    """Say what was wrong, as a line for the user."""
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        return f"{error.filename}: {reason}" if error.filename else reason
    return str(error)
