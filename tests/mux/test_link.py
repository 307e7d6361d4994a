"""A link: how sessions begin and end, in time and from inside of an event."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from both import MEMORY, SOMEWHERE, Both, Side
from hand import BOUNDS, SILENCE, WINDOW, Clock, Fifos, Hand, hellos, play, rounds, stuff, until

from muonsocks.mux.channel import Channel
from muonsocks.mux.connection import ResetReason
from muonsocks.mux.events import Began, Opened, Over
from muonsocks.mux.frames import (
    MAGIC,
    NO_NUMBER,
    Done,
    Goodbye,
    Hello,
    Open,
    Ping,
    Pong,
    Reset,
)
from muonsocks.net.loop import Loop
from muonsocks.socks.request import Event

EITHER = pytest.mark.parametrize("is_host", [False, True], ids=["guest", "host"])


# How a session begins


@EITHER
def test_hello_is_said_again_and_again(loop: Loop, clock: Clock, is_host: bool) -> None:
    """After 0.25 s, 0.5 s, and then each second, until there is an answer."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, is_host, BOUNDS)
            side.attach(hand.ours)
            times = []
            began = clock.now()
            while len(times) < 6:
                times += [clock.now() - began] * hellos(hand.take())
                hand.forget()
                await clock.passes(loop, 0.01)
            assert times == pytest.approx([0, 0.25, 0.75, 1.75, 2.75, 3.75], abs=0.1)
            await hand.meet(side, 0 if is_host else 1)
            hand.heard()
            await clock.passes(loop, 5)
            assert not hand.heard()
            side.link.detach("enough")
            assert hand.heard() == [Goodbye("enough")]

    play(loop, story, 600)


@EITHER
def test_hello_after_a_session_is_said_as_at_the_start(
    loop: Loop, clock: Clock, is_host: bool
) -> None:
    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, is_host, BOUNDS)
            side.attach(hand.ours)
            await clock.passes(loop, 5)
            await hand.meet(side, 0 if is_host else 1)
            for _ in range(2):
                hand.say(Goodbye("for a while"))
                over = await side.hears(Over)
                assert over.reason == "the other side has ended it: for a while"
                await clock.passes(loop, 0.2)
                assert not hand.heard()
                await clock.passes(loop, 0.7)
                assert [type(one) for one in hand.heard()] == [Hello, Hello]  # 0.25 s and 0.75 s
                await hand.meet(side, 0 if is_host else 1)
            side.link.detach("enough")

    play(loop, story, 600)


def test_hellos_do_not_pile_up_at_a_port_that_takes_nothing(loop: Loop, clock: Clock) -> None:
    async def story() -> None:
        with Hand(loop) as hand:
            junk = stuff(hand.ours)
            side = Side(loop, True, BOUNDS)
            side.attach(hand.ours)
            await clock.passes(loop, 20)
            assert not side.link.mux.output and len(side.link._port.backlog) < 100
            hand.take()
            await rounds(loop)
            came = hand.take()
            assert came[:junk] == bytes(junk) and hellos(came) == 1
            await clock.passes(loop, 1.1)
            assert hellos(hand.take()) == 2, "and it goes on"
            await hand.meet(side)
            side.link.detach("enough")

    play(loop, story, 600)


def test_a_session_begins_at_any_time(loop: Loop, clock: Clock) -> None:
    """Half frames of an earlier one are in front of it, on both sides."""

    async def story() -> None:
        both = Both.__new__(Both)
        both.loop, both.guest, both.host = loop, Side(loop, False), Side(loop, True)
        both.socks = socket.socketpair()
        for sock in both.socks:
            sock.send(b"\5\0\0\1half of a frame" + MAGIC[:20])
        both.guest.attach(both.socks[0])
        await clock.passes(loop, 3)
        both.host.attach(both.socks[1])
        await both.meet()
        ours, theirs = await both.channels()
        ours.close()
        theirs.close()
        both.close()

    play(loop, story, 600)


# Silence


