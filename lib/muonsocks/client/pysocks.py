"""PySocks' interface, for programs that are written for that: its module is named socks.

    import muonsocks.client.pysocks as socks
    sys.modules["socks"] = muonsocks.client.pysocks     # for those that import it themselves

It is that of PySocks 1.7, with three things better: a destination may be IPv6, a timeout is for all
that connect() does, and get_proxy_peername() gives the proxy, as its name says. The environment
does not count: what has no proxy set goes without one.

As there, what fails at a proxy that has been reached is a GeneralProxyError, whose `socket_err` is
the SOCKS5Error, SOCKS4Error, HTTPError or SOCKS5AuthError that says why, or an OSError.
"""

from __future__ import annotations

import errno
import socket

from muonsocks.address import Endpoint
from muonsocks.client import errors
from muonsocks.client.proxies import DIRECT
from muonsocks.client.pysocks_errors import DEFAULT_PORTS as DEFAULT_PORTS
from muonsocks.client.pysocks_errors import HTTP as HTTP
from muonsocks.client.pysocks_errors import PRINTABLE_PROXY_TYPES as PRINTABLE_PROXY_TYPES
from muonsocks.client.pysocks_errors import PROXY_TYPE_HTTP as PROXY_TYPE_HTTP
from muonsocks.client.pysocks_errors import PROXY_TYPE_SOCKS4 as PROXY_TYPE_SOCKS4
from muonsocks.client.pysocks_errors import PROXY_TYPE_SOCKS5 as PROXY_TYPE_SOCKS5
from muonsocks.client.pysocks_errors import PROXY_TYPES as PROXY_TYPES
from muonsocks.client.pysocks_errors import SOCKS4 as SOCKS4
from muonsocks.client.pysocks_errors import SOCKS4_ERRORS as SOCKS4_ERRORS
from muonsocks.client.pysocks_errors import SOCKS5 as SOCKS5
from muonsocks.client.pysocks_errors import SOCKS5_ERRORS as SOCKS5_ERRORS
from muonsocks.client.pysocks_errors import GeneralProxyError as GeneralProxyError
from muonsocks.client.pysocks_errors import HTTPError as HTTPError
from muonsocks.client.pysocks_errors import ProxyConnectionError as ProxyConnectionError
from muonsocks.client.pysocks_errors import ProxyError as ProxyError
from muonsocks.client.pysocks_errors import SOCKS4Error as SOCKS4Error
from muonsocks.client.pysocks_errors import SOCKS5AuthError as SOCKS5AuthError
from muonsocks.client.pysocks_errors import SOCKS5Error as SOCKS5Error
from muonsocks.client.pysocks_errors import as_pysocks
from muonsocks.client.socks_socket import SocksSocket
from muonsocks.socks.proxy_address import ProxyAddress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import ModuleType
    from typing import Any, Self

    from muonsocks.socks.rules import Chain

    # The kind of a proxy, its host and port, whether it looks names up, user, password.
    Proxy = tuple[int | None, str | None, int | None, bool | None, bytes | None, bytes | None]

__version__ = "1.7.1"  # of the interface

_SCHEMES = {  # by whether the proxy looks names up
    SOCKS4: ("socks4", "socks4a"),
    SOCKS5: ("socks5", "socks5h"),
    HTTP: ("http", "http"),
}
_LONGEST = 255  # bytes of a user, and of a password (RFC 1929)


def set_default_proxy(
    proxy_type: int | None = None,
    addr: str | None = None,
    port: int | None = None,
    rdns: bool = True,
    username: str | None = None,
    password: str | None = None,
) -> None:
    """Have all sockets that are made from now on go through this proxy; see `set_proxy`."""
    socksocket.default_proxy = _proxy(proxy_type, addr, port, rdns, username, password)


def setdefaultproxy(*arguments: Any, **named: Any) -> None:
    """Do the same, by the name it had."""
    set_default_proxy(*arguments, **_new_names(named))


def get_default_proxy() -> Proxy | None:
    """Give the proxy of all sockets, if it has been set."""
    return socksocket.default_proxy


getdefaultproxy = get_default_proxy


def wrap_module(module: ModuleType) -> None:
    """Have a module that imports socket, and with it all others that do, make these sockets.
    GeneralProxyError if there is no proxy for all.
    """
    if not socksocket.default_proxy:
        raise GeneralProxyError("No default proxy specified")
    module.socket.socket = socksocket


wrapmodule = wrap_module


def create_connection(
    dest_pair: tuple[str, int],
    timeout: float | object | None = None,
    source_address: tuple[str, int] | None = None,
    proxy_type: int | None = None,
    proxy_addr: str | None = None,
    proxy_port: int | None = None,
    proxy_rdns: bool = True,
    proxy_username: str | None = None,
    proxy_password: str | None = None,
    socket_options: Iterable[tuple[Any, ...]] | None = None,
) -> socksocket:
    """Connect to (host, port) through a proxy, or the one that is set for all. OSError."""
    host, port = dest_pair
    way = (proxy_type, proxy_addr, proxy_port, proxy_rdns, proxy_username, proxy_password)
    for_all = socksocket.default_proxy or _NO_PROXY
    failure: OSError | None = None
    for family in _families(host, bool(proxy_type or for_all[0]), source_address):
        sock = socksocket(family, socket.SOCK_STREAM)
        try:
            for option in socket_options or ():
                sock.setsockopt(*option)
            if isinstance(timeout, int | float):
                sock.settimeout(timeout)
            if proxy_type:
                sock.set_proxy(*way)
            if source_address:
                sock.bind(source_address)
            sock.connect((host, port))
            return sock
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    assert failure is not None
    try:
        raise failure
    finally:
        del failure  # or it would be in a cycle with this frame


