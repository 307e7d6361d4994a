"""A link: how sessions begin and stay, in time and from inside of an event."""

import socket
from typing import Any

import pytest
from both import SOMEWHERE, Both, Side
from hand import BOUNDS, SILENCE, WINDOW, Clock, Hand, hellos, play, rounds, stuff

from muonsocks.mux.channel import Channel
from muonsocks.mux.events import Began, Opened, Over
from muonsocks.mux.frames import (
    MAGIC,
    NO_NUMBER,
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


def test_who_says_hello_again_and_again_has_not_heard_the_answer(loop: Loop, clock: Clock) -> None:
    """There is a session on one side only: it ends, and another one begins on both."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, True, BOUNDS)
            side.attach(hand.ours)
            await hand.meet(side)
            number = side.link.mux._number  # type: ignore[union-attr]
            for _ in range(round(SILENCE) + 6):
                hand.say(Hello(1, 0, hand.number, number))
                await clock.passes(loop, 1)
                if side.happened._items:
                    break
            over = await side.hears(Over)
            assert over.reason.startswith("there was no sign of life")
            hand.heard()
            hand.say(Hello(1, 0, hand.number, number))
            await rounds(loop)
            hello = hand.heard()[-1]
            assert hello.echo == hand.number and hello.number != number
            hand.say(Hello(1, 0, hand.number, hello.number))
            await side.hears(Began)
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
