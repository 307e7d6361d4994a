"""How a carriage ends, whoever ends it, and in which state."""

import os
import socket
from typing import Any

import pytest
from both import Side
from carried import Carried, sends
from ends import (
    PATIENCE,
    made,
    noise,
)
from hand import WINDOW, Hand, play, rounds, until

from muonsocks.mux.carriage import Carriage
from muonsocks.mux.connection import ResetReason
from muonsocks.mux.frames import Credit, Done, Eof, Reset, frames_of
from muonsocks.net.loop import Loop


@pytest.mark.parametrize("how", ["eof", "reset", "goodbye", "the port"])
def test_the_end_while_data_waits(loop: Loop, how: str) -> None:
    """The sink gets it all, and then the end as it was."""

    async def story() -> None:
        with Hand(loop) as hand:
            carried = Carried(loop, hand)
            await carried.begin()
            data = await carried.fill()
            if how == "eof":
                hand.say(Eof(0))
            elif how == "reset":
                hand.say(Reset(0, ResetReason.RESET))
            elif how == "goodbye":
                carried.side.link.detach("told to stop")
            else:
                hand.sock.close()
            await rounds(loop)
            assert not carried.relay.reason
            await carried.gets(data)
            if how == "eof":
                await rounds(loop)
                assert carried.end.read() == b""
                carried.end.end_output()
            assert await carried.over() == ("closed" if how == "eof" else "reset")
            assert carried.end.read_to_end() == (b"", "end" if how == "eof" else "reset")
            carried.leave()

    play(loop, story)


@pytest.mark.parametrize("has_credit", [True, False])
def test_a_reset_by_the_other_side_is_one_at_the_end(loop: Loop, has_credit: bool) -> None:
    """Also while what the end sends waits for credit."""

    async def story() -> None:
        with Hand(loop) as hand:
            carried = Carried(loop, hand)
            await carried.begin(1 << 30 if has_credit else 10)
            await sends(loop, carried.end, bytes(1000))
            await rounds(loop)
            hand.heard()
            hand.say(Reset(0, 1))
            assert await carried.over() == "reset"
            assert carried.end.read_to_end() == (b"", "reset")
            assert hand.heard() == [Done(0)]
            carried.leave()

    play(loop, story)


@pytest.mark.parametrize("stage", ["at once", "data", "half-closed here", "half-closed there"])
def test_a_reset_by_the_end_is_told(loop: Loop, stage: str) -> None:
    async def story() -> None:
        with Hand(loop) as hand:
            carried = Carried(loop, hand)
            await carried.begin()
            if stage == "data":
                await sends(loop, carried.end, b"last")
                await rounds(loop)
                assert hand.heard() == [(0, b"last")]
            elif stage == "half-closed here":
                hand.say(Eof(0))
                await until(loop, lambda: carried.relay.up.over)
                assert carried.end.read() == b""
            elif stage == "half-closed there":
                carried.end.end_output()
                await until(loop, lambda: carried.relay.down.over)
                await rounds(loop)  # it is sent with what else there is to be said
                assert hand.heard() == [Eof(0)]
            carried.end.reset()
            if stage == "half-closed there":
                hand.data(0, b"to nobody")
            reason = await carried.over()
            await rounds(loop)
            heard = hand.heard()
            if stage == "half-closed there":
                assert reason in ("reset", "broken-pipe", "closed")
                assert [type(one) for one in heard] == [Reset]
            else:
                assert reason == "reset"
                assert heard == [Reset(0, ResetReason.STOPPED)]
            carried.leave()

    play(loop, story)


