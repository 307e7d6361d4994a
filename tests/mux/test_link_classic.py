"""A link whose other side may be of the older pair: the doubt, and what comes of it."""

import socket
from pathlib import Path

import pytest
from both import MEMORY, SOMEWHERE, Side
from classic_joined import GREETING
from classic_port import frame
from ends import made, noise
from hand import (
    BOUNDS,
    REQUEST,
    SILENCE,
    WINDOW,
    Clock,
    Fifos,
    Hand,
    hellos,
    older_guest,
    play,
    rounds,
    until,
)

from muonsocks.mux.carriage import Carriage
from muonsocks.mux.channel import Channel
from muonsocks.mux.events import Began, Opened, Over
from muonsocks.mux.frames import NO_NUMBER, Goodbye, Hello
from muonsocks.mux.link import Bounds
from muonsocks.net.loop import Loop

EARLIER = b"\1\xc0\0\2\2\0\x19"  # a request of somebody else's


@pytest.mark.parametrize("before", [[], [b"junk of an earlier session"]])
def test_a_guest_of_the_older_pair(loop: Loop, clock: Clock, before: list[bytes]) -> None:
    """It is taken for that after a second without a HELLO."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, True, BOUNDS)
            side.attach(hand.ours)
            for piece in [*before, frame(3, REQUEST)]:
                hand.say(piece)
                await rounds(loop)
            hand.take()
            await clock.passes(loop, 0.9)
            assert not side.happened._items
            await clock.passes(loop, 0.2)
            await side.hears(Began)
            assert side.link.mux.limit == 64
            opened = await side.hears(Opened)
            assert opened.destination == SOMEWHERE and opened.connection.number == 3
            channel = Channel(side.link, opened.connection)
            hand.say(frame(3, b"question"))
            await rounds(loop)
            assert channel.early == b"question"
            hand.forget()
            await clock.passes(loop, SILENCE / 4, 0.5)
            assert not hand.take()
            await clock.passes(loop, 5 * SILENCE, 0.5)
            assert len(hand.heard()) == len(side.link.mux.output) == 1
            for _ in range(5):
                await clock.passes(loop, SILENCE / 5, 0.5)
                said = hand.heard()
                assert said, "it may have been started anew, and would wait for ever"
                for hello in said:
                    assert hello == Hello(1, 64, hello.number, NO_NUMBER)
            assert not side.happened._items
            hand.say(frame(3, b"again"))
            await rounds(loop)
            assert channel.early == b"questionagain", "and if not, goes on"
            while side.link.mux.output:
                hand.forget()
                await clock.passes(loop, 0.01)
            hand.forget()
            side.link.detach("enough")
            channel.close()
            assert hand.heard() == [(3, b"")], "that is all it can be told"

    play(loop, story, 600)


def test_a_host_of_the_older_pair(loop: Loop, clock: Clock) -> None:
    """It greets in five frames, and takes nothing in before the last of them."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, False, BOUNDS)
            side.attach(hand.ours)
            for number, piece in enumerate(GREETING):
                assert not side.link.mux.is_up
                hand.say(piece)
                await clock.passes(loop, 1.2)
                assert side.link.mux.is_classic is (number >= 0)
            await side.hears(Began)
            assert side.link.mux.limit == 64
            hand.forget()
            connection = side.link.mux.open(SOMEWHERE)
            assert connection is not None
            side.link.outlet.flush()
            assert hand.take() == frame(0, REQUEST)
            side.link.detach("enough")

    play(loop, story, 600)


def test_who_says_hello_within_a_second_is_not_of_the_older_pair(loop: Loop, clock: Clock) -> None:
    """Though it sends what looks like a request, as stale bytes may."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, True, BOUNDS)
            side.attach(hand.ours)
            hand.say(frame(3, REQUEST))
            await clock.passes(loop, 0.8)
            await hand.meet(side)
            await clock.passes(loop, 1)
            assert not side.link.mux.is_classic and not side.happened._items
            side.link.detach("enough")

    play(loop, story, 600)


def test_a_doubt_is_of_one_session(loop: Loop, clock: Clock) -> None:
    """What is strange after it is thought about for a second, too."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, True, BOUNDS)
            side.attach(hand.ours)
            hand.say(b"strange")
            await clock.passes(loop, 0.7)
            await hand.meet(side)
            hand.say(Goodbye("for a while"))
            await side.hears(Over)
            hand.say(frame(3, REQUEST))
            await clock.passes(loop, 0.7)
            assert not side.happened._items and not side.link.mux.is_classic
            await clock.passes(loop, 0.5)
            assert side.link.mux.is_classic
            side.link.detach("enough")

    play(loop, story, 600)


