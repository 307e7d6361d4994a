"""What waits in a carriage: bounded, in order, no burden to others; and nothing stays of it."""

import os
import random
import tracemalloc

import pytest
from both import MEMORY, Both, Side
from carried import Carried, sends
from ends import (
    PATIENCE,
    End,
    descriptors,
    made,
    no_garbage,
    noise,
)
from hand import WINDOW, Hand, play, rounds, until

from muonsocks.mux.carriage import Carriage
from muonsocks.mux.channel import Channel
from muonsocks.mux.frames import Credit, Eof, Reset, frames_of
from muonsocks.net.loop import Loop


def test_what_waits_is_bounded_by_the_window(loop: Loop) -> None:
    """Of a peer that keeps to it: it is not given any more."""

    async def story() -> None:
        with Hand(loop) as hand:
            carried = Carried(loop, hand)
            await carried.begin()
            await carried.fill()
            assert sum(map(len, carried.relay.up.pending)) <= WINDOW
            for _ in range(10):
                before = sum(m.count for m in hand.heard() if isinstance(m, Credit))
                await rounds(loop)
            assert not before
            carried.end.reset()
            hand.say(Reset(0, 1))
            await carried.over()
            carried.leave()

    play(loop, story)


def test_small_parts_that_wait_do_not_cost_much(loop: Loop) -> None:
    """A frame of one byte has to be kept in less than a window's memory."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, True)
            side.attach(hand.ours)
            await hand.meet(side)
            all_carried = []
            for number in range(2):
                stream, end = made(loop, "unix")
                channel = await hand.opened(side, number)
                relay = Carriage(channel, stream)
                relay.start(PATIENCE, PATIENCE)
                all_carried.append((relay, channel, stream, end))
            for number, (relay, *_) in enumerate(all_carried):
                await hand.say_much(frames_of(number, bytes(WINDOW - 30_000)))
                await rounds(loop)
                if relay.up.pending is None:
                    stuffing = bytes(1 << 16)
                    while relay.up.sink.send_now(stuffing) != stuffing:
                        pass
            count = 25_000
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            # Of two connections in turn: parts of one that follow each other are one event.
            await hand.say_much(b"\0\0\1\0a\1\0\1\0b" * count)
            await rounds(loop, 100)
            grown = tracemalloc.get_traced_memory()[0] - before
            tracemalloc.stop()
            assert all(relay.up.pending is not None for relay, *_ in all_carried)
            assert grown < 10 * 2 * count
            for number, (relay, channel, stream, end) in enumerate(all_carried):
                got = b""
                while relay.up.pending is not None:
                    got += end.read()
                    await rounds(loop, 2)
                got += end.read()
                assert got.endswith(b"ab"[number : number + 1] * count)
                relay.stop()
                channel.close()
                stream.close()
                end.close()
            side.link.detach("enough")

    play(loop, story)


def test_parts_that_wait_stay_in_order(loop: Loop) -> None:
    """However they come, and however they are taken."""
    dice = random.Random(5)

    async def story() -> None:
        with Hand(loop) as hand:
            carried = Carried(loop, hand)
            await carried.begin()
            sent, got, credit = await carried.stuff(), b"", WINDOW
            for turn in range(400):
                size = min(dice.choice((1, 5, 100, 4000, 30_000)), credit)
                if size:
                    part = noise(size, turn)
                    hand.data(0, part)
                    sent += part
                    credit -= size
                await rounds(loop, dice.choice((1, 3)))
                if dice.random() < 0.5:
                    try:
                        got += os.read(carried.end.reader, dice.choice((10, 3000, 1 << 18)))
                    except BlockingIOError:
                        pass
                credit += sum(m.count for m in hand.heard() if isinstance(m, Credit))
            hand.say(Eof(0))
            carried.got = got
            await carried.gets(sent)
            carried.end.end_output()
            assert await carried.over() == "closed"
            carried.leave()

    play(loop, story)


def test_many_parts_at_once(loop: Loop) -> None:
    """More than writev(2) takes."""

    async def story() -> None:
        with Hand(loop) as hand:
            carried = Carried(loop, hand, "unix")
            await carried.begin()
            hand.say(b"".join(b"\0\0\1\0" + bytes([n % 256]) for n in range(3000)))
            await carried.gets(bytes(n % 256 for n in range(3000)))
            hand.say(b"".join(b"\0\0\1\0" + bytes([n % 256]) for n in range(1000)))
            await carried.gets(bytes(n % 256 for n in range(1000)))
            hand.say(Reset(0, 1))
            await carried.over()
            carried.leave()

    play(loop, story)


def test_one_that_is_blocked_and_others(loop: Loop) -> None:
    """It has its window; the others go on for as long as they like."""

    async def story() -> None:
        both = Both(loop)
        await both.meet()
        joints = [await joined(both) for _ in range(6)]
        blocked, *others = joints
        stuffed = bytes(32 << 20)
        loop.spawn(sends_to_a_leaver(loop, blocked.near, stuffed), pytest.fail)
        await rounds(loop, 200)
        for turn in range(5):
            data = [noise(1 << 20, turn * 10 + n) for n in range(5)]
            for one, part in zip(others, data, strict=True):
                loop.spawn(sends(loop, one.near, part), pytest.fail)
            got = [b""] * 5
            while any(len(a) < len(b) for a, b in zip(got, data, strict=True)):
                for number, one in enumerate(others):
                    got[number] += now(one.far)
                await rounds(loop, 1)
            assert got == data
        for one in joints:
            await one.end()
        both.close()

    play(loop, story, 60)


class Joined:
    """Two ends, joined through both sides."""

    def __init__(self, both: Both, channels: tuple[Channel, Channel]) -> None:
        loop = both.loop
        self.loop, self.channels = loop, channels
        self.client, self.near = made(loop, "unix")
        self.server, self.far = made(loop, "unix")
        self.relays = (
            Carriage(self.client, channels[0]),
            Carriage(channels[1], self.server),
        )
        for relay in self.relays:
            relay.start(PATIENCE, PATIENCE)

    async def end(self) -> None:
        for end in (self.near, self.far):
            end.close()
        left = [
            (self.relays[0], self.client, self.channels[0]),
            (self.relays[1], self.server, self.channels[1]),
        ]
        while left:
            await rounds(self.loop, 1)
            for relay, *streams in [one for one in left if one[0].reason]:
                relay.stop()
                for stream in streams:
                    stream.close()
            left = [one for one in left if not one[0].reason]


async def joined(both: Both) -> Joined:
    return Joined(both, await both.channels())


def now(end: End) -> bytes:
    try:
        return os.read(end.reader, 1 << 20)
    except BlockingIOError:
        return b""


async def sends_to_a_leaver(loop: Loop, end: End, data: bytes) -> None:
    while data and end.reader >= 0:
        try:
            data = data[os.write(end.writer, data) :]
        except (BlockingIOError, BrokenPipeError):
            await rounds(loop, 1)


# Memory


def test_a_thousand_connections_leave_nothing(loop: Loop) -> None:
    """Ended in every way; no descriptor, no cycle, no window."""

    async def story() -> None:
        both = Both(loop)
        await both.meet()
        await (await joined(both)).end()
        before = len(descriptors())
        with no_garbage():
            for turn in range(1000):
                one = await joined(both)
                if turn % 4:
                    one.near.send(b"question")
                    await until(loop, lambda one=one: now(one.far))
                if turn % 4 == 1:
                    one.near.end_output()
                elif turn % 4 == 2:
                    one.far.send(bytes(100_000))
                    one.far.close()
                await one.end()
            await rounds(loop)
            del one
        assert len(descriptors()) == before
        await rounds(loop, 100)
        assert not both.has_connections
        both.close()

    play(loop, story, 60)


def test_what_waits_when_the_session_ends_is_freed(loop: Loop) -> None:
    """With the senders that were waiting for their turn, once there is a port again."""

    async def story() -> None:
        both = Both(loop)
        await both.meet()
        joints = [await joined(both) for _ in range(20)]
        for one in joints:
            loop.spawn(sends_to_a_leaver(loop, one.near, bytes(4 << 20)), pytest.fail)
        await rounds(loop, 50)
        both.pull_the_cable()
        for one in joints:
            await one.end()
        both.guest.happened._items.clear()
        both.host.happened._items.clear()
        both.join()
        await both.meet()
        await rounds(loop, 100)
        for side in (both.guest, both.host):
            assert not side.link.outlet._senders
            assert side.link.mux._windows._left == MEMORY
        both.close()

    play(loop, story, 60)
