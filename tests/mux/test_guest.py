"""A guest: how its clients reach the host, wait for it, and are told what became of it."""

from typing import Any

import pytest
from both import MEMORY, SOMEWHERE, Places
from classic_joined import GREETING
from ends import Lines, made, no_garbage
from hand import SILENCE, WINDOW, Clock, Hand, play, rounds, stuff, until

from muonsocks.address import Endpoint
from muonsocks.errors import RequestFailed
from muonsocks.mux.channel import Channel
from muonsocks.mux.connection import ResetReason
from muonsocks.mux.frames import (
    NO_NUMBER,
    Answer,
    Credit,
    Done,
    Eof,
    Goodbye,
    Hello,
    Open,
    Ping,
    Pong,
    Reset,
)
from muonsocks.mux.guest import Guest, GuestSession
from muonsocks.mux.link import Bounds
from muonsocks.net.dial import Dialler
from muonsocks.net.inherit import Peer
from muonsocks.net.loop import Loop
from muonsocks.net.task import Task
from muonsocks.socks.policy import Access, Limits, Policy
from muonsocks.socks.request import UNSPECIFIED
from muonsocks.socks.rules import Rules

PATIENT = 5.0  # s


class Served:
    """A guest with a hand for its host; `outcomes` has how clients fared, by their number."""

    def __init__(
        self,
        loop: Loop,
        hand: Hand,
        open_timeout: float | None = PATIENT,
        connections: int = 10,
        again: bool = True,
    ) -> None:
        self.loop, self.hand, self.connections = loop, hand, connections
        self.log = Lines()
        place = Places(hand.ours, again=again)
        bounds = Bounds(1, MEMORY, SILENCE)
        self.guest = Guest(loop, place, bounds, open_timeout, self.log)
        loop.spawn(self.guest.run(), pytest.fail)
        self.outcomes: dict[int, Any] = {}
        self.tasks: list[Task] = []

    def ask(self, destination: Endpoint = SOMEWHERE) -> Task:
        """Let a client want something."""
        number = len(self.tasks)

        def done(outcome: Any) -> None:
            self.outcomes[number] = outcome

        task = self.loop.spawn(self.guest.reach(destination), done, done)
        self.tasks.append(task)
        return task

    async def meet(self) -> bytes:
        """Be a host, and give the session's number as the guest has it."""
        hand = self.hand
        hand.number = bytes([1 + hand.number[0]]) * 8
        hand.heard()
        hand.say(Hello(1, self.connections, hand.number, NO_NUMBER))
        found: list[Any] = []
        while not [m for m in found if isinstance(m, Hello) and m.echo == hand.number]:
            await rounds(self.loop, 1)
            found += hand.heard()
        hello = found[-1]
        hand.say(Hello(1, self.connections, hand.number, hello.number))
        await until(self.loop, lambda: self.guest.link.mux.is_up)
        await rounds(self.loop)
        return bytes(hello.number)

    def refused(self, number: int) -> tuple[int, str]:
        """How a client was refused: the code and the reason."""
        error = self.outcomes.pop(number)
        assert isinstance(error, RequestFailed), error
        return error.code, error.strerror

    def reached(self, number: int) -> Channel:
        channel = self.outcomes.pop(number)
        assert isinstance(channel, Channel), channel
        return channel

    def close(self) -> None:
        self.guest.stop("the test is over")


GONE = (1, "the host is not there")


def test_the_host_is_there(loop: Loop) -> None:
    bound = Endpoint("192.0.2.9", 999)

    async def story() -> None:
        with Hand(loop) as hand:
            served = Served(loop, hand)
            await served.meet()
            served.ask()
            served.ask(Endpoint("name.test", 443))
            await rounds(loop)
            assert hand.heard()[-2:] == [
                Open(0, WINDOW, SOMEWHERE),
                Open(1, WINDOW, Endpoint("name.test", 443)),
            ]
            hand.say(Answer(1, 5, 0, bound))
            await until(loop, lambda: served.outcomes)
            channel = served.reached(1)
            assert channel.local_endpoint() == bound and channel.connection.credit == 5
            assert not served.outcomes
            hand.say(Answer(0, 5, 0, UNSPECIFIED))
            await until(loop, lambda: served.outcomes)
            served.reached(0).close()
            channel.close()
            served.close()

    play(loop, story)


