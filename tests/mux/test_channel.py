"""A channel: what it keeps until a carriage takes over, and what the other side is told of it."""

import time

import pytest
from both import MEMORY, SOMEWHERE, Both, Side
from classic_port import frame
from ends import made, no_garbage, noise
from hand import SILENCE, WINDOW, Clock, Hand, older_guest, older_host, play, rounds, until

from muonsocks.address import Endpoint
from muonsocks.errors import RequestFailed
from muonsocks.mux.carriage import Carriage
from muonsocks.mux.channel import Channel
from muonsocks.mux.connection import ResetReason
from muonsocks.mux.events import Opened, Over
from muonsocks.mux.frames import Answer, Credit, Done, Eof, Open, Reset
from muonsocks.net.loop import Loop
from muonsocks.net.stream import PeerGone
from muonsocks.net.task import Waitable
from muonsocks.socks.request import ReplyCode

# Before there is a carriage


def test_what_comes_early_is_kept(loop: Loop) -> None:
    async def story() -> None:
        both = Both(loop)
        await both.meet()
        ours, theirs = await both.channels()
        theirs.link.outlet.send_copy(theirs.connection, b"one")
        await until(loop, lambda: ours.early)
        theirs.link.outlet.send_copy(theirs.connection, b", two")
        theirs.end_output()
        await until(loop, lambda: ours.has_ended)
        assert ours.early == b"one, two" and not ours.was_lost
        theirs.close()
        await until(loop, lambda: ours.was_lost)
        assert not ours.is_cut_off
        ours.close()
        await rounds(loop)
        assert not both.has_connections
        both.close()

    play(loop, story)


def test_much_that_comes_early_in_small_pieces(loop: Loop, clock: Clock) -> None:
    """As an older guest sends it, which does not wait for an answer: it costs what there is of it,
    not what there is with each piece.
    """
    piece = memoryview(bytes(4000))

    async def story() -> None:
        with Hand(loop) as hand:
            side = await older_guest(loop, clock, hand)
            channel = Channel(side.link, (await side.hears(Opened)).connection)
            began = time.process_time()
            for _ in range(10_000):
                channel.deliver([piece], 4000)
            assert time.process_time() - began < 3
            assert len(channel.early) == 40_000_000
            channel.close()
            side.link.detach("enough")

    play(loop, story, 600)


def test_a_channel_says_who_it_is(loop: Loop) -> None:
    async def story() -> None:
        both = Both(loop)
        await both.meet()
        channels = [await both.channels() for _ in range(3)]
        assert [(ours.name, theirs.name) for ours, theirs in channels] == [
            (f"mux:{n}", f"mux:{n}") for n in range(3)
        ]
        for pair in channels:
            for channel in pair:
                assert channel.reader == channel.writer == -1 and not channel.is_tcp
                assert channel.send_now(b"not by this way") == b"not by this way"
                channel.watch_room()  # there is nothing to be watched
                assert not hasattr(channel, "socket")
                channel.close()
        both.close()

    play(loop, story)


# The answer


async def asked(hand: Hand) -> tuple[Side, Channel]:
    """A guest that has asked for a connection."""
    side = Side(hand.loop, False)
    side.attach(hand.ours)
    await hand.meet(side, 10)
    connection = side.link.mux.open(SOMEWHERE)
    assert connection is not None
    channel = Channel(side.link, connection)
    side.link.outlet.flush_soon()
    assert await hand.hears(Open) == Open(0, WINDOW, SOMEWHERE)
    return side, channel


def test_success(loop: Loop) -> None:
    bound = Endpoint("2001:db8::1", 4321)

    async def story() -> None:
        with Hand(loop) as hand:
            side, channel = await asked(hand)
            loop.spawn(rounds(loop, 5), pytest.fail, lambda _: hand.say(Answer(0, 77, 0, bound)))
            await channel.answer()
            await channel.answer()  # it is known
            assert channel.local_endpoint() == bound
            assert channel.connection.credit == 77
            channel.close()
            side.link.detach("enough")

    play(loop, story)


