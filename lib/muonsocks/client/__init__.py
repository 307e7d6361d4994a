"""For programs that go through a SOCKS or HTTP proxy: muonsocks-client(3).

    from muonsocks.client import create_connection, open_connection, SocksSocket

    sock = create_connection(("www.example.com", 80), proxy="socks5h://127.0.0.1:1080")

Each name is imported when it is first asked for: a program gets what it uses.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.client.connection import create_connection as create_connection
    from muonsocks.client.errors import DestinationRefused as DestinationRefused
    from muonsocks.client.errors import DestinationTimedOut as DestinationTimedOut
    from muonsocks.client.errors import DestinationUnreachable as DestinationUnreachable
    from muonsocks.client.errors import LoginRefused as LoginRefused
    from muonsocks.client.errors import NameNotFound as NameNotFound
    from muonsocks.client.errors import NameTimedOut as NameTimedOut
    from muonsocks.client.errors import ProxyError as ProxyError
    from muonsocks.client.errors import ProxyMisbehaved as ProxyMisbehaved
    from muonsocks.client.errors import ProxyTimedOut as ProxyTimedOut
    from muonsocks.client.errors import ProxyUnreachable as ProxyUnreachable
    from muonsocks.client.errors import RequestRefused as RequestRefused
    from muonsocks.client.in_asyncio import open_connection as open_connection
    from muonsocks.client.in_asyncio import open_socket as open_socket
    from muonsocks.client.proxies import DIRECT as DIRECT
    from muonsocks.client.socks_socket import SocksSocket as SocksSocket
    from muonsocks.errors import UsageError as UsageError
    from muonsocks.socks.proxy_address import ProxyAddress as ProxyAddress

_HOMES = {
    "DIRECT": "muonsocks.client.proxies",
    "DestinationRefused": "muonsocks.client.errors",
    "DestinationTimedOut": "muonsocks.client.errors",
    "DestinationUnreachable": "muonsocks.client.errors",
    "LoginRefused": "muonsocks.client.errors",
    "NameNotFound": "muonsocks.client.errors",
    "NameTimedOut": "muonsocks.client.errors",
    "ProxyAddress": "muonsocks.socks.proxy_address",
    "ProxyError": "muonsocks.client.errors",
    "ProxyMisbehaved": "muonsocks.client.errors",
    "ProxyTimedOut": "muonsocks.client.errors",
    "ProxyUnreachable": "muonsocks.client.errors",
    "RequestRefused": "muonsocks.client.errors",
    "SocksSocket": "muonsocks.client.socks_socket",
    "UsageError": "muonsocks.errors",
    "create_connection": "muonsocks.client.connection",
    "open_connection": "muonsocks.client.in_asyncio",
    "open_socket": "muonsocks.client.in_asyncio",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    """Import the module that has it."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(__import__(home, fromlist=[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
