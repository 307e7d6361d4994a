"""Names looked up in a process of its own, for one in a chroot, where there is nothing to read."""

from __future__ import annotations

import errno
import os
from _signal import SIG_BLOCK, SIG_SETMASK, SIGKILL, pthread_sigmask, valid_signals
from _socket import AF_UNIX, SOCK_SEQPACKET, socket, socketpair

from muonsocks.errors import NameNotResolved
from muonsocks.net import resolver_process
from muonsocks.net.resolver_process import (
    ADDRESSES,
    ITSELF,
    LONGEST_ANSWER,
    LONGEST_NAME,
    NAME,
    READY,
)
from muonsocks.net.task import Waitable
from muonsocks.net.threads import MOST
from muonsocks.net.turns import Turns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from muonsocks.net.identity import Identity
    from muonsocks.net.loop import Loop
    from muonsocks.net.resolver_process import Addresses


_IT = "the process that looks names up"


class _Lookup(Waitable):
    """One look-up that is on its way."""

    __slots__ = ("error", "result")

    def __init__(self) -> None:
        super().__init__()
        self.result: Any = None
        self.error: Exception | None = None


class Resolver:
    """The process that looks names up, as seen by the one that needs their addresses."""

    __slots__ = ("_last", "_loop", "_on_death", "_pending", "_pid", "_socket", "_turns")

    def __init__(self, loop: Loop, pid: int, sock: socket, on_death: Callable[[str], None]) -> None:
        self._loop = loop
        self._pid = pid  # 0 when it is no more
        self._socket = sock
        self._on_death = on_death
        self._turns = Turns(MOST)
        self._pending: dict[int, _Lookup] = {}
        self._last = ITSELF
        sock.setblocking(False)
        loop.register(sock.fileno(), self._on_event)

    @classmethod
    def start(
        cls, loop: Loop, identity: Identity | None, on_death: Callable[[str], None]
    ) -> Resolver:
        """Start the process, as the user `identity` (or the one that this is), and wait for it.

        It has to be before a chroot, and while there is one thread. It ends with this process, or
        at `close`. If it ends by itself, `on_death` is called once with the reason, after all that
        wait have got an OSError. OSError if it cannot be started, or be that user.
        """
        ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
        blocked = pthread_sigmask(SIG_BLOCK, valid_signals())  # handlers are for this process
        try:
            pid = os.fork()
            if pid == 0:
                resolver_process.run(theirs, identity, blocked)
        except OSError:
            ours.close()
            raise
        finally:
            pthread_sigmask(SIG_SETMASK, blocked)
            theirs.close()
        try:
            said = ours.recv(LONGEST_ANSWER)
            if said != READY:
                raise _last_words(said)
        except BaseException:
            ours.close()
            _end(pid)
            raise
        return cls(loop, pid, ours, on_death)

    async def lookup(self, host: str) -> Addresses:
        """Give what `names.addresses_of` gives, or raise what it raises."""
        try:
            name = host.encode("ascii")
        except UnicodeError:
            raise NameNotResolved(f"{host} is not a name") from None
        if len(name) > LONGEST_NAME:
            raise NameNotResolved(f"{host} is too long for a name")
        return await self._ask(ADDRESSES, name)  # type: ignore[no-any-return]

    async def name_lookup(self, address: bytes) -> str:
        """The same for `names.name_of_address`."""
        return await self._ask(NAME, address)  # type: ignore[no-any-return]

    async def _ask(self, sought: int, of: bytes) -> Any:
        """Ask the process, and give or raise what it answers.

        A look-up whose task does not wait any more goes on, and counts among those that are looked
        up at a time, up to its answer.
        """
        await self._turns.take()
        if not self._pid:
            self._turns.give_back()
            raise _gone()
        lookup = _Lookup()
        number = self._last = self._last + 1
        try:
            self._socket.send(resolver_process.request(number, sought, of))
        except OSError as error:
            self._turns.give_back()
            if isinstance(error, ConnectionError):
                raise _gone() from None  # the loop will hear of it
            raise
        self._pending[number] = lookup
        await lookup
        if lookup.error is not None:
            try:
                raise lookup.error
            finally:
                lookup.error = None  # or it would keep itself alive, through the frames it came by
        return lookup.result

    def close(self) -> None:
        """End the process. Who still waits for it gets an OSError."""
        if self._pid:
            self._forget()

    def _on_event(self, _: int) -> None:
        while self._pid:
            try:
                answer = self._socket.recv(LONGEST_ANSWER + 1)
                if not answer:
                    self._die("")
                else:
                    self._receive(answer)
            except BlockingIOError:
                return
            except ConnectionError:  # it has left with requests unread
                self._die("")

    def _receive(self, answer: bytes) -> None:
        try:
            number, content = resolver_process.read(answer)
            lookup = self._pending.pop(number)
        except (ValueError, KeyError):
            self._die(str(_last_words(answer).args[-1]))
            return
        if isinstance(content, Exception):
            lookup.error = content
        else:
            lookup.result = content
        lookup.wake()
        self._turns.give_back()

    def _die(self, reason: str) -> None:
        ended = self._forget()
        self._on_death(reason or ended)

    def _forget(self) -> str:
        """Be without the process from now on; say how it has ended."""
        pid, self._pid = self._pid, 0
        self._loop.unregister(self._socket.fileno())
        self._socket.close()
        ended = _end(pid)
        pending, self._pending = self._pending, {}
        for lookup in pending.values():
            lookup.error = _gone()
            lookup.wake()
            self._turns.give_back()
        return ended


def _last_words(said: bytes) -> OSError:
    """Read what the process says of itself: that it cannot go on, and why."""
    try:
        number, content = resolver_process.read(said)
    except ValueError:
        number, content = ITSELF, []
    if number != ITSELF or not isinstance(content, OSError):
        what = "gave an answer that makes no sense" if said else "has died"
        content = OSError(errno.EPROTO, f"{_IT} {what}")
    return content


def _gone() -> OSError:
    return OSError(errno.EIO, "names cannot be looked up any more")


def _end(pid: int) -> str:
    """End a child of ours, unless it is on its way already; say how it has ended."""
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if not ended:
            os.kill(pid, SIGKILL)  # it is nobody else: its number is ours until we have waited
            _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        return f"{_IT} has ended"  # somebody else has waited for it
    code = os.waitstatus_to_exitcode(status)
    return f"{_IT} was ended by signal {-code}" if code < 0 else f"{_IT} ended with status {code}"