@pytest.mark.parametrize("code", [*range(1, 9), 0x5D, 255])
def test_failure(loop: Loop, code: int) -> None:
    """It is let go by both sides then."""

    async def story() -> None:
        with Hand(loop) as hand:
            side, channel = await asked(hand)
            hand.say(Answer(0, 0, code, SOMEWHERE))
            with pytest.raises(RequestFailed, match=f"the host has answered {code}") as failure:
                await channel.answer()
            assert failure.value.code == code
            channel.close()
            assert await hand.hears(Done) == Done(0)
            await rounds(loop)
            assert hand.heard() == [] and not side.link.mux._connections
            assert side.link.mux._windows._left == MEMORY
            side.link.detach("enough")

    play(loop, story)


@pytest.mark.parametrize("how", ["reset", "goodbye", "the port"])
def test_no_answer(loop: Loop, how: str) -> None:
    async def story() -> None:
        with Hand(loop) as hand:
            side, channel = await asked(hand)

            def leave(_: object) -> None:
                if how == "reset":
                    hand.say(Reset(0, ResetReason.SHORTAGE))
                elif how == "goodbye":
                    side.link.detach("told to stop")
                else:
                    hand.sock.close()

            loop.spawn(rounds(loop, 3), pytest.fail, leave)
            why = "the host has reset it: a shortage" if how == "reset" else "the host has gone"
            with pytest.raises(RequestFailed, match=why) as failure:
                await channel.answer()
            assert failure.value.code == ReplyCode.GENERAL_FAILURE
            assert channel.is_cut_off is (how != "reset")
            channel.close()
            await rounds(loop)
            side.link.detach("enough")

    play(loop, story)


# What the other side is told

ENDS = {
    "end": (lambda c: c.end_output(), [Eof(0)]),
    "end, close": (lambda c: (c.end_output(), c.close()), [Eof(0), Reset(0, ResetReason.UNKNOWN)]),
    "close": (lambda c: c.close(), [Reset(0, ResetReason.UNKNOWN)]),
    "close twice": (lambda c: (c.close(), c.close()), [Reset(0, ResetReason.UNKNOWN)]),
    "reset on close": (
        lambda c: (c.reset_on_close(), c.close()),
        [Reset(0, ResetReason.STOPPED)],
    ),
    "reset, end": (lambda c: (c.reset_on_close(), c.end_output()), [Reset(0, ResetReason.STOPPED)]),
}


@pytest.mark.parametrize("how", ENDS)
def test_what_the_other_side_is_told(loop: Loop, how: str) -> None:
    end, told = ENDS[how]

    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, True)
            side.attach(hand.ours)
            await hand.meet(side)
            channel = await hand.opened(side)
            end(channel)
            await rounds(loop)
            assert hand.heard() == told
            channel.close()
            hand.say(Done(0) if how != "end" else Reset(0, 1))
            await rounds(loop)
            assert not side.link.mux._connections and side.link.mux._windows._left == MEMORY
            (await hand.opened(side)).close()  # the number is free
            side.link.detach("enough")

    play(loop, story)


@pytest.mark.parametrize("how", ["abort", "linger"])
def test_resets_with_a_reason(loop: Loop, how: str) -> None:
    """What was sent before arrives before it."""
    reason = {"abort": ResetReason.RESET, "linger": ResetReason.UNREAD}[how]

    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, True)
            side.attach(hand.ours)
            await hand.meet(side)
            channel = await hand.opened(side)
            side.link.outlet.send_copy(channel.connection, b"last")
            await getattr(channel, how)(SILENCE)
            channel.close()
            await rounds(loop)
            assert hand.heard() == [(0, b"last"), Reset(0, reason)]
            side.link.detach("enough")

    play(loop, story)


