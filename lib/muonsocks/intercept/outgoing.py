"""connect(2) of a program, answered by going through proxies."""

from __future__ import annotations

import errno
import os
from _socket import AF_INET, AF_INET6, AF_UNIX, SOCK_STREAM, socket

from muonsocks.address import Endpoint
from muonsocks.client.destinations import is_here
from muonsocks.client.errand import Errand
from muonsocks.client.errors import number_of
from muonsocks.intercept import kernel
from muonsocks.intercept.bpf import NOTIFY, Rule, joined, refuse
from muonsocks.intercept.connecting import Outcome
from muonsocks.intercept.datagrams import RULES as DATAGRAM_RULES
from muonsocks.intercept.dns import DOMAIN
from muonsocks.intercept.held import Held, Interrupted
from muonsocks.intercept.in_place import Places
from muonsocks.intercept.notify import Call, Refused
from muonsocks.intercept.own_socket import (
    STILL_CONNECTING,
    Mapped,
    OwnSocket,
    begin_connecting,
    number_against,
)
from muonsocks.intercept.resolver_sockets import leads_to_resolver
from muonsocks.intercept.socket_address import SHORTEST, endpoint_of, family_of
from muonsocks.intercept.socket_options import options_of, set_options, told_of_each_byte
from muonsocks.intercept.socket_rules import SOCKET_RULES, TCP_PROTOCOLS
from muonsocks.intercept.straight import StraightWay, is_straight
from muonsocks.intercept.ways import Ways
from muonsocks.net.loop import Loop
from muonsocks.socks.request import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from muonsocks.intercept.connecting import Interruptible
    from muonsocks.intercept.names import LookUp
    from muonsocks.intercept.parked import Parked
    from muonsocks.intercept.peers import Peers
    from muonsocks.net.task import Waitable
    from muonsocks.socks.rules import Chain

    # Answers connect(2) of a socket that is not for TCP, with an address.
    Beside = Callable[[Call, socket, bytes], Coroutine[Waitable, None, None]]
    # Told of each connection: who, where to, which way, and an error or its errno (0: it is up).
    Report = Callable[[int, Endpoint, Chain, OSError | int], None]

_INTERNET = (AF_INET, AF_INET6)

RULES = joined(
    {"connect": (Rule(NOTIFY),), "io_uring_setup": (Rule(refuse(errno.ENOSYS)),)},
    DATAGRAM_RULES,
    SOCKET_RULES,
)


