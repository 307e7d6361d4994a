"""The process that looks names up: what it is asked and answers, and its life.

Messages on a SOCK_SEQPACKET socket pair, one each way for each look-up, the answers in any order:

    request   number (8 bytes), what is sought (1 byte), and by that
              ADDRESSES of this name
              NAME      of this address: 4 or 16 bytes
    answer    number (8 bytes), verdict (1 byte), and by that
              FOUND     for each address: its length (1 byte), itself, its scope (4 bytes)
              UNKNOWN   why the name has no address, or the address no name
              FAILED    errno (4 bytes), why the system cannot look anything up
              NAMED     the address's name

Numbers are big-endian. Number 0 is the process itself: FOUND when it is ready, else why it ends.
"""

from __future__ import annotations

import errno
import os
from _signal import (
    SIG_IGN,
    SIG_SETMASK,
    SIGHUP,
    SIGINT,
    SIGTERM,
    getsignal,
    pthread_sigmask,
    signal,
    valid_signals,
)
from _socket import MSG_DONTWAIT, socket

from muonsocks.errors import NameNotResolved
from muonsocks.net.identity import Identity
from muonsocks.net.loop import Loop
from muonsocks.net.names import MOST_ADDRESSES, addresses_of, name_of_address
from muonsocks.net.privileges import give_up
from muonsocks.net.task import Waitable
from muonsocks.net.threads import MOST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NoReturn

    from muonsocks.net.identity import Identity

    Addresses = list[tuple[bytes, int]]

ITSELF = 0  # the number of no look-up
ADDRESSES, NAME = range(2)  # what is sought
LONGEST_NAME = 255  # bytes
_FOUND, _UNKNOWN, _FAILED, _NAMED = range(4)
_HEAD = 9  # bytes: number, and verdict or what is sought
_LONGEST_REQUEST = _HEAD + LONGEST_NAME
_LONGEST_REASON = 500  # bytes
LONGEST_ANSWER = _HEAD + max(MOST_ADDRESSES * 21, 4 + _LONGEST_REASON)
_ALL_DESCRIPTORS = 0x7FFFFFFF  # close_range(2) takes no longer for it


def found(number: int, addresses: Addresses) -> bytes:
    """Say which addresses a name has."""
    parts = [number.to_bytes(8, "big"), bytes([_FOUND])]
    for packed, scope in addresses:
        parts += bytes([len(packed)]), packed, scope.to_bytes(4, "big")
    return b"".join(parts)


READY = found(ITSELF, [])


def named(number: int, name: str) -> bytes:
    """Say which name an address has, of printable ASCII."""
    return number.to_bytes(8, "big") + bytes([_NAMED]) + name.encode("ascii")


def request(number: int, sought: int, of: bytes) -> bytes:
    """Ask for the addresses of a name, or the name of an address."""
    return number.to_bytes(8, "big") + bytes([sought]) + of


def failure(number: int, error: BaseException) -> bytes:
    """Say why something could not be done."""
    head = number.to_bytes(8, "big")
    reason = str(error)
    if isinstance(error, NameNotResolved):
        head += bytes([_UNKNOWN])
        reason = error.strerror or reason
    elif isinstance(error, OSError):
        head += bytes([_FAILED]) + (error.errno or errno.EIO).to_bytes(4, "big")
        reason = error.strerror or reason
    else:
        head += bytes([_FAILED]) + errno.EIO.to_bytes(4, "big")
        reason = f"{type(error).__name__}: {error}"
    return head + reason.encode(errors="replace")[:_LONGEST_REASON]


def read(answer: bytes) -> tuple[int, Addresses | str | OSError]:
    """Read an answer: its number, and what is to be given or raised. ValueError if it is none."""
    if not _HEAD <= len(answer) <= LONGEST_ANSWER:
        raise ValueError
    number, verdict, rest = int.from_bytes(answer[:8], "big"), answer[8], answer[_HEAD:]
    if verdict == _FOUND:
        return number, _addresses(rest)
    if verdict == _UNKNOWN:
        return number, NameNotResolved(rest.decode(errors="replace"))
    if verdict == _NAMED:
        return number, rest.decode("ascii")
    if verdict != _FAILED or len(rest) < 4:
        raise ValueError
    reason = rest[4:].decode(errors="replace")
    return number, OSError(int.from_bytes(rest[:4], "big"), reason)


def _addresses(data: bytes) -> Addresses:
    addresses: Addresses = []
    while data:
        end = 1 + data[0]
        if end not in (5, 17) or len(data) < end + 4:
            raise ValueError
        addresses.append((data[1:end], int.from_bytes(data[end : end + 4], "big")))
        data = data[end + 4 :]
    return addresses


def run(sock: socket, identity: Identity | None, mask: Iterable[int]) -> NoReturn:
    """Be the process that looks names up, from the fork on; `mask` are the signals to block."""
    try:
        _leave_parent(sock.fileno())
        pthread_sigmask(SIG_SETMASK, mask)
        give_up(identity, None)
        _Helper(sock).run()
    except ConnectionError:
        os._exit(0)  # of the socket: nobody is there to be answered
    except BaseException as error:
        sock.send(failure(ITSELF, error), MSG_DONTWAIT)
    finally:
        os._exit(1)  # even if nobody takes what was to be said


def _leave_parent(fd: int) -> None:
    """Keep nothing of the parent's but fd 2 and `fd`, and none of its signal handlers.

    What asks a server to end or to begin anew comes to all its processes: this one ends when the
    one that it works for does, which may be a while yet.
    """
    for number in valid_signals():
        if number in (SIGINT, SIGHUP, SIGTERM) or callable(getsignal(number)):
            signal(number, SIG_IGN)
    os.closerange(0, 2)
    os.closerange(3, fd)
    os.closerange(fd + 1, _ALL_DESCRIPTORS)


class _Helper:
    """Answers requests until there is nobody who could send one."""

    __slots__ = ("_in_flight", "_loop", "_socket")

    def __init__(self, sock: socket) -> None:
        self._loop = Loop()
        self._socket = sock  # is blocking: an answer may wait to be taken
        self._in_flight = 0

    def run(self) -> NoReturn:
        """Answer. Raises ConnectionError when the other side is gone."""
        self._loop.register(self._socket.fileno(), self._on_event)
        self._send(READY)
        self._loop.run(_for_ever())
        raise AssertionError("it never ends")

    def _on_event(self, _: int) -> None:
        while True:
            try:
                request = self._socket.recv(_LONGEST_REQUEST, MSG_DONTWAIT)
            except BlockingIOError:
                return
            if not request:
                raise ConnectionError
            self._in_flight += 1
            if self._in_flight > MOST:
                raise ValueError("more is asked than was agreed")
            self._loop.spawn(self._answer(request), _raise)

    async def _answer(self, request: bytes) -> None:
        number, sought, of = int.from_bytes(request[:8], "big"), request[8:_HEAD], request[_HEAD:]
        in_thread = self._loop.in_thread
        try:
            if sought == bytes([NAME]):
                answer = named(number, await in_thread(name_of_address, of))
            else:
                answer = found(number, await in_thread(addresses_of, of.decode("ascii")))
        except OSError as error:
            answer = failure(number, error)
        self._in_flight -= 1
        self._send(answer)

    def _send(self, answer: bytes) -> None:
        self._socket.send(answer)


async def _for_ever() -> None:
    await Waitable()


def _raise(error: BaseException) -> None:
    raise error