def test_both_ends(loop: Loop) -> None:
    """When both sides have ended, that is all: no reset on close."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, True)
            side.attach(hand.ours)
            await hand.meet(side)
            channel = await hand.opened(side)
            hand.say(Eof(0))
            await until(loop, lambda: channel.has_ended)
            channel.end_output()
            channel.close()
            await rounds(loop)
            assert hand.heard() == [Eof(0), Done(0)]
            side.link.detach("enough")

    play(loop, story)


def test_closed_after_the_session(loop: Loop) -> None:
    """Nothing is said of it in the next one, and its window is given back."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, True)
            side.attach(hand.ours)
            await hand.meet(side)
            old = await hand.opened(side)
            hand.data(0, b"x" * 1000)
            await until(loop, lambda: old.early)
            await hand.meet_again(side)
            new = await hand.opened(side)
            old.end_output()
            old.reset_on_close()
            old.close()
            await rounds(loop)
            assert hand.heard() == [] and not new.was_lost
            assert side.link.mux._windows._left == MEMORY - WINDOW
            new.close()
            side.link.detach("enough")

    play(loop, story)


# As a session's client


@pytest.mark.parametrize("when", ["before", "meanwhile", "unwatched"])
def test_it_is_watched_as_a_client_is(loop: Loop, when: str) -> None:
    """Whoever dials for it is told when it has gone."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, True)
            side.attach(hand.ours)
            await hand.meet(side)
            channel = await hand.opened(side)
            told = []

            async def dial() -> None:
                try:
                    channel.watch()
                    if when == "unwatched":
                        channel.unwatch()
                    await Waitable()
                except PeerGone:
                    told.append(True)

            if when == "before":
                hand.say(Reset(0, 1))
                await until(loop, lambda: channel.was_lost)
            task = loop.spawn(dial(), pytest.fail)
            if when != "before":
                hand.say(Eof(0))  # which is no hang-up
                await rounds(loop)
                assert not told
                hand.say(Reset(0, 1))
                await until(loop, lambda: channel.was_lost)
            assert bool(told) is task.is_over is (when != "unwatched")
            channel.close()
            side.link.detach("enough")

    play(loop, story)


# The older pair


def test_an_older_peer_s_connection_ends_in_both_directions(loop: Loop, clock: Clock) -> None:
    """At a host at once: it cannot be told apart."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = await older_guest(loop, clock, hand)
            channel = Channel(side.link, (await side.hears(Opened)).connection)
            far, end = made(loop, "tcp")
            relay = Carriage(channel, far)
            relay.start(600, 600)
            end.end_output()
            await until(loop, lambda: relay.reason)
            await rounds(loop)
            assert hand.take() == frame(3, b"")
            assert relay.stop().reason == "closed"
            channel.close()
            far.close()
            assert end.read_to_end() == (b"", "end")
            end.close()
            side.link.detach("enough")

    play(loop, story, 600)


def test_an_older_host_has_time_to_answer(loop: Loop, clock: Clock) -> None:
    """When the client sends no more, it is the end after 2 s in which nothing has come."""

    async def story() -> None:
        with Hand(loop) as hand:
            side, channel = await older_host(loop, clock, hand)
            client, end = made(loop, "tcp")
            relay = Carriage(client, channel)
            relay.start(600, 600)
            end.send(b"question")
            end.end_output()
            await until(loop, lambda: hand.take() and relay.up.over)
            for _ in range(5):
                await clock.passes(loop, 1.5)
                assert not relay.reason
                hand.say(frame(0, b"answer"))
            await clock.passes(loop, 1.5)
            assert not relay.reason
            await clock.passes(loop, 3)
            hand.take()
            assert relay.stop().reason == "closed"
            assert hand.take().endswith(frame(0, b"question") + frame(0, b""))
            channel.close()
            client.close()
            assert end.read_to_end() == (b"answer" * 5, "end")
            end.close()
            side.link.detach("enough")

    play(loop, story, 600)


def test_a_slow_client_of_an_older_host_gets_all(loop: Loop, clock: Clock) -> None:
    """That it reads nothing for a while is not that nothing comes."""

    async def story() -> None:
        with Hand(loop) as hand:
            side, channel = await older_host(loop, clock, hand)
            client, end = made(loop, "tcp")
            relay = Carriage(client, channel)
            relay.start(600, 600)
            end.end_output()
            data = noise(1 << 23)
            pieces = [data[start : start + 4000] for start in range(0, len(data), 4000)]
            await hand.say_much(b"".join(frame(0, piece) for piece in pieces[:-1]))
            await clock.passes(loop, 5)
            assert not relay.reason
            hand.say(frame(0, pieces[-1]))
            await clock.passes(loop, 5)
            got = b""
            while len(got) < len(data):
                got += end.read()
                await rounds(loop, 5)
            assert got == data
            await clock.passes(loop, 5)
            assert relay.stop().reason == "closed"
            channel.close()
            client.close()
            end.close()
            side.link.detach("enough")

    play(loop, story, 600)


