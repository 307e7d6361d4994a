"""UDP of a program that has the network of its host: to a name server, which is ours, and else
nowhere but where there is no proxy on the way.

Whatever name server a socket is connected to, it is connected to ours, and the program is told the
address that it knows. A datagram is sent by us, out of a copy, so that nothing can be changed
behind our back; an address of a name server that it is sent to becomes that of ours in the
program's own memory, which it compares with where the answer comes from. Ancillary data are left
out but for UDP_SEGMENT.

recvfrom(2) is seen to where it is to say who has sent something; recvmsg(2) says who has: our name
server.
"""

from __future__ import annotations

import errno
import os
from _socket import (
    AF_INET,
    AF_INET6,
    IPPROTO_IPV6,
    IPPROTO_UDP,
    IPV6_V6ONLY,
    MSG_DONTWAIT,
    MSG_ERRQUEUE,
    SO_RCVTIMEO,
    SOCK_DGRAM,
    SOCK_STREAM,
    SOL_SOCKET,
    SOL_UDP,
    socket,
)
from struct import Struct

from muonsocks.address import Endpoint, format_address, mapped
from muonsocks.intercept import kernel
from muonsocks.intercept.bpf import NOTIFY, Rule, has_any, is_not_null, refuse
from muonsocks.intercept.dns import DOMAIN
from muonsocks.intercept.messages import (
    LARGEST,
    Message,
    read_data,
    read_message,
    size_of,
)
from muonsocks.intercept.notify import Call, Refused, int_of
from muonsocks.intercept.peers import Peers
from muonsocks.intercept.socket_address import SHORTEST, address_of, endpoint_of, family_of
from muonsocks.intercept.ways import Ways
from muonsocks.net.loop import Loop
from muonsocks.net.task import Waitable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from muonsocks.intercept.bpf import Rules

_MSG_FASTOPEN = 0x20000000
_NO_FASTOPEN = refuse(errno.EOPNOTSUPP)
RULES: Rules = {
    "sendto": (Rule(_NO_FASTOPEN, has_any(3, _MSG_FASTOPEN)), Rule(NOTIFY, is_not_null(4))),
    "sendmsg": (Rule(_NO_FASTOPEN, has_any(2, _MSG_FASTOPEN)), Rule(NOTIFY)),
    "sendmmsg": (Rule(_NO_FASTOPEN, has_any(3, _MSG_FASTOPEN)), Rule(NOTIFY)),
    "recvfrom": (Rule(NOTIFY, is_not_null(4)),),
    "getpeername": (Rule(NOTIFY),),
}
_INTERNET = (AF_INET, AF_INET6)
_UDP_SEGMENT = 103
_MOST_MESSAGES = 64  # of one sendmmsg(2): it may be told that these are sent, and come again
_TIME = Struct("=qq")  # struct timeval
_WHILE = 5.0  # s after which it is looked whether somebody still waits, of which there is no event


