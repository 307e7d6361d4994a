"""The relays of a chain of SOCKS5 proxies: each of them has an association for us (RFC 1928 section
7), asked for on a connection that leads through those before it.
"""

from __future__ import annotations

import errno

from muonsocks.address import Endpoint, is_own_side
from muonsocks.errors import ProxyFailed
from muonsocks.net.datagrams import bound_beside
from muonsocks.socks.ways import bound_by_proxy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Awaitable, Callable

    from muonsocks.net.stream import Stream
    from muonsocks.socks.proxy_request import ProxyRequest
    from muonsocks.socks.request import Reply
    from muonsocks.socks.rules import Chain

    # Has the last proxy of a chain grant an association.
    Ask = Callable[[Chain], Awaitable[tuple[Stream, ProxyRequest, Reply]]]

# Bytes that a proxy may say on the connection that its association lasts as long as, though there
# is nothing to be said: who goes on is not to keep us busy.
MOST_SAID = 16 << 10


async def to_relays(
    chain: Chain,
    ask: Ask,
    streams: list[Stream],
    make: Callable[[socket], socket] = bound_beside,
) -> tuple[socket, list[Endpoint]]:
    """Ask all proxies. Give a UDP socket that is connected to the relay of the first, and where the
    relays are; `streams` has the connections, to be closed by whoever has asked, also after a
    failure. `make` makes the socket, beside the first connection. OSError, as `ask` raises it.
    """
    relays: list[Endpoint] = []
    for length in range(1, len(chain) + 1):
        way = chain[:length]
        stream, _, reply = await ask(way)
        streams.append(stream)
        relays.append(bound_by_proxy(way, stream, reply.bound))
    return _connected(chain, streams[0], relays[0], make), relays


def _connected(
    chain: Chain, stream: Stream, relay: Endpoint, make: Callable[[socket], socket]
) -> socket:
    if relay.packed is None or not any(relay.packed) or not stream.is_tcp:
        raise ProxyFailed(f"{chain[0]}: it does not say where datagrams are to go")
    try:
        proxy = Endpoint.of_socket(stream.socket.getpeername())
    except OSError as error:  # it has gone already
        raise ProxyFailed(f"{chain[0]}: {error.strerror}", errno.ECONNRESET) from None
    # Nor may it have us send to this host's own side, unless it is there itself.
    if len(relay.packed) != len(proxy.packed or b"") or (
        is_own_side(relay.packed) and relay.packed != proxy.packed
    ):
        raise ProxyFailed(f"{chain[0]}: datagrams cannot go to {relay.host}")
    sock = make(stream.socket)
    try:
        sock.connect(relay.sockaddr)
    except OSError as error:
        sock.close()
        reason = f"{chain[0]}: no way to {relay}: {error.strerror}"
        raise ProxyFailed(reason, error.errno or 0) from None
    return sock
