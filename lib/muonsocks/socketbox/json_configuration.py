"""The configuration of python-socketbox: where to accept, who may register, and the rules.

It is a JSON document, parsed by whoever has it. All of it is checked before any of it is used, and
what is not known is an error.
"""

from __future__ import annotations

from muonsocks.address import LONGEST_UNIX_PATH, parse_address
from muonsocks.socketbox.json_rules import read_rules
from muonsocks.socketbox.json_value import Node, is_for_system

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from muonsocks.socketbox.rules import Rules

NOT_CHANGED = -1  # for a user or group of a file, as chown(2) has it
_BACKLOG = 4096
_HIGHEST_INT = (1 << 31) - 1
_HIGHEST_ID = (1 << 32) - 2
_LONGEST_CONTROL_PATH = 90  # characters
_MOST_GROUPS = 65536  # NGROUPS_MAX, setgroups(2)


class Listener:
    """Where to accept connections: a packed address, 4 bytes or 16, and a port.

    `scope` is the interface of a link-local address, by name or number, or "". `netns` is the file
    of the network namespace that the socket is made in, or "" for the one we begin in.
    """

    __slots__ = (
        "address",
        "backlog",
        "freebind",
        "netns",
        "port",
        "reuseaddr",
        "reuseport",
        "scope",
        "transparent",
    )

    def __init__(self, node: Node, netns: str) -> None:
        """`netns` is that of the listener before."""
        needed = ("address", "port")
        flags = ("transparent", "freebind", "reuseaddr", "reuseport")
        members = node.known(needed, (*flags, "backlog", "netns"))
        text = members["address"].text()
        address, percent, self.scope = text.partition("%")
        packed = parse_address(address)
        if packed is None or (percent and not (is_for_system(self.scope) and len(packed) == 16)):
            problem = f"{text[:60]!r} is not an address"
            raise members["address"].error(problem, "write an IPv4 or IPv6 address in full")
        self.address = packed
        self.port = members["port"].number(0, 65535)
        self.transparent, self.freebind, self.reuseaddr, self.reuseport = (
            members[flag].flag() if flag in members else flag == "reuseaddr" for flag in flags
        )
        self.backlog = _backlog(members)
        # Who enters a namespace stays there: a listener without one is in that of those before.
        self.netns = members["netns"].path_of_file() if "netns" in members else netns


class Inherited:
    """A socket to accept from that is open already, with this number.

    With `listen` it is bound, and is to listen with the `backlog`.
    """

    __slots__ = ("backlog", "fd", "listen")

    def __init__(self, node: Node) -> None:
        members = node.known(("fd",), ("listen", "backlog"))
        self.fd = members["fd"].number(0, _HIGHEST_INT)
        self.listen = "listen" in members and members["listen"].flag()
        self.backlog = _backlog(members)


class ControlPath:
    """Where receivers come to register: a unix socket, with its mode and owner."""

    __slots__ = ("gid", "mode", "path", "uid")

    def __init__(self, node: Node) -> None:
        members = node.known(("socket",), ("mode", "uid", "gid"))
        socket = members["socket"]
        self.path = socket.path_of_file()
        if self.path.startswith("@"):
            self.path = f"./{self.path}"  # to us alone it would be an abstract name
        length = len(self.path.encode("utf-8", "surrogateescape"))
        if len(socket.text()) > _LONGEST_CONTROL_PATH or length > LONGEST_UNIX_PATH:
            limit = f"at most {_LONGEST_CONTROL_PATH} fit"
            raise socket.error(f"the path has {len(self.path)} characters", limit)
        self.mode = _mode(members["mode"]) if "mode" in members else 0o700
        self.uid, self.gid = (
            members[name].number(NOT_CHANGED, _HIGHEST_ID) if name in members else NOT_CHANGED
            for name in ("uid", "gid")
        )


class Slot:
    """A group that one receiver may register for: one of this user, at this control path."""

    __slots__ = ("control_path", "uid")

    def __init__(self, node: Node) -> None:
        members = node.known(("uid", "path_nr"))
        self.uid = members["uid"].number(0, _HIGHEST_ID)
        self.control_path = members["path_nr"].number(0, _HIGHEST_INT)


