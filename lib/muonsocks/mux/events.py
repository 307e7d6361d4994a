"""What a mux says has happened, to who drives it. No I/O."""

from __future__ import annotations

from muonsocks.socks.request import Event

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from muonsocks.address import Endpoint
    from muonsocks.mux.connection import Connection


class Began(Event):
    """A session has begun."""

    __slots__ = ()


class Over(Event):
    """The session is over; the `owners` are those of the connections that it had."""

    __slots__ = ("owners", "reason")

    def __init__(self, reason: str, owners: list[Any]) -> None:
        self.reason = reason
        self.owners = owners


class _Of(Event):
    __slots__ = ("connection",)

    def __init__(self, connection: Connection) -> None:
        self.connection = connection


class Opened(_Of):
    """To a host: somebody wants a connection to `destination`, and waits for an answer.

    If it has been let go when this is looked at, it is over already: it is only to be released.
    """

    __slots__ = ("destination",)

    def __init__(self, connection: Connection, destination: Endpoint) -> None:
        self.connection = connection
        self.destination = destination


class Answered(_Of):
    """To a guest: how that went."""

    __slots__ = ("bound", "code")

    def __init__(self, connection: Connection, code: int, bound: Endpoint) -> None:
        self.connection = connection
        self.code = code
        self.bound = bound


class Data(_Of):
    """Data, in `parts` that are to be used before the next is received; `size` of all of them."""

    __slots__ = ("parts", "size")

    def __init__(self, connection: Connection, part: memoryview) -> None:
        self.connection = connection
        self.parts = [part]
        self.size = len(part)


class Credited(_Of):
    """There was no credit left to send on, and now there is."""

    __slots__ = ()


class Ended(_Of):
    """The other side sends no more."""

    __slots__ = ()


class WasReset(_Of):
    """The other side has let go, and what it sent is not the whole."""

    __slots__ = ("reason",)

    def __init__(self, connection: Connection, reason: int) -> None:
        self.connection = connection
        self.reason = reason