@pytest.mark.parametrize("code", [*range(1, 9), 0x5D])
def test_the_host_s_answer_is_the_client_s(loop: Loop, code: int) -> None:
    async def story() -> None:
        with Hand(loop) as hand:
            served = Served(loop, hand)
            await served.meet()
            for _ in range(3):  # numbers are used again
                served.ask()
                await rounds(loop)
                opened = hand.heard()[-1]
                assert isinstance(opened, Open) and opened.connection == 0
                hand.say(Answer(0, 0, code, UNSPECIFIED))
                await until(loop, lambda: served.outcomes)
                assert served.refused(len(served.tasks) - 1) == (
                    code,
                    f"the host has answered {code}",
                )
                await rounds(loop)
            assert not served.guest.link.mux._connections
            served.close()

    play(loop, story)


def test_the_host_resets_what_is_asked_for(loop: Loop) -> None:
    """It is there, and that is an answer: the client is not to wait."""

    async def story() -> None:
        with Hand(loop) as hand:
            served = Served(loop, hand)
            await served.meet()
            served.ask()
            await rounds(loop)
            hand.say(Reset(0, 4))
            await until(loop, lambda: served.outcomes)
            assert served.refused(0) == (1, "the host has reset it: a shortage")
            served.close()

    play(loop, story)


# While it is away


def test_a_client_waits_for_the_host(loop: Loop, clock: Clock) -> None:
    async def story() -> None:
        with Hand(loop) as hand:
            served = Served(loop, hand)
            for _ in range(3):
                served.ask()
            await clock.passes(loop, PATIENT - 0.5)
            assert not served.outcomes
            await served.meet()
            opened = [m for m in hand.heard() if isinstance(m, Open)]
            assert [m.connection for m in opened] == [0, 1, 2]
            for number in range(3):
                hand.say(Answer(number, 0, 0, UNSPECIFIED))
            await until(loop, lambda: len(served.outcomes) == 3)
            await clock.passes(loop, PATIENT)
            for number in range(3):
                served.reached(number).close()
            served.close()

    play(loop, story, 600)


@pytest.mark.parametrize("patience", [PATIENT, 0.0])
def test_but_not_for_ever(loop: Loop, clock: Clock, patience: float) -> None:
    async def story() -> None:
        with Hand(loop) as hand:
            served = Served(loop, hand, patience)
            served.ask()
            if patience:
                await clock.passes(loop, patience - 0.5)
                assert not served.outcomes
            served.ask()
            await clock.passes(loop, 0.6)
            assert served.refused(0) == GONE
            assert bool(served.outcomes) is not bool(patience)
            await clock.passes(loop, patience)
            assert served.refused(1) == GONE
            assert not served.guest._waiting
            served.close()

    play(loop, story, 600)


def test_with_all_the_time_in_the_world(loop: Loop, clock: Clock) -> None:
    async def story() -> None:
        with Hand(loop) as hand:
            served = Served(loop, hand, None)
            served.ask()
            await clock.passes(loop, 1000, 1)
            assert not served.outcomes
            await served.meet()
            hand.say(Answer(0, 0, 0, UNSPECIFIED))
            await until(loop, lambda: served.outcomes)
            served.reached(0).close()
            served.close()

    play(loop, story, 6000)


