"""Standard input, if its peer connects again whenever that has ended, as QEMU does.

So one who hangs up is called once more, but that may be taken by another process. One that has hung
up therefore waits for it, at a socket that is named for the caller; the next one finds it there.
"""

from __future__ import annotations

import errno
import os
from _socket import (
    AF_UNIX,
    SHUT_RDWR,
    SO_PEERCRED,
    SOCK_NONBLOCK,
    SOCK_SEQPACKET,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)
from stat import S_ISSOCK
from struct import Struct

from muonsocks.errors import UsageError
from muonsocks.mux.places import StandardStreams
from muonsocks.net.listen import listen_at
from muonsocks.net.stream import unix_address
from muonsocks.net.task import Waitable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.net.loop import Loop

_CREDENTIALS = Struct("iII")  # ucred, unix(7): the peer's process, user and group
_CALLS_WITHIN = 10.0  # s; QEMU with reconnect=1 takes one


class Caller(StandardStreams):
    """Standard input and output, as a unix socket whose peer calls again when it has ended."""

    deaf_for = 0.5  # so that all works within 3 s: QEMU takes one to call, and that twice

    __slots__ = ("_connection", "_name", "has_come_again")

    def __init__(self) -> None:
        """UsageError if they are no such socket, OSError if they are not open."""
        super().__init__()
        if not os.path.sameopenfile(0, 1) or not S_ISSOCK(os.fstat(0).st_mode):
            raise _not_a_caller()
        self._connection = socket(fileno=os.dup(0))
        if self._connection.family != AF_UNIX or self._connection.type != SOCK_STREAM:
            raise _not_a_caller()
        ucred = self._connection.getsockopt(SOL_SOCKET, SO_PEERCRED, _CREDENTIALS.size)
        process, user, _ = _CREDENTIALS.unpack(ucred)
        self._name = f"@virtio-mux/{user}/{process}"
        self.has_come_again = self._is_awaited()

    def _is_awaited(self) -> bool:
        """Say whether one waits for this call; it need not wait any longer."""
        probe = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK)
        try:
            return probe.connect_ex(unix_address(self._name)) != errno.ECONNREFUSED
        finally:
            probe.close()

    async def hang_up(self, loop: Loop) -> None:
        """End the connection, and wait for the next call, if that comes in time. OSError."""
        try:
            listener = listen_at(self._name)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            listener = None  # a machine has several ports, and another one is waited for
        self._connection.shutdown(SHUT_RDWR)  # for systemd has it, too
        if listener is None:
            return
        called = Waitable()
        loop.register_listener(listener.fileno(), lambda _: called.wake())
        try:
            with loop.deadline(_CALLS_WITHIN):
                await called
        except TimeoutError:
            pass  # the peer has ended, or takes longer: then it may be hung up on once more
        finally:
            loop.unregister(listener.fileno())
            listener.close()


def _not_a_caller() -> UsageError:
    hint = "leave --peer-reconnects out"
    return UsageError("standard input and output are not a unix socket", hint)
