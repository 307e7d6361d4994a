"""A link: how sessions end, and what stays of them: nothing, but for the port."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from both import MEMORY, SOMEWHERE, Side
from classic_port import frame
from ends import noise
from hand import (
    BOUNDS,
    REQUEST,
    WINDOW,
    Clock,
    Fifos,
    Hand,
    hellos,
    older_guest,
    older_host,
    play,
    rounds,
    until,
)

from muonsocks.mux.channel import Channel
from muonsocks.mux.connection import ResetReason
from muonsocks.mux.events import Began, Opened, Over
from muonsocks.mux.frames import (
    MAGIC,
    NO_NUMBER,
    Answer,
    Done,
    Eof,
    Goodbye,
    Hello,
    Open,
    Ping,
    Reset,
)
from muonsocks.net.loop import Loop
from muonsocks.socks.request import UNSPECIFIED, Event

EITHER = pytest.mark.parametrize("is_host", [False, True], ids=["guest", "host"])


# How a session ends

GOES_ON, LOST = False, True


def _reset(hand: Hand) -> None:
    hand.ours.send(b"unread")
    hand.sock.close()


ENDS: dict[str, tuple[Callable[[Hand], Any], str, bool]] = {
    "goodbye": (lambda h: h.say(Goodbye("so")), "the other side has ended it: so", GOES_ON),
    "a fault": (
        lambda h: h.say(Done(7)),
        "it has broken the protocol: a message about connection 7, which is not open",
        GOES_ON,
    ),
    "anew": (
        lambda h: h.say(Hello(1, 0, b"another.", NO_NUMBER)),
        "the other side has started anew",
        GOES_ON,
    ),
    "end": (lambda h: h.sock.close(), "it has gone", LOST),
    "half-close": (lambda h: h.sock.shutdown(socket.SHUT_WR), "it has gone", LOST),
    "reset": (_reset, "Connection reset by peer", LOST),
    "data, end": (lambda h: (h.data(0, b"last"), h.sock.close()), "it has gone", LOST),
}


@pytest.mark.parametrize("how", ENDS)
def test_a_session_ends(loop: Loop, how: str) -> None:
    """Whose connections it had is told so, and all is as at the start."""
    end, reason, is_lost = ENDS[how]

    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, True)
            side.attach(hand.ours)
            await hand.meet(side)
            channel = await hand.opened(side)
            end(hand)
            over = await side.hears(Over)
            assert over.reason == reason and over.owners == [channel]
            assert channel.is_cut_off and channel.was_lost
            assert channel.early == (b"last" if "data" in how else b"")
            assert side.lost._items == ([reason] if is_lost else [])
            channel.close()
            await rounds(loop)
            if not is_lost:
                if how == "a fault":
                    assert hand.heard()[0] == Goodbye(reason.partition("protocol: ")[2])
                await hand.meet(side)
                (await hand.opened(side)).close()
                side.link.detach("enough")
                await side.hears(Over)
            assert hand.ours.fileno() == -1
            assert not side.happened._items and len(side.lost._items) == is_lost

    play(loop, story)


def test_the_guest_ends_with_its_port(loop: Loop) -> None:
    """And a detached link is as good as new."""

    async def story() -> None:
        side = Side(loop, False)
        for _ in range(3):
            with Hand(loop) as hand:
                side.attach(hand.ours)
                await hand.meet(side, 10)
                connection = side.link.mux.open(SOMEWHERE)
                assert connection is not None
                channel = Channel(side.link, connection)
                side.link.detach("told to stop")
                assert channel.is_cut_off
                over = await side.hears(Over)
                assert over.reason == "told to stop"
                heard = hand.heard()
                assert heard[-1] == Goodbye("told to stop")
                assert type(heard[-2]) is Open, "what was said before is sent"
                assert hand.is_closed()
                channel.close()
                side.link.detach("again")  # harmless
                await rounds(loop)
                assert not side.lost._items and not side.happened._items

    play(loop, story)


@EITHER
def test_what_was_said_before_the_end_is_sent(loop: Loop, is_host: bool) -> None:
    """Also by one who is detached at once, as far as the port takes it."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, is_host, BOUNDS)
            side.attach(hand.ours)
            channel = await joined(side, hand)
            side.link.outlet.send_copy(channel.connection, b"the last")
            channel.end_output()
            side.link.detach("enough")
            said = [(0, b"the last"), Eof(0), Goodbye("enough")]
            assert hand.heard() == said
            channel.close()

    play(loop, story)