class Outgoing:
    """Answers connect(2)."""

    __slots__ = (
        "_beside",
        "_held",
        "_look_up",
        "_loop",
        "_parked",
        "_peers",
        "_report",
        "_timeout",
        "_ways",
    )

    def __init__(
        self,
        loop: Loop,
        ways: Ways,
        timeout: float,
        report: Report,
        peers: Peers,
        look_up: LookUp | None = None,
        beside: Beside | None = None,
        parked: Parked | None = None,
    ) -> None:
        """A connection may take so many seconds to come up; `peers` are told of it. `look_up` is
        for names that are looked up here, which else is done in a thread. Sockets that are not for
        TCP are for `beside`, or lead nowhere; those that do not block wait in `parked`, or are held
        as others are.
        """
        self._beside = beside
        self._peers = peers
        self._held = Held(loop)
        self._loop = loop
        self._look_up = look_up
        self._ways = ways
        self._timeout = timeout
        self._report = report
        self._parked = parked

    async def connect(self, call: Call) -> None:
        """Answer connect(2)."""
        sock = call.duplicate(is_confirmed=False)
        try:
            if sock.family not in (*_INTERNET, AF_UNIX):
                call.go_on()  # by a socket that leads nowhere else, whatever the address is
                return
            raw = call.read_address(*call.arguments[1:3])
            if sock.family == AF_UNIX:
                if family_of(raw) == AF_UNIX and leads_to_resolver(call, raw):
                    raise Refused(errno.ECONNREFUSED)
                call.go_on()
                return
            if sock.type == SOCK_STREAM and sock.proto in TCP_PROTOCOLS:
                await self._connect_stream(call, sock, raw)
            elif self._beside is not None:
                await self._beside(call, sock, raw)
            else:
                raise Refused(errno.ENETUNREACH)
        finally:
            sock.close()

    async def _connect_stream(self, call: Call, sock: socket, raw: bytes) -> None:
        parked = self._parked
        if parked is not None and await parked.connect_again(call, sock, raw, self._held):
            return
        if len(raw) >= 2 and not family_of(raw):
            self._held.abort(sock)
            kernel.disconnect(sock.fileno())
            call.succeed()
            return
        if len(raw) < SHORTEST[sock.family]:
            raise Refused(errno.EINVAL)
        endpoint = endpoint_of(raw)
        if endpoint is None or family_of(raw) != sock.family:
            raise Refused(errno.EAFNOSUPPORT)
        destination = self._ways.meant(endpoint)
        chain = self._ways.way_to(destination)
        if not chain and destination.port == DOMAIN and is_here(destination.packed or b""):
            raise Refused(errno.ECONNREFUSED)  # a name server of the host would ask others
        if endpoint.family != sock.family and not OwnSocket(sock, 0).reaches(endpoint):
            raise Refused(errno.ENETUNREACH)  # a mapped address, and IPV6_V6ONLY
        tid = call.tid
        if not self._held.is_under_way(sock):
            is_direct = not chain and destination.packed is not None
            if is_direct and OwnSocket(sock, 0).reaches(destination):
                await self._go_directly(call, sock, destination)
                return
            # What is under way does not block, whatever the program has it do.
            if parked is not None and not os.get_blocking(sock.fileno()):

                def done(error: OSError | int) -> None:
                    self._report(tid, destination, chain, error)

                errand = Errand(Command.CONNECT, destination, chain)
                errand.dialler.lookup = self._look_up
                if await parked.connect(call, sock, raw, errand, done):
                    return
        await self._hold(call, sock, raw, destination, chain)

    async def _go_directly(self, call: Call, sock: socket, destination: Endpoint) -> None:
        """Have the kernel connect it, and wait for that if it blocks."""
        target = destination
        if destination.family != sock.family:
            target = Mapped(destination)
        if not os.get_blocking(sock.fileno()):
            number = begin_connecting(sock, target)
            self._report(call.tid, destination, (), 0 if number in STILL_CONNECTING else number)
            if number:
                raise Refused(number)
            call.succeed()
            return
        number = await self._held.wait_for_kernel(call, sock, target)
        self._report(call.tid, destination, (), number)
        if number:
            raise Refused(number)
        call.succeed()

    async def _hold(
        self, call: Call, sock: socket, raw: bytes, destination: Endpoint, chain: Chain
    ) -> None:
        """Answer when it is connected."""
        if not self._held.is_under_way(sock) and (number := number_against(sock)):
            raise Refused(number)

        def begin(
            ours: socket,
            blocks: bool,
            on_failure: Callable[[BaseException], None],
            on_outcome: Callable[[Outcome], None],
        ) -> Interruptible:
            if not is_straight(ours, destination, chain):
                connection = self._connect(ours, blocks, destination, chain)
                return self._loop.spawn(connection, on_failure, on_outcome)

            def on_end(error: OSError | None) -> None:
                on_outcome(Outcome(error))

            way = StraightWay(self._loop, ours, chain[0], on_failure, on_end)
            way.begin(destination, self._timeout)
            return way

        try:
            outcome = await self._held.connect(call, sock, begin)
        except Interrupted:
            await self._set_aside(call, sock, raw, destination, chain)
            raise
        error = outcome.error
        if chain and error is None:
            self._peers.remember_stream(outcome.stand_in or sock, raw)
        if outcome.stand_in is not None:
            try:
                Places(call, sock).take(outcome.stand_in)
            finally:
                outcome.close()
        self._report(call.tid, destination, chain, error or 0)  # while it is there to be named
        if error is not None:
            call.fail(number_of(error))
        else:
            call.succeed()

    async def _set_aside(
        self, call: Call, sock: socket, raw: bytes, destination: Endpoint, chain: Chain
    ) -> None:
        """Who has been interrupted may wait by poll(2) from now on, as connect(2) says: let the
        program's socket not be up, and not lead to the proxy, before the proxy has answered.
        """
        if self._parked is None or not chain or not self._held.may_be_handed_over(sock):
            return
        tid = call.tid

        def done(error: OSError | int) -> None:
            self._report(tid, destination, chain, error)

        try:
            await self._parked.set_aside(call, self._held, sock, raw, done)
        except OSError:
            return  # no loopback, or a shortage: then only connect(2) tells how it is

    async def _connect(
        self, sock: socket, blocks: bool, destination: Endpoint, chain: Chain
    ) -> Outcome:
        """Connect the program's own socket, or what is to stand in its place."""
        dialler = OwnSocket(sock, self._timeout, self._look_up)
        errand = Errand(Command.CONNECT, destination, chain, dialler=dialler)
        if blocks:
            os.set_blocking(sock.fileno(), False)
        try:
            with told_of_each_byte(sock):
                granted = (await errand.run(self._loop, self._timeout)).sock
            if granted is sock:
                return Outcome()
            try:
                set_options(granted, options_of(sock))
                os.set_blocking(granted.fileno(), blocks)
            except OSError:
                granted.close()
                raise
            return Outcome(stand_in=granted)
        except BaseException as error:
            dialler.give_up()
            if isinstance(error, OSError):
                return Outcome(error)
            raise  # nobody waits for it any more, but somebody may have the socket
        finally:
            if blocks:
                os.set_blocking(sock.fileno(), True)
