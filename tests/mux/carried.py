"""A carriage with a test at the other side of the mux."""

import os
from pathlib import Path

from both import Side
from ends import (
    PATIENCE,
    End,
    made,
    noise,
)
from hand import WINDOW, Hand, rounds, stuff, until

from muonsocks.mux.carriage import Carriage
from muonsocks.mux.frames import frames_of
from muonsocks.net.loop import Loop


class Carried:
    """A host's carriage between a hand and an end of some kind."""

    def __init__(self, loop: Loop, hand: Hand, kind: str = "tcp", place: Path = Path()) -> None:
        self.loop = loop
        self.hand = hand
        self.stream, self.end = made(loop, kind, place)
        self.got = b""
        self.reason = ""

    async def begin(self, window: int = WINDOW, early: bytes = b"") -> None:
        self.side = Side(self.loop, True)
        self.side.attach(self.hand.ours)
        await self.hand.meet(self.side)
        self.channel = await self.hand.opened(self.side, window=window)
        if early:
            self.relay = Carriage(self.stream, self.channel, early)  # as at a guest's
        else:
            self.relay = Carriage(self.channel, self.stream)
        self.relay.start(PATIENCE, PATIENCE)

    def read(self) -> bytes:
        """Take what there is at the end."""
        try:
            while data := os.read(self.end.reader, 1 << 20):
                self.got += data
        except BlockingIOError:
            pass
        return self.got

    async def gets(self, data: bytes) -> None:
        """Wait until the end has got this, and no more."""
        while len(self.got) < len(data):
            self.read()
            await rounds(self.loop, 2)
        assert self.got == data
        self.got = b""

    async def stuff(self) -> bytes:
        """Let there be no room for what comes; give what the end gets before it."""
        count = 0
        while more := stuff(self.stream.socket):
            count += more
            await rounds(self.loop)
        return bytes(count)

    async def fill(self) -> bytes:
        """Send as much as there is a window for, none of which is taken yet; give all of it."""
        stuffed = await self.stuff()
        await self.hand.say_much(frames_of(0, noise(WINDOW)))
        await rounds(self.loop)
        assert self.relay.up.pending is not None
        return stuffed + noise(WINDOW)

    async def over(self) -> str:
        """Wait for the end of it, and do what a session does then."""
        await until(self.loop, lambda: self.relay.reason)
        ended = self.relay.stop()
        for stream in ended.owed_resets:
            stream.reset_on_close()
        self.close()
        return ended.reason

    def close(self) -> None:
        self.channel.close()
        self.stream.close()

    def leave(self) -> None:
        """Let the other side of the mux go, and the end."""
        self.side.link.detach("enough")
        self.end.close()


async def sends(loop: Loop, end: End, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(end.writer, data) :]
        except BlockingIOError:
            await rounds(loop, 1)
