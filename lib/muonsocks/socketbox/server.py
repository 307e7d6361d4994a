"""Accept here, serve there: each connection is looked up in the rules, and passed to a receiver.

If that is full, or not there, it is waited for; and if that takes too long, the next one has its
turn that the rules name, or the connection is closed.
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, SO_ACCEPTCONN, SOCK_DGRAM, SOCK_NONBLOCK, SOL_SOCKET, socket
from mmap import mmap

from muonsocks.address import Endpoint
from muonsocks.log import INFO, Form, quoted
from muonsocks.net.front import clear_transparent
from muonsocks.net.identity import Identity
from muonsocks.net.privileges import gain_no_privileges, give_up
from muonsocks.resident.board import FIRST_OWN, OPEN, SECOND_OWN, SERVED
from muonsocks.resident.plan import Service
from muonsocks.resident.worker import descriptors_left
from muonsocks.socketbox.actions import Fail, ToDescriptor, ToGroup, ToPath
from muonsocks.socketbox.connection import LOCAL_ADDRESS, LOCAL_PORT, Connection
from muonsocks.socketbox.entrances import Arrival
from muonsocks.socketbox.receivers import AtPath, OverSocket
from muonsocks.socketbox.registry import Registry
from muonsocks.socketbox.waiting import ClientGone, Refused
from muonsocks.socketbox.waiting_room import WaitingRoom

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from muonsocks.log import Log
    from muonsocks.net.inherit import Peer
    from muonsocks.net.loop import Loop
    from muonsocks.socketbox.actions import Final
    from muonsocks.socketbox.json_configuration import Slot
    from muonsocks.socketbox.rulebook import Rulebook
    from muonsocks.socketbox.rules import Rules
    from muonsocks.socketbox.waiting import Receiver

# Lines of the log, muonsocks(7)
_PASSED = Form("passed", "client", "local", "to", "waited")
_CLOSED = Form("closed", "client", "local", "waited")

_WAITED, _NOT_PASSED = FIRST_OWN, SECOND_OWN  # connections, on the board
_MOST_RECEIVERS = 1024  # that are remembered though nobody waits for them


class PassingOptions:
    """How connections are passed on.

    `identity`, `root`: as whom, and inside which directory. `substitutes`: a path has the local
    address in it. `clears_transparent`: a socket is made an ordinary one before. `patience`,
    `most_waiting`: how long (s) they may wait, and how many, all of them for the same receiver
    where it `has_one_receiver`. `inherited`: the descriptors that rules may name. `ends_with`: the
    one of these that all depends on. None and -1 for none.
    """

    __slots__ = (
        "clears_transparent",
        "ends_with",
        "has_one_receiver",
        "identity",
        "inherited",
        "most_waiting",
        "patience",
        "root",
        "substitutes",
    )

    def __init__(self, patience: float, most_waiting: int) -> None:
        self.patience = patience
        self.most_waiting = most_waiting
        self.substitutes = False
        self.clears_transparent = False
        self.identity: Identity | None = None
        self.root: str | None = None
        self.has_one_receiver = False
        self.inherited: frozenset[int] = frozenset()
        self.ends_with = -1


class Box(Service):
    """The service of passing connections on."""

    __slots__ = (
        "_at_paths",
        "_control",
        "_gone",
        "_log",
        "_loop",
        "_over",
        "_passing",
        "_registry",
        "_retire",
        "_room",
        "_rulebook",
        "_rules",
        "_sender",
        "_slots",
        "_turn",
    )

    _loop: Loop
    _retire: Callable[..., None]
    _room: WaitingRoom
    _sender: socket

    def __init__(
        self,
        rulebook: Rulebook,
        passing: PassingOptions,
        log: Log,
        slots: Sequence[Slot] = (),
        control: Sequence[socket] = (),
    ) -> None:
        """Read the rules. UsageError or OSError if they are no good.

        With `slots` receivers register for these groups at the `control` sockets, which listen.
        """
        self._rulebook = rulebook
        self._passing = passing
        self._log = log
        self._slots = slots
        self._control = control
        self._registry: Registry | None = None
        self._at_paths: dict[str, AtPath] = {}
        self._over: dict[int, OverSocket] = {}
        self._gone = mmap(-1, 1)  # a worker knows, and the supervisor is asked
        self._rules = self.reread()
        self._turn = os.memfd_create("turn")  # which is locked, and never written to

    # Life cycle

    @property
    def has_lost_its_receiver(self) -> bool:
        """Whether the end has come because the one descriptor leads nowhere any more."""
        return bool(self._gone[0])

    def state(self) -> str:
        """How it goes, in a few words."""
        total = self.board.total
        waited, closed = total(_WAITED), total(_NOT_PASSED)
        passed = max(total(SERVED) - total(OPEN) - closed, 0)
        return f"passed on: {passed}, after a wait: {waited}, not passed on: {closed}"

    def reread(self) -> Rules:
        """Read the rules again, and say what is odd about them."""
        rules = self._rulebook.read()
        for warning in rules.warnings:
            self._log.warning(warning)
        return rules

    def take(self, configuration: Rules) -> None:
        """Go by these rules from now on."""
        self._rules = configuration

    def settle(self, loop: Loop, retire: Callable[..., None]) -> None:
        """Get what sends, and give up privileges."""
        passing = self._passing
        self._loop = loop
        self._retire = retire
        self._room = WaitingRoom(
            passing.patience,
            passing.most_waiting,
            self.board,
            self._turn,
            None if passing.has_one_receiver else descriptors_left() // 2,
        )
        self._sender = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK)
        give_up(passing.identity, passing.root)
        gain_no_privileges()
        if self._control:
            self._registry = Registry(loop, self._room, self._slots, self._control, self._log.info)

    def finish(self) -> None:
        """Let those go that have registered."""
        if self._registry is not None:
            self._registry.close()

    # One connection

    async def serve(self, loop: Loop, sock: socket, peer: Peer) -> int:
        """Pass a connection on, and close it here."""
        assert isinstance(peer, Arrival)
        try:
            since = loop.now
            connection = peer.connection(sock)
            to, why = await self._pass_on(sock, connection, since)
            waited = loop.now - since
            if waited:
                self.board.add(_WAITED, 1)
            if to is None:
                self.board.add(_NOT_PASSED, 1)
            if self._log.level >= INFO:
                self._note(peer, connection, to, waited, why)
        finally:
            sock.close()
        return 0

    async def _pass_on(
        self, sock: socket, connection: Connection, since: float
    ) -> tuple[ToPath | ToDescriptor | ToGroup | None, str]:
        """Give who has taken a connection, or None; and who has not, and why.

        It waits no longer for all of them than for one.
        """
        if self._passing.clears_transparent:
            try:
                clear_transparent(sock)
            except OSError as error:
                return None, f"it stays transparent: {error.strerror}"
        reasons: list[str] = []
        for decision in self._rules.receivers(connection, self._passing.substitutes):
            action = decision.action
            if isinstance(action, Fail):
                break
            try:
                receiver = self._receiver(action)
                await receiver.take(sock.fileno(), self._loop.now - since)
                return action, "; ".join(reasons)
            except ClientGone as gone:
                return None, str(gone)
            except Refused as refused:
                reasons.append(f"{action.text}: {refused}")
                if isinstance(action, ToDescriptor):
                    self._look_after(action.number)
        reasons.append(decision.why)
        return None, "; ".join(reasons)

    def _note(
        self, peer: Arrival, connection: Connection, to: Final | None, waited: float, why: str
    ) -> None:
        local = "unix"
        if peer.address is not None:
            address = LOCAL_ADDRESS.of(connection.key).to_bytes(16, "big")
            local = str(Endpoint.at(address, LOCAL_PORT.of(connection.key)))
        remark = ("reason", why) if why else None
        seconds = f"{waited:.3f}"
        if to is None:
            self._log.fill_in(INFO, _CLOSED, (peer.text, local, seconds), remark)
        else:
            to_whom = quoted(to.text.removeprefix("jump-unix:"))
            self._log.fill_in(INFO, _PASSED, (peer.text, local, to_whom, seconds), remark)

    # Receivers

    def _receiver(self, action: ToPath | ToDescriptor | ToGroup) -> Receiver:
        """Give who an action means. Refused if there is none."""
        if isinstance(action, ToPath):
            there = self._at_paths.get(action.path)
            if there is None:
                there = self._new_at_path(action.path)
            return there
        if isinstance(action, ToGroup):
            groups = self._registry.groups if self._registry else ()
            if action.number >= len(groups):
                raise Refused("nobody can register for it")
            return groups[action.number]
        over = self._over.get(action.number)
        if over is None:
            over = self._new_over(action.number)
        return over

    def _new_at_path(self, path: str) -> AtPath:
        """Make a receiver, and forget others: the addresses of -U may be any number of them."""
        if len(self._at_paths) >= _MOST_RECEIVERS + self._room.waiting:
            kept = {path: one for path, one in self._at_paths.items() if not one.is_idle}
            self._at_paths = kept
        there = self._at_paths[path] = AtPath(self._loop, self._room, self._sender, path)
        return there

    def _new_over(self, number: int) -> OverSocket:
        if number not in self._passing.inherited:
            raise Refused("no such descriptor was open at the start")
        try:
            sock = socket(fileno=number)
        except OSError as error:
            raise Refused(f"it is no socket: {error.strerror}") from None
        if sock.family != AF_UNIX or sock.getsockopt(SOL_SOCKET, SO_ACCEPTCONN):
            sock.detach()  # it is not ours to close
            raise Refused("it is no unix socket to send over")
        over = self._over[number] = OverSocket(self._loop, self._room, sock)
        return over

    def _look_after(self, number: int) -> None:
        """End, if the receiver that all depends on has gone."""
        over = self._over.get(number)
        if number == self._passing.ends_with and over is not None and over.has_gone:
            if not self._gone[0]:
                self._gone[0] = 1
                self._log.error(f"descriptor {number} leads nowhere any more: this is the end")
            self._retire(for_good=True)
