"""connect(2) of a program to addresses that mean a unix socket, or a link."""

from __future__ import annotations

import errno
import os
from _socket import AF_UNIX, SOCK_DGRAM, SOCK_NONBLOCK, SOCK_STREAM, socket, socketpair
from contextlib import closing

from muonsocks.intercept.conventions import Conventions, LinkLocal, UnixPlace
from muonsocks.intercept.disguise import Disguises
from muonsocks.intercept.in_place import Places
from muonsocks.intercept.incoming import is_for_tcp
from muonsocks.intercept.notify import Call, Refused
from muonsocks.intercept.own_socket import OwnSocket
from muonsocks.intercept.socket_address import address_of, endpoint_of
from muonsocks.intercept.unix_places import read_place, take_after
from muonsocks.net.loop import Loop
from muonsocks.net.passing import WORD, send
from muonsocks.net.stream import unix_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muonsocks.address import Endpoint

_PATIENCE = 130.0  # s until a link has not answered, as the kernel has it for most
_BY_PASSING = 2  # SKBOX_ENABLE_CONNECT, from which on a pair is made and passed
_NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.EPROTOTYPE)  # nobody listens


class Reaching:
    """Answers connect(2)."""

    __slots__ = ("_conventions", "_disguises", "_loop")

    def __init__(self, loop: Loop, conventions: Conventions, disguises: Disguises) -> None:
        self._loop = loop
        self._conventions = conventions
        self._disguises = disguises

    async def connect(self, call: Call) -> None:
        """Answer connect(2)."""
        raw = call.read_address(*call.arguments[1:3])
        endpoint = endpoint_of(raw)
        if endpoint is None:
            call.go_on()
            return
        with closing(call.duplicate()) as sock:
            meaning = self._conventions.connected(endpoint) if is_for_tcp(sock, raw) else None
            if meaning is None:
                call.go_on()
                return
            try:
                if isinstance(meaning, LinkLocal):
                    await self._to_link(sock, meaning.endpoint)
                else:
                    self._to_unix(call, sock, endpoint, read_place(meaning))
            except OSError as error:
                number = error.errno or errno.EINVAL
                raise Refused(errno.ECONNREFUSED if number in _NOWHERE else number) from None
        call.succeed()

    async def _to_link(self, sock: socket, endpoint: Endpoint) -> None:
        if not os.get_blocking(sock.fileno()):
            sock.connect(endpoint.sockaddr)
            return
        dialler = OwnSocket(sock, _PATIENCE)
        dialler.connect_timeout = _PATIENCE  # there is one address
        os.set_blocking(sock.fileno(), False)
        try:
            stream = await dialler.dial(self._loop, endpoint)
            stream.close()  # a duplicate
        except OSError:
            dialler.give_up()
            raise
        finally:
            os.set_blocking(sock.fileno(), True)

    def _to_unix(self, call: Call, sock: socket, endpoint: Endpoint, place: UnixPlace) -> None:
        if place.is_stream:
            ours = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK)
            with closing(ours):
                ours.connect(unix_address(place.path))
                self._put(call, sock, endpoint, ours)
            return
        if self._conventions.connects < _BY_PASSING:
            raise Refused(errno.EINVAL)
        ours, theirs = socketpair(AF_UNIX, SOCK_STREAM)
        with closing(ours), closing(theirs), closing(socket(AF_UNIX, SOCK_DGRAM)) as sender:
            send(sender, WORD, [theirs.fileno()], place.path)
            self._put(call, sock, endpoint, ours)

    def _put(self, call: Call, sock: socket, endpoint: Endpoint, ours: socket) -> None:
        take_after(ours, sock)
        local = address_of(endpoint, sock.family)
        self._disguises.put_on(ours, sock.family, local, local)
        Places(call, sock).take(ours)
