"""What a SocksSocket for UDP does in a way of its own: its datagrams go through SOCKS5 proxies.

The first destination says which way; what goes another way needs another socket. The descriptor is
a UDP socket then that leads to the relay of the first proxy, and each datagram has a header there:
where it is going, or where it comes from (RFC 1928 section 7).
"""

from __future__ import annotations

import errno
import os
from _socket import AF_INET6, IPPROTO_UDP, MSG_DONTWAIT, MSG_TRUNC, SHUT_RD, socket
from _thread import allocate_lock
from time import monotonic

from muonsocks.address import Endpoint, format_address, mapped
from muonsocks.client.associate import Associate, Lead, another
from muonsocks.client.association import AT_ONCE, Association, left
from muonsocks.client.blocking import run
from muonsocks.client.errand import Granted
from muonsocks.client.errors import ProxyMisbehaved, timed_out, try_again
from muonsocks.client.parts import become
from muonsocks.client.socks_socket import SocksSocket
from muonsocks.socks.request import UNSPECIFIED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from muonsocks.socks.rules import Chain


class Datagrams(SocksSocket):
    """The methods that are others."""

    _association: Association | None = None
    _beginning: Any  # a lock: of several threads, one makes the association
    _is_direct = False  # it goes without proxies
    _loss: ProxyMisbehaved | None = None  # why there is no association any more
    _to: Any = None  # the address that it is connected to
    _turn = 0  # how often its descriptor has stood for another socket

    # Where datagrams go

    def connect(self, address: Any) -> None:
        """Send to (host, port) by send() from now on, and receive only from there.

        The association is made if there is none: a socket that does not block raises
        BlockingIOError (EINPROGRESS) then, as for TCP.
        """
        if self._lead(address, self._deadline(), errno.EINPROGRESS) is None:
            socket.connect(self, self._here(address))
            return
        self._be_connected(address)

    _connect = connect

    def _be_connected(self, address: Any) -> None:
        self._to = address
        self._peer, _ = self._way_to(address)

    def bind(self, address: Any) -> None:
        """Have the association made at once: getsockname() says then where peers are to send to.
        On this side it leaves from `address`; its port, unless that is 0, is that of datagrams.

        With a socket that does not block there is room for output when that is done. With
        `listens_here` this is for peers of this host, as long as nothing is sent through proxies.
        """
        super().bind(address)
        if self.listens_here:
            return
        try:
            self._lead(None, self._deadline(), errno.EINPROGRESS)
        except BlockingIOError as error:
            if error.errno != errno.EINPROGRESS:
                raise

    def listen(self, backlog: int = 1, *, peer: tuple[str, int] = ("", 0)) -> None:
        """Say that there are no connections (EOPNOTSUPP)."""
        socket.listen(self, backlog)

    def getpeername(self) -> Any:
        """Give the destination as it was said to connect()."""
        if self._peer is None and self._association is not None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return super().getpeername()

    def setsockopt(self, *option: Any) -> None:
        """Set an option; but none that has the kernel cut datagrams or join them (ENOPROTOOPT)."""
        if option[0] == IPPROTO_UDP and not self._is_direct:
            raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
        super().setsockopt(*option)

    def _lead(self, address: Any, deadline: float | None, number: int) -> bytes | None:
        """Give what goes in front of data for an address (None is anywhere), after all that it
        takes to know that; None if they go without proxies.

        BlockingIOError with this number if there is no time for it: it is under way then.
        """
        while True:
            association = self._association
            if association is not None:
                head = association.head_for(address)
                if head is not None:
                    return head
            destination, chain = self._way_to(UNSPECIFIED.sockaddr if address is None else address)
            self._expect_same_way(association, chain, destination)
            if not chain:
                self._is_direct = True
                return None
            if association is not None and (destination.packed or chain[-1].resolves):
                return association.lead(address, destination)
            self._find_out(association, address, destination, chain, deadline, number)

    def _expect_same_way(
        self, association: Association | None, chain: Chain, destination: Endpoint
    ) -> None:
        if self._is_direct if chain else association is not None:
            reason = f"this socket does not go the way to {destination}: make another one"
            raise OSError(errno.ENETUNREACH, reason)

    def _find_out(
        self,
        association: Association | None,
        address: Any,
        destination: Endpoint,
        chain: Chain,
        deadline: float | None,
        number: int,
    ) -> None:
        """Learn where a destination is, and make the association if there is none."""
        seconds = left(deadline)
        if not self._beginning.acquire(timeout=-1 if seconds is None else seconds):
            raise timed_out() if seconds else try_again()
        try:
            if self._association is not association:
                return  # another thread has been here
            family, source, options = self.family, self._source, self._options.values()
            errand = Associate(destination, chain, family, source, options, association)

            def arrive(sock: SocksSocket, granted: Granted) -> None:
                assert isinstance(sock, Datagrams) and isinstance(granted, Lead)
                sock._arrive(granted, address)
                if number == errno.EINPROGRESS and address is not None:
                    sock._be_connected(address)

            if association is None and source is not None:
                old = another(self)
                self._become_fresh(True)  # or its port would not be free
                self._have_replaced(old)
            if deadline == AT_ONCE:
                self._leave(errand, arrive, True)
                raise BlockingIOError(number, os.strerror(number))
            seconds = left(deadline)
            granted = run(lambda loop: errand.run(loop, seconds))
            if association is None:
                old = another(self)
                self._take_over(granted.sock, True)
                arrive(self, granted)
                self._have_replaced(old)
            else:
                granted.sock.close()  # which is of the association that there was
                arrive(self, granted)
        finally:
            self._beginning.release()

    def _arrive(self, lead: Lead, address: Any) -> None:
        if lead.association is not None:
            self._association, self._loss = lead.association, None
            self._bound = lead.association.bound
        assert self._association is not None
        self._association.lead(address, lead.destination)

    def _have_replaced(self, old: socket) -> None:
        """Wake a thread that waits at what was here before, and has not been closed yet."""
        self._turn += 1
        try:
            old.shutdown(SHUT_RD)
        except OSError:
            pass  # it is not connected, and the thread wakes nevertheless
        old.close()

    def _lose(self, association: Association, error: ProxyMisbehaved) -> None:
        """Be without an association, up to what is sent next, which makes another one."""
        if association is self._association:
            self._association, self._bound, self._loss = None, None, error
            association.close()
            self._become_fresh(True)

    def dup(self) -> Datagrams:
        """Give another socket object with the same association."""
        sock = super().dup()
        assert isinstance(sock, Datagrams)
        if self._association is not None:
            sock._association = self._association.share()
        sock._is_direct, sock._to = self._is_direct, self._to
        return sock

    def _drop(self) -> None:
        super()._drop()
        association, self._association = self._association, None
        if association is not None:
            association.close()

    # Out

    def send(self, data: Any, flags: int = 0) -> int:
        """Send a datagram to where it is connected."""
        return self.sendmsg([data], (), flags)

    def sendall(self, data: Any, flags: int = 0) -> None:
        """The same: it is sent as one."""
        self.sendmsg([data], (), flags)

    def sendto(self, data: Any, *where: Any) -> int:
        """Send a datagram to an address, which is (host, port); flags may stand before that.

        On a socket that does not block the first one raises BlockingIOError (EAGAIN), and there is
        room for output when the association has been made, or has failed.
        """
        if not 1 <= len(where) <= 2:
            raise TypeError("sendto() takes data, flags if there are any, and an address")
        *flags, address = where
        return self.sendmsg([data], (), flags[0] if flags else 0, address)

    def sendmsg(
        self, buffers: Iterable[Any], ancdata: Any = (), flags: int = 0, address: Any = None
    ) -> int:
        """Send a datagram from several buffers. It can have no ancillary data (EOPNOTSUPP)."""
        deadline = self._deadline(flags)
        there = self._to if address is None else address
        if there is None:
            if self._association is not None:
                raise OSError(errno.EDESTADDRREQ, os.strerror(errno.EDESTADDRREQ))
            head = None  # of a socket that was connected by somebody else, or is to be
        else:
            head = self._lead(there, deadline, errno.EAGAIN)
        if head is None:
            there = address if address is None else self._here(address)
            return socket.sendmsg(self, buffers, ancdata, flags, there)
        if ancdata:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return self._send([head, *buffers], flags, deadline) - len(head)

    def _send(self, pieces: list[Any], flags: int, deadline: float | None) -> int:
        association = self._expect_association()
        try:
            return association.send(pieces, flags, deadline)
        except ProxyMisbehaved as error:
            self._lose(association, error)
            raise

    # Back

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """Receive the data of a datagram. What is none for us is dropped."""
        return self.recvfrom(bufsize, flags)[0]

    def recvfrom(self, bufsize: int, flags: int = 0) -> tuple[bytes, Any]:
        """The same, and where it is from: a (host, port) as getsockname(2) would give it."""
        found = self._directly(socket.recvfrom, bufsize, flags)
        if found is not None:
            return found  # type: ignore[no-any-return]
        data, _, source = self._receive(bufsize, flags)
        return bytes(data), source

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Receive data into a buffer; say how many bytes they are."""
        return self.recvfrom_into(buffer, nbytes, flags)[0]

    def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        """The same, and where they are from."""
        found = self._directly(socket.recvfrom_into, buffer, nbytes, flags)
        if found is not None:
            return found  # type: ignore[no-any-return]
        view = memoryview(buffer).cast("B")
        if nbytes > len(view):
            raise ValueError("buffer too small for requested bytes")
        data, length, source = self._receive(nbytes or len(view), flags)
        view[: len(data)] = data
        return length if flags & MSG_TRUNC else len(data), source

    def recvmsg(
        self, bufsize: int, ancbufsize: int = 0, flags: int = 0
    ) -> tuple[bytes, list[Any], int, Any]:
        """The same, with the flag MSG_TRUNC if it was longer. There are no ancillary data."""
        found = self._directly(socket.recvmsg, bufsize, ancbufsize, flags)
        if found is not None:
            return found  # type: ignore[no-any-return]
        data, length, source = self._receive(bufsize, flags)
        return bytes(data), [], MSG_TRUNC if length > len(data) else 0, source

    def recvmsg_into(
        self, buffers: Iterable[Any], ancbufsize: int = 0, flags: int = 0
    ) -> tuple[int, list[Any], int, Any]:
        """The same, into several buffers."""
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        found = self._directly(socket.recvmsg_into, views, ancbufsize, flags)
        if found is not None:
            return found  # type: ignore[no-any-return]
        data, length, source = self._receive(sum(map(len, views)), flags)
        rest = data
        for view in views:
            part = rest[: len(view)]
            view[: len(part)] = part
            rest = rest[len(part) :]
        truncated = MSG_TRUNC if length > len(data) else 0
        return length if flags & MSG_TRUNC else len(data), [], truncated, source

    def _directly(self, receive: Callable[..., Any], *arguments: Any) -> Any:
        """Receive what comes without proxies; None as soon as there is an association."""
        while self._association is None:
            if self._loss is not None and self.gettimeout() != 0:
                raise ProxyMisbehaved(self._loss.errno or 0, self._loss.strerror or "")
            turn = self._turn
            found = receive(self, *arguments)
            if self._turn == turn:
                return found
        return None

    def _receive(self, size: int, flags: int) -> tuple[memoryview, int, Any]:
        """Give data, at most so many bytes, how many there were, and where from."""
        deadline = self._deadline(flags)
        association = self._expect_association()
        try:
            found = association.receive(size, flags, deadline, self._is_from_peer)
        except ProxyMisbehaved as error:
            self._lose(association, error)
            raise
        data, length, source = found
        return data, length, None if source is None else self._name(source)

    def _is_from_peer(self, source: Endpoint) -> bool:
        """Say whether a source may be what it is connected to. Of a name that the proxy has looked
        up only the port is known here.
        """
        peer = self._peer
        if peer is None:
            return True
        if source.port != peer.port:
            return False
        return peer.packed is None or source.packed == peer.packed

    def _name(self, endpoint: Endpoint) -> tuple[Any, ...]:
        packed = endpoint.packed
        if packed is not None and self.family == AF_INET6:
            return (format_address(mapped(packed)), endpoint.port, 0, endpoint.scope)
        return super()._name(endpoint)

    # The association

    def _deadline(self, flags: int = 0) -> float | None:
        timeout = self.gettimeout()
        if timeout == 0 or flags & MSG_DONTWAIT:
            return AT_ONCE
        return None if timeout is None else monotonic() + timeout

    def _expect_association(self) -> Association:
        association = self._association
        if association is None:  # another thread has found that it is over
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return association


def prepare(sock: SocksSocket) -> None:
    """Have a socket be one for datagrams."""
    become(sock, Datagrams)
    assert isinstance(sock, Datagrams)
    sock._beginning = allocate_lock()
