"""create_connection(), the one most programs need: a plain socket, connected through proxies."""

from __future__ import annotations

import socket

from muonsocks.address import Endpoint
from muonsocks.client.blocking import run
from muonsocks.client.errand import Errand, endpoint_of, expect_timeout, way_to
from muonsocks.socks.request import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from muonsocks.client.proxies import Proxies


def create_connection(
    address: tuple[str | bytes | None, int | str],
    timeout: float | object | None = socket._GLOBAL_DEFAULT_TIMEOUT,  # type: ignore[attr-defined]
    source_address: tuple[str, int] | None = None,
    *,
    proxy: Proxies = None,
    socket_options: Sequence[tuple[Any, ...]] = (),
) -> socket.socket:
    """Connect to (host, port) through `proxy`, as socket.create_connection does without.

    `proxy` is a URL, or several of them as one text or one by one, which are gone through one after
    the other; DIRECT for none. Without it the environment says which, see `proxies`.

    `timeout` is in seconds, and for all of it: look-ups, connections, what proxies are asked. The
    socket has it afterwards. Raises an OSError, see `errors`; UsageError (a ValueError) for what
    cannot be.
    """
    host, port = address[:2]
    destination = endpoint_of(host, port)
    if timeout is socket._GLOBAL_DEFAULT_TIMEOUT:  # type: ignore[attr-defined]
        timeout = socket.getdefaulttimeout()
    limit = expect_timeout(timeout)
    source = None if source_address is None else _source(*source_address[:2])
    errand = Errand(
        Command.CONNECT, destination, way_to(destination, proxy), source, socket_options
    )
    granted = run(lambda loop: errand.run(loop, limit))
    sock = socket.socket(fileno=granted.sock.detach())
    sock.settimeout(limit)
    return sock


def _source(host: str, port: int) -> Endpoint:
    """Give the address of ours that a connection is to come from; it may be said by its name."""
    endpoint = endpoint_of(host, port)
    if endpoint.packed is None:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        endpoint = Endpoint.of_socket(found[0][4])
    return endpoint
