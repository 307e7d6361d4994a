"""What the SOCKS versions have in common: commands, reply codes and the events of the machines.

The machines of socks4.py and socks5.py take and give these events on either side: what a server
reads as an event is what a client sends, and the other way round.
"""

from __future__ import annotations

import errno

from muonsocks.address import Endpoint
from muonsocks.errors import NameNotResolved, NobodyCame, ProxyFailed, RequestFailed


class Command:
    """Commands as SOCKS4 and RFC 1928 section 4 number them; the last two are Tor's own
    (socks-extensions.txt section 2).
    """

    CONNECT = 1
    BIND = 2
    ASSOCIATE = 3
    RESOLVE = 0xF0
    RESOLVE_PTR = 0xF1


COMMAND_NAMES = {
    Command.CONNECT: "connect",
    Command.BIND: "bind",
    Command.ASSOCIATE: "associate",
    Command.RESOLVE: "resolve",
    Command.RESOLVE_PTR: "resolve-ptr",
}


class ReplyCode:
    """Reply codes of RFC 1928 section 6, used everywhere; SOCKS4 has its own on the wire.

    IDENTITY_REFUSED is SOCKS4's 0x5d, the refusal of a user id; SOCKS5 says NOT_ALLOWED instead.
    """

    SUCCEEDED = 0
    GENERAL_FAILURE = 1
    NOT_ALLOWED = 2
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    CONNECTION_REFUSED = 5
    TTL_EXPIRED = 6
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_TYPE_NOT_SUPPORTED = 8
    IDENTITY_REFUSED = 0x5D


REPLY_NAMES = {
    ReplyCode.GENERAL_FAILURE: "general failure",
    ReplyCode.NOT_ALLOWED: "not allowed",
    ReplyCode.NETWORK_UNREACHABLE: "network unreachable",
    ReplyCode.HOST_UNREACHABLE: "host unreachable",
    ReplyCode.CONNECTION_REFUSED: "connection refused",
    ReplyCode.TTL_EXPIRED: "ttl expired",
    ReplyCode.COMMAND_NOT_SUPPORTED: "command not supported",
    ReplyCode.ADDRESS_TYPE_NOT_SUPPORTED: "address type not supported",
}


class Method:
    """Authentication methods of RFC 1928 section 3."""

    NONE = 0
    PASSWORD = 2
    NO_ACCEPTABLE = 0xFF


_REPLY_BY_ERRNO = {
    errno.EACCES: ReplyCode.NOT_ALLOWED,
    errno.EPERM: ReplyCode.NOT_ALLOWED,
    errno.ENETUNREACH: ReplyCode.NETWORK_UNREACHABLE,
    errno.ENETDOWN: ReplyCode.NETWORK_UNREACHABLE,
    errno.ENONET: ReplyCode.NETWORK_UNREACHABLE,
    errno.EHOSTUNREACH: ReplyCode.HOST_UNREACHABLE,
    errno.EHOSTDOWN: ReplyCode.HOST_UNREACHABLE,
    errno.ENOENT: ReplyCode.HOST_UNREACHABLE,  # a unix socket that is not there
    errno.ECONNREFUSED: ReplyCode.CONNECTION_REFUSED,
    errno.ECONNRESET: ReplyCode.CONNECTION_REFUSED,
    errno.ETIMEDOUT: ReplyCode.TTL_EXPIRED,
    errno.EAFNOSUPPORT: ReplyCode.ADDRESS_TYPE_NOT_SUPPORTED,
}


def reply_code(error: OSError) -> int:
    """Give the reply code that tells a client why its destination could not be reached."""
    if isinstance(error, RequestFailed):
        return error.code
    if isinstance(error, ProxyFailed):
        return ReplyCode.GENERAL_FAILURE  # whatever it was, it was not the destination
    if isinstance(error, NameNotResolved):
        return ReplyCode.HOST_UNREACHABLE
    return _REPLY_BY_ERRNO.get(error.errno or 0, ReplyCode.GENERAL_FAILURE)


def end_of(error: OSError, otherwise: str) -> str:
    """Give the word by which the log says why a request has failed."""
    if isinstance(error, ProxyFailed):
        return "via-failed"
    if isinstance(error, NobodyCame):
        return "bind-timeout"
    return "name-not-found" if isinstance(error, NameNotResolved) else otherwise


class Event:
    """One thing that one side says to the other. Two events are equal if they say the same."""

    __slots__: tuple[str, ...] = ()

    def _names(self) -> list[str]:
        return [name for kind in type(self).__mro__ for name in getattr(kind, "__slots__", ())]

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and all(
            getattr(self, name) == getattr(other, name) for name in self._names()
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._names())
        return f"{type(self).__name__}({fields})"


class MethodOffer(Event):
    """Client to server, SOCKS5: the authentication methods it can do, a byte each."""

    __slots__ = ("methods",)

    def __init__(self, methods: bytes) -> None:
        self.methods = methods


class MethodChoice(Event):
    """Server to client, SOCKS5: the method to be used, or Method.NO_ACCEPTABLE."""

    __slots__ = ("method",)

    def __init__(self, method: int) -> None:
        self.method = method


class Credentials(Event):
    """Client to server: user and password, up to 255 bytes each (RFC 1929)."""

    __slots__ = ("password", "user")

    def __init__(self, user: bytes, password: bytes) -> None:
        self.user = user
        self.password = password

    def __repr__(self) -> str:
        return f"Credentials(user={self.user!r})"  # a password is for no log


class CredentialsVerdict(Event):
    """Server to client: whether the credentials are good (RFC 1929: status 0 if so)."""

    __slots__ = ("accepted",)

    def __init__(self, accepted: bool) -> None:
        self.accepted = accepted


class Request(Event):
    """Client to server: do `command` with `destination`. `user` is SOCKS4's user id."""

    __slots__ = ("command", "destination", "user")

    def __init__(self, command: int, destination: Endpoint, user: bytes = b"") -> None:
        self.command = command
        self.destination = destination
        self.user = user


UNSPECIFIED = Endpoint("0.0.0.0", 0)


class Reply(Event):
    """Server to client: how it went (a ReplyCode), and the address that is bound for it."""

    __slots__ = ("bound", "code")

    def __init__(self, code: int, bound: Endpoint = UNSPECIFIED) -> None:
        self.code = code
        self.bound = bound
