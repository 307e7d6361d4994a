"""The loop: descriptors, times, turns, and what is raised in it."""

import errno
import gc
import itertools
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from select import EPOLLHUP, EPOLLIN, EPOLLOUT
from typing import Any

import pytest
from ends import PATIENCE, CountedRounds, no_garbage, nothing_left_behind

from muonsocks.net import loop as loop_module
from muonsocks.net.loop import Loop
from muonsocks.net.task import Mailbox


@pytest.fixture
def loop() -> Iterator[Loop]:
    with nothing_left_behind():
        loop = Loop()
        yield loop
        loop.close()


def collector(list_: list[Any], item: Any) -> Callable[[], None]:
    return lambda: list_.append(item)


# Descriptors


def test_handler_gets_events(loop: Loop) -> None:
    ours, theirs = socket.socketpair()
    seen = Mailbox()

    async def main() -> None:
        assert loop.register(ours.fileno(), seen.post)
        await loop.sleep(0)
        assert not seen._items, "nobody has asked for room"
        loop.watch_room(ours.fileno())
        assert await seen.take() == EPOLLOUT
        theirs.send(b"x")
        assert await seen.take() & EPOLLIN
        # Edge-triggered: there is no second event for what has been said.
        await loop.sleep(0)
        assert not seen._items
        loop.unregister(ours.fileno())
        theirs.send(b"x")
        await loop.sleep(0)
        assert not seen._items

    loop.run(main())
    assert not loop.handlers
    ours.close()
    theirs.close()


def test_regular_file_is_not_registered(loop: Loop) -> None:
    with open(__file__) as file:
        assert not loop.register(file.fileno(), pytest.fail)
        assert not loop.handlers
        loop.unregister(file.fileno())


def test_handler_that_is_gone_is_not_called(loop: Loop) -> None:
    """Two events come at once, and the first handler takes the second one away."""
    pairs = [socket.socketpair() for _ in range(2)]
    seen = []

    def handler(number: int) -> Callable[[int], None]:
        def handle(_: int) -> None:
            seen.append(number)
            loop.unregister(pairs[1 - number][0].fileno())

        return handle

    async def main() -> None:
        for number, (ours, _) in enumerate(pairs):
            loop.register(ours.fileno(), handler(number), room=True)
        await loop.sleep(0.01)

    loop.run(main())
    assert len(seen) == 1
    for ours, theirs in pairs:
        loop.unregister(ours.fileno())
        ours.close()
        theirs.close()


def test_an_event_is_not_for_a_later_owner_of_the_descriptor(loop: Loop) -> None:
    """Two events come at once; the first handler closes what the second is about, and opens
    something else, which gets the same number.
    """
    pairs = [socket.socketpair() for _ in range(2)]
    fds = [ours.fileno() for ours, _ in pairs]
    others = [socket.socketpair() for _ in range(2)]
    seen: list[tuple[str, int]] = []

    def handler(number: int) -> Callable[[int], None]:
        def handle(events: int) -> None:
            seen.append(("first", events))
            fd = fds[1 - number]
            loop.unregister(fd)
            os.dup2(others[0][0].fileno(), fd)
            loop.register(fd, lambda events: seen.append(("second", events)), room=True)

        return handle

    async def main() -> None:
        for number, fd in enumerate(fds):
            pairs[number][1].close()  # a hang-up
            loop.register(fd, handler(number))
        await loop.sleep(0.01)
        others[0][1].send(b"x")
        await loop.sleep(0.01)

    loop.run(main())
    for fd in fds:
        loop.unregister(fd)
    for sock in [*pairs[0], *pairs[1], *others[0], *others[1]]:
        sock.close()
    assert [who for who, _ in seen] == ["first", "second", "second"]
    assert not any(events & EPOLLHUP for who, events in seen if who == "second")


# Looks: what comes soon is looked for before the loop falls asleep


def echo_beside(loop: Loop, sock: socket.socket, patience: float) -> threading.Thread:
    """Answer each byte from another thread, after so many seconds."""

    def echo() -> None:
        while byte := sock.recv(1):
            time.sleep(patience)
            sock.send(byte)

    thread = threading.Thread(target=echo)
    thread.start()
    return thread


