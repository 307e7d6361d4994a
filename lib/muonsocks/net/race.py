"""The race of all addresses of a destination: which of them answers first (RFC 8305)."""

from __future__ import annotations

import errno
import os
from _socket import socket

from muonsocks.address import Endpoint
from muonsocks.errors import DialError
from muonsocks.net.loop import WRITABLE, Loop, Timer
from muonsocks.net.stream import Stream
from muonsocks.net.task import Mailbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_STAGGER = 0.25  # s between two attempts, RFC 8305 section 8: Connection Attempt Delay
_AT_ONCE = 8  # attempts for one destination: no name server may have us open more sockets
_STILL_CONNECTING = (errno.EINPROGRESS, errno.EALREADY)
_CONNECTED = (0, errno.EISCONN)

# Of several failures, the one that says most about the destination is the one to report: first
# what the destination itself said, then what the way there did, then what went wrong here.
_TELLING = (
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.ETIMEDOUT,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
)


async def race(
    loop: Loop,
    start: Callable[[Endpoint], Stream | Attempt],
    candidates: list[Endpoint],
    failures: list[tuple[str, int]],
    *under_way: Attempt,
) -> Stream:
    """Start an attempt every 250 ms, or when one has failed; the first to connect wins. DialError
    if none does.

    Of more than `_AT_ONCE` the next one waits until another has failed.

    `failures` gets the others; those that are cut short have timed out.
    """
    mailbox = Mailbox()
    waiting = candidates[::-1]
    racing = set(under_way)
    for one in racing:
        one.mailbox = mailbox
    stagger: Timer | None = None
    try:
        while waiting or racing:
            if waiting and stagger is None and len(racing) < _AT_ONCE:
                candidate = waiting.pop()
                try:
                    attempt = start(candidate)
                except OSError as error:
                    failures.append((candidate.host, error.errno or 0))
                    continue
                if isinstance(attempt, Stream):
                    return attempt
                attempt.mailbox = mailbox
                racing.add(attempt)
                if waiting:
                    stagger = loop.call_later(_STAGGER, lambda: mailbox.post(None))
            happened: Attempt | None = await mailbox.take()
            if happened is None:
                if stagger is not None and stagger.callback is None:
                    stagger = None  # else it is of an earlier one, which a failure overtook
                continue
            if happened not in racing:
                continue
            result = happened.result()
            if result in _STILL_CONNECTING:
                continue
            racing.discard(happened)
            if not result:
                return happened.stream()
            happened.close()
            failures.append((happened.candidate.host, result))
            if stagger is not None:
                stagger.cancel()
                stagger = None
    finally:
        if stagger is not None:
            stagger.cancel()
        for one in racing:
            one.close()
            failures.append((one.candidate.host, errno.ETIMEDOUT))
    raise dial_error(failures)


def begin(loop: Loop, sock: socket, candidate: Endpoint, patience: float) -> Stream | Attempt:
    """Begin to connect a socket, for so many seconds; give a stream if that is done at once.
    OSError, and it is closed, if it cannot be.
    """
    try:
        number = sock.connect_ex(candidate.sockaddr)
        if number == errno.EINPROGRESS:
            number = sock.connect_ex(candidate.sockaddr)  # on this host nothing takes time
        if number in _CONNECTED:
            return Stream(loop, sock, str(candidate))
        if number not in _STILL_CONNECTING:
            raise OSError(number, os.strerror(number))
        return Attempt(loop, sock, candidate, patience)
    except OSError:
        sock.close()
        raise


class Attempt:
    """One connection attempt under way; posts itself when something has happened to it."""

    __slots__ = (
        "_ready",
        "_sock",
        "_timed_out",
        "_timer",
        "candidate",
        "loop",
        "mailbox",
    )

    mailbox: Mailbox

    def __init__(self, loop: Loop, sock: socket, candidate: Endpoint, patience: float) -> None:
        self.loop = loop
        self.candidate = candidate
        self._sock = sock
        self._ready = 0
        self._timed_out = False
        loop.register(sock.fileno(), self._on_event, room=True)
        self._timer = loop.call_later(patience, self._on_timeout)

    def _on_event(self, events: int) -> None:
        self._ready |= events
        self.mailbox.post(self)

    def _on_timeout(self) -> None:
        self._timed_out = True
        self.mailbox.post(self)

    def result(self) -> int:
        """Give 0 when it is connected, the errno of its failure, or EALREADY."""
        if self._timed_out:
            return errno.ETIMEDOUT
        if not self._ready & WRITABLE:
            return errno.EALREADY
        # To ask again tells what has become of it.
        number = self._sock.connect_ex(self.candidate.sockaddr)
        return 0 if number in _CONNECTED else number

    def stream(self) -> Stream:
        """Make a stream of a socket that is connected."""
        self._timer.cancel()
        return Stream(self.loop, self._sock, str(self.candidate), known=self._ready)

    def close(self) -> None:
        """Give up."""
        self._timer.cancel()
        self.loop.unregister(self._sock.fileno())
        self._sock.close()


def interleaved(candidates: list[Endpoint]) -> list[Endpoint]:
    """Take turns between the families, beginning with that of the first (RFC 8305 section 4)."""
    if not candidates:
        return []
    first = candidates[0].family
    ours = [one for one in candidates if one.family == first]
    others = [one for one in candidates if one.family != first]
    shorter = min(len(ours), len(others))
    woven = [one for pair in zip(ours, others, strict=False) for one in pair]
    return woven + ours[shorter:] + others[shorter:]


def dial_error(failures: list[tuple[str, int]]) -> DialError:
    """Make the error of all these failures."""
    number = most_telling([number for _, number in failures])
    return DialError(number, os.strerror(number), failures)


def most_telling(numbers: Iterable[int]) -> int:
    """Choose the errno to report among those of all attempts."""
    rank = {number: place for place, number in enumerate(_TELLING)}
    return min(numbers, key=lambda number: rank.get(number, len(rank)), default=errno.ENETUNREACH)
