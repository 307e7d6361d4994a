"""The other side of a port, by hand, and in one loop with what is tested; and its time."""

import os
import select
import socket
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from both import MEMORY, SOMEWHERE, Side
from classic_joined import GREETING
from classic_port import frame
from ends import PATIENCE

from muonsocks.mux.channel import Channel
from muonsocks.mux.events import Began, Opened, Over
from muonsocks.mux.frames import (
    CONTROL,
    HEADER,
    MAGIC,
    NO_NUMBER,
    Answer,
    Hello,
    Open,
    decode,
    frames_of,
)
from muonsocks.mux.link import Bounds
from muonsocks.mux.port import Port
from muonsocks.net import loop as loop_module
from muonsocks.net.borrowed import Pair
from muonsocks.net.loop import Loop
from muonsocks.net.task import Waitable
from muonsocks.socks.request import UNSPECIFIED, ReplyCode

WINDOW = 1 << 18
SILENCE = 30.0  # s
BOUNDS = Bounds(1000, MEMORY, SILENCE)
REQUEST = b"\1\xc0\0\2\1\0\x50"  # of the older pair's, for SOMEWHERE


def play(
    loop: Loop, story: Callable[[], Coroutine[Any, None, Any]], patience: float = PATIENCE
) -> Any:
    """Run a story, which must be over in time."""

    async def main() -> Any:
        with loop.deadline(patience):
            result = await story()
            await loop.sleep(0.002)  # for what was to be done soon, or was 1 ms off
            return result

    return loop.run(main())


async def rounds(loop: Loop, count: int = 20) -> None:
    """Let the loop go round: what has been sent has arrived then, as all are in this loop."""
    for _ in range(count):
        turn = Waitable()
        loop.call_soon(turn.wake)
        await turn


async def until(loop: Loop, condition: Callable[[], Any]) -> None:
    """Let the loop go round until something is so. The story's patience bounds it."""
    while not condition():
        await loop.sleep(0.0005)


class Clock:
    """The time of all loops, which a test lets pass faster than it does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ahead = 0.0  # s
        monkeypatch.setattr(loop_module, "monotonic", self.now)

    def now(self) -> float:
        return time.monotonic() + self._ahead

    def jump(self, seconds: float) -> None:
        """Let it be later, as after a time in which this process was stopped."""
        self._ahead += seconds

    async def passes(self, loop: Loop, seconds: float, step: float = 0.01) -> None:
        """Let so many seconds pass, in which the loop does its work."""
        end = self.now() + seconds
        while self.now() < end:
            self._ahead += step
            await rounds(loop, 5)


Frame = tuple[int, bytes]


class Hand:
    """Sends what a test says; `heard` gives what has come, frame by frame."""

    def __init__(self, loop: Loop, kind: int = socket.SOCK_STREAM) -> None:
        self.loop = loop
        self.ours, self.sock = socket.socketpair(socket.AF_UNIX, kind)
        for sock in (self.ours, self.sock):
            sock.setblocking(False)
        self.came = b""  # and was not looked at
        self.number = NO_NUMBER  # of the session

    def __enter__(self) -> "Hand":
        return self

    def __exit__(self, *_: object) -> None:
        self.ours.close()
        self.sock.close()

    def say(self, *what: Any) -> None:
        """Send it all in one piece, which the port must have room for."""
        data = b"".join(one if isinstance(one, bytes) else one.encode() for one in what)
        assert self.sock.send(data) == len(data)

    async def say_much(self, data: bytes) -> None:
        """Send it as the port has room for it."""
        while data:
            try:
                data = data[self.sock.send(data) :]
            except BlockingIOError:
                await rounds(self.loop, 1)

    def take(self) -> bytes:
        """Read what there is."""
        try:
            while data := self.sock.recv(1 << 20):
                self.came += data
        except BlockingIOError:
            pass
        return self.came

    def forget(self) -> None:
        """Read what there is, and do not look at it."""
        self.take()
        self.came = b""

    def heard(self) -> list[Any]:
        """Read what there is: control messages, and data as (connection, bytes)."""
        self.take()
        found: list[Any] = []
        while len(self.came) >= HEADER.size:
            number, length = HEADER.unpack_from(self.came)
            end = HEADER.size + length
            if len(self.came) < end:
                break
            data, self.came = self.came[HEADER.size : end], self.came[end:]
            if number != CONTROL:
                found.append((number, data))
            elif data:  # an empty message means nothing
                found.append(decode(data))
        return found

    async def hears(self, kind: type) -> Any:
        """Wait for a message of this kind; give it, without those before it and HELLOs."""
        found: list[Any] = []
        while True:
            found += self.heard()
            for place, what in enumerate(found):
                if isinstance(what, kind):
                    assert not found[place + 1 :], "more has come than is waited for"
                    return what
            await rounds(self.loop, 1)

    def is_closed(self) -> bool:
        """Whether the port has been closed on the other side."""
        poll = select.poll()
        poll.register(self.sock, 0)
        return bool(poll.poll(0))

    async def meet(self, side: Side, connections: int = 0) -> None:
        """Begin a session with a side, as a guest, or as a host of so many connections."""
        self.number = os.urandom(8)
        self.heard()
        self.say(Hello(1, connections, self.number, NO_NUMBER))
        hello = await self.hears(Hello)
        assert hello.echo == self.number
        self.say(Hello(1, connections, self.number, hello.number))
        await side.hears(Began)

    async def meet_again(self, side: Side) -> None:
        """Start anew."""
        self.say(Hello(1, 0, os.urandom(8), NO_NUMBER))
        await side.hears(Over)
        await self.meet(side)

    async def opened(self, side: Side, number: int = 0, window: int = WINDOW) -> Channel:
        """Be a guest who opens a connection: the host's channel."""
        self.say(Open(number, window, SOMEWHERE))
        event = await side.hears(Opened)
        channel = Channel(side.link, event.connection)
        side.link.mux.answer(event.connection, ReplyCode.SUCCEEDED)
        side.link.outlet.flush()
        assert await self.hears(Answer) == Answer(number, WINDOW, 0, UNSPECIFIED)
        return channel

    def data(self, number: int, data: bytes) -> None:
        """Send data of a connection."""
        self.say(frames_of(number, data))