class Daemon:
    """What the program becomes before it serves; None, or "" for `chroot`, where that is as it was.

    What is given takes place in this order: chroot, groups, gid, uid.
    """

    __slots__ = ("chroot", "gid", "groups", "uid")

    def __init__(self, node: Node) -> None:
        members = node.known((), ("chroot", "groups", "gid", "uid"))
        self.chroot = members["chroot"].path_of_file() if "chroot" in members else ""
        self.groups: list[int] | None = None
        if "groups" in members:
            groups = members["groups"].items()
            if len(groups) > _MOST_GROUPS:
                problem = f"there are {len(groups)} groups"
                raise members["groups"].error(problem, f"write {_MOST_GROUPS} at most")
            self.groups = [item.number(0, _HIGHEST_ID) for item in groups]
        self.gid, self.uid = (
            members[name].number(0, _HIGHEST_ID) if name in members else None
            for name in ("gid", "uid")
        )
        if self.uid == 0:
            raise members["uid"].error("this is root", "name a user with less power")
        if self.chroot and self.uid is None:
            problem = "this does not hold root, who can leave any directory"
            raise members["chroot"].error(problem, "write uid, too")


class Configuration:
    """All that a document says. `rules.warnings` has what is odd about any of it.

    A listener's place in the list is what the rules call `incoming_socket`, a slot's the group.
    `final_netns` is the file of the namespace to be in at last, "" for that of the last listener.
    """

    __slots__ = ("control_paths", "daemon", "final_netns", "listeners", "rules", "slots")

    def __init__(self, node: Node, warnings: Iterable[str] = ()) -> None:
        """`warnings` are there about the document already."""
        needed = ("socketbox-version", "incoming", "rules")
        members = node.known(needed, ("final_netns", "paths", "daemon", "outgoing"))
        version = members["socketbox-version"]
        if version.number(0, _HIGHEST_INT) != 1:
            raise version.error("this version is not known", "write 1")
        self.listeners = _listeners(members["incoming"])
        netns = members.get("final_netns")
        self.final_netns = netns.path_of_file() if netns else ""
        paths, slots = members.get("paths"), members.get("outgoing")
        self.control_paths = [ControlPath(item) for item in paths.items()] if paths else []
        self.slots = [Slot(item) for item in slots.items()] if slots else []
        self.daemon = Daemon(members.get("daemon", Node({}, "")))
        found = [*warnings]
        for number, slot in enumerate(self.slots):
            if slot.control_path >= len(self.control_paths):
                why = f"there is no paths[{slot.control_path}]: nobody can register for it"
                found.append(f"{node.origin}: outgoing[{number}].path_nr: {why}")
        self.rules: Rules = read_rules(
            members["rules"], len(self.slots), len(self.listeners), found
        )

    def listener_at(self, address: bytes, port: int) -> int:
        """Say which listener a connection to this address and port is likely to come in at: one of
        that address, one of any or of others too, or an inherited one; else the first.
        """

        def aim(number: int) -> int:
            one = self.listeners[number]
            if isinstance(one, Inherited):
                return 3
            if one.port == port and one.address == address:
                return 0
            is_any = one.address == bytes(16) or one.address == bytes(len(address))
            return 1 if one.port == port and is_any else 2 if one.transparent else 4

        return min(range(len(self.listeners)), key=aim)


def read_json(document: Any, source: str, warnings: Iterable[str] = ()) -> Configuration:
    """Read a document, which json.loads has given, from the file `source`.

    `warnings` are there about it already; `rules.warnings` has them and all others.

    UsageError that says where in the document: `FILE: rules.web.rules[3].jump: ...`.
    """
    return Configuration(Node(document, source), warnings)


def _listeners(node: Node) -> list[Listener | Inherited]:
    found: list[Listener | Inherited] = []
    netns = ""
    for item in node.items():
        if "fd" in item.members():
            found.append(Inherited(item))
            continue
        listener = Listener(item, netns)
        netns = listener.netns
        found.append(listener)
    if not found:
        raise node.error("there is nowhere to accept connections", "write an address and a port")
    return found


def _backlog(members: dict[str, Node]) -> int:
    return members["backlog"].number(0, _HIGHEST_INT) if "backlog" in members else _BACKLOG


def _mode(node: Node) -> int:
    text = node.text()
    digits = text.removeprefix("0o")
    if not digits or len(digits) > 5 or digits.strip("01234567") or int(digits, 8) > 0o7777:
        raise node.error(f"{text[:60]!r} is no mode", 'write it in octal, "0770" for instance')
    return int(digits, 8)
