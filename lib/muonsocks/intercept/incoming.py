"""bind(2) of a program to addresses that mean a unix socket, and what it asks of that socket then.

rules(connects) -> the filter;   Incoming(...).handlers -> who answers
"""

from __future__ import annotations

import errno
from _socket import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    SO_ACCEPTCONN,
    SO_KEEPALIVE,
    SO_TYPE,
    SOCK_DGRAM,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
    socketpair,
)
from contextlib import closing

from muonsocks.intercept import in_place
from muonsocks.intercept.accepting import Accepting
from muonsocks.intercept.bpf import NOTIFY, Rule, equals, refuse
from muonsocks.intercept.conventions import Conventions, LinkLocal, Places, UnixPlace
from muonsocks.intercept.disguise import MIXED, Disguises
from muonsocks.intercept.notify import Call, Refused, int_of
from muonsocks.intercept.receiver import Receiver, inode_of
from muonsocks.intercept.receivers import Receivers, is_receiver
from muonsocks.intercept.socket_address import endpoint_of, family_of
from muonsocks.intercept.socket_rules import TCP_PROTOCOLS
from muonsocks.intercept.sorting import Sorter, others_have
from muonsocks.intercept.unix_places import make_receiver, read_place, take_after
from muonsocks.net.listen import SocketFile
from muonsocks.net.loop import Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from muonsocks.address import Endpoint
    from muonsocks.intercept.bpf import Rules
    from muonsocks.intercept.supervisor import Handler

_SO_PROTOCOL, _SO_DOMAIN = 38, 39
_LEVELS = (0, 6, 41)  # of IPv4, TCP and IPv6: a unix socket has no such options
_TELLING = (SO_TYPE, SO_ACCEPTCONN, SO_KEEPALIVE, _SO_PROTOCOL, _SO_DOMAIN)
_INT, _LONGEST_OPTION = 4, 1024  # bytes
_ANY = (Rule(NOTIFY),)


def rules(connects: bool) -> Rules:
    """Make the rules, those of connect(2) only if it is answered, too."""
    about_tcp = tuple(Rule(NOTIFY, equals(1, level)) for level in _LEVELS)
    telling = tuple(Rule(NOTIFY, equals(1, SOL_SOCKET), equals(2, name)) for name in _TELLING)
    names = ("bind", "listen", "accept", "accept4", "getsockname", "getpeername")
    return {
        **dict.fromkeys(names, _ANY),
        **({"connect": _ANY} if connects else {}),
        "setsockopt": (*about_tcp, Rule(NOTIFY, equals(1, SOL_SOCKET), equals(2, SO_KEEPALIVE))),
        "getsockopt": about_tcp + telling,
        "io_uring_setup": (Rule(refuse(errno.ENOSYS)),),
    }