class Datagrams:
    """Answers the calls that are about UDP, as far as they are those of UDP sockets."""

    __slots__ = ("_loop", "_nameserver", "_peers", "_ways")

    def __init__(
        self, loop: Loop, ways: Ways, nameserver: Mapping[int, Endpoint], peers: Peers
    ) -> None:
        """`nameserver` says where ours is, by the family."""
        self._loop = loop
        self._ways = ways
        self._nameserver = nameserver
        self._peers = peers

    async def connect(self, call: Call, sock: socket, raw: bytes) -> None:
        """Answer connect(2) of a socket that is not for TCP, to an address as the kernel has it."""
        _expect_udp(sock)
        if len(raw) >= 2 and not family_of(raw):
            kernel.disconnect(sock.fileno())
            self._peers.forget(sock)
            call.succeed()
            return
        endpoint = _read_address(sock, raw)
        there = self._leads_to(sock, endpoint)
        try:
            sock.connect(_python_address(there, sock))
        except OSError as error:
            raise Refused(error.errno or 0) from None
        if there is endpoint:
            self._peers.forget(sock)
        else:
            self._peers.remember(sock, address_of(endpoint, sock.family))
        call.succeed()

    async def sendto(self, call: Call) -> None:
        """Answer sendto(2) that has an address."""
        _, data_at, size, flags, name_at, length = call.arguments
        sock = call.duplicate()
        try:
            if not _is_ours(sock):
                call.go_on()
                return
            name = call.read_address(name_at, length) if name_at else None
            message = Message(name, name_at, read_data(call, data_at, size))
            count = self._send(call, sock, message, int_of(flags))
        finally:
            sock.close()
        call.succeed(count)

    async def sendmsg(self, call: Call) -> None:
        """Answer sendmsg(2)."""
        sock = call.duplicate()
        try:
            if not _is_ours(sock):
                call.go_on()
                return
            message = read_message(call, call.arguments[1])
            count = self._send(call, sock, message, int_of(call.arguments[2]))
        finally:
            sock.close()
        call.succeed(count)

    async def sendmmsg(self, call: Call) -> None:
        """Answer sendmmsg(2): of many messages for the first of them."""
        _, place, count, flags, *_ = call.arguments
        size = size_of(call)
        whole = size + call.architecture.word  # with what has been sent of it, and padding
        done = 0
        sock = call.duplicate()
        try:
            if not _is_ours(sock):
                call.go_on()
                return
            for at in range(place, place + whole * min(count & 0xFFFFFFFF, _MOST_MESSAGES), whole):
                try:
                    sent = self._send(call, sock, read_message(call, at), int_of(flags))
                    call.write_int(at + size, sent)
                except Refused:
                    if not done:
                        raise
                    break
                done += 1
        finally:
            sock.close()
        call.succeed(done)

    async def recvfrom(self, call: Call) -> None:
        """Answer recvfrom(2) that is to say where something has come from."""
        _, data_at, size, flags, name_at, length_at = call.arguments
        size, flags = min(size, LARGEST), int_of(flags)
        if not len(self._peers):
            call.go_on()
            return
        sock = call.duplicate()
        try:
            is_udp = sock.family in _INTERNET and sock.type == SOCK_DGRAM
            name = self._peers.name_of(sock) if is_udp else None
            if name is None or flags & MSG_ERRQUEUE:
                call.go_on()
                return
            data, count = await self._receive(call, sock, size, flags)
        finally:
            sock.close()
        call.write(data_at, data)
        call.write_address(name_at, length_at, name)
        call.succeed(count)

    # Where to

    def _leads_to(self, sock: socket, endpoint: Endpoint) -> Endpoint:
        """Say where a datagram goes that is for an endpoint: the very same, or our name server.
        Refused if there would be a proxy on the way.
        """
        if endpoint.port == DOMAIN:
            return self._nameserver_for(sock, endpoint)
        meant = self._ways.meant(endpoint)
        if meant.packed is None or self._ways.way_to(meant):
            raise Refused(errno.ENETUNREACH)
        return endpoint

    def _nameserver_for(self, sock: socket, endpoint: Endpoint) -> Endpoint:
        families = [AF_INET]
        if sock.family == AF_INET6:
            is_ipv6 = len(endpoint.packed or b"") == 16
            families = [AF_INET6, AF_INET] if is_ipv6 else [AF_INET, AF_INET6]
            if sock.getsockopt(IPPROTO_IPV6, IPV6_V6ONLY):
                families = [AF_INET6]
        for family in families:
            if family in self._nameserver:
                return self._nameserver[family]
        raise Refused(errno.ENETUNREACH)

    # Sending and receiving

    def _send(self, call: Call, sock: socket, message: Message, flags: int) -> int:
        """Send a datagram; give how much of it that was."""
        to: list[Any] = []
        if message.name is not None:
            endpoint = _read_address(sock, message.name)
            there = self._leads_to(sock, endpoint)
            if there is not endpoint:
                self._rewrite(call, message, there)
            to.append(_python_address(there, sock))
        control = []
        if message.segment:
            control.append((SOL_UDP, _UDP_SEGMENT, message.segment.to_bytes(2, "little")))
        call.expect_waiting()
        try:
            return sock.sendmsg([message.data], control, flags | MSG_DONTWAIT, *to)
        except BlockingIOError:
            waits = os.get_blocking(sock.fileno()) and not flags & MSG_DONTWAIT
            raise Refused(errno.ENOBUFS if waits else errno.EAGAIN) from None
        except OSError as error:
            raise Refused(error.errno or 0) from None

    def _rewrite(self, call: Call, message: Message, there: Endpoint) -> None:
        """Let the program have sent to our name server, if its memory can be written."""
        name = message.name or b""
        try:
            call.write(message.name_at, address_of(there, family_of(name))[: len(name)])
        except Refused:
            return  # a constant: it cannot be compared with what is to be told of each answer

    async def _receive(self, call: Call, sock: socket, size: int, flags: int) -> tuple[bytes, int]:
        """Give what there is room for of the next datagram, and what recvfrom(2) says of its size.
        Who waits has no memory of ours for it.
        """
        waits = os.get_blocking(sock.fileno()) and not flags & MSG_DONTWAIT
        seconds, rest = _TIME.unpack(sock.getsockopt(SOL_SOCKET, SO_RCVTIMEO, _TIME.size))
        end = self._loop.now + (seconds + rest / 1e6 or float("inf"))
        while True:
            try:
                data = bytearray(size)
                count = sock.recv_into(data, size, flags | MSG_DONTWAIT)
                return bytes(data[:count]), count
            except BlockingIOError:
                if not waits or end <= self._loop.now:
                    raise Refused(errno.EAGAIN) from None
            except OSError as error:
                raise Refused(error.errno or 0) from None
            await self._something(sock, min(_WHILE, end - self._loop.now))
            call.expect_waiting()

    async def _something(self, sock: socket, seconds: float) -> None:
        """Wait until there is something to receive, but for so long at most."""
        there = Waitable()
        self._loop.register(sock.fileno(), lambda _: there.wake())
        timer = self._loop.call_later(seconds, there.wake)
        try:
            await there
        finally:
            timer.cancel()
            self._loop.unregister(sock.fileno())