class Fifos:
    """A port whose other side may leave and come back, as that of a virtual machine."""

    def __init__(self, loop: Loop, place: Path) -> None:
        self.paths = place / "in", place / "out"
        for path in self.paths:
            os.mkfifo(path)
        reader = os.open(self.paths[0], os.O_RDONLY | os.O_NONBLOCK)
        writer = os.open(self.paths[1], os.O_RDWR | os.O_NONBLOCK)
        self.port = Port(Pair(loop, reader, writer, ()), can_return=True)

    def come(self) -> None:
        """Let the other side be there: what it sends comes, and it hears what is said."""
        self._writer = os.open(self.paths[0], os.O_WRONLY | os.O_NONBLOCK)
        self._reader = os.open(self.paths[1], os.O_RDONLY | os.O_NONBLOCK)

    def say(self, *what: Any) -> None:
        data = b"".join(one if isinstance(one, bytes) else one.encode() for one in what)
        assert os.write(self._writer, data) == len(data)

    def go(self) -> None:
        os.close(self._writer)
        os.close(self._reader)

    def heard(self) -> bytes:
        try:
            return os.read(self._reader, 1 << 20)
        except BlockingIOError:
            return b""


def hellos(data: bytes) -> int:
    """Count the HELLOs in what has come."""
    return data.count(MAGIC)


async def older_guest(loop: Loop, clock: Clock, hand: Hand, bounds: Bounds = BOUNDS) -> Side:
    """A host whose guest is of the older pair, and has requested connection 3."""
    side = Side(loop, True, bounds)
    side.attach(hand.ours)
    hand.say(frame(3, REQUEST))
    await clock.passes(loop, 1.2)
    await side.hears(Began)
    hand.forget()
    return side


async def older_host(loop: Loop, clock: Clock, hand: Hand) -> tuple[Side, Channel]:
    """A guest whose host is of the older pair, and a connection."""
    side = Side(loop, False, Bounds(10, MEMORY, SILENCE))
    side.attach(hand.ours)
    for piece in GREETING:
        hand.say(piece)
        await clock.passes(loop, 1.2)
    side.happened._items.clear()
    connection = side.link.mux.open(SOMEWHERE)
    assert connection is not None
    hand.forget()
    return side, Channel(side.link, connection)


def stuff(sock: socket.socket) -> int:
    """Fill a socket, and say with how many bytes. A unix socket may have room for fewer at once."""
    total, size = 0, 1 << 16
    while size:
        try:
            total += sock.send(bytes(size))
        except BlockingIOError:
            size //= 2
    return total
