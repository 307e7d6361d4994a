"""What the options and the JSON of socketbox make: its sockets, and as whom it runs."""

from __future__ import annotations

import os
from _socket import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    SO_ACCEPTCONN,
    SOCK_STREAM,
    SOL_SOCKET,
    inet_pton,
    socket,
)
from stat import S_ISSOCK

from muonsocks.errors import UsageError
from muonsocks.net.front import BindOptions, adopt, bind_front
from muonsocks.net.listen import SocketFile, inherited, listen_at, name_of
from muonsocks.net.namespaces import enter_network
from muonsocks.net.passed import strictness
from muonsocks.net.privileges import Identity, expect_rights, give_up
from muonsocks.net.registration import LARGEST_GROUP, register
from muonsocks.socketbox.entrances import Front, Handed
from muonsocks.socketbox.json_configuration import NOT_CHANGED, Configuration, Daemon, Inherited
from muonsocks.tools.command_line import Options, bare_address, descriptor, unix_path
from muonsocks.tools.environment import port_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.log import Log
    from muonsocks.net.entrance import Entrance

_ANY = bytes(16)
_PATIENCE = 10.0  # s for another socketbox to answer


class Sources:
    """The sockets: those to accept from, in order, and with how long a backlog each; and the
    control sockets, where receivers register. In the end what is theirs is put in order.
    """

    def __init__(self) -> None:
        self.sockets: list[socket] = []
        self._backlogs: list[int | None] = []  # None: it listens already
        self._places: list[SocketFile | None] = []
        self.control: list[socket] = []
        self.registration: Handed | None = None
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
                _listen(sock, backlog)
            sock.setblocking(False)
            found.append(Front(sock, number, file))
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
        sources.registration = Handed(_registration(group), level)
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


def _listen(sock: socket, backlog: int) -> None:
    try:
        sock.listen(backlog)
    except OSError as error:  # somebody else was bound there, too, and was faster
        where = f"cannot listen on {name_of(sock)}: {error.strerror}"
        raise OSError(error.errno, where) from None


def _registration(text: str) -> socket:
    """Register as -P says, NUMBER:PATH."""
    number, _, path = text.partition(":")
    if not (number.isascii() and number.isdecimal()) or len(number) > 10:
        raise UsageError(f"-P: {text[:60]!r} has no number of a group", "give NUMBER:PATH")
    if int(number) > LARGEST_GROUP:
        raise UsageError(f"-P: there is no group {number}", f"give 0 to {LARGEST_GROUP}")
    return register(unix_path(path, "-P"), int(number), _PATIENCE)


def _address(text: str) -> bytes:
    """Pack an address in the family that it is written in."""
    bare = bare_address(text)
    try:
        return inet_pton(AF_INET6 if ":" in bare else AF_INET, bare)
    except (OSError, ValueError):  # ValueError: a NUL
        hint = "give IPv4 or IPv6 in full, a path or @NAME"
        raise UsageError(f"-l: {text[:60]!r} is not an address", hint) from None


# JSON


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


def identity(daemon: Daemon) -> Identity | None:
    """Make as whom a document has it."""
    if daemon.uid is None and daemon.gid is None and daemon.groups is None:
        return None
    groups = None if daemon.groups is None else tuple(daemon.groups)
    if groups is None and daemon.gid is not None:
        groups = ()  # or who has another group would still have those of root
    return Identity(daemon.uid, daemon.gid, groups, implied=False)


def receiving_socket(text: str) -> int:
    """Give the descriptor of -i, which has to be a unix socket. UsageError."""
    fd = descriptor(text, "-i")
    if fd == 2:
        raise UsageError("-i: descriptor 2 is for the log", "give another one, say 3")
    try:
        sock = socket(fileno=fd)
    except OSError:
        family = -1
    else:
        family = sock.family
        sock.detach()
    if family != AF_UNIX:
        hint = "give one end of a unix socket"
        raise UsageError(f"-i: descriptor {fd} is no unix socket", hint)
    return fd


def descriptors() -> frozenset[int]:
    """Give those that rules may name: all that are open, but for standard streams, unless those are
    sockets, too; and never the one that the log goes to.
    """
    fds = frozenset(int(name) for name in os.listdir("/proc/self/fd")) - {2}
    return frozenset(fd for fd in fds if _is_socket(fd) or (fd > 2 and _is_open(fd)))


def _is_socket(fd: int) -> bool:
    return _is_open(fd) and S_ISSOCK(os.fstat(fd).st_mode)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False  # the list was read from it, say
    return True


# As whom


def privileges(given: Options, for_program: bool = False) -> tuple[Identity | None, str | None]:
    """Say as whom, and inside which directory; `for_program`: be that now, to execute one."""
    asked = Identity.of_parts(
        given.text("--user"),
        given.text("--group"),
        given.text("--groups"),
        given.flag("--keep-groups"),
    )
    root = given.text("--chroot")
    if root == "":
        raise UsageError("-x is empty", "name a directory, or leave it out")
    if root is not None:
        root = os.path.join(os.getcwd(), root)  # -d leaves it
    expect_rights(asked, root, "-x")
    if for_program:
        give_up(asked, root, for_program=True)
    return asked, root


def background(log: Log, for_program: bool = False) -> int:
    """Go on in a child that has left the terminal, and give the descriptor where it says, by a
    newline, that it serves: then the parent ends. If the child ends before, so does the parent, as
    that did. With `for_program` the newline says that it has failed, and a program that is
    executed, for which the descriptor is closed, that it has not.
    """
    ready, tell = os.pipe()
    child = os.fork()
    if child:
        os.close(tell)
        if bool(os.read(ready, 1)) != for_program:
            os._exit(0)
        os._exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 1))
    os.close(ready)
    os.setsid()
    os.chdir("/")
    if not _is_socket(0):  # or else it may be one that an option or a rule has named
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, 0)
        if null > 0:
            os.close(null)
    log.after_fork()
    return tell
