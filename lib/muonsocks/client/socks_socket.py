"""SocksSocket, a socket.socket whose connections go through proxies, blocking or not.

What is sent and received is the kernel's business: when a connection is up, its descriptor is the
one to the proxy, and all methods are socket.socket's own.
"""

from __future__ import annotations

import errno
import os
import socket
from _socket import socket as c_socket

from muonsocks.address import Endpoint
from muonsocks.client.blocking import run
from muonsocks.client.errand import Errand, Granted, endpoint_of, second_reply, way_to
from muonsocks.client.errors import ProxyError, in_progress, number_of, timed_out, try_again
from muonsocks.client.parts import become, own_kind
from muonsocks.client.proxies import chain_of
from muonsocks.client.replaceable import Replaceable
from muonsocks.socks.request import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from muonsocks.client.proxies import Proxies
    from muonsocks.client.under_way import Journey
    from muonsocks.socks.proxy_request import ProxyRequest
    from muonsocks.socks.rules import Chain

    Arrive = Callable[["SocksSocket", Granted], None]  # what holds no socket, or it would for ever

_HAS_BROUGHT = "it has brought its connection: make another socket"
_NOT_BLOCKING = socket.SOCK_STREAM | socket.SOCK_NONBLOCK


class SocksSocket(Replaceable):
    """A TCP socket that connects, listens and accepts through proxies, or a UDP socket that sends
    and receives through one. Of any other kind it is a socket.socket.

    A host may be a name: it is looked up by the proxy, or here, as the URL of the proxy says.
    Errors are OSErrors, see `errors`; `failure` keeps the one that a connect_ex() or SO_ERROR has
    only had the number of.
    """

    # Whether listen() is for connections to this host, and not to the proxy.
    listens_here = False

    def __init__(
        self,
        family: int = -1,
        type: int = -1,
        proto: int = -1,
        fileno: int | None = None,
        *,
        proxy: Proxies = None,
    ) -> None:
        """`proxy` is as for `create_connection`."""
        self.failure: OSError | None = None
        self._proxies: Proxies = chain_of(proxy)
        self._source: Endpoint | None = None
        self._peer: Endpoint | None = None  # the destination, once it is connected to
        self._bound: Endpoint | None = None  # what the last proxy has bound
        self._asking: ProxyRequest | None = None  # while a peer is awaited there
        self._visitor: Endpoint | None = None  # who has come, and has no socket yet
        self._journey: Journey | None = None
        super().__init__(family, type, proto, fileno)
        if self._is_for_proxies and c_socket.type.__get__(self) == socket.SOCK_DGRAM:
            from muonsocks.client.datagrams import prepare

            prepare(self)

    # Connecting

    def connect(self, address: Any) -> None:
        """Connect to (host, port), as socket.connect does, but through proxies.

        A socket that does not block raises BlockingIOError (EINPROGRESS), and there is room for
        output when it is connected, or has failed: SO_ERROR, or the same call again, tells.
        """
        self._connect(address)

    def _connect(self, address: Any) -> None:
        if not self._is_for_proxies:
            super().connect(address)
            return
        if self._peer is not None or self._asking is not None:
            raise OSError(errno.EISCONN, os.strerror(errno.EISCONN))
        destination, chain = self._way_to(address)
        if not chain:
            super().connect(self._for_system(address))
            return

        def arrive(sock: SocksSocket, granted: Granted) -> None:
            sock._bound = granted.bound
            sock._peer = destination

        self._set_out(Command.CONNECT, destination, chain, arrive)

    def connect_ex(self, address: Any) -> int:
        """Connect, but give the errno of what goes wrong, or 0."""
        try:
            self._connect(address)  # connect() may be that of a ssl.SSLSocket, which does more
        except OSError as error:
            self.failure = error
            return number_of(error)
        return 0

    def bind(self, address: Any) -> None:
        """Have the connection to the first proxy come from this address of ours."""
        super().bind(self._for_system(address))
        if self._is_for_proxies:
            self._source = Endpoint.of_socket(super().getsockname())

    # Waiting for a connection

    def listen(self, backlog: int = 1, *, peer: tuple[str, int] = ("0.0.0.0", 0)) -> None:
        """Have the last proxy listen for one connection from the host of `peer`: BIND.

        Then getsockname() says where, which is for the peer to be told, and accept() waits for it.
        Without a peer anybody may come, if the proxy lets that be. For the rest it is as connect().
        """
        chain: Chain = ()
        if self._is_for_proxies and not self.listens_here:
            expected, chain = self._way_to(peer)
        if not chain:
            super().listen(backlog)
            return
        if self._asking is not None or self._peer is not None:
            raise OSError(errno.EINVAL, _HAS_BROUGHT)

        def arrive(sock: SocksSocket, granted: Granted) -> None:
            sock._bound, sock._asking = granted.bound, granted.asking

        self._set_out(Command.BIND, expected, chain, arrive)

    def accept(self) -> tuple[socket.socket, Any]:
        """Wait for the one connection, and give its socket and the peer's address.

        There is input while it can be had. This socket is of no use afterwards.
        """
        if self._asking is None:
            if self._peer is not None:
                raise OSError(errno.EINVAL, _HAS_BROUGHT)
            return super().accept()
        if self._visitor is None:
            self._visitor = self._await_visitor(self._asking)
        peer = self._visitor
        sock = self.dup()
        try:
            self._retire()
        except BaseException:
            sock.close()
            raise
        self._asking = self._visitor = sock._asking = None
        self._peer = sock._peer = peer  # which makes this one of no use
        sock.settimeout(socket.getdefaulttimeout())
        return sock, self._name(peer)

    def _await_visitor(self, asking: ProxyRequest) -> Endpoint:
        timeout = self.gettimeout()
        borrowed = c_socket(self.family, _NOT_BLOCKING, self.proto, os.dup(self.fileno()))
        try:
            os.set_blocking(self.fileno(), False)
            return run(lambda loop: second_reply(loop, borrowed, asking, timeout))
        except OSError as error:
            if isinstance(error, TimeoutError) and not isinstance(error, ProxyError):
                raise timed_out() if timeout else try_again() from error
            self._asking = None  # a proxy that waits no more is late, too
            self._retire()
            raise
        finally:
            borrowed.close()
            os.set_blocking(self.fileno(), timeout is None)

    def dup(self) -> SocksSocket:
        """Give another socket object for the same connection."""
        kind, fd = own_kind(self), os.dup(self.fileno())
        try:
            sock = kind(self.family, self.type, self.proto, fileno=fd, proxy=self._proxies)
        except BaseException:
            os.close(fd)
            raise
        sock.settimeout(self.gettimeout())
        sock._peer, sock._bound, sock._asking = self._peer, self._bound, self._asking
        sock._options, sock._source = dict(self._options), self._source
        return sock

    # Where it is

    def getpeername(self) -> Any:
        """Give the destination as it was said to connect(), or who has connected to the proxy."""
        if self._peer is None or self._asking is not None:
            return super().getpeername()
        return self._name(self._peer)

    def getsockname(self) -> Any:
        """Give the address that the last proxy has bound, if it says so; else that of ours."""
        bound = self._bound
        if bound is None or (not bound.port and not any(bound.packed or b"")):
            here = super().getsockname()
            if isinstance(here, tuple) or not self._is_for_proxies:
                return here
            # The proxy is at a unix socket.
            return ("::", 0, 0, 0) if self.family == socket.AF_INET6 else ("0.0.0.0", 0)
        return self._name(bound)

    def _name(self, endpoint: Endpoint) -> tuple[Any, ...]:
        if self.family == socket.AF_INET6:
            return (endpoint.host, endpoint.port, 0, endpoint.scope)
        return (endpoint.host, endpoint.port)

    # The end

    def detach(self) -> int:
        """Give the descriptor away, as it is."""
        self._drop()
        return super().detach()

    def _real_close(self, _ss: Any = c_socket) -> None:
        self._drop()
        super()._real_close(_ss)  # type: ignore[misc]

    def _drop(self) -> None:
        journey, self._journey = self._journey, None
        if journey is not None:
            journey.drop()

    # On the way

    def _way_to(self, address: Any) -> tuple[Endpoint, Chain]:
        """Say which destination an address means, and which proxies lead there."""
        destination = endpoint_of(*address[:2])
        return destination, way_to(destination, self._proxies)

    def _for_system(self, address: Any) -> Any:
        """Give what the system is told of an address that no proxy leads to."""
        return address

    def _set_out(
        self,
        command: int,
        destination: Endpoint,
        chain: Chain,
        arrive: Arrive,
    ) -> None:
        """Carry out an errand, whose socket becomes this one's; `arrive` is told of it then."""
        options = list(self._options.values())
        errand = Errand(command, destination, chain, self._source, options)
        timeout = self.gettimeout()
        if self._source is not None:
            self._become_fresh()  # or its port would not be free for the errand
        if timeout != 0:
            granted = run(lambda loop: errand.run(loop, timeout))
            self._take_over(granted.sock, False)
            arrive(self, granted)
            return
        self._leave(errand, arrive)
        raise in_progress()

    def _leave(self, errand: Errand, arrive: Arrive, tells_input: bool = False) -> None:
        """Carry an errand out in the background. There is room for output when it is over, and
        input as well if that is to be told.
        """
        from muonsocks.client.under_way import Journey, UnderWay

        self._journey = Journey(self.fileno(), errand.run, arrive, tells_input)
        become(self, UnderWay)