def test_what_comes_late_is_waited_for_at_once(loop: Loop) -> None:
    """A wait that was not short is no reason to look."""
    rounds, (ours, theirs), seen = CountedRounds(loop), socket.socketpair(), Mailbox()
    thread = echo_beside(loop, theirs, 0.005)

    async def main() -> None:
        loop.register(ours.fileno(), seen.post)
        ours.send(b"x")
        await seen.take()
        looks = rounds.looks
        for _ in range(10):
            ours.recv(1)
            ours.send(b"x")
            await seen.take()
        ours.recv(1)
        assert rounds.looks == looks

    loop.run(main())
    loop.unregister(ours.fileno())
    ours.close()
    thread.join()
    theirs.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else this machine does, every wait is short, and nobody else is there."""
    monkeypatch.setattr(loop_module, "_SHORT_WAIT", PATIENCE / loop_module._LOOKING)
    monkeypatch.setattr(loop_module, "_CROWDED", PATIENCE)


@pytest.mark.usefixtures("patient")
def test_after_a_short_wait_it_looks_and_then_sleeps(loop: Loop) -> None:
    rounds, (ours, theirs), seen = CountedRounds(loop), socket.socketpair(), Mailbox()

    async def main() -> None:
        theirs.send(b"x")
        loop.register(ours.fileno(), seen.post)
        await seen.take()  # that was short
        before, looks = rounds.count, rounds.looks
        await loop.sleep(0.1)
        assert rounds.looks > looks
        assert 1 <= rounds.count - before <= 3

    loop.run(main())
    loop.unregister(ours.fileno())
    ours.close()
    theirs.close()


@pytest.mark.usefixtures("patient")
def test_what_a_look_finds_is_not_waited_for(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other side answers in the moment that it is offered the processor."""
    loop.looking = PATIENCE
    rounds, (ours, theirs), seen = CountedRounds(loop), socket.socketpair(), Mailbox()
    theirs.setblocking(False)

    def answer() -> None:
        try:
            theirs.send(theirs.recv(1))
        except BlockingIOError:
            return

    monkeypatch.setattr(loop_module, "sched_yield", answer)

    async def main() -> None:
        loop.register(ours.fileno(), seen.post)
        theirs.send(b"x")
        await seen.take()
        before = rounds.count
        for _ in range(10):
            ours.send(ours.recv(1))
            await seen.take()
        assert rounds.count == before

    loop.run(main())
    loop.unregister(ours.fileno())
    ours.close()
    theirs.close()