def _families(host: str, has_proxy: bool, source: tuple[str, int] | None) -> list[int]:
    """Say of which families sockets can be that are to get there: with a proxy it is no matter."""
    if source:
        return [socket.AF_INET6 if ":" in source[0] else socket.AF_INET]
    if has_proxy:
        return [socket.AF_INET]
    found = socket.getaddrinfo(_bare(host), None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(one[0] for one in found))


class socksocket(SocksSocket):
    """A socket that goes through the proxy that is set, TCP or UDP. It listens here."""

    default_proxy: Proxy | None = None
    listens_here = True

    def __init__(
        self,
        family: int = socket.AF_INET,
        type: int = socket.SOCK_STREAM,
        proto: int = 0,
        *arguments: Any,
        proxy: Chain | None = None,
        **named: Any,
    ) -> None:
        """`proxy` is what `dup` has."""
        if type not in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            raise ValueError(f"Socket type must be stream or datagram, not {type!r}")
        self.proxy: Proxy = self.default_proxy or _NO_PROXY
        chain = _chain(self.proxy) if proxy is None else proxy
        super().__init__(family, type, proto, *arguments, proxy=chain, **named)

    def set_proxy(
        self,
        proxy_type: int | None = None,
        addr: str | None = None,
        port: int | None = None,
        rdns: bool = True,
        username: str | None = None,
        password: str | None = None,
    ) -> None:
        """Go through a proxy of PROXY_TYPES, at the port of DEFAULT_PORTS if none is said.

        `rdns` says that it is to look names up. Without a password there is no user either, but
        with SOCKS4, which has none. GeneralProxyError for what is no proxy.
        """
        self.proxy = _proxy(proxy_type, addr, port, rdns, username, password)
        self._proxies = _chain(self.proxy)

    def setproxy(self, *arguments: Any, **named: Any) -> None:
        """Do the same, by the name it had."""
        self.set_proxy(*arguments, **_new_names(named))

    def dup(self) -> Self:
        """Give another socket object for the same connection."""
        sock = super().dup()
        assert isinstance(sock, type(self))
        sock.proxy = self.proxy
        return sock

    def connect(self, dest_pair: Any, catch_errors: bool | None = None) -> None:
        """Connect to (host, port), and wait for that even if the socket does not block otherwise.

        With `catch_errors` an error is the one that would be its `socket_err`, and the socket stays
        open.
        """
        host, port, *more = dest_pair
        if not host or not isinstance(port, int):
            raise GeneralProxyError("Invalid destination-connection (host, port) pair")
        timeout = self.gettimeout()
        if timeout == 0:
            self.setblocking(True)
        try:
            super().connect((_bare(host) if isinstance(host, str) else host, port, *more))
        except errors.ProxyError as error:
            kind, addr, port, *_ = self.proxy
            assert kind is not None
            failure = as_pysocks(error, kind, f"{addr}:{port or DEFAULT_PORTS[kind]}")
            if catch_errors:
                raise failure.socket_err or failure from None
            self.close()
            raise failure from None
        finally:
            if timeout == 0 and self.fileno() >= 0:
                self.setblocking(False)

    def connect_ex(self, dest_pair: Any) -> int:
        """Connect, but give the errno of what goes wrong, if it has one."""
        try:
            self.connect(dest_pair, catch_errors=True)
        except OSError as error:
            if error.errno is None:
                raise
            return error.errno
        return 0

    def get_proxy_sockname(self) -> tuple[Any, ...] | None:
        """Give the address that the proxy has bound, if it says so."""
        return None if self._bound is None else (self._bound.host, self._bound.port)

    def get_proxy_peername(self) -> Any:
        """Give the address of the proxy."""
        return socket.socket.getpeername(self)

    def get_peername(self) -> Any:
        """Give the destination; None if there is none yet."""
        try:
            return self.getpeername()
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
            return None

    def getsockname(self) -> Any:
        """Give the address of ours."""
        return socket.socket.getsockname(self)

    getproxysockname = get_proxy_sockname
    getproxypeername = get_proxy_peername
    proxy_sockname = property(get_proxy_sockname)
    proxy_peername = property(get_peername)


_NO_PROXY: Proxy = (None, None, None, None, None, None)


def _new_names(named: dict[str, Any]) -> dict[str, Any]:
    if "proxytype" in named:
        named["proxy_type"] = named.pop("proxytype")
    return named


def _proxy(
    kind: int | None,
    addr: str | None,
    port: int | None,
    rdns: bool,
    username: str | None,
    password: str | None,
) -> Proxy:
    user, secret = (text.encode() if text else None for text in (username, password))
    return kind, addr, port, rdns, user, secret


def _chain(proxy: Proxy) -> Chain:
    """Make a chain of what has been set."""
    kind, addr, port, rdns, user, password = proxy
    if not kind:
        return DIRECT
    if kind not in _SCHEMES or not addr:
        raise GeneralProxyError("Invalid proxy type" if addr else "Invalid proxy address")
    if kind != SOCKS4 and not (user and password):
        user = password = None
    if max(len(user or b""), len(password or b"")) > _LONGEST:
        raise GeneralProxyError("Username or password longer than 255 bytes")
    endpoint = Endpoint(_bare(addr), port or DEFAULT_PORTS[kind])
    address = ProxyAddress(_SCHEMES[kind][bool(rdns)], endpoint, user or b"", password or b"")
    if kind == HTTP:  # which has one scheme for both
        address.resolves = bool(rdns)
    return (address,)


def _bare(host: str) -> str:
    return host.strip("[]") if host.startswith("[") else host
