"""A side: its port is there, is lost, and comes back; and what the log says of that."""

import errno
import os
import socket
from typing import Any

import pytest
from both import MEMORY, SOMEWHERE, Places
from ends import Lines
from hand import SILENCE, Clock, Hand, hellos, play, rounds, until

from muonsocks.log import WARNING
from muonsocks.mux.events import Opened
from muonsocks.mux.frames import NO_NUMBER, Goodbye, Hello, Open
from muonsocks.mux.link import Bounds
from muonsocks.mux.side import Side
from muonsocks.net.loop import Loop
from muonsocks.net.task import Task
from muonsocks.socks.request import Event

BOUNDS = Bounds(100, MEMORY, SILENCE)
EITHER = pytest.mark.parametrize("is_host", [False, True], ids=["guest", "host"])


class Plain(Side):
    """A side with nothing of its own: it keeps what it is told."""

    def __init__(self, loop: Loop, place: Any, is_host: bool = True) -> None:
        self.log = Lines()
        super().__init__(loop, place, is_host, BOUNDS, self.log)
        self.begins = 0
        self.heard: list[Event] = []

    def begun(self) -> None:
        self.begins += 1

    def hear(self, event: Event) -> None:
        self.heard.append(event)

    def start(self) -> tuple[Task, list[Any]]:
        """Run; give the task, and the list that has how it ended."""
        ended: list[Any] = []
        return self.loop.spawn(self.run(), ended.append, ended.append), ended


async def meet(hand: Hand, side: Side, number: bytes = b"a number", connections: int = 0) -> None:
    """Begin a session, as a guest or as a host of so many connections."""
    hand.heard()
    hand.say(Hello(1, connections, number, NO_NUMBER))
    hello = await hand.hears(Hello)
    hand.say(Hello(1, connections, number, hello.number))
    await until(hand.loop, lambda: side.link.mux.is_up)
    await rounds(hand.loop)


@EITHER
def test_a_session(loop: Loop, is_host: bool) -> None:
    other = "guest" if is_host else "host"

    async def story() -> None:
        with Hand(loop) as hand:
            side = Plain(loop, Places(hand.ours), is_host)
            task, _ = side.start()
            await meet(hand, side, connections=0 if is_host else 5)
            assert side.begins == 1 and side.log.lines == [f"the {other} is there"]
            hand.say(Goodbye("so"))
            await rounds(loop)
            assert side.log.lines[1:] == [
                f"the {other} is not there any more: the other side has ended it: so"
            ]
            await meet(hand, side, connections=0 if is_host else 5)
            assert side.begins == 2 and side.log.lines[2:] == [f"the {other} is there"]
            hand.say(Goodbye("so"))
            await rounds(loop)
            assert side.log.lines[3:] == side.log.lines[1:2], "it is said of each session"
            side.stop("told to stop")
            assert hand.heard()[-1] == Goodbye("told to stop")
            assert hand.is_closed() and len(side.log.lines) == 4
            assert not task.is_over and not side.heard

    play(loop, story)


def test_what_is_not_of_a_session_is_the_kind_s_own(loop: Loop) -> None:
    async def story() -> None:
        with Hand(loop) as hand:
            side = Plain(loop, Places(hand.ours))
            side.start()
            await meet(hand, side)
            hand.say(Open(0, 1, SOMEWHERE))
            await rounds(loop)
            assert [type(event) for event in side.heard] == [Opened]
            side.stop("enough")

    play(loop, story)


