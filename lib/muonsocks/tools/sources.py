"""Where the connections of socketbox come from, by its options or its JSON: sockets that it makes,
or that are open already, and the control sockets where receivers register.
"""

from __future__ import annotations

import os
from _socket import SO_ACCEPTCONN, SOCK_STREAM, SOL_SOCKET, socket

from muonsocks.address import mapped
from muonsocks.errors import UsageError
from muonsocks.net.front import BindOptions, adopt, bind_front
from muonsocks.net.listen import SocketFile, inherited, listen_at, listen_with, name_of
from muonsocks.net.namespaces import enter_network
from muonsocks.net.passed import strictness
from muonsocks.socketbox.entrances import NumberedListener, Upstream
from muonsocks.socketbox.json_configuration import NOT_CHANGED, Configuration, Inherited
from muonsocks.tools.command_line import (
    Options,
    descriptor,
    packed_address,
    port_number,
    unix_path,
)
from muonsocks.tools.listening import register_as

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.log import Log
    from muonsocks.net.entrance import Entrance

_ANY = bytes(16)


class Sources:
    """The sockets: those to accept from, in order, and with how long a backlog each; and the
    control sockets, where receivers register. In the end what is theirs is put in order.
    """

    def __init__(self) -> None:
        self.sockets: list[socket] = []
        self._backlogs: list[int | None] = []  # None: it listens already
        self._places: list[SocketFile | None] = []
        self.control: list[socket] = []
        self.registration: Upstream | None = None
        self._files: list[SocketFile] = []
        self._lent: list[int] = []  # sockets that block for others who may have them

    def __enter__(self) -> Sources:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.remove()
        for fd in self._lent:
            os.set_blocking(fd, True)
            os.close(fd)

    def add(self, sock: socket, backlog: int | None, path: str | None = None) -> None:
        """Accept from a socket, too, which is bound to this path."""
        self.sockets.append(sock)
        self._backlogs.append(backlog)
        self._places.append(None if path is None else self._file(path))

    def add_lent(self, sock: socket, backlog: int | None) -> None:
        """Accept from one that is not ours alone: it blocks again in the end, if it did."""
        if os.get_blocking(sock.fileno()):
            self._lent.append(os.dup(sock.fileno()))
        self.add(sock, backlog)

    def add_control(self, sock: socket, path: str) -> None:
        """Let receivers register there."""
        self.control.append(sock)
        self._file(path)

    def _file(self, path: str) -> SocketFile:
        self._files.append(SocketFile(path))
        return self._files[-1]

    @property
    def is_for_one_worker(self) -> bool:
        """Whether there is something that only one process can have."""
        return bool(self.control) or self.registration is not None

    def entrances(self, log: Log) -> list[Entrance]:
        """Let all sockets listen, and say where."""
        if self.registration is not None:
            return [self.registration]
        found: list[Entrance] = []
        of_each = zip(self.sockets, self._backlogs, self._places, strict=True)
        for number, (sock, backlog, file) in enumerate(of_each):
            if backlog is not None:
                listen_with(sock, backlog)
            sock.setblocking(False)
            found.append(NumberedListener(sock, number, file))
        names = ", ".join(map(name_of, self.sockets))
        log.info(f"listening on {names}", {"listen": names})
        return found


def add_from_options(sources: Sources, given: Options) -> None:
    """Make the sockets that a command line asks for, or take those of systemd."""
    addresses, ports = given.texts("--listen"), given.texts("--port")
    fd = given.text("--socket")
    backlog = given.number("--backlog", (1 << 31) - 1, 4096)
    group = given.text("--register")
    passed = inherited(prepares=False)
    ways = [bool(passed), fd is not None, group is not None, bool(addresses or ports)]
    if sum(ways) > 1:
        hint = "leave -l and -p out, and under systemd -s and -P"
        raise UsageError("connections come from somewhere already", hint)
    if group is not None:
        level = strictness(os.environ)
        sources.registration = Upstream(_registration(group), level)
        return
    if fd is not None:
        sources.add_lent(adopt(descriptor(fd, "-s"), "-s"), backlog)
    for sock in passed:
        sources.add(sock, None)
    if sources.sockets:
        return
    options = BindOptions(
        given.flag("--transparent"),
        given.flag("--freebind"),
        not given.flag("--no-reuse-address"),
        given.flag("--reuse-port"),
    )
    numbers = [port_number(port, "-p") for port in ports or ["80"]]
    paths = [text for text in addresses if text[:1] in ("/", "@")]
    packed = [_address(text) for text in addresses if text not in paths] or [_ANY] * (not paths)
    if ports and not packed:
        raise UsageError("a unix socket has no port", "leave -p out, or add an address")
    is_alone = not any(len(address) == 4 for address in packed)
    for path in paths:
        sources.add(listen_at(unix_path(path, "-l"), SOCK_STREAM, backlog), None, path)
    for address in packed:
        for number in numbers:
            both = is_alone or address != _ANY
            sources.add(bind_front(address, number, options, both_families=both), backlog)


def _registration(text: str) -> socket:
    """Register as -P says, NUMBER:PATH."""
    group, colon, path = text.partition(":")
    if not colon:
        raise UsageError(f"-P: {text[:60]!r} has no path", "give NUMBER:PATH")
    return register_as(group, path, "-P")


def _address(text: str) -> bytes:
    """Pack an address in the family that it is written in."""
    packed = packed_address(text, "-l", "give IPv4 or IPv6 in full, a path or @NAME")
    return mapped(packed) if ":" in text else packed


def add_from_json(sources: Sources, configuration: Configuration) -> None:
    """Make the sockets of a document, in their network namespaces, and be in the last one."""
    for one in configuration.listeners:
        if isinstance(one, Inherited):
            sock = adopt(one.fd, "fd")
            if not one.listen and not sock.getsockopt(SOL_SOCKET, SO_ACCEPTCONN):
                raise UsageError(f"descriptor {one.fd} does not listen", 'add "listen": true')
            sources.add_lent(sock, one.backlog if one.listen else None)
            continue
        if one.netns:
            enter_network(one.netns)
        options = BindOptions(one.transparent, one.freebind, one.reuseaddr, one.reuseport)
        sources.add(bind_front(one.address, one.port, options, one.scope), one.backlog)
    if configuration.final_netns:
        enter_network(configuration.final_netns)
    for control in configuration.control_paths:
        sources.add_control(listen_at(control.path, mode=control.mode), control.path)
        if (control.uid, control.gid) != (NOT_CHANGED, NOT_CHANGED):
            os.chown(control.path, control.uid, control.gid, follow_symlinks=False)