def test_the_session_ends_before_the_answer(loop: Loop, clock: Clock) -> None:
    """The client waits for the next, within its time, and asks there."""

    async def story() -> None:
        with Hand(loop) as hand:
            served = Served(loop, hand)
            served.ask()
            for _ in range(3):
                await served.meet()
                assert hand.heard()[-1] == Open(0, WINDOW, SOMEWHERE)
                hand.say(Goodbye("for a while"))
                await rounds(loop)
                assert not served.outcomes and not served.guest.link.mux._connections
                await clock.passes(loop, 1)
            await clock.passes(loop, PATIENT - 3.5)
            assert not served.outcomes
            await clock.passes(loop, 1)
            assert served.refused(0) == GONE
            assert served.guest.link.mux._windows._left == MEMORY
            served.close()

    play(loop, story, 600)


def test_another_host_answers(loop: Loop) -> None:
    """One that began anew, without a goodbye."""

    async def story() -> None:
        with Hand(loop) as hand:
            served = Served(loop, hand)
            await served.meet()
            served.ask()
            await rounds(loop)
            assert hand.heard()[-1] == Open(0, WINDOW, SOMEWHERE)
            await served.meet()
            assert hand.heard()[-1] == Open(0, WINDOW, SOMEWHERE)
            hand.say(Answer(0, 9, 0, UNSPECIFIED))
            await until(loop, lambda: served.outcomes)
            channel = served.reached(0)
            assert channel.connection.credit == 9
            channel.close()
            served.close()

    play(loop, story)


def test_a_session_that_is_over_as_soon_as_it_has_begun(loop: Loop, clock: Clock) -> None:
    """In one read: those who wait for a host still do."""

    async def story() -> None:
        with Hand(loop) as hand:
            served = Served(loop, hand)
            served.ask()
            served.ask()
            hand.say(Hello(1, 10, b"a number", NO_NUMBER))
            await rounds(loop)
            hello = hand.heard()[-1]
            assert hello.echo == b"a number"
            hand.say(Hello(1, 10, b"a number", hello.number), Goodbye("at once"))
            await rounds(loop)
            assert not served.outcomes and len(served.guest._waiting) == 2
            await served.meet()
            assert [type(m) for m in hand.heard()] == [Open, Open]
            hand.say(Answer(0, 9, 0, UNSPECIFIED), Answer(1, 0, 7, UNSPECIFIED))
            await until(loop, lambda: len(served.outcomes) == 2)
            served.reached(0).close()
            assert served.refused(1)[0] == 7
            served.close()

    play(loop, story, 600)


# Limits


def test_the_host_s_limit(loop: Loop) -> None:
    """Who comes when it is reached is told so; a number is free when both sides have let go."""

    async def story() -> None:
        with Hand(loop) as hand:
            served = Served(loop, hand, connections=2)
            await served.meet()
            for _ in range(3):
                served.ask()
            reason = "the host has no more than 2 connections"
            assert served.refused(2) == (1, reason)
            hand.say(Answer(0, 0, 0, UNSPECIFIED), Answer(1, 0, 0, UNSPECIFIED))
            await until(loop, lambda: len(served.outcomes) == 2)
            channel = served.reached(1)
            channel.close()
            await rounds(loop)
            served.ask()
            assert served.refused(3) == (1, reason)
            hand.say(Done(1))
            await rounds(loop)
            served.ask()
            await rounds(loop)
            assert hand.heard()[-1].connection == 1
            served.reached(0).close()
            served.close()
            served.tasks[4].interrupt(TimeoutError())

    play(loop, story)


# A host of the older pair


async def served_by_the_older(
    loop: Loop, clock: Clock, hand: Hand, open_timeout: float | None = PATIENT
) -> Served:
    served = Served(loop, hand, open_timeout)
    for piece in GREETING:
        hand.say(piece)
        await clock.passes(loop, 1.2)
    assert served.guest.link.mux.is_up and served.guest.link.mux.is_classic
    hand.forget()
    return served


def test_an_ipv6_address_is_not_asked_of_an_older_host(loop: Loop, clock: Clock) -> None:
    async def story() -> None:
        with Hand(loop) as hand:
            served = await served_by_the_older(loop, clock, hand)
            served.ask(Endpoint("2001:db8::1", 80))
            reason = "the host is of the older pair, and knows no IPv6 addresses"
            assert served.refused(0) == (8, reason)
            await rounds(loop)
            assert not hand.take()
            served.close()

    play(loop, story, 600)


