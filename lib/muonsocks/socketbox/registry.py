"""Receivers that come and register for a group, by the protocol of net/registration.py: who has
which.

They connect to a control path. A group, or slot, is for one user and one path, and for one receiver
at a time.
"""

from __future__ import annotations

import errno
from _socket import SO_PEERCRED, SO_SNDBUF, SOL_SOCKET, socket
from sys import byteorder

from muonsocks.errors import RemoteProtocolError
from muonsocks.net.passing import Passage, send
from muonsocks.net.registration import AGREED, REQUEST
from muonsocks.resident.repeats import Repeats
from muonsocks.socketbox.receivers import Group

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from muonsocks.net.loop import Loop
    from muonsocks.socketbox.json_configuration import Slot
    from muonsocks.socketbox.waiting_room import WaitingRoom

MOST_OF_A_USER = 5  # connections that are open
_MOST_OF_OTHERS = 100  # of all who have no group, and are told so once they have asked for one
_OTHERS = -1  # in the place of a user's number
_PATIENCE = 10.0  # s for a receiver to say what it wants
_PAUSE = 0.2  # s without looking for others, if this process has no descriptor for them
_LENGTH = len(REQUEST) + 4  # bytes, with the group


class Registry:
    """Who has registered, by group."""

    __slots__ = ("_loop", "_note", "_open", "_repeats", "_slots", "_users", "groups")

    def __init__(
        self,
        loop: Loop,
        room: WaitingRoom,
        slots: Sequence[Slot],
        listeners: Sequence[socket],
        note: Callable[[str], None],
    ) -> None:
        """Let receivers register with sockets that listen, one for each control path, in order.
        `note` is told who has, and who may not.
        """
        self._loop = loop
        self._slots = slots
        self._users = {slot.uid for slot in slots}
        self._note = note
        self._open: dict[int, int] = {}  # connections by user
        self._repeats: dict[int, Repeats] = {}  # by user; those who have no group are one
        self.groups = [Group(loop, room, number) for number in range(len(slots))]
        for place, listener in enumerate(listeners):
            self._listen(listener, place)

    def _listen(self, listener: socket, place: int) -> None:
        self._loop.register_listener(listener.fileno(), lambda _: self._accept(listener, place))

    def _accept(self, listener: socket, place: int) -> None:
        try:
            fd, _ = listener._accept()  # type: ignore[attr-defined]  # it is closed on exec
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                self._loop.unregister(listener.fileno())
                self._loop.call_later(_PAUSE, lambda: self._listen(listener, place))
            return  # else it has gone already, and the next one may be there
        sock = socket(fileno=fd)
        uid = _user_of(sock)
        count = self._open.get(uid, 0)
        if why := self._too_many(uid, count):
            self._say(uid, f"not registered: {why} already")
            sock.close()
            return
        self._open[uid] = count + 1
        try:
            # What is in its queue is lost when a receiver dies, and nobody's to wait for: let that
            # be a handful, as with datagrams, and not hundreds. The kernel makes it its minimum.
            sock.setsockopt(SOL_SOCKET, SO_SNDBUF, 0)
            passage = Passage.over(self._loop, sock)
        except OSError as error:
            self._forget(uid)
            self._say(uid, f"not registered: user {uid}: {error.strerror}")
            return
        self._loop.spawn(
            self._register(passage, uid, place),
            lambda error: self._on_failure(uid, error),
        )

    def _too_many(self, uid: int, count: int) -> str:
        """Say why a user may have no more connections, if that is so."""
        if count >= MOST_OF_A_USER:
            return f"user {uid} has {count} connections"
        if uid not in self._users:
            others = sum(n for user, n in self._open.items() if user not in self._users)
            if others >= _MOST_OF_OTHERS:
                return f"users who have no group have {others} connections"
        return ""

    async def _register(self, passage: Passage, uid: int, place: int) -> None:
        """Hear what one wants, and let it have that or close the connection."""

        def on_end() -> None:
            self._forget(uid)
            self._say(uid, f"group {number}: the receiver of user {uid} has gone")

        try:
            with self._loop.deadline(_PATIENCE):
                request, _ = await passage.receive_message(_LENGTH)
            # From here on nothing is waited for, or another one could be given the group meanwhile.
            number = self._number(request, uid, place)
            send(passage.socket, AGREED)
            self._loop.unregister(passage.reader)  # what has come since is told once more
            self._say(uid, f"group {number}: a receiver of user {uid} has registered")
            self.groups[number].register(passage.socket, on_end)
        except BaseException:
            passage.close()
            raise

    def _number(self, request: bytes, uid: int, place: int) -> int:
        """Give the group that is asked for and may be had. RemoteProtocolError if it may not."""
        if len(request) != _LENGTH or not request.startswith(REQUEST):
            raise RemoteProtocolError(f"user {uid} sends no request: {request.hex(' ') or 'end'}")
        number = int.from_bytes(request[len(REQUEST) :], "big")
        if number >= len(self._slots):
            raise RemoteProtocolError(f"user {uid} asks for group {number}, which there is not")
        slot = self._slots[number]
        if slot.uid != uid or slot.control_path != place:
            raise RemoteProtocolError(f"user {uid} may not have group {number} by paths[{place}]")
        if self.groups[number].is_there:
            raise RemoteProtocolError(f"user {uid}: group {number} has its receiver already")
        return number

    def _on_failure(self, uid: int, error: BaseException) -> None:
        self._forget(uid)
        if not isinstance(error, (OSError, RemoteProtocolError)):
            raise error
        self._say(uid, f"not registered: {error}")

    def _say(self, uid: int, text: str) -> None:
        """Note something that this user has caused, who may do that as often as it likes."""
        who = uid if uid in self._users else _OTHERS
        repeats = self._repeats.get(who)
        if repeats is None:
            repeats = Repeats(self._loop, lambda more: self._say_how_many(who, more))
            self._repeats[who] = repeats
        if repeats.may():
            self._note(text)

    def _say_how_many(self, who: int, more: int) -> None:
        del self._repeats[who]
        if more:
            name = "users who have no group" if who == _OTHERS else f"user {who}"
            self._note(f"{name}: {more} more of that in a second")

    def _forget(self, uid: int) -> None:
        self._open[uid] -= 1
        if not self._open[uid]:
            del self._open[uid]

    def close(self) -> None:
        """Let all receivers go."""
        for group in self.groups:
            group.leave()
        for repeats in list(self._repeats.values()):
            repeats.close()


def _user_of(sock: socket) -> int:
    """Say who has connected: SO_PEERCRED, unix(7), has the process, the user and the group."""
    credentials = sock.getsockopt(SOL_SOCKET, SO_PEERCRED, 12)
    return int.from_bytes(credentials[4:8], byteorder)