def test_a_sink_that_takes_nothing_more(loop: Loop) -> None:
    """What its other side still sends counts; what comes for it is dropped, and there is credit for
    that: so the other side gets to the end of its source, though nobody takes anything any more.
    """

    async def story() -> None:
        with Hand(loop) as hand:
            carried = Carried(loop, hand, "pipes")
            await carried.begin()
            os.close(carried.end.reader)
            carried.end.reader = carried.end.writer
            hand.data(0, b"to nobody")
            await until(loop, lambda: carried.relay.up.over)
            hand.data(0, b"nor this")
            await sends(loop, carried.end, b"still")
            await rounds(loop)
            assert hand.heard() == [(0, b"still")] and not carried.relay.reason
            await hand.say_much(frames_of(0, bytes(WINDOW - 17)))
            await rounds(loop)
            credits = [one.count for one in hand.heard() if isinstance(one, Credit)]
            assert sum(credits) >= WINDOW // 2
            os.close(carried.end.writer)
            carried.end.reader = carried.end.writer = -1
            assert await carried.over() == "broken-pipe"
            carried.leave()

    play(loop, story)


def test_the_end_is_reset_while_all_is_blocked(loop: Loop) -> None:
    """What waits for it, and for credit, keeps the other side from nothing: it gets credit."""

    async def story() -> None:
        with Hand(loop) as hand:
            carried = Carried(loop, hand)
            await carried.begin(10)
            await carried.fill()
            await sends(loop, carried.end, noise(1000))
            await rounds(loop)
            assert hand.heard() == [(0, noise(1000)[:10])]
            carried.end.reset()
            await until(loop, lambda: carried.relay.up.over)
            await rounds(loop)
            [credit] = hand.heard()
            assert isinstance(credit, Credit) and credit.count >= WINDOW
            hand.say(Reset(0, ResetReason.RESET))
            assert await carried.over() == "broken-pipe"
            carried.leave()

    play(loop, story)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_the_end_leaves_while_its_data_waits_for_credit(loop: Loop, kind: str) -> None:
    """What it sent arrives, and its end."""

    async def story() -> None:
        with Hand(loop) as hand:
            carried = Carried(loop, hand, kind)
            await carried.begin(10)
            await sends(loop, carried.end, noise(1000))
            carried.end.close()
            await rounds(loop)
            [(_, got)] = hand.heard()
            hand.say(Credit(0, 991))
            await rounds(loop)
            heard = hand.heard()
            assert got + b"".join(m[1] for m in heard if isinstance(m, tuple)) == noise(1000)
            assert Eof(0) in heard
            hand.say(Eof(0))
            assert await carried.over() in ("closed", "broken-pipe")
            carried.leave()

    play(loop, story)


def test_urgent_data_stays_in_its_place(loop: Loop) -> None:
    async def story() -> None:
        with Hand(loop) as hand:
            carried = Carried(loop, hand)
            await carried.begin()
            sock = carried.end.sock
            assert sock is not None
            sock.send(b"before")
            sock.send(b"!", socket.MSG_OOB)
            sock.send(b"behind")
            got = b""
            while len(got) < 13:
                got += b"".join(part for _, part in hand.heard())
                await rounds(loop)
            assert got == b"before!behind"
            hand.say(Reset(0, 1))
            await carried.over()
            carried.leave()

    play(loop, story)


@pytest.mark.parametrize("end", [Eof(0), Reset(0, 1)], ids=["eof", "reset"])
@pytest.mark.parametrize("early", [b"", b"last"])
def test_what_has_ended_before(loop: Loop, end: Any, early: bytes) -> None:
    """The sink gets what there was, and the end as it was."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = Side(loop, True)
            side.attach(hand.ours)
            await hand.meet(side)
            channel = await hand.opened(side)
            hand.say(frames_of(0, early), end)
            await until(loop, lambda: channel.has_ended or channel.was_lost)
            stream, far = made(loop, "tcp")
            relay = Carriage(channel, stream)
            relay.start(PATIENCE, PATIENCE)
            if isinstance(end, Reset):
                assert relay.reason == "reset"
            else:
                assert not relay.reason and far.read_to_end() == (early, "end")
                far.end_output()
                await until(loop, lambda: relay.reason)
            for one in relay.stop().owed_resets:
                one.reset_on_close()
            channel.close()
            stream.close()
            if isinstance(end, Reset):
                assert far.read_to_end()[1] == "reset"
            far.close()
            side.link.detach("enough")

    play(loop, story)