def test_an_answer_that_is_cut_short_is_no_whole_one(loop: Loop, clock: Clock) -> None:
    """The host goes while its answer waits for the client, which has sent all it has."""

    async def story() -> None:
        with Hand(loop) as hand:
            side, channel = await older_host(loop, clock, hand)
            client, end = made(loop, "tcp")
            relay = Carriage(client, channel)
            relay.start(600, 600)
            end.end_output()
            await until(loop, lambda: relay.up.over)
            await hand.say_much(frame(0, bytes(4000)) * 2000)
            await clock.passes(loop, 1)
            assert relay.down.pending is not None
            hand.sock.close()
            await side.hears(Over)
            await clock.passes(loop, 5)
            got = 0
            while not relay.reason:
                got += len(end.read())
                await rounds(loop)
            ended = relay.stop()
            assert (ended.reason, ended.owed_resets) == ("reset", (client,))
            channel.close()
            client.reset_on_close()
            client.close()
            data, how = end.read_to_end()
            assert how == "reset" and got + len(data) <= 2000 * 4000
            end.close()

    play(loop, story, 600)


def test_nobody_waits_for_an_older_host_when_it_is_over(loop: Loop, clock: Clock) -> None:
    """No timer is left (the fixture looks)."""

    async def story() -> None:
        with Hand(loop) as hand:
            side, channel = await older_host(loop, clock, hand)
            client, end = made(loop, "tcp")
            relay = Carriage(client, channel)
            relay.start(600, 600)
            end.end_output()
            await until(loop, lambda: relay.up.over)
            await clock.passes(loop, 1)
            relay.stop()
            for one in (channel, client, end):
                one.close()
            side.link.detach("enough")

    play(loop, story, 600)


def test_an_older_host_ends_first(loop: Loop, clock: Clock) -> None:
    async def story() -> None:
        with Hand(loop) as hand:
            side, channel = await older_host(loop, clock, hand)
            client, end = made(loop, "tcp")
            relay = Carriage(client, channel)
            relay.start(600, 600)
            hand.say(frame(0, b"answer"), frame(0, b""))
            await until(loop, lambda: relay.reason)
            assert relay.stop().owed_resets == ()
            channel.close()
            client.close()
            assert end.read_to_end() == (b"answer", "end")
            end.close()
            side.link.detach("enough")

    play(loop, story, 600)


# Memory


@pytest.mark.parametrize("how", ["closed", "both ends", "cut off"])
def test_nothing_is_left_to_the_collector(loop: Loop, how: str) -> None:
    async def story() -> None:
        both = Both(loop)
        await both.meet()
        with no_garbage():
            for _ in range(3 if how == "cut off" else 20):
                ours, theirs = await both.channels()
                theirs.link.outlet.send_copy(theirs.connection, b"data")
                await until(loop, lambda ours=ours: ours.early)
                if how == "both ends":
                    theirs.end_output()
                    ours.end_output()
                elif how == "cut off":
                    both.guest.link.mux.say_goodbye("anew")
                    both.guest.link.outlet.flush()
                    await both.host.hears(Over)
                    await both.meet()
                ours.close()
                theirs.close()
                await rounds(loop, 4)
            assert not both.has_connections
            del ours, theirs
        both.close()

    play(loop, story)


def test_credit_of_what_is_not_used_is_not_given(loop: Loop) -> None:
    """Early data waits in the window: no more comes than that."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, True)
            side.attach(hand.ours)
            await hand.meet(side)
            channel = await hand.opened(side)
            await hand.say_much(b"".join(b"\0\0\0\x40" + bytes(1 << 14) for _ in range(16)))
            await until(loop, lambda: len(channel.early) == WINDOW)
            await rounds(loop)
            assert Credit not in map(type, hand.heard())
            channel.close()
            side.link.detach("enough")

    play(loop, story)