@EITHER
def test_one_who_comes_and_goes_does_not_fill_the_log(
    loop: Loop, clock: Clock, is_host: bool
) -> None:
    """Of what is left out it is said how much that is."""
    other = "guest" if is_host else "host"

    async def story() -> None:
        with Hand(loop) as hand:
            side = Plain(loop, Places(hand.ours), is_host)
            side.start()
            for turn in range(50):
                await meet(hand, side, b"no. %04d" % turn, 0 if is_host else 5)
            assert side.begins == 50
            anew = f"the {other} is not there any more: the other side has started anew"
            assert side.log.lines == 10 * [f"the {other} is there", anew]
            await clock.passes(loop, 11)
            hand.say(Goodbye("so"))
            await rounds(loop)
            assert side.log.lines[20:] == [
                f"lines about the {other} left out here: 79",
                f"the {other} is not there any more: the other side has ended it: so",
            ]
            await clock.passes(loop, 11)
            side.log.level = WARNING
            for turn in range(20):
                await meet(hand, side, b"of. %04d" % turn, 0 if is_host else 5)
            assert side.log.lines[22:] == 19 * [anew], "what is not logged is not counted"
            side.stop("enough")

    play(loop, story, 600)


# A port that is not there


def test_a_port_that_is_not_there_is_tried_again(loop: Loop, clock: Clock) -> None:
    """After 0.1 s, twice that each time, and at last each second; it is said once."""

    async def story() -> None:
        place = Places()
        side = Plain(loop, place)
        task, ended = side.start()
        await clock.passes(loop, 6)
        gaps = [b - a for a, b in zip(place.opened, place.opened[1:], strict=False)]
        assert gaps[:6] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1, 1], abs=0.05)
        assert side.log.lines == ["a port is not there yet: No such file or directory"]
        place.failures.append(OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED)))
        await clock.passes(loop, 3)
        assert side.log.lines[1:] == [
            "a port is not there yet: Connection refused",
        ]
        refused = OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        missing = OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        place.failures += [refused, missing] * 3
        await clock.passes(loop, 7)
        assert not place.failures and len(side.log.lines) == 2, "nor if they come in turns"
        with Hand(loop) as hand:
            place.socks.append(hand.ours)
            await clock.passes(loop, 1.1)
            assert hellos(hand.take()) >= 1 and not ended
            side.stop("enough")
        task.interrupt(KeyboardInterrupt())
        assert isinstance(ended[0], KeyboardInterrupt)

    play(loop, story, 600)


def test_a_port_that_cannot_come_is_an_error(loop: Loop) -> None:
    """Which says of what."""

    async def story() -> None:
        place = Places()
        place.is_final = True
        _, ended = Plain(loop, place).start()
        [error] = ended
        assert isinstance(error, OSError) and error.errno == errno.ENOENT
        assert error.strerror == "a port: No such file or directory"

    play(loop, story)


# A port that is lost


def test_a_port_that_is_lost_is_opened_again(loop: Loop, clock: Clock) -> None:
    """After 0.1 s if there was a session, and later each time if not."""

    async def story() -> None:
        place = Places()
        side = Plain(loop, place)
        hands = [Hand(loop) for _ in range(6)]
        place.socks += [hand.ours for hand in hands]
        task, _ = side.start()
        for turn, hand in enumerate(hands):
            while len(place.opened) == turn:
                await clock.passes(loop, 0.01)
            if turn == 3:
                await meet(hand, side)
            hand.take()  # or it is a reset
            hand.sock.close()
            await rounds(loop)
        await clock.passes(loop, 1.2)
        gaps = [b - a for a, b in zip(place.opened, place.opened[1:], strict=False)]
        assert gaps[:6] == pytest.approx([0.1, 0.2, 0.4, 0.1, 0.2, 0.4], abs=0.06)
        lost = "a port is lost: it has gone"
        assert side.log.lines[:4] == [
            lost,
            "the guest is there",
            "the guest is not there any more: it has gone",
            lost,
        ]
        assert all(hand.ours.fileno() == -1 for hand in hands)
        for hand in hands:
            hand.sock.close()
        task.interrupt(KeyboardInterrupt())

    play(loop, story, 600)