async def joined(side: Side, hand: Hand) -> Channel:
    """Meet a side, and open connection 0, for a megabyte."""
    if side.link._is_host:
        await hand.meet(side)
        return await hand.opened(side, window=1 << 20)
    await hand.meet(side, 10)
    connection = side.link.mux.open(SOMEWHERE)
    assert connection is not None
    side.link.outlet.flush()
    await hand.hears(Open)
    hand.say(Answer(0, 1 << 20, 0, UNSPECIFIED))
    await until(side.link.loop, lambda: connection.answered)
    return Channel(side.link, connection)


@EITHER
@pytest.mark.parametrize("reads", [True, False], ids=["reads", "reads not"])
def test_leaving_takes_time_to_write(loop: Loop, clock: Clock, is_host: bool, reads: bool) -> None:
    """What the port does not take at once is written as the other side reads; but not for ever."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, is_host, BOUNDS)
            side.attach(hand.ours)
            channel = await joined(side, hand)
            data = noise(1 << 20)
            side.link.outlet.send_copy(channel.connection, data)
            channel.end_output()
            left: list[None] = []
            began = clock.now()
            loop.spawn(side.link.leave("told to stop"), pytest.fail, left.append)
            came = []
            while not left:
                came += hand.heard() if reads else []
                await clock.passes(loop, 0.01)
            taken = clock.now() - began
            assert hand.ours.fileno() == -1
            if reads:
                came += hand.heard()
                assert b"".join(one[1] for one in came if isinstance(one, tuple)) == data
                assert came[-2:] == [Eof(0), Goodbye("told to stop")]
                assert taken < 1
            else:
                assert 0.9 < taken < 1.5
            await side.hears(Over)
            channel.close()

    play(loop, story, 600)


def test_a_guest_with_nothing_to_write_leaves_at_once(loop: Loop) -> None:
    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, False, BOUNDS)
            side.attach(hand.ours)
            channel = await joined(side, hand)
            left: list[None] = []
            loop.spawn(side.link.leave("told to stop"), pytest.fail, left.append)
            assert left and hand.ours.fileno() == -1
            assert hand.heard() == [Goodbye("told to stop")]
            channel.close()
            await side.hears(Over)

    play(loop, story)


@EITHER
def test_leaving_one_of_the_older_pair_closes_what_it_has(
    loop: Loop, clock: Clock, is_host: bool
) -> None:
    """One by one: it looks at the first frame of a read only."""

    async def story() -> None:
        with Hand(loop) as hand:
            if is_host:
                side = await older_guest(loop, clock, hand)
                channels = [Channel(side.link, (await side.hears(Opened)).connection)]
                for number in range(4, 20):
                    hand.say(frame(number, REQUEST))
                    channels.append(Channel(side.link, (await side.hears(Opened)).connection))
            else:
                side, channel = await older_host(loop, clock, hand)
                channels = [channel]
                for _ in range(16):
                    connection = side.link.mux.open(SOMEWHERE)
                    assert connection is not None
                    channels.append(Channel(side.link, connection))
            numbers = [channel.connection.number for channel in channels]
            channels[0].reset_on_close()
            channels[0].close()  # as a session that is cut
            left: list[None] = []
            loop.spawn(side.link.leave("told to stop"), pytest.fail, left.append)
            reads = []
            while not left:
                if came := hand.take():
                    reads.append(came)
                hand.came = b""
                await clock.passes(loop, 0.01, 0.01)
            reads = [came for came in reads if MAGIC not in came and len(came) == 4]
            assert reads == [frame(number, b"") for number in numbers]
            for channel in channels[1:]:
                channel.close()
            await side.hears(Over)

    play(loop, story, 600)


@pytest.mark.parametrize("then", ["nothing", "a hello", "much", "more and more", "the end"])
def test_leaving_takes_time_to_read(loop: Loop, clock: Clock, then: str) -> None:
    """What is on its way is read, and dropped, until it is quiet; but not for ever."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, True, BOUNDS)
            side.attach(hand.ours)
            await hand.meet(side)
            channel = await hand.opened(side)
            left: list[None] = []
            began = clock.now()
            loop.spawn(side.link.leave("told to stop"), pytest.fail, left.append)
            assert hand.heard() == [Goodbye("told to stop")] and channel.is_cut_off
            await side.hears(Over)
            if then == "much":
                await hand.say_much(b"\0\0\1\0x" * 300_000)
            elif then == "the end":
                hand.sock.close()
            elif then == "a hello":
                hand.say(Hello(1, 0, b"newcomer", NO_NUMBER))
            while not left:
                if then == "more and more":
                    hand.say(Ping(bytes(8)))
                await clock.passes(loop, 0.01)
            taken = clock.now() - began
            assert (0.9 < taken < 1.5) if then == "more and more" else (taken < 0.5)
            assert hand.ours.fileno() == -1 and channel.early == b""
            if then != "the end":
                assert hand.heard() == [], "nothing is said after the goodbye"
            await clock.passes(loop, 3)
            assert not side.happened._items
            channel.close()
            await side.link.leave("again")  # harmless

    play(loop, story, 600)