async def rest(served: Served, clock: Clock, seconds: float = 0.0) -> None:
    """Let all numbers rest: 64 clients come in so many seconds, and leave at once."""
    for _ in range(64):
        served.ask()
        served.reached(len(served.tasks) - 1).close()
        if seconds:
            await clock.passes(served.loop, seconds / 64)
    served.hand.forget()


def test_who_came_first_gets_the_first_number_that_has_rested(loop: Loop, clock: Clock) -> None:
    """Whoever comes while others wait does so behind them."""

    async def story() -> None:
        with Hand(loop) as hand:
            served = await served_by_the_older(loop, clock, hand)
            await rest(served, clock, 0.64)
            order = []
            for _ in range(70):
                served.ask()
                await clock.passes(loop, 0.01)
                order += list(served.outcomes)
                for number in list(served.outcomes):
                    served.reached(number).close()
            assert order[-1] in range(64, 64 + 60), "not all can have been served yet"
            await clock.passes(loop, 2)
            order += list(served.outcomes)
            for number in list(served.outcomes):
                served.reached(number).close()
            assert order == list(range(64, 64 + 70))
            hand.forget()
            served.close()

    play(loop, story, 600)


def test_nobody_comes_in_between(loop: Loop, clock: Clock) -> None:
    """Who comes when there are numbers again, but those who wait have not got all of theirs."""

    async def story() -> None:
        with Hand(loop) as hand:
            served = await served_by_the_older(loop, clock, hand)
            await rest(served, clock)
            for _ in range(3):
                served.ask()
            clock.jump(1.1)
            while not served.outcomes:
                await rounds(loop, 1)
            assert list(served.outcomes) == [64]
            served.ask()
            await rounds(loop)
            assert list(served.outcomes) == [64, 65, 66, 67]
            for number in list(served.outcomes):
                served.reached(number).close()
            hand.forget()
            served.close()

    play(loop, story, 600)


def test_nobody_waits_for_a_number_any_longer_than_for_the_host(loop: Loop, clock: Clock) -> None:
    """Of 100 clients a second 64 can be served; who waits for 5 s is refused."""

    async def story() -> None:
        with Hand(loop) as hand:
            served = await served_by_the_older(loop, clock, hand)
            begun: list[float] = []
            waited: list[float] = []
            refused: list[float] = []
            for _ in range(300):
                for _ in range(10):
                    served.ask()
                    begun.append(clock.now())
                await clock.passes(loop, 0.1)
                hand.forget()
                for number in list(served.outcomes):
                    seconds = clock.now() - begun[number]
                    if isinstance(served.outcomes[number], Channel):
                        served.reached(number).close()
                        waited.append(seconds)
                    else:
                        assert served.refused(number) == (1, "none of the host's numbers is free")
                        refused.append(seconds)
            assert PATIENT - 1 < max(waited) < PATIENT + 0.5
            assert refused and min(refused) >= PATIENT and max(refused) < PATIENT + 0.5
            assert len(waited) in range(50 * 30, 64 * 31)
            stopped = clock.now()
            served.close()
            await clock.passes(loop, 2)
            assert len(served.outcomes) + len(waited) + len(refused) == len(served.tasks)
            for number in list(served.outcomes):
                reasons = ["the guest has stopped"]
                # The time of some may just have been up: that of a busy machine goes on meanwhile.
                if stopped - begun[number] >= PATIENT - 0.5:
                    reasons.append("none of the host's numbers is free")
                assert served.refused(number) in [(1, reason) for reason in reasons]

    play(loop, story, 600)


