"""Both sides of a mux in one loop, joined by a socket pair, with what the tests need of them."""

import contextlib
import errno
import os
import socket
from typing import Any

from ends import PATIENCE

from muonsocks.address import Endpoint
from muonsocks.mux.channel import Channel
from muonsocks.mux.events import Began, Opened
from muonsocks.mux.link import Bounds, Link
from muonsocks.mux.port import Port
from muonsocks.net.loop import Loop
from muonsocks.net.stream import Stream
from muonsocks.net.task import Mailbox, Waitable
from muonsocks.socks.request import ReplyCode

SOMEWHERE = Endpoint("192.0.2.1", 80)
MEMORY = 64 << 20


class Side:
    """One side: `happened` has its sessions' beginnings and ends, and what is to be opened."""

    def __init__(self, loop: Loop, is_host: bool, bounds: Bounds | None = None) -> None:
        self.happened = Mailbox()
        self.lost = Mailbox()
        bounds = bounds or Bounds(1000, MEMORY, PATIENCE)
        self.link = Link(loop, is_host, bounds, self.happened.post, self.lost.post)

    def attach(self, sock: socket.socket, can_return: bool = False) -> None:
        sock.setblocking(False)
        stream = Stream(self.link.loop, sock)
        self.link.attach(Port(stream, can_return))

    async def hears(self, kind: type) -> Any:
        """Wait for an event of this kind, which must be the next, and for the link to be done."""
        loop = self.link.loop
        with loop.deadline(PATIENCE):
            event = await self.happened.take()
        assert isinstance(event, kind), event
        done = Waitable()
        loop.call_soon(done.wake)
        await done
        return event


class Both:
    """A guest and a host that have met."""

    def __init__(self, loop: Loop, bounds: Bounds | None = None) -> None:
        self.loop = loop
        self.guest, self.host = Side(loop, False, bounds), Side(loop, True, bounds)
        self.join()

    def join(self) -> None:
        """Give both a port."""
        self.socks = socket.socketpair()
        for side, sock in zip((self.guest, self.host), self.socks, strict=True):
            side.attach(sock)

    async def meet(self) -> None:
        await self.guest.hears(Began)
        await self.host.hears(Began)

    async def channels(self) -> tuple[Channel, Channel]:
        """Open a connection: the guest's channel, and the host's."""
        connection = self.guest.link.mux.open(SOMEWHERE)
        assert connection is not None
        ours = Channel(self.guest.link, connection)
        self.guest.link.outlet.flush_soon()
        opened = await self.host.hears(Opened)
        assert opened.destination == SOMEWHERE
        theirs = Channel(self.host.link, opened.connection)
        self.host.link.mux.answer(opened.connection, ReplyCode.SUCCEEDED)
        self.host.link.outlet.flush_soon()
        await ours.answer()
        return ours, theirs

    @property
    def has_connections(self) -> bool:
        """Whether there is a connection that one of them has not let go yet."""
        return any(side.link.mux._connections for side in (self.guest, self.host))

    def pull_the_cable(self) -> None:
        """Let both sides find that the other one has gone."""
        for sock in self.socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.guest.link.detach("the test is over")
        self.host.link.detach("the test is over")


class Places:
    """A place where there is one port after the other; and then none, for as long as it takes."""

    def __init__(self, *socks: socket.socket, again: bool = True) -> None:
        self.name = "a port"
        self.again = again
        self.deaf_for = 0.0
        self.has_come_again = False
        self.socks = list(socks)
        self.failures: list[OSError] = []  # that come first
        self.is_final = False
        self.opened: list[float] = []  # when it was tried

    def may_come(self, error: OSError) -> bool:
        return not self.is_final

    async def open(self, loop: Loop) -> Port:
        self.opened.append(loop.now)
        if self.failures:
            raise self.failures.pop(0)
        if not self.socks:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        sock = self.socks.pop(0)
        sock.setblocking(False)
        return Port(Stream(loop, sock))