@pytest.mark.parametrize("ending", [Goodbye("so"), Hello(1, 0, b"another.", NO_NUMBER), Done(9)])
def test_what_is_opened_in_the_same_breath_as_the_session_ends(loop: Loop, ending: Event) -> None:
    """It is no connection of the next session, whatever is done with it."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, True)
            side.attach(hand.ours)
            await hand.meet(side)
            hand.say(Open(0, WINDOW, SOMEWHERE), ending)
            await side.hears(Over)
            await hand.meet(side)
            assert not side.happened._items
            assert not side.link.mux._connections and side.link.mux._windows._left == MEMORY
            side.link.detach("enough")

    play(loop, story)


def test_what_is_reset_in_the_same_breath_as_it_is_opened(loop: Loop) -> None:
    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, True)
            side.attach(hand.ours)
            await hand.meet(side)
            hand.say(Open(0, WINDOW, SOMEWHERE), Reset(0, ResetReason.STOPPED))
            assert await hand.hears(Done) == Done(0)
            assert not side.happened._items and side.link.mux._windows._left == MEMORY
            (await hand.opened(side)).close()
            side.link.detach("enough")

    play(loop, story)


# A port that can return, as that of a virtual machine


def test_a_port_that_can_return(loop: Loop, clock: Clock, tmp_path: Path) -> None:
    """Its end is the session's, and no more; and there need not be one before."""

    async def story() -> None:
        side = Side(loop, False, BOUNDS)
        fifos = Fifos(loop, tmp_path)
        side.link.attach(fifos.port)
        await clock.passes(loop, 3)
        for turn in range(3):
            fifos.come()
            fifos.say(b"stale", Hello(1, 9, b"number-%d" % turn, NO_NUMBER))
            await rounds(loop)
            number = Hello(1, 0, b"", b"").encode()  # the form of it
            came = fifos.heard()
            hello = came[came.rindex(MAGIC) - 4 :]
            assert len(hello) == len(number)
            ours, echo = hello[-16:-8], hello[-8:]
            assert echo == b"number-%d" % turn
            fifos.say(Hello(1, 9, b"number-%d" % turn, ours))
            await side.hears(Began)
            connection = side.link.mux.open(SOMEWHERE)
            assert connection is not None and connection.number == 0
            channel = Channel(side.link, connection)
            side.link.outlet.flush_soon()
            await rounds(loop)
            assert MAGIC not in fifos.heard()
            fifos.say(b"\0\0\xff")  # a part of a header
            fifos.go()
            over = await side.hears(Over)
            assert over.reason == "it has gone"
            assert channel.is_cut_off
            channel.close()
            await clock.passes(loop, 1)
            assert not side.happened._items and not side.lost._items
        side.link.detach("enough")

    play(loop, story, 600)