@EITHER
def test_silence_ends_a_session(loop: Loop, clock: Clock, is_host: bool) -> None:
    """A third of the time after the last sign of life, it is asked for one."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, is_host, BOUNDS)
            side.attach(hand.ours)
            await hand.meet(side, 0 if is_host else 1)
            await rounds(loop)
            hand.heard()
            began = clock.now()
            while not (heard := hand.heard()):
                await clock.passes(loop, 0.05)
            assert [type(one) for one in heard] == [Ping]
            asked = clock.now()
            assert SILENCE / 3 - 0.1 <= asked - began <= SILENCE / 2 + 1
            while not side.happened._items:
                await clock.passes(loop, 0.05)
                assert not hand.heard(), "it is asked once"
            assert 2 * SILENCE / 3 - 0.1 <= clock.now() - asked <= 5 * SILENCE / 6 + 1
            over = await side.hears(Over)
            seconds = round(clock.now() - began)
            assert over.reason == f"there was no sign of life for {seconds} s"
            await clock.passes(loop, 1)
            assert {type(one) for one in hand.heard()} == {Hello}, "it looks for another one"
            await hand.meet(side, 0 if is_host else 1)
            await clock.passes(loop, SILENCE / 2)
            assert not side.happened._items, "the ping that had no answer is forgotten"
            side.link.detach("enough")

    play(loop, story, 600)


@pytest.mark.parametrize("sign", [Pong(bytes(8)), Ping(bytes(8)), b"\0"])
def test_any_sign_of_life_will_do(loop: Loop, clock: Clock, sign: Any) -> None:
    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, True, BOUNDS)
            side.attach(hand.ours)
            await hand.meet(side)
            for _ in range(1 if sign == b"\0" else 5):
                await clock.passes(loop, SILENCE / 2 + 1)
                hand.say(sign)
                await rounds(loop)
                assert not side.happened._items
            await clock.passes(loop, 0.5 * SILENCE)
            assert not side.happened._items
            assert Ping in map(type, hand.heard())
            side.link.detach("enough")

    play(loop, story, 600)


def test_pings_are_answered(loop: Loop) -> None:
    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, True, BOUNDS)
            side.attach(hand.ours)
            await hand.meet(side)
            hand.say(Ping(b"a" * 8), Ping(b"b" * 8))
            await rounds(loop)
            assert hand.heard()[-2:] == [Pong(b"a" * 8), Pong(b"b" * 8)]
            side.link.detach("enough")

    play(loop, story)


@pytest.mark.parametrize("is_pinged", [False, True])
def test_who_was_stopped_does_not_blame_the_other_side(
    loop: Loop, clock: Clock, is_pinged: bool
) -> None:
    """It was not there to hear a sign of life, or has not read it yet."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, False, BOUNDS)
            side.attach(hand.ours)
            await hand.meet(side, 1)
            await rounds(loop)
            hand.heard()
            if is_pinged:
                await clock.passes(loop, SILENCE / 2 + 1)
                [ping] = hand.heard()
                hand.say(Pong(ping.token))
            clock.jump(100 * SILENCE)
            await rounds(loop)
            assert not side.happened._items
            if not is_pinged:
                [ping] = hand.heard()
                hand.say(Pong(ping.token))
                await clock.passes(loop, SILENCE)
                assert not side.happened._items
            side.link.detach("enough")

    play(loop, story, 1e5)


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
                assert Open not in map(type, heard[:-1])
                assert hand.is_closed()
                channel.close()
                side.link.detach("again")  # harmless
                await rounds(loop)
                assert not side.lost._items and not side.happened._items

    play(loop, story)


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


# From inside of an event


@pytest.mark.parametrize("when", [Began, Opened, Over])
@pytest.mark.parametrize("is_cut", [False, True], ids=["detach", "the port fails"])
def test_the_end_from_inside_of_an_event(loop: Loop, when: type, is_cut: bool) -> None:
    """By whoever is told of it: what comes behind it in the same breath has no effect."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, True)
            seen: list[Event] = []

            def on_event(event: Event) -> None:
                seen.append(event)
                if isinstance(event, when):
                    if is_cut:
                        hand.sock.close()
                        side.link.outlet.mux.ping(bytes(8))
                        side.link.outlet.flush()
                    else:
                        side.link.detach("from inside")

            side.link._on_event = on_event
            side.attach(hand.ours)
            hand.number = b"a number"
            hand.say(Hello(1, 0, hand.number, NO_NUMBER))
            await rounds(loop)
            hello = next(one for one in hand.heard() if one.echo == hand.number)
            hand.say(
                Hello(1, 0, hand.number, hello.number),
                Open(0, WINDOW, SOMEWHERE),
                Open(1, WINDOW, SOMEWHERE),
                *[Goodbye("so")] * (when is Over),
            )
            await rounds(loop)
            assert when in map(type, seen)
            assert side.link._port is None
            assert not side.link.mux.is_up and not side.link.mux.output
            assert len(side.lost._items) == is_cut
            count = len(seen)
            await rounds(loop)
            assert len(seen) == count

    play(loop, story)


@pytest.mark.parametrize("told_by", ["deliver", "hear", "was_cut_off"])
def test_the_end_from_inside_of_a_connection(loop: Loop, told_by: str) -> None:
    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, True)
            side.attach(hand.ours)
            await hand.meet(side)

            class Leaver(Channel):
                def leave(self, *_: Any) -> None:
                    self.link.detach("from inside")

            setattr(Leaver, told_by, Leaver.leave)
            hand.say(Open(0, WINDOW, SOMEWHERE), Open(1, WINDOW, SOMEWHERE))
            channels = [
                kind(side.link, (await side.hears(Opened)).connection) for kind in (Leaver, Channel)
            ]
            for channel in channels:
                side.link.mux.answer(channel.connection, 0)
            resets = [Reset(0, 1)] * (told_by == "hear")
            hand.say(b"\0\0\1\0x", *resets, b"\1\0\1\0y", Goodbye("so"))
            await rounds(loop)
            assert side.link._port is None
            assert channels[1].is_cut_off
            for channel in channels:
                channel.close()

    play(loop, story)