def test_a_client_leaves_that_waits_for_a_number(loop: Loop, clock: Clock) -> None:
    """Be it the first of them, who waits for the clock, or one behind: the others go on."""

    async def story() -> None:
        with Hand(loop) as hand:
            served = await served_by_the_older(loop, clock, hand, None)
            await rest(served, clock)
            tasks = [served.ask() for _ in range(4)]
            for leaves in (2, 0):
                tasks[leaves].interrupt(TimeoutError("it has left"))
            await rounds(loop)
            assert sorted(served.outcomes) == [64, 66]
            served.outcomes.clear()
            await clock.passes(loop, 1.1)
            for number in (65, 67):
                served.reached(number).close()
            assert not served.outcomes
            hand.forget()
            served.close()

    play(loop, story, 600)


def test_the_older_host_goes_while_clients_wait_for_a_number(loop: Loop, clock: Clock) -> None:
    """They wait for another host; hundreds of them, too."""

    async def story() -> None:
        with Hand(loop) as hand:
            served = await served_by_the_older(loop, clock, hand)
            await rest(served, clock)
            for _ in range(2000):
                served.ask()
            hand.say(Hello(1, 10, b"the next", NO_NUMBER))
            await clock.passes(loop, 1.1)
            await rounds(loop, 2100)
            assert not served.outcomes and not served.guest.link.mux.is_up
            await clock.passes(loop, 4.5)
            for number in range(64, 64 + 2000):
                assert served.refused(number) == GONE
            served.close()

    play(loop, story, 600)


# Clients that leave


@pytest.mark.parametrize("when", ["waiting", "asked", "answered"])
def test_a_client_leaves(loop: Loop, when: str) -> None:
    """The host is told, if it was asked; nothing is left of it."""

    class Left(Exception):
        pass

    async def story() -> None:
        with Hand(loop) as hand:
            served = Served(loop, hand)
            if when != "waiting":
                await served.meet()
            with no_garbage():
                task = served.ask()
                await rounds(loop)
                if when == "waiting":
                    task.interrupt(Left())
                    assert not served.guest._waiting
                else:
                    assert hand.heard()[-1] == Open(0, WINDOW, SOMEWHERE)
                    if when == "answered":
                        hand.say(Answer(0, 9, 0, UNSPECIFIED))  # which is on its way
                    task.interrupt(Left())
                    await rounds(loop)
                    assert Reset(0, 0) in hand.heard()
                assert isinstance(served.outcomes.pop(0), Left)
                served.tasks.clear()
                del task
            if when == "waiting":
                await served.meet()
                await rounds(loop)
                assert {type(m) for m in hand.heard()} <= {Hello}
            else:
                if when == "answered":
                    hand.data(0, b"to nobody")
                hand.say(Done(0))
                await rounds(loop)
            assert not served.guest.link.mux._connections
            served.close()

    play(loop, story)


# Sessions


def served_session(served: Served, client: Any, idle: float = 600.0) -> Task:
    policy = Policy(Access(), Rules(), Dialler(), Limits(600, idle, 600))
    session = GuestSession(client, Peer("test"), policy, served.log, served.guest)
    return served.loop.spawn(session.run(), pytest.fail)


REQUEST = b"\5\1\0\5\1\0\1\xc0\0\2\1\0\x50"  # SOMEWHERE


def test_a_session(loop: Loop) -> None:
    """Its client gets the host's answer, and is joined; what it sent too early arrives first."""

    async def story() -> None:
        with Hand(loop) as hand:
            served = Served(loop, hand)
            await served.meet()
            client, end = made(loop, "tcp")
            end.send(REQUEST + b"early")
            task = served_session(served, client)
            await rounds(loop)
            assert hand.heard()[-1] == Open(0, WINDOW, SOMEWHERE)
            hand.say(Answer(0, 3, 0, Endpoint("192.0.2.9", 999)))
            await rounds(loop)
            assert end.read() == b"\5\0\5\0\0\1\xc0\0\2\x09\3\xe7"
            assert hand.heard() == [(0, b"ear")]
            hand.data(0, b"answer")
            hand.say(Eof(0))
            await rounds(loop)
            assert end.read_to_end() == (b"answer", "end")
            end.end_output()
            hand.say(Credit(0, 9))
            await until(loop, lambda: task.is_over)
            assert hand.heard()[:2] == [(0, b"ly"), Eof(0)]
            assert "in=5 out=6" in served.log.lines[-1]
            end.close()
            served.close()

    play(loop, story)