def test_a_doubt_is_of_one_port(loop: Loop, clock: Clock) -> None:
    """What was asked for at another one is not carried out at this."""

    async def story() -> None:
        side = Side(loop, True, BOUNDS)
        with Hand(loop) as hand:
            side.attach(hand.ours)
            hand.say(frame(3, EARLIER))
            await rounds(loop)
            hand.sock.close()
            await until(loop, lambda: not side.link.has_port)
        with Hand(loop) as hand:
            side.attach(hand.ours)
            await clock.passes(loop, 0.5)
            hand.say(frame(4, REQUEST))
            await clock.passes(loop, 0.7)
            assert not side.link.mux.is_classic
            await clock.passes(loop, 0.5)
            await side.hears(Began)
            assert (await side.hears(Opened)).destination == SOMEWHERE
            side.link.detach("enough")

    play(loop, story, 600)


def test_a_doubt_is_of_one_who_came_to_a_port(loop: Loop, clock: Clock, tmp_path: Path) -> None:
    """The next one at the same port is not taken for who was there before."""

    async def story() -> None:
        side = Side(loop, True, BOUNDS)
        fifos = Fifos(loop, tmp_path)
        side.link.attach(fifos.port)
        fifos.come()
        fifos.say(frame(3, EARLIER))
        await rounds(loop)
        fifos.go()
        await clock.passes(loop, 0.5)
        fifos.come()
        fifos.say(frame(4, REQUEST))
        await clock.passes(loop, 0.7)
        assert not side.link.mux.is_classic
        await clock.passes(loop, 0.5)
        await side.hears(Began)
        assert (await side.hears(Opened)).destination == SOMEWHERE
        fifos.go()
        side.link.detach("enough")

    play(loop, story, 600)


def test_an_older_guest_after_one_who_has_said_hello_and_no_more(loop: Loop, clock: Clock) -> None:
    """The port does not tell that somebody else is there."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, True, BOUNDS)
            side.attach(hand.ours)
            hand.say(frame(5, EARLIER))
            await clock.passes(loop, 0.5)
            hand.say(Hello(1, 0, b"gone now", NO_NUMBER))
            await clock.passes(loop, 2)
            assert not side.link.mux.is_classic, "what is before a HELLO is stale"
            hand.say(frame(3, REQUEST))
            await clock.passes(loop, 0.9)
            assert not side.link.mux.is_classic
            await clock.passes(loop, 0.2)
            await side.hears(Began)
            assert (await side.hears(Opened)).destination == SOMEWHERE
            side.link.detach("enough")

    play(loop, story, 600)


@pytest.mark.parametrize("size", [4000, 1])
def test_an_older_guest_that_sends_much_at_once(loop: Loop, clock: Clock, size: int) -> None:
    """Nothing of it is lost, however much there is before the second is over."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, True, BOUNDS)
            channels: list[Channel] = []
            side.link._on_event = lambda event: (
                channels.append(Channel(side.link, event.connection))
                if isinstance(event, Opened)
                else None
            )
            side.attach(hand.ours)
            data = noise(500 * size + 4500)
            hand.say(b"stale")
            await rounds(loop)
            hand.say(frame(3, REQUEST))
            for start in range(0, len(data), size):
                await hand.say_much(frame(3, data[start : start + size]))
                await rounds(loop, 1)
            assert side.link.mux.is_classic
            [channel] = channels
            await clock.passes(loop, 2)
            hand.say(frame(3, b"more"))
            await rounds(loop)
            assert channel.early == data + b"more"
            channel.close()
            side.link.detach("enough")

    play(loop, story, 600)


@pytest.mark.parametrize("piece", [b"x", b"\0\0\0\0", frame(3, REQUEST[:-1]), frame(64, REQUEST)])
def test_junk_is_of_no_protocol(loop: Loop, clock: Clock, piece: bytes) -> None:
    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, True, BOUNDS)
            side.attach(hand.ours)
            for _ in range(3):
                hand.say(piece)
                await clock.passes(loop, 1.2)
            assert not side.link.mux.is_classic and not side.happened._items
            await hand.meet(side)
            side.link.detach("enough")

    play(loop, story, 600)


def test_a_link_that_is_detached_in_doubt(loop: Loop) -> None:
    """Nothing is left of it (the fixture looks)."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, True)
            side.attach(hand.ours)
            hand.say(b"strange")
            await rounds(loop)
            assert side.link._doubt._timer is not None
            side.link.detach("enough")
            await rounds(loop)

    play(loop, story)


def test_what_the_older_pair_closes_in_the_same_breath_as_it_is_opened(
    loop: Loop, clock: Clock
) -> None:
    """Nobody gets its data, and it does not count as waiting either."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = await older_guest(loop, clock, hand)
            Channel(side.link, (await side.hears(Opened)).connection).close()
            hand.say(frame(4, REQUEST), frame(4, b"data"), frame(4, b""))
            await rounds(loop)
            assert not side.happened._items and side.link.mux._waits == 0
            side.link.detach("enough")

    play(loop, story, 600)