def test_a_port_that_says_nothing_is_opened_once_more(loop: Loop, clock: Clock) -> None:
    """If it may be deaf; a byte is enough."""

    async def story() -> None:
        for says in (b"", b"x"):
            place = Places()
            side = Plain(loop, place)
            side.deaf_for = 1.0
            hands = [Hand(loop) for _ in range(3)]
            place.socks += [hand.ours for hand in hands]
            task, _ = side.start()
            await clock.passes(loop, 0.5)
            hands[0].sock.send(says) if says else None
            await clock.passes(loop, 0.4)
            assert len(place.opened) == 1
            await clock.passes(loop, 0.3)
            assert len(place.opened) == 1 + (not says)
            assert (hands[0].ours.fileno() == -1) is (not says)
            await clock.passes(loop, 100)
            assert len(place.opened) == 1 + (not says)
            assert side.log.lines == []
            task.interrupt(KeyboardInterrupt())
            side.stop("enough")
            for hand in hands:
                hand.sock.close()
                hand.ours.close()

    play(loop, story, 600)


def test_a_port_that_cannot_be_had_again(loop: Loop) -> None:
    """Standard input, say: that was all."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = Plain(loop, Places(hand.ours, again=False))
            _, ended = side.start()
            await meet(hand, side)
            assert not ended
            hand.sock.close()
            await rounds(loop)
            assert ended == [None]
            assert side.log.lines[-1] == "a port is lost: it has gone"
            side.stop("enough")  # harmless

    play(loop, story)


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("is_met", [True, False])
@pytest.mark.parametrize("how", ["it has gone", "Connection reset by peer", "Broken pipe"])
def test_the_end_of_standard_input_is_no_warning(
    loop: Loop, again: bool, is_met: bool, how: str
) -> None:
    """Nor that of the session by it; those of other ports are."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = Plain(loop, Places(hand.ours, again=again))
            side.log.level = WARNING
            task, ended = side.start()
            if is_met:
                await meet(hand, side)
            else:
                await rounds(loop)
            if how == "it has gone":
                hand.forget()
            elif how == "Connection reset by peer":
                side.link.mux.output.append(b"not read")
                side.link.outlet.flush()
            hand.sock.close()
            if how == "Broken pipe":
                side.link.mux.output.append(b"not read")
                side.link.outlet.flush()
            await rounds(loop)
            assert bool(ended) is not again
            assert len(side.log.lines) == again * (1 + is_met)
            assert all(line.endswith(how) for line in side.log.lines)
            side.stop("enough")
            task.interrupt(KeyboardInterrupt())

    play(loop, story)


def test_other_ends_are_warnings(loop: Loop) -> None:
    """Of a session, and of standard input by a failure."""

    async def story() -> None:
        with Hand(loop) as hand:
            side = Plain(loop, Places(hand.ours, again=False))
            side.log.level = WARNING
            side.start()
            await meet(hand, side)
            hand.say(Goodbye("so"))
            await rounds(loop)
            assert len(side.log.lines) == 1
            side.link._lose("Input/output error")
            await rounds(loop)
            assert side.log.lines[1:] == ["a port is lost: Input/output error"]

    play(loop, story)


def test_nothing_is_opened_after_the_stop(loop: Loop, clock: Clock) -> None:
    async def story() -> None:
        with Hand(loop) as hand, Hand(loop) as spare:
            place = Places(hand.ours, spare.ours)
            side = Plain(loop, place)
            task, ended = side.start()
            await meet(hand, side)
            side.stop("told to stop")
            await clock.passes(loop, 5)
            assert len(place.opened) == 1 and not ended
            task.interrupt(KeyboardInterrupt())

    play(loop, story, 600)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_the_port_s_descriptor_is_closed(loop: Loop, kind: int) -> None:
    """With every port (the fixture looks for those that are left)."""

    async def story() -> None:
        for _ in range(10):
            with Hand(loop, kind) as hand:
                side = Plain(loop, Places(hand.ours))
                task, _ = side.start()
                await meet(hand, side)
                side.stop("enough")
                assert hand.ours.fileno() == -1
                task.interrupt(KeyboardInterrupt())

    play(loop, story)