def test_a_host_that_is_frozen_is_not_there(loop: Loop, clock: Clock) -> None:
    """It is asked for a sign of life; and its session goes on if it gives one later."""

    async def story() -> None:
        with Hand(loop) as hand:
            served = Served(loop, hand)
            await served.meet()
            began = clock.now()
            served.ask()
            await rounds(loop)
            assert hand.heard() == [Open(0, WINDOW, SOMEWHERE)]
            while not served.outcomes:
                await clock.passes(loop, 0.1)
            assert served.refused(0) == (1, "the host is not there")
            assert 4.9 < clock.now() - began < 5.5
            await rounds(loop)
            ping, reset = hand.heard()
            assert isinstance(ping, Ping) and reset == Reset(0, 0)
            hand.say(Pong(ping.token), Done(0))
            await rounds(loop)
            served.ask()
            await rounds(loop)
            hand.say(Answer(0, 9, 0, UNSPECIFIED))
            await rounds(loop)
            served.reached(1).close()
            served.close()

    play(loop, story, 600)


@pytest.mark.parametrize("patience", [PATIENT, None])
def test_a_host_that_is_there_may_take_its_time(
    loop: Loop, clock: Clock, patience: float | None
) -> None:
    """To look a name up and dial, say."""

    async def story() -> None:
        with Hand(loop) as hand:
            served = Served(loop, hand, patience)
            await served.meet()
            served.ask()
            pings = 0
            for _ in range(60):
                await clock.passes(loop, 0.5)
                for message in hand.heard():
                    if isinstance(message, Ping):
                        pings += 1
                        hand.say(Pong(message.token))
            assert not served.outcomes and pings == (6 if patience else 2)
            hand.say(Answer(0, 9, 0, UNSPECIFIED))
            await rounds(loop)
            served.reached(0).close()
            served.close()

    play(loop, story, 600)


def test_a_host_is_not_to_blame_for_a_port_that_is_slow(loop: Loop, clock: Clock) -> None:
    """It has not been asked for anything yet."""

    async def story() -> None:
        with Hand(loop) as hand:
            served = Served(loop, hand)
            await served.meet()
            stuff(hand.ours)
            served.ask()
            await clock.passes(loop, 12)
            assert not served.outcomes
            hand.forget()
            await rounds(loop)
            hand.say(Answer(0, 9, 0, UNSPECIFIED))
            await rounds(loop)
            served.reached(0).close()
            served.close()

    play(loop, story, 600)


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (ResetReason.UNKNOWN, ""),
        (ResetReason.RESET, "a reset"),
        (ResetReason.TIMEOUT, "a time limit"),
        (ResetReason.UNREAD, "nobody reads"),
        (ResetReason.SHORTAGE, "a shortage"),
        (ResetReason.STOPPED, "the program ends"),
        (99, ""),
    ],
)
def test_why_the_host_resets_is_logged(loop: Loop, reason: int, words: str) -> None:
    async def story() -> None:
        with Hand(loop) as hand:
            served = Served(loop, hand)
            await served.meet()
            client, end = made(loop, "tcp")
            end.send(REQUEST)
            task = served_session(served, client)
            await rounds(loop)
            hand.say(Answer(0, 9, 0, UNSPECIFIED), Reset(0, reason))
            await until(loop, lambda: task.is_over)
            detail = f' detail="the host says: {words}"' if words else ""
            assert served.log.lines[-1].endswith("end=reset" + detail)
            end.close()
            served.close()

    play(loop, story)