def test_who_says_hello_later_is_of_ours_from_then_on(loop: Loop, clock: Clock) -> None:
    """A session with the older one ends; what its connections have waits for nobody."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = await older_guest(loop, clock, hand)
            channel = Channel(side.link, (await side.hears(Opened)).connection)
            hand.say(frame(3, b"data"))
            await rounds(loop)
            hand.say(Hello(1, 0, b"newcomer", NO_NUMBER))
            over = await side.hears(Over)
            assert over.reason == "the other side has started anew"
            assert channel.is_cut_off and channel.early == b"data"
            assert not side.link.mux.is_classic
            hello = await hand.hears(Hello)
            assert hello.echo == b"newcomer"
            hand.say(Hello(1, 0, b"newcomer", hello.number))
            await side.hears(Began)
            channel.close()  # only now
            await rounds(loop)
            assert not hand.heard(), "it is none of the new one's"
            new = await hand.opened(side)
            assert side.link.mux._windows._left == MEMORY - WINDOW
            new.close()
            side.link.detach("enough")

    play(loop, story, 600)


def test_data_of_ours_that_is_used_under_the_older_protocol(loop: Loop, clock: Clock) -> None:
    """It counts where it was counted."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, True, BOUNDS)
            side.attach(hand.ours)
            await hand.meet(side)
            channel = await hand.opened(side)
            hand.data(0, bytes(WINDOW // 4))
            await until(loop, lambda: len(channel.early) == WINDOW // 4)
            hand.say(Goodbye("so"))
            await side.hears(Over)
            hand.say(frame(3, REQUEST))
            await clock.passes(loop, 1.2)
            assert side.link.mux.is_classic
            channel.mux.consume(channel.connection, len(channel.early))
            channel.close()
            assert side.link.mux._waits == 0
            side.link.detach("enough")

    play(loop, story, 600)


def test_a_port_after_that_of_an_older_guest(loop: Loop, clock: Clock) -> None:
    """Whoever is there is greeted: one of the older pair waits for that."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = await older_guest(loop, clock, hand)
            Channel(side.link, (await side.hears(Opened)).connection).close()
            await rounds(loop)
            hand.sock.close()
            await side.hears(Over)
        with Hand(loop) as hand:
            side.attach(hand.ours)
            await rounds(loop)
            assert hellos(hand.take()) == 1
            await hand.meet(side)
            side.link.detach("enough")

    play(loop, story, 600)


def test_an_older_guest_that_goes_and_comes_back(loop: Loop, clock: Clock, tmp_path: Path) -> None:
    """To the same port. The next one is greeted, and served, as the first."""

    async def story() -> None:
        side = Side(loop, True, Bounds(1000, 1000, SILENCE))
        fifos = Fifos(loop, tmp_path)
        side.link.attach(fifos.port)
        for _ in range(3):
            fifos.come()
            await clock.passes(loop, 1.2)
            assert hellos(fifos.heard()) >= 1
            fifos.say(frame(3, REQUEST))
            await clock.passes(loop, 1.2)
            await side.hears(Began)
            assert side.link.mux.limit == 64
            channel = Channel(side.link, (await side.hears(Opened)).connection)
            fifos.say(frame(3, bytes(4000)))
            await rounds(loop)
            assert len(channel.early) == 4000 and side.link.mux.is_full
            channel.mux.consume(channel.connection, 4000)
            side.link.has_passed_on()
            fifos.go()
            await side.hears(Over)
            assert channel.is_cut_off
            channel.close()
        side.link.detach("enough")

    play(loop, story, 600)


def test_reading_stops_when_too_much_waits(loop: Loop, clock: Clock) -> None:
    """Of the older pair's; and goes on once some of it has been passed on."""
    memory = 1 << 16

    async def story() -> None:
        with Hand(loop) as hand:
            side = await older_guest(loop, clock, hand, Bounds(1000, memory, SILENCE))
            one = Channel(side.link, (await side.hears(Opened)).connection)
            hand.say(frame(4, REQUEST))
            two = Channel(side.link, (await side.hears(Opened)).connection)
            data = noise(16 * memory)
            pieces = b"".join(
                frame(3, data[start : start + 4000]) for start in range(0, len(data), 4000)
            )
            over = []
            loop.spawn(hand.say_much(pieces + frame(4, b"behind it")), pytest.fail, over.append)
            await rounds(loop, 200)
            assert not over and memory < len(one.early) < memory + (1 << 19) + (1 << 17)
            assert two.early == b""
            before = len(one.early)
            await rounds(loop, 200)
            assert len(one.early) == before
            got = b""
            while two.early == b"":
                got += one.early
                one.mux.consume(one.connection, len(one.early))
                one.early = b""
                side.link.has_passed_on()
                await rounds(loop)
            assert got + one.early == data and two.early == b"behind it" and over
            for channel in (one, two):
                channel.close()
            assert side.link.mux._waits == 0
            side.link.detach("enough")
            await loop.sleep(0.01)

    play(loop, story, 600)


def test_reading_goes_on_when_a_stream_takes_what_waits(loop: Loop, clock: Clock) -> None:
    async def story() -> None:
        with Hand(loop) as hand:
            side = await older_guest(loop, clock, hand, Bounds(1000, 10_000, SILENCE))
            channel = Channel(side.link, (await side.hears(Opened)).connection)
            stream, end = made(loop, "unix")
            relay = Carriage(channel, stream)
            relay.start(600, 600)
            data = noise(4 << 20)
            pieces = [data[start : start + 4000] for start in range(0, len(data), 4000)]
            whole = b"".join(frame(3, piece) for piece in pieces)
            loop.spawn(hand.say_much(whole), pytest.fail)
            await rounds(loop, 200)
            assert side.link.mux.is_full
            got = b""
            while len(got) < len(data):
                got += end.read()
                await rounds(loop)
            assert got == data
            relay.stop()
            channel.close()
            stream.close()
            end.close()
            side.link.detach("enough")

    play(loop, story, 600)


@pytest.mark.parametrize("waits", [True, False])
def test_what_nobody_takes_does_not_stop_the_others(loop: Loop, clock: Clock, waits: bool) -> None:
    """A direction may be over long before its connection is."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = await older_guest(loop, clock, hand, Bounds(1000, 10_000, SILENCE))
            channel = Channel(side.link, (await side.hears(Opened)).connection)
            stream, end = made(loop, "unix")
            relay = Carriage(channel, stream)
            relay.start(600, 600)
            if not waits:
                end.sock.shutdown(socket.SHUT_RD)
            pieces = frame(3, bytes(4000)) * 1000 + frame(4, REQUEST)
            loop.spawn(hand.say_much(pieces), pytest.fail)
            await rounds(loop, 200)
            if waits:
                assert side.link.mux.is_full
                end.sock.shutdown(socket.SHUT_RD)
                end.read()  # there is room again, which is when it is noticed
            two = Channel(side.link, (await side.hears(Opened)).connection)
            assert two.connection.number == 4 and not side.link.mux._waits
            end.send(b"an answer")
            await rounds(loop)
            assert frame(3, b"an answer") in hand.take(), "the other direction goes on"
            relay.stop()
            for one in (channel, two, stream, end):
                one.close()
            assert not side.link.mux._waits
            side.link.detach("enough")
            await loop.sleep(0.01)

    play(loop, story, 600)


@pytest.mark.parametrize("is_taken", [True, False], ids=["taken", "refused"])
def test_reading_goes_on_when_all_that_came_early_is_gone(
    loop: Loop, clock: Clock, is_taken: bool
) -> None:
    """The stream takes it at once, or nobody reads from it any more: nothing waits then."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = await older_guest(loop, clock, hand, Bounds(1000, 10_000, SILENCE))
            channel = Channel(side.link, (await side.hears(Opened)).connection)
            early = noise(12_000)
            hand.say(*[frame(3, early[start : start + 4000]) for start in range(0, 12_000, 4000)])
            await rounds(loop)
            hand.say(frame(3, b"more"), frame(4, REQUEST))
            await rounds(loop)
            assert channel.early == early and side.link.mux.is_full
            stream, end = made(loop, "unix")
            if not is_taken:
                end.sock.shutdown(socket.SHUT_RD)
            relay = Carriage(channel, stream)
            relay.start(600, 600)
            two = Channel(side.link, (await side.hears(Opened)).connection)
            assert two.connection.number == 4 and not side.link.mux._waits
            if is_taken:
                assert end.read_exactly(12_004) == early + b"more"
            relay.stop()
            for one in (channel, two, stream, end):
                one.close()
            side.link.detach("enough")
            await loop.sleep(0.01)

    play(loop, story, 5)


def test_reading_goes_on_when_the_one_who_is_full_has_gone(loop: Loop, clock: Clock) -> None:
    async def story() -> None:
        with Hand(loop) as hand:
            side = await older_guest(loop, clock, hand, Bounds(1000, 10_000, SILENCE))
            one = Channel(side.link, (await side.hears(Opened)).connection)
            pieces = frame(3, bytes(4000)) * 1000 + frame(4, REQUEST)
            loop.spawn(hand.say_much(pieces), pytest.fail)
            await rounds(loop, 200)
            assert side.link.mux.is_full
            await rounds(loop)
            assert not side.happened._items
            one.close()
            two = Channel(side.link, (await side.hears(Opened)).connection)
            assert two.connection.number == 4
            two.close()
            side.link.detach("enough")
            await loop.sleep(0.01)

    play(loop, story, 600)
