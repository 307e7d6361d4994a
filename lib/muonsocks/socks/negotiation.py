"""Which machine a client gets, and what it is asked for before it may make a request. No I/O."""

from __future__ import annotations

from muonsocks.errors import RemoteProtocolError
from muonsocks.socks import socks4, socks5
from muonsocks.socks.request import Command, Method, ReplyCode

FIRST_READ = 2  # bytes that may be read before the version is known: no handshake has fewer

Server = socks4.Server | socks5.Server


def server_for(first: bytes) -> Server:
    """Make the machine for the version that the client's first byte names.

    `first` is what has been read so far, at least one byte; the machine has not received it yet.
    """
    if first[0] == socks5.VERSION:
        return socks5.Server()
    if first[0] == socks4.VERSION:
        return socks4.Server()
    raise RemoteProtocolError(f"the first byte is {first[0]:#04x}, neither SOCKS4 nor SOCKS5")


def server_owing_reply(version: str, command: int | None) -> Server | None:
    """Make a machine whose client has asked for a command already; None for an unknown version."""
    server: Server
    if version == "5":
        server = socks5.Server("answer")
    elif version in ("4", "4a"):
        server = socks4.Server("answer")
    else:
        return None
    server.owes_two = command == Command.BIND
    return server


def choose_method(offered: bytes, password_required: bool, password_possible: bool) -> int:
    """Choose among the methods of an offer, in whatever order it has them (RFC 1928 section 3).

    A password may be possible, since there are users, where this client needs none; then one that
    offers nothing else may show it.
    """
    if not password_required and Method.NONE in offered:
        return Method.NONE
    if password_possible and Method.PASSWORD in offered:
        return Method.PASSWORD
    return Method.NO_ACCEPTABLE


def refusal_without_password(user: bytes) -> int:
    """Give the reply code for a SOCKS4 client where passwords are required: it can show none.

    A user id that it claims is refused as such (0x5d), a request without one is just rejected.
    """
    return ReplyCode.IDENTITY_REFUSED if user else ReplyCode.NOT_ALLOWED
