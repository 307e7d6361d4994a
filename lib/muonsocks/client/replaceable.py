"""A socket.socket whose descriptor may come to stand for another socket, as one to a proxy is made
elsewhere: its number, its mode and its options stay what the program has made them.
"""

from __future__ import annotations

import os
import socket
from _socket import socket as c_socket

from muonsocks.client.parking import replace
from muonsocks.net.dial import set_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_KINDS = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
_PROTOCOLS = (0, socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_MPTCP)
_OF_A_VERSION = (socket.IPPROTO_IP, socket.IPPROTO_IPV6)
_OF_ALL = (socket.SOL_SOCKET,)  # level of options that a unix socket has, too


class Replaceable(socket.socket):
    """A TCP or UDP socket; one of any other kind is as it is without all this."""

    def __init__(
        self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None
    ) -> None:
        """Make it, as socket.socket is made."""
        self._options: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        super().__init__(family, type, proto, fileno)
        kind = c_socket.type.__get__(self)
        self._is_for_proxies = (
            self.family in _FAMILIES and kind in _KINDS and self.proto in _PROTOCOLS
        )

    # Options

    def setsockopt(self, *option: Any) -> None:
        """Set an option, of this socket and of the one to the proxy, as far as that has it."""
        self._expect_option(option)
        try:
            super().setsockopt(*option)
        except OSError:
            if not self._is_of_another_family():
                raise
            self._of_a_fresh_one(c_socket.setsockopt, *option)
        if self._is_for_proxies:
            self._options[option[:2]] = option

    def _expect_option(self, option: tuple[Any, ...]) -> None:
        """Hold that an option may be set at all. OSError."""

    def getsockopt(self, *option: Any) -> Any:
        """Get an option; what the socket to the proxy does not have is as it was set."""
        if option[0] not in _OF_A_VERSION or not self._is_of_another_family():
            try:
                return super().getsockopt(*option)
            except OSError:
                if not self._is_of_another_family():
                    raise
        return self._of_a_fresh_one(c_socket.getsockopt, *option)

    def _of_a_fresh_one(self, method: Callable[..., Any], *option: Any) -> Any:
        """Say what a socket of this kind would, where the descriptor is one of another."""
        model = self._fresh()
        try:
            return method(model, *option)
        finally:
            model.close()

    def _is_of_another_family(self) -> bool:
        found = super().getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN)
        return self._is_for_proxies and found != self.family

    # Another socket in its place

    def _take_over(self, sock: c_socket, is_watched: bool) -> None:
        """Have another socket in this one's place, with this one's mode."""
        if sock.family == socket.AF_UNIX:
            set_options(sock, [one for one in self._options.values() if one[0] in _OF_ALL])
        replace(self.fileno(), sock, is_watched)
        os.set_blocking(self.fileno(), self.gettimeout() is None)

    def _become_fresh(self) -> None:
        """Be a socket that has done nothing yet, also for an epoll that it is in."""
        self._take_over(self._fresh(), True)

    def _fresh(self) -> c_socket:
        sock = c_socket(self.family, c_socket.type.__get__(self), self.proto)
        set_options(sock, self._options.values())
        return sock

    def _retire(self) -> None:
        """Be a socket at which nothing happens any more, also for an epoll that it is in."""
        self._take_over(c_socket(socket.AF_INET, socket.SOCK_DGRAM), True)