class Incoming:
    """Answers bind(2) and what comes after it. `receivers` is what it has made."""

    __slots__ = (
        "_accepting",
        "_conventions",
        "_disguises",
        "_loop",
        "_places",
        "_report",
        "handlers",
        "receivers",
    )

    def __init__(
        self,
        loop: Loop,
        places: Places,
        conventions: Conventions,
        disguises: Disguises,
        accepting: Accepting,
        report: Callable[[Endpoint, str, str], None],
    ) -> None:
        """`report` is told of an address that a program is bound to, the path that stands for it,
        and what was wrong, or "".
        """
        self._loop = loop
        self._places = places
        self._conventions = conventions
        self._disguises = disguises
        self._accepting = accepting
        self._report = report
        self.receivers = Receivers()
        self.handlers: Mapping[str, Handler] = {
            "bind": self.bind,
            "listen": self.listen,
            "accept": self.accept,
            "accept4": self.accept,
            "getsockname": self.getsockname,
            "getpeername": self.getpeername,
            "getsockopt": self.getsockopt,
            "setsockopt": self.setsockopt,
        }

    # bind(2)

    async def bind(self, call: Call) -> None:
        """Put a unix socket in the place of one that is bound to such an address."""
        raw = call.read_address(*call.arguments[1:3])
        receiver = self.receivers.of(inode_of(call))
        if receiver is not None:
            if receiver.is_bound or receiver.name != raw:
                raise Refused(errno.EINVAL)
            receiver.is_bound = True  # a signal had come in between: it calls again
            call.succeed()
            return
        endpoint = endpoint_of(raw)
        if endpoint is None:
            call.go_on()
            return
        sock = call.duplicate()
        is_kept = False
        try:
            meaning = None
            if is_for_tcp(sock, raw) and not sock.getsockname()[1]:
                meaning = self._places.bound(endpoint) or self._conventions.bound(endpoint)
            if meaning is None:
                call.go_on()
            elif isinstance(meaning, LinkLocal):
                sock.bind(meaning.endpoint.sockaddr)
                call.succeed()
            else:
                place = read_place(meaning)
                is_kept = self._receiver(call, sock, raw, place)
                self._report(endpoint, place.path, "")
        except OSError as error:
            if isinstance(error, Refused):
                raise
            self._report(endpoint, str(error.filename or ""), error.strerror or str(error))
            raise Refused(error.errno or errno.EINVAL) from None
        finally:
            if not is_kept:
                sock.close()

    def _receiver(self, call: Call, sock: socket, name: bytes, place: UnixPlace) -> bool:
        """Put a unix socket in the place of `sock`; say whether that is kept for it."""
        self.receivers.sweep()
        earlier = self.receivers.at(place.path)
        if earlier is not None:
            earlier.forget_gone()
            if earlier.is_for_another_family(sock):
                sorter = earlier.sorter or self._sorted(call, earlier)
                if sorter is not None:
                    if sock.family not in sorter.receivers:
                        self._put_in(call, sorter, sock, name, place.path)
                        return True
                    earlier = sorter.receivers[sock.family]
            if earlier.may_be_shared(sock, name):
                shared = earlier.fetch(call)
                if shared is not None:
                    with closing(shared):
                        self._share(call, earlier, shared, sock)
                    return False
            if not earlier.waiting:
                earlier.let_go()
        made = make_receiver(place)
        with closing(made):
            one = Receiver(self._loop, made, sock, name)
            one.path, one.file, one.is_stream = place.path, SocketFile(place.path), place.is_stream
            self._put(call, one, made, sock)
        return True

    def _put(self, call: Call, one: Receiver, made: socket, sock: socket) -> None:
        one.tid, one.fd = call.tid, call.fd
        self.receivers.add(one)
        try:
            take_after(made, sock)
            in_place.Places(call, sock).take(made)
        except BaseException:
            self.receivers.remove(one)
            raise
        call.succeed()
        one.is_bound = True

    def _sorted(self, call: Call, one: Receiver) -> Sorter | None:
        """Have a sorter at the path of one that has been alone there; None if another process has
        that one, where it would have to be exchanged as well.
        """
        at_path = one.fetch_from(call.tid)
        if at_path is None:
            return None
        if others_have(one.inode, call.tid):
            at_path.close()
            return None
        ours, theirs = socketpair(AF_UNIX, SOCK_DGRAM)
        try:
            take_after(theirs, at_path)
            in_place.Places(call, at_path).take(theirs)
            sorter = Sorter(self._loop, at_path, one.file, self._accepting.take_passed)
            self.receivers.move(one, theirs)
        except BaseException:
            at_path.close()
            ours.close()
            raise
        finally:
            theirs.close()
        one.file = None
        one.be_fed(ours, sorter)
        return sorter

    def _put_in(self, call: Call, sorter: Sorter, sock: socket, name: bytes, path: str) -> None:
        """Put what a sorter feeds in the place of a socket."""
        ours, theirs = socketpair(AF_UNIX, SOCK_DGRAM)
        with closing(theirs):
            one = Receiver(self._loop, theirs, sock, name)
            one.path = path
            one.be_fed(ours, sorter)
            self._put(call, one, theirs, sock)

    def _share(self, call: Call, one: Receiver, shared: socket, sock: socket) -> None:
        if one.family != sock.family:
            one.family = MIXED
        one.is_bound = False
        in_place.Places(call, sock).take(shared)
        call.succeed()
        one.is_bound = True

    # listen(2) and accept(2)

    async def listen(self, call: Call) -> None:
        """Answer for receivers; and refuse what would listen at a port that the kernel chooses."""
        receiver = self.receivers.of(inode_of(call))
        if receiver is None:
            with closing(call.duplicate()) as sock:
                if self._conventions.blocks_empty_listen and is_unbound(sock):
                    raise Refused(errno.EINVAL)
                receiver = self._adopted(sock)
        if receiver is None:
            call.go_on()
            return
        if receiver.is_stream:
            receiver.hold(call).listen(max(int_of(call.arguments[1]), 0))
            receiver.let_go_soon()
        call.succeed()
        receiver.is_listening = True

    async def accept(self, call: Call) -> None:
        """Answer with a connection that has been passed."""
        receiver = self.receivers.of(inode_of(call))
        if receiver is None:
            with closing(call.duplicate()) as sock:
                receiver = self._adopted(sock)
            if receiver is None:
                call.go_on()
                return
            receiver.is_listening = True
        await self._accepting.accept(call, receiver)

    def _adopted(self, sock: socket) -> Receiver | None:
        """Make a receiver of a unix socket that has been there before, if it is for that."""
        if not is_receiver(sock, self._conventions.accepts_of_streams):
            return None
        self.receivers.sweep()
        one = Receiver(self._loop, sock, None, b"")
        one.is_bound = True
        self.receivers.add(one)
        return one

    # What a socket says of itself

    async def getsockname(self, call: Call) -> None:
        """Answer for receivers, and for connections in disguise."""
        inode = inode_of(call)
        receiver = self.receivers.of(inode)
        name = receiver.name if receiver is not None else b""
        if not name:
            name = self._disguises.name(call, inode, is_remote=False)
        self._tell_name(call, name)

    async def getpeername(self, call: Call) -> None:
        """Answer for connections in disguise."""
        if not self._disguises:
            call.go_on()
            return
        self._tell_name(call, self._disguises.name(call, inode_of(call), is_remote=True))

    def _tell_name(self, call: Call, name: bytes) -> None:
        if not name:
            call.go_on()
            return
        call.write_address(call.arguments[1], call.arguments[2], name)
        call.succeed()

    async def getsockopt(self, call: Call) -> None:
        """Answer as the socket would that a receiver stands for."""
        level, option = int_of(call.arguments[1]), int_of(call.arguments[2])
        inode = inode_of(call)
        receiver = self.receivers.of(inode)
        if receiver is None or receiver.meant is None:
            family = 0
            if (level, option) == (SOL_SOCKET, _SO_DOMAIN):
                family = self._disguises.family(call, inode)
            if not family:
                call.go_on()
                return
            value = family.to_bytes(4, "little")
        elif (level, option) == (SOL_SOCKET, SO_ACCEPTCONN):
            value = receiver.is_listening.to_bytes(4, "little")
        else:
            room = min(call.room_at(call.arguments[4]), _LONGEST_OPTION)
            try:
                value = receiver.meant.getsockopt(level, option, room or _INT)
            except OSError as error:
                raise Refused(error.errno or errno.EINVAL) from None
        call.write_option(value)
        call.succeed()

    async def setsockopt(self, call: Call) -> None:
        """Set an option of the socket that a receiver stands for."""
        receiver = self.receivers.of(inode_of(call))
        if receiver is None or receiver.meant is None:
            call.go_on()
            return
        level, option, at = int_of(call.arguments[1]), int_of(call.arguments[2]), call.arguments[3]
        size = call.arguments[4] & 0xFFFFFFFF
        if size > _LONGEST_OPTION:
            raise Refused(errno.EINVAL)
        try:
            receiver.meant.setsockopt(level, option, call.read(at, size))
        except OSError as error:
            raise Refused(error.errno or errno.EINVAL) from None
        receiver.note_inherited()
        call.succeed()


def is_for_tcp(sock: socket, name: bytes) -> bool:
    """Say whether a socket is of TCP, and has the family of an address."""
    return (
        sock.type == SOCK_STREAM and sock.proto in TCP_PROTOCOLS and sock.family == family_of(name)
    )


def is_unbound(sock: socket) -> bool:
    """Say whether a socket of TCP would listen at a port that the kernel chooses."""
    if sock.type != SOCK_STREAM or sock.family not in (AF_INET, AF_INET6):
        return False
    host, port = sock.getsockname()[:2]
    return not port and (sock.family == AF_INET6 or host == "0.0.0.0")