@pytest.mark.usefixtures("patient")
def test_its_owner_says_for_how_long_it_looks(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    loop.looking = PATIENCE
    rounds, (ours, theirs), seen = CountedRounds(loop), socket.socketpair(), Mailbox()
    offers = 0

    def offer() -> None:
        nonlocal offers
        offers += 1
        if offers == 1000:  # which takes longer than it looks otherwise
            theirs.send(b"x")

    monkeypatch.setattr(loop_module, "sched_yield", offer)

    async def main() -> None:
        loop.register(ours.fileno(), seen.post)
        theirs.send(b"x")
        await seen.take()
        before = rounds.count
        ours.recv(1)
        await seen.take()
        assert rounds.count == before

    loop.run(main())
    loop.unregister(ours.fileno())
    ours.close()
    theirs.close()


def test_who_wants_the_processor_is_left_alone(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process takes its time when it is offered the processor."""
    rounds, offers, soon = CountedRounds(loop), [], Mailbox()

    def offer() -> None:
        offers.append(loop_module.monotonic())
        time.sleep(0.002)

    monkeypatch.setattr(loop_module, "sched_yield", offer)

    async def main() -> None:
        start = loop.now
        while loop.now < start + 0.25:
            loop.call_soon(lambda: soon.post(None))
            await soon.take()  # a short wait
            await loop.sleep(0.001)

    loop.run(main())
    assert 2 <= len(offers) == rounds.looks
    assert all(later - earlier > 0.1 for earlier, later in itertools.pairwise(offers))


# Time


def test_timers_come_in_order(loop: Loop) -> None:
    fired: list[object] = []

    async def main() -> None:
        for delay in (0.03, 0.01, 0.02, 0.01, 0.0):
            loop.call_later(delay, collector(fired, delay))
        await loop.sleep(0.04)

    loop.run(main())
    assert fired == [0.0, 0.01, 0.01, 0.02, 0.03]


def test_timers_of_one_time_come_in_the_order_they_were_made(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    fired: list[object] = []

    async def main() -> None:
        with monkeypatch.context() as patch:
            now = loop.now
            patch.setattr(loop_module, "monotonic", lambda: now)
            for number in range(50):
                loop.call_later(0.001, collector(fired, number))
        await loop.sleep(0.01)

    loop.run(main())
    assert fired == list(range(50))


def test_timer_is_never_early_and_does_not_spin(loop: Loop) -> None:
    rounds = CountedRounds(loop)
    times = []

    async def main() -> None:
        start = loop_module.monotonic()
        for delay in (0.0104, 0.0006, 0.0213):
            await loop.sleep(delay)
            times.append(loop.now - start >= delay)
            start = loop_module.monotonic()

    loop.run(main())
    assert times == [True] * 3
    assert rounds.count <= 9


def test_cancelled_timer_does_not_fire(loop: Loop) -> None:
    fired: list[object] = []

    async def main() -> None:
        first = loop.call_later(0.001, collector(fired, "cancelled"))
        # A timer may cancel another one that is due in the same round.
        loop.call_later(0.001, lambda: second.cancel())
        second = loop.call_later(0.0010001, collector(fired, "cancelled by a timer"))
        third = loop.call_later(0.001, collector(fired, "third"))
        first.cancel()
        first.cancel()
        await loop.sleep(0.01)
        third.cancel()  # harmless

    loop.run(main())
    assert fired == ["third"]
    assert loop.cancelled == 0
    assert not loop.timers


def test_cancelled_timers_do_not_pile_up(loop: Loop) -> None:
    fired: list[object] = []

    async def main() -> None:
        keep = loop.call_later(0.001, collector(fired, "kept"))
        for _ in range(10_000):
            loop.call_later(60, pytest.fail).cancel()
        assert len(loop.timers) < 2100
        kept = [loop.call_later(60, pytest.fail) for _ in range(3000)]
        for timer in kept:
            timer.cancel()
        assert len(loop.timers) < 2100
        await loop.sleep(0.01)
        assert keep.callback is None

    loop.run(main())
    assert fired == ["kept"]


def test_compaction_in_the_middle_of_a_round(loop: Loop) -> None:
    """A timer that is due cancels thousands; those that are due with it still come, once."""
    fired: list[object] = []

    async def main() -> None:
        many = [loop.call_later(60, pytest.fail) for _ in range(3000)]
        loop.call_later(0, lambda: [timer.cancel() for timer in many])
        for number in range(3):
            loop.call_later(0.00001, collector(fired, number))
        await loop.sleep(0.01)

    loop.run(main())
    assert fired == [0, 1, 2]
    assert loop.cancelled == [timer.callback for _, _, timer in loop.timers].count(None)


def test_compaction_keeps_the_order(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    fired: list[object] = []
    delays = [random.Random(number).random() / 50 for number in range(3000)]

    async def main() -> None:
        with monkeypatch.context() as patch:
            now = loop.now
            patch.setattr(loop_module, "monotonic", lambda: now)
            timers = [loop.call_later(delay, collector(fired, delay)) for delay in delays]
        for timer in timers[:2500]:
            timer.cancel()
        await loop.sleep(0.03)

    loop.run(main())
    assert fired == sorted(delays[2500:])


def test_timer_without_delay_lets_events_in(loop: Loop) -> None:
    """A timer that sets itself again and again does not keep the loop for itself."""
    ours, theirs = socket.socketpair()
    seen = Mailbox()

    def again() -> None:
        loop.call_later(0, again)

    async def main() -> None:
        loop.register(ours.fileno(), seen.post, room=True)
        again()
        await seen.take()
        theirs.send(b"x")
        await seen.take()

    loop.run(main())
    loop.unregister(ours.fileno())
    ours.close()
    theirs.close()


# Deadlines


def test_deadline_passes(loop: Loop) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError) as told, loop.deadline(0.001) as deadline:
            await Mailbox().take()
        assert deadline.passed
        assert told.value.errno == errno.ETIMEDOUT

    loop.run(main())


def test_deadline_that_is_kept_is_forgotten(loop: Loop) -> None:
    async def main() -> None:
        with loop.deadline(0.005) as deadline:
            await loop.sleep(0)
        await loop.sleep(0.01)
        assert not deadline.passed

    loop.run(main())


def test_deadline_that_is_over_keeps_no_task(loop: Loop) -> None:
    """Though it waits in the queue until it is forgotten, like any timer that was cancelled."""

    async def main() -> None:
        with loop.deadline(60):
            pass
        [(_, _, timer)] = loop.timers
        assert loop.current not in gc.get_referents(timer)

    loop.run(main())


@pytest.mark.parametrize("inner, outer", [(0.001, 60), (60, 0.001)])
def test_nested_deadlines(loop: Loop, inner: float, outer: float) -> None:
    async def main() -> None:
        outside, inside = loop.deadline(outer), loop.deadline(inner)
        with pytest.raises(TimeoutError), outside, inside:
            await Mailbox().take()
        assert (inside.passed, outside.passed) == (inner < outer, outer < inner)

    loop.run(main())


def test_nested_deadlines_that_pass_in_one_round(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The inner one is handled, and then the outer one interrupts what comes next."""
    story = []

    async def main() -> None:
        with monkeypatch.context() as patch:
            now = loop.now
            patch.setattr(loop_module, "monotonic", lambda: now)
            outside = loop.deadline(0.002)
            inside = loop.deadline(0.001)
            try:
                with outside:
                    try:
                        with inside:
                            patch.undo()
                            while loop_module.monotonic() < now + 0.003:
                                pass
                            await Mailbox().take()
                    except TimeoutError:
                        story.append("inner")
                    await Mailbox().take()
            except TimeoutError:
                story.append("outer")

    loop.run(main())
    assert story == ["inner", "outer"]


def test_deadline_of_one_task_is_no_other_ones(loop: Loop) -> None:
    story = Mailbox()

    async def short() -> None:
        try:
            with loop.deadline(0.001):
                await Mailbox().take()
        except TimeoutError:
            story.post("short")

    async def long() -> None:
        with loop.deadline(60):
            await loop.sleep(0.01)
        story.post("long")

    async def main() -> None:
        loop.spawn(short(), pytest.fail)
        loop.spawn(long(), pytest.fail)
        assert [await story.take(), await story.take()] == ["short", "long"]

    loop.run(main())


# Turns


def test_how_busy_a_round_is(loop: Loop) -> None:
    pairs, seen = [socket.socketpair() for _ in range(3)], []

    async def main() -> None:
        for ours, theirs in pairs:
            theirs.send(b"x")
            loop.register(ours.fileno(), lambda _: seen.append(loop.busy))
        await loop.sleep(0.001)
        assert loop.busy == 0, "a timer is no event"

    loop.run(main())
    assert seen == [3, 3, 3]
    for pair in pairs:
        loop.unregister(pair[0].fileno())
        for end in pair:
            end.close()


def test_call_soon_comes_after_the_events(loop: Loop) -> None:
    """Who calls himself soon again and again leaves descriptors and timers their turn."""
    ours, theirs = socket.socketpair()
    order: list[str] = []

    def again() -> None:
        order.append("soon")
        if len(order) < 1000:
            loop.call_soon(again)

    async def main() -> None:
        loop.register(ours.fileno(), lambda _: order.append("event"), room=True)
        loop.call_soon(again)
        loop.call_later(0, lambda: order.append("timer"))
        await loop.sleep(0.001)
        loop.unregister(ours.fileno())

    loop.run(main())
    assert order[:3] == ["event", "soon", "timer"]
    ours.close()
    theirs.close()


def test_call_soon_in_its_order_and_each_once(loop: Loop) -> None:
    calls: list[int] = []

    async def main() -> None:
        for number in range(5):
            loop.call_soon(collector(calls, number))
        await loop.sleep(0)
        await loop.sleep(0.001)

    loop.run(main())
    assert calls == list(range(5))


@pytest.mark.parametrize("whence", ["event", "timer", "soon"])
def test_call_soon_is_once_from_wherever(loop: Loop, whence: str) -> None:
    """Also for a handler, in a round that had nothing to do soon."""
    order: list[str] = []
    reader, writer = os.pipe()

    def ask(_: int = 0) -> None:
        loop.call_soon(lambda: order.append("soon"))
        order.append("asked")

    async def main() -> None:
        if whence == "event":
            loop.register(reader, ask)
            loop.call_later(0.001, lambda: os.write(writer, b"!") and None)
        elif whence == "timer":
            loop.call_later(0.001, ask)
        else:
            loop.call_soon(ask)
        await loop.sleep(0.01)
        await loop.sleep(0.01)

    loop.run(main())
    assert order == ["asked", "soon"]
    loop.unregister(reader)
    os.close(reader)
    os.close(writer)


# Tasks


def test_result_and_exception(loop: Loop) -> None:
    async def give() -> str:
        await loop.sleep(0)
        return "result"

    async def fail() -> None:
        await loop.sleep(0)
        raise LookupError("reason")

    assert loop.run(give()) == "result"
    with pytest.raises(LookupError, match="reason"):
        loop.run(fail())


def test_task_that_fails_is_told_and_harms_nobody(loop: Loop) -> None:
    failures = Mailbox()

    async def fail(at_once: bool) -> None:
        if not at_once:
            await loop.sleep(0)
        raise LookupError(at_once)

    async def main() -> None:
        tasks = [loop.spawn(fail(at_once), failures.post) for at_once in (True, False)]
        assert [(await failures.take()).args for _ in tasks] == [(True,), (False,)]
        assert all(task.is_over for task in tasks)

    loop.run(main())


@pytest.mark.parametrize("waits", ["descriptor", "timer"])
def test_signal_handler_that_raises_unwinds_the_coroutine(loop: Loop, waits: str) -> None:
    class Asked(BaseException):
        pass

    def ask(*_: object) -> None:
        raise Asked

    ours, theirs = socket.socketpair()
    story = []

    async def main() -> None:
        loop.register(ours.fileno(), lambda _: None)
        await loop.sleep(0)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        try:
            if waits == "timer":
                await loop.sleep(60)
            await Mailbox().take()
        except Asked:
            story.append("unwound")
            await loop.sleep(0)  # and there is still a loop to tidy up with
            raise
        finally:
            loop.unregister(ours.fileno())

    outer_alarm, outer_left = (
        signal.signal(signal.SIGALRM, ask),
        signal.setitimer(signal.ITIMER_REAL, 0),
    )
    try:
        with pytest.raises(Asked):
            loop.run(main())
    finally:
        signal.signal(signal.SIGALRM, outer_alarm)
        signal.setitimer(signal.ITIMER_REAL, *outer_left)
    assert story == ["unwound"]
    ours.close()
    theirs.close()


def test_handler_that_raises_is_raised_in_the_main_coroutine(loop: Loop) -> None:
    def fail() -> None:
        raise LookupError

    async def main() -> str:
        loop.call_soon(fail)
        with pytest.raises(LookupError):
            await loop.sleep(60)
        return "goes on"

    assert loop.run(main()) == "goes on"


def test_descriptors_are_not_inherited(loop: Loop) -> None:
    assert not os.get_inheritable(loop._epoll.fileno())


def test_no_cycles(loop: Loop) -> None:
    async def one(number: int) -> None:
        try:
            with loop.deadline(0.001 if number % 2 else 60), loop.deadline(60):
                await loop.sleep(60 if number % 2 else 0)
        except TimeoutError:
            return

    async def main() -> None:
        for number in range(20):
            loop.spawn(one(number), pytest.fail)
        await loop.sleep(0.01)

    with no_garbage():
        loop.run(main())


def test_no_cycles_of_an_interrupt_that_goes_all_the_way(loop: Loop) -> None:
    async def wait() -> None:
        await Mailbox().take()

    def nothing(_: BaseException) -> None:
        return

    async def main() -> None:
        loop.spawn(wait(), nothing).interrupt(LookupError())

    with no_garbage():
        loop.run(main())
