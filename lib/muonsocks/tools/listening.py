"""Where a program that stays listens, and whom it tells that it does: -i, -p, -d, or systemd."""

from __future__ import annotations

import errno
import os
from fcntl import F_GETFL, fcntl

from muonsocks.address import parse_address
from muonsocks.errors import UsageError
from muonsocks.net.entrance import Listener
from muonsocks.net.listen import inherited, is_for_this_host, listen_on, name_of
from muonsocks.tools.environment import port_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

    from muonsocks.log import Log
    from muonsocks.net.entrance import Entrance
    from muonsocks.tools.options import Options

ANYWHERE = (bytes(4), bytes(16))
THIS_HOST = (b"\x7f\0\0\1", bytes(15) + b"\1")


def notify_fd(given: Options) -> int | None:
    """Give the descriptor of -d, which must be open for writing. None without it."""
    if given.text("--notify-fd") is None:
        return None
    fd = given.number("--notify-fd", 1 << 20)
    if fd == 2:
        # It is closed in the end, and then a client's socket could become where the log goes.
        raise UsageError("-d: descriptor 2 is for the log", "give another one, say 3")
    try:
        if fcntl(fd, F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise UsageError(f"-d: descriptor {fd} is only for reading", "give the other end")
        os.set_inheritable(fd, False)
    except OSError as error:
        raise UsageError(f"-d: descriptor {fd}: {error.strerror}", "see --help") from None
    return fd


def listeners(given: Options, is_limited: bool, log: Log) -> list[Entrance]:
    """Listen where systemd has, or where the options say, and tell what that means.

    Without either, everywhere if it `is_limited` who may come in, and on loopback alone if not.
    """
    addresses, port = given.texts("--listen"), given.text("--port")
    sockets = inherited()
    if sockets and (addresses or port is not None):
        raise UsageError("systemd has the sockets", "leave -i and -p out")
    if not sockets:
        number = 1080 if port is None else port_number(port, "-p")
        sockets = [listen_on(_address(text), number) for text in addresses]
    if not sockets:
        sockets = _listen_on_any(ANYWHERE if is_limited else THIS_HOST, number)
    names = ", ".join(map(name_of, sockets))
    log.info(f"listening on {names}", {"listen": names})
    if not is_limited:
        if not all(map(is_for_this_host, sockets)):
            log.warning("an open proxy: whoever can reach it may use it; see --users and -w")
        elif not addresses:
            log.info("only for this host, as everybody may come in; see --users, -w and -i")
    return [Listener(sock) for sock in sockets]


def _address(text: str) -> bytes:
    packed = parse_address(text.removeprefix("[").removesuffix("]"))
    if packed is None:
        raise UsageError(f"-i: {text!r} is not an address", "give IPv4 or IPv6 in full")
    return packed


def _listen_on_any(addresses: tuple[bytes, bytes], port: int) -> list[socket]:
    """Listen on an IPv4 and an IPv6 address; a host need not have both families."""
    listeners, failure = [], None
    for address in addresses:
        try:
            listeners.append(listen_on(address, port))
        except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                raise
            failure = error
    if failure is not None and not listeners:
        raise failure
    return listeners
