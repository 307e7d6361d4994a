"""Where clients come to a program that stays, and whom it tells that they can: -i, -p, --receive,
-d, or systemd.
"""

from __future__ import annotations

import errno
import os
from _socket import SOCK_DGRAM, SOCK_STREAM
from fcntl import F_GETFL, fcntl

from muonsocks.errors import UsageError
from muonsocks.net.entrance import Intake, Listener
from muonsocks.net.listen import (
    SocketFile,
    inherited,
    is_for_this_host,
    listen_on,
    name_of,
    receive_at,
)
from muonsocks.net.registration import LARGEST_GROUP, register
from muonsocks.tools.command_line import packed_address, port_number, unix_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

    from muonsocks.log import Log
    from muonsocks.net.entrance import Entrance
    from muonsocks.tools.options import Options

ANYWHERE = (bytes(4), bytes(16))
THIS_HOST = (b"\x7f\0\0\1", bytes(15) + b"\1")
_PATIENCE = 10.0  # s for a server to answer


def notify_fd(given: Options) -> int | None:
    """Give the descriptor of -d, which must be open for writing. None without it."""
    if given.text("--notify-fd") is None:
        return None
    fd = given.number("--notify-fd", 1 << 20)
    if fd == 2:
        # It is closed in the end, and then a client's socket could become where the log goes.
        raise UsageError("--notify-fd: descriptor 2 is for the log", "give another one, say 3")
    try:
        if fcntl(fd, F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise UsageError(
                f"--notify-fd: descriptor {fd} is only for reading", "give the other end"
            )
        os.set_inheritable(fd, False)
    except OSError as error:
        raise UsageError(f"--notify-fd: descriptor {fd}: {error.strerror}", "see --help") from None
    return fd


def listeners(
    given: Options, is_limited: bool, log: Log, believes_all: bool = False
) -> list[Entrance]:
    """Listen and receive where systemd does, or where the options say, and tell what that means;
    also that it `believes_all` who say that they come for somebody else.

    Without any of it listen everywhere if it `is_limited` who may come in, and on loopback alone if
    not.
    """
    addresses, port = given.texts("--listen"), given.text("--port")
    paths = [unix_path(path, "--receive") for path in given.texts("--receive")]
    passed = inherited(SOCK_STREAM, SOCK_DGRAM)
    if passed and (addresses or port is not None):
        raise UsageError("systemd has the sockets", "leave -i and -p out")
    if port is not None and paths and not addresses:
        raise UsageError("-p is for -i, where there is --receive", "give -i too, or leave it out")
    sockets = [sock for sock in passed if sock.type == SOCK_STREAM]
    receivers: list[Entrance] = [
        Intake(sock, is_ours=False) for sock in passed if sock.type == SOCK_DGRAM
    ]
    names = [f"{name_of(sock)} (passed on)" for sock in passed if sock.type == SOCK_DGRAM]
    if not passed:
        number = 1080 if port is None else port_number(port, "-p")
        sockets = [listen_on(packed_address(text, "-i"), number) for text in addresses]
        if not sockets and not paths:
            sockets = _listen_on_any(ANYWHERE if is_limited else THIS_HOST, number)
    try:
        for path in paths:
            receivers.append(receiver_at(path))
            names.append(f"unix:{path} (passed on)")
    except BaseException:
        for receiver in receivers:
            receiver.shut()
        raise
    text = ", ".join([*map(name_of, sockets), *names])
    log.info(f"listening on {text}", {"listen": text})
    is_reachable = bool(receivers) or not all(map(is_for_this_host, sockets))
    if is_reachable and believes_all:
        log.warning("whoever can reach it may say to be somebody else; see --proxy-from")
    if not is_limited:
        if is_reachable:
            log.warning("an open proxy: whoever can reach it may use it; see --users and -w")
        elif not addresses:
            log.info("only for this host, as everybody may come in; see --users, -w and -i")
    return [*map(Listener, sockets), *receivers]


def receivers_at(
    place: str,
    what: str,
    log: Log,
    kind: type[Intake] = Intake,
    strictness: int = 2,
) -> list[Entrance]:
    """Receive at a path, or at the sockets of systemd if the `place` is "systemd", and log where.

    `what` is the name of this argument.
    """
    receivers: list[Entrance]
    if place != "systemd":
        receivers = [receiver_at(unix_path(place, what), kind, strictness)]
        log.info(f"receiving at unix:{place}")
        return receivers
    sockets = inherited(SOCK_DGRAM)
    if not sockets:
        raise UsageError("systemd has passed no socket", "start it by its socket unit")
    log.info(f"receiving at {', '.join(map(name_of, sockets))}")
    return [kind(sock, is_ours=False, strictness=strictness) for sock in sockets]


def registered(
    control: str,
    group: str,
    log: Log,
    kind: type[Intake] = Intake,
    strictness: int = 2,
) -> Intake:
    """Register as a group with the server whose control socket is given. OSError that says why."""
    sock = register_as(group, control, "--register")
    log.info(f"registered as group {int(group)} at unix:{control}")
    return kind(sock, True, None, strictness)


def register_as(group: str, control: str, what: str) -> socket:
    """Register as `net.registration.register` does; `what` is the name of the option that says so.
    UsageError too.
    """
    unix_path(control, what)
    number = int(group) if group.isascii() and group.isdecimal() and len(group) < 11 else -1
    if not 0 <= number <= LARGEST_GROUP:
        raise UsageError(f"{what}: {group[:60]!r} is no group", f"give 0 to {LARGEST_GROUP}")
    return register(control, number, _PATIENCE)


def receiver_at(path: str, kind: type[Intake] = Intake, strictness: int = 2) -> Intake:
    """Receive at a path, as `net.listen.receive_at` and `Intake` do. OSError that says where."""
    try:
        sock = receive_at(path)
    except OSError as error:
        what = error.strerror or ""
        if error.filename not in (path, None):
            what = f"{error.filename}: {what}"  # the lock beside it
        raise OSError(error.errno, f"cannot receive at {path}: {what}") from None
    return kind(sock, True, SocketFile(path), strictness)


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
