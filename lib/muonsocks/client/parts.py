"""Methods that a SocksSocket has instead of its own while it is under way, or for datagrams: none
is any slower for what a socket could be but is not.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.client.socks_socket import SocksSocket

_made: dict[tuple[type, type], type] = {}


def become(sock: SocksSocket, part: type) -> None:
    """Have the methods of a part go before those of a socket's class, up to `be_again`."""
    kind = type(sock)
    made = _made.get((part, kind))
    if made is None:
        made = _made[part, kind] = type(
            kind.__name__, (part, kind), {"__module__": kind.__module__}
        )
    sock.__class__ = made


def be_again(sock: SocksSocket) -> None:
    """Undo the last `become`."""
    sock.__class__ = type(sock).__bases__[1]


def own_kind(sock: SocksSocket) -> type[SocksSocket]:
    """Give the class that a socket was made of."""
    kind = type(sock)
    while kind in _made.values():
        kind = kind.__bases__[1]
    return kind