def _is_ours(sock: socket) -> bool:
    """Say whether a socket sends datagrams to addresses that it is given. Refused if they are of
    another kind than UDP; others have none, or do not lead out.
    """
    if sock.family not in _INTERNET or sock.type == SOCK_STREAM:
        return False
    _expect_udp(sock)
    return True


def _expect_udp(sock: socket) -> None:
    """Hold that a socket of the internet is one for UDP: those of other kinds, which a program may
    have had before, lead nowhere. Refused.
    """
    if sock.type != SOCK_DGRAM or sock.proto != IPPROTO_UDP:
        raise Refused(errno.EACCES)


def _read_address(sock: socket, raw: bytes) -> Endpoint:
    """Read an address that a socket is given; Refused if it cannot be for one of its family."""
    endpoint = endpoint_of(raw)
    if endpoint is None:
        shortest = SHORTEST.get(family_of(raw), SHORTEST[sock.family])
        raise Refused(errno.EINVAL if len(raw) < shortest else errno.EAFNOSUPPORT)
    if sock.family == AF_INET and family_of(raw) != AF_INET:
        raise Refused(errno.EAFNOSUPPORT)
    needs_ipv4 = sock.family == AF_INET6 and endpoint.family == AF_INET
    if needs_ipv4 and sock.getsockopt(IPPROTO_IPV6, IPV6_V6ONLY):
        raise Refused(errno.ENETUNREACH)
    return endpoint


def _python_address(endpoint: Endpoint, sock: socket) -> tuple[Any, ...]:
    if sock.family == AF_INET:
        return endpoint.host, endpoint.port
    return format_address(mapped(endpoint.packed or b"")), endpoint.port, 0, endpoint.scope