def test_what_waited_for_one_who_has_gone_is_dropped(loop: Loop, tmp_path: Path) -> None:
    """The next one hears a HELLO behind what the port had taken."""

    async def story() -> None:
        side = Side(loop, False, BOUNDS)
        fifos = Fifos(loop, tmp_path)
        side.link.attach(fifos.port)
        fifos.come()
        await rounds(loop)
        fifos.heard()
        fifos.port.write(b"x" * (1 << 20))
        assert fifos.port.backlog
        side.link.mux.output.append(b"y" * 100)
        fifos.go()
        await until(loop, lambda: not fifos.port.backlog)
        fifos.come()
        came = b""
        while hellos(came) == 0:
            came += fifos.heard()
            await loop.sleep(0.01)
        assert came.lstrip(b"x").startswith(b"\xff\xff") and len(came) < 1 << 20
        fifos.go()
        side.link.detach("enough")

    play(loop, story)


def test_what_waited_for_one_who_is_given_up_is_dropped(loop: Loop, clock: Clock) -> None:
    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, True, BOUNDS)
            side.attach(hand.ours)
            await hand.meet(side)
            channel = await hand.opened(side, window=1 << 22)
            hand.forget()
            side.link.outlet.send_copy(channel.connection, b"x" * (1 << 22))
            await rounds(loop)
            assert side.link.outlet.is_congested
            while not side.happened._items:
                await clock.passes(loop, 0.1)
            over = await side.hears(Over)
            assert over.reason.startswith("there was no sign of life")
            assert not side.link.outlet.is_congested
            await clock.passes(loop, 2)
            while hellos(hand.take()) == 0:
                await clock.passes(loop, 0.1)
            assert len(hand.came) < 1 << 22
            channel.close()
            side.link.detach("enough")

    play(loop, story, 600)


# What is too much


def test_who_does_not_read_what_it_is_told(loop: Loop) -> None:
    """What waits for it is bounded: the session ends, and there can be another."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, True, BOUNDS)
            side.attach(hand.ours)
            await hand.meet(side)
            channel = await hand.opened(side)
            pings = Ping(bytes(8)).encode() * 1000
            most = 0
            while not side.happened._items:
                await hand.say_much(pings)
                await rounds(loop, 2)
                most = max(most, len(side.link.mux.output))
            assert (await side.hears(Over)).reason == "it does not read what it is told"
            assert most > 20_000 and most <= (1 << 16) + 50_000
            assert not side.link.mux.output and channel.is_cut_off
            channel.close()
            while hand.take():
                hand.forget()
                await rounds(loop)
            await hand.meet(side)
            side.link.detach("enough")

    play(loop, story)


def test_much_that_comes_leaves_time_for_others(loop: Loop) -> None:
    """No more than 4 reads' worth is taken in for one event."""

    async def story() -> None:
        with Hand(loop) as hand:
            hand.ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
            hand.sock.setsockopt(socket.SOL_SOCKET, 32, 8 << 20)  # SO_SNDBUFFORCE
            side = Side(loop, True, BOUNDS)
            side.attach(hand.ours)
            await hand.meet(side)
            channel = await hand.opened(side)
            channel.connection.left = channel.connection.window = 8 << 20
            hand.data(0, bytes(4 << 20))
            turns, before = 0, 0
            while len(channel.early) < 4 << 20:
                await rounds(loop, 1)
                assert len(channel.early) - before <= 4 * ((1 << 19) + (1 << 16))
                before = len(channel.early)
                turns += 1
            assert turns >= 2
            channel.close()
            side.link.detach("enough")

    play(loop, story)