def test_the_host_is_told_of_a_time_limit(loop: Loop, clock: Clock) -> None:
    async def story() -> None:
        with Hand(loop) as hand:
            served = Served(loop, hand)
            await served.meet()
            client, end = made(loop, "tcp")
            end.send(REQUEST)
            task = served_session(served, client, idle=2.0)
            await rounds(loop)
            hand.say(Answer(0, 9, 0, UNSPECIFIED))
            await rounds(loop)
            hand.heard()
            await clock.passes(loop, 2.5)
            await until(loop, lambda: task.is_over)
            assert hand.heard() == [Reset(0, ResetReason.TIMEOUT)]
            assert "end=idle-timeout" in served.log.lines[-1]
            end.close()
            served.close()

    play(loop, story)


def test_a_session_s_client_leaves_while_the_host_dials(loop: Loop) -> None:
    """The host need not go on."""

    async def story() -> None:
        with Hand(loop) as hand:
            served = Served(loop, hand)
            await served.meet()
            client, end = made(loop, "tcp")
            end.send(REQUEST)
            task = served_session(served, client)
            await rounds(loop)
            assert hand.heard()[-1] == Open(0, WINDOW, SOMEWHERE)
            end.reset()
            await until(loop, lambda: task.is_over)
            await rounds(loop)
            assert hand.heard() == [Reset(0, 0)]
            assert "end=client-lost" in served.log.lines[-1]
            served.close()

    play(loop, story)


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 6, 8])
def test_a_session_s_client_gets_the_code(loop: Loop, code: int) -> None:
    async def story() -> None:
        with Hand(loop) as hand:
            served = Served(loop, hand)
            await served.meet()
            client, end = made(loop, "tcp")
            end.send(REQUEST)
            task = served_session(served, client)
            await rounds(loop)
            hand.say(Answer(0, 0, code, UNSPECIFIED))
            await rounds(loop)
            end.end_output()
            await until(loop, lambda: task.is_over)
            assert end.read_to_end() == (b"\5\0\5" + bytes([code]) + b"\0\1" + bytes(6), "end")
            assert f"reply={code} " in served.log.lines[-1]
            end.close()
            served.close()

    play(loop, story)


def test_stop(loop: Loop) -> None:
    """The host is told, clients are reset, and those who wait find out in time."""

    async def story() -> None:
        with Hand(loop) as hand:
            served = Served(loop, hand)
            await served.meet()
            client, end = made(loop, "tcp")
            end.send(REQUEST)
            task = served_session(served, client)
            await rounds(loop)
            hand.say(Answer(0, 9, 0, UNSPECIFIED))
            await rounds(loop)
            hand.heard()
            served.guest.stop("the guest is told to stop")
            await until(loop, lambda: task.is_over)
            assert hand.heard() == [Goodbye("the guest is told to stop")]
            assert hand.is_closed()
            received, how = end.read_to_end()
            assert received == b"\5\0\5\0\0\1" + bytes(6) and how == "reset"
            assert not [line for line in served.log.lines if "not there any more" in line]
            end.close()

    play(loop, story)


@pytest.mark.parametrize("end", ["stop", "leave", "the port is gone", "stop in a session"])
def test_who_waits_for_the_host_is_told_at_once_that_none_will_come(loop: Loop, end: str) -> None:
    """And so is who comes later."""

    async def story() -> None:
        with Hand(loop) as hand:
            served = Served(loop, hand, None, again=False)
            if end == "stop in a session":
                await served.meet()
            served.ask()
            served.ask()
            await rounds(loop)
            assert not served.outcomes
            if end == "the port is gone":
                hand.forget()
                hand.sock.close()
                await rounds(loop)
            elif end == "leave":
                left: list[None] = []
                loop.spawn(served.guest.leave("enough"), pytest.fail, left.append)
                assert left and hand.is_closed()
            else:
                served.guest.stop("enough")
            served.ask()
            await rounds(loop)
            for number in range(3):
                assert served.refused(number) == (1, "the guest has stopped")
            assert not served.guest._waiting
            served.close()

    play(loop, story)
