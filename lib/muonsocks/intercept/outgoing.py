"""connect(2) of a program, answered by going through proxies."""

from __future__ import annotations

import errno
import os
from _socket import AF_INET, AF_INET6, IPPROTO_TCP, SOCK_DGRAM, SOCK_STREAM, socket

from muonsocks.address import Endpoint
from muonsocks.client.errand import Errand
from muonsocks.client.errors import number_of
from muonsocks.intercept import kernel
from muonsocks.intercept.bpf import NOTIFY, Rule, has_any, is_not_null, refuse
from muonsocks.intercept.held import Held, Outcome
from muonsocks.intercept.notify import Call, Refused
from muonsocks.intercept.own_socket import OwnSocket, make_like, number_against
from muonsocks.intercept.socket_address import LONGEST, SHORTEST, endpoint_of, family_of
from muonsocks.intercept.ways import Ways
from muonsocks.net.loop import Loop
from muonsocks.socks.request import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from muonsocks.intercept.bpf import Rules
    from muonsocks.net.task import Waitable
    from muonsocks.socks.rules import Chain

    # Told of each connection: who, where to, which way, and an error or its errno (0: it is up).
    Report = Callable[[int, Endpoint, Chain, OSError | int], None]

_MSG_FASTOPEN = 0x20000000
_IPPROTO_MPTCP = 262
_TYPE = 0xF  # of socket(2)'s second argument: the rest are flags
_TCP = (IPPROTO_TCP, _IPPROTO_MPTCP)
_INTERNET = (AF_INET, AF_INET6)

RULES: Rules = {
    "connect": (Rule(NOTIFY),),
    "sendto": (
        Rule(refuse(errno.EOPNOTSUPP), has_any(3, _MSG_FASTOPEN)),
        Rule(NOTIFY, is_not_null(4)),
    ),
    "sendmsg": (Rule(refuse(errno.EOPNOTSUPP), has_any(2, _MSG_FASTOPEN)),),
    "sendmmsg": (Rule(refuse(errno.EOPNOTSUPP), has_any(3, _MSG_FASTOPEN)),),
    "io_uring_setup": (Rule(refuse(errno.ENOSYS)),),
}


class Outgoing:
    """Answers connect(2)."""

    __slots__ = ("_held", "_loop", "_report", "_timeout", "_ways")

    def __init__(self, loop: Loop, ways: Ways, timeout: float, report: Report) -> None:
        """A connection may take so many seconds to come up."""
        self._held = Held(loop)
        self._loop = loop
        self._ways = ways
        self._timeout = timeout
        self._report = report

    async def connect(self, call: Call) -> None:
        """Answer connect(2)."""
        sock = call.duplicate()
        try:
            if sock.family not in _INTERNET:
                call.go_on()  # by a socket that leads nowhere else, whatever the address is
                return
            raw = call.read(call.arguments[1], min(call.arguments[2] & 0xFFFFFFFF, LONGEST))
            if sock.type == SOCK_STREAM and sock.proto in _TCP:
                await self._connect_stream(call, sock, raw)
            elif sock.type == SOCK_DGRAM:
                raise Refused(errno.ENETUNREACH)
            else:
                raise Refused(errno.EACCES)
        finally:
            sock.close()

    async def _connect_stream(self, call: Call, sock: socket, raw: bytes) -> None:
        if len(raw) >= 2 and not family_of(raw):
            kernel.disconnect(sock.fileno())
            call.succeed()
            return
        if len(raw) < SHORTEST[sock.family]:
            raise Refused(errno.EINVAL)
        endpoint = endpoint_of(raw)
        if endpoint is None or family_of(raw) != sock.family:
            raise Refused(errno.EAFNOSUPPORT)
        if not self._held.is_under_way(sock) and (number := number_against(sock)):
            raise Refused(number)
        destination = self._ways.meant(endpoint)
        chain = self._ways.way_to(destination)

        def connect(ours: socket, blocks: bool) -> Coroutine[Waitable, None, Outcome]:
            return self._connect(ours, blocks, destination, chain)

        outcome = await self._held.connect(call, sock, connect)
        error = outcome.error
        if error is None and outcome.stand_in is not None:
            try:
                _put(call, outcome.stand_in, sock)
            finally:
                outcome.close()
        self._report(call.tid, destination, chain, error or 0)
        if error is not None:
            call.fail(number_of(error))
        else:
            call.succeed()

    async def _connect(
        self, sock: socket, blocks: bool, destination: Endpoint, chain: Chain
    ) -> Outcome:
        """Connect the program's own socket, or what is to stand in its place."""
        dialler = OwnSocket(sock, self._timeout)
        errand = Errand(Command.CONNECT, destination, chain)
        errand.dialler = dialler
        if blocks:
            os.set_blocking(sock.fileno(), False)
        try:
            granted = (await errand.run(self._loop, self._timeout)).sock
            if os.path.samestat(os.fstat(granted.fileno()), os.fstat(sock.fileno())):
                granted.close()  # a duplicate
                return Outcome()
            try:
                make_like(granted, sock)
                os.set_blocking(granted.fileno(), blocks)
            except OSError:
                granted.close()
                raise
            return Outcome(stand_in=granted)
        except OSError as error:
            dialler.give_up()
            return Outcome(error)
        finally:
            if blocks:
                os.set_blocking(sock.fileno(), True)


def _put(call: Call, stand_in: socket, sock: socket) -> None:
    """Let the program have another socket in the place of its own."""
    with open(f"/proc/{call.tid}/fdinfo/{call.fd}") as file:
        flags = next(int(line.split()[1], 8) for line in file if line.startswith("flags:"))
    call.put(stand_in, call.fd, bool(flags & os.O_CLOEXEC))
