"""A signal ends the wait of a loop, even one that does not interrupt the system call."""

import signal
import threading
from collections.abc import Callable, Iterator

import pytest
from places import in_child

from muonsocks.net.loop import Loop
from muonsocks.net.signals import Signals, deliver
from muonsocks.net.task import Mailbox


class _Told(BaseException):
    pass


@pytest.fixture
def told() -> Iterator[threading.Event]:
    event = threading.Event()

    def tell(*_: object) -> None:
        event.set()
        raise _Told

    before = signal.signal(signal.SIGUSR1, tell)
    yield event
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_that_does_not_interrupt_the_wait(told: threading.Event) -> None:
    """As one that comes just before epoll_wait(2): here another thread takes it."""
    loop = Loop()
    Signals(loop)
    waits, in_time = threading.Event(), []

    def take_signal() -> None:
        waits.wait()
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        in_time.append(told.wait(5))

    async def wait() -> None:
        loop.call_soon(waits.set)
        await loop.sleep(10)

    thread = threading.Thread(target=take_signal)
    thread.start()
    with pytest.raises(_Told):
        loop.run(wait())
    thread.join()
    assert in_time == [True]
    loop.close()


def test_a_delivered_error_is_raised_where_the_coroutine_waits(handlers: None) -> None:
    """Not where the handler happens to run, in the middle of a coroutine or of the loop."""
    loop, story = Loop(), []

    def on_signal(*_: object) -> None:
        deliver(_Told())

    async def work() -> None:
        try:
            signal.raise_signal(signal.SIGUSR1)
            story.append("goes on")
            await loop.sleep(10)
        except _Told:
            story.append("told at its wait")
            raise

    Signals(loop)
    signal.signal(signal.SIGUSR1, on_signal)
    with pytest.raises(_Told):
        loop.run(work())
    assert story == ["goes on", "told at its wait"]
    with pytest.raises(_Told):
        deliver(_Told())  # nothing runs
    loop.close()


def test_an_error_delivered_at_the_very_end_is_not_lost() -> None:
    loop = Loop()

    async def work() -> None:
        deliver(_Told())

    Signals(loop)
    with pytest.raises(_Told):
        loop.run(work())
    signal.set_wakeup_fd(-1)
    loop.close()


@pytest.fixture
def handlers() -> Iterator[None]:
    numbers = (signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_actions_are_called_in_the_loop(handlers: None) -> None:
    """Each for its signal, in their order, and not where the signal happens to arrive."""
    loop, seen, is_told = Loop(), [], Mailbox()

    def action(name: str) -> Callable[[], None]:
        def act() -> None:
            seen.append(name)
            is_told.post(name)

        return act

    async def work() -> None:
        for number in (signal.SIGUSR2, signal.SIGUSR1, signal.SIGUSR2):
            signal.raise_signal(number)
        assert seen == []
        with loop.deadline(10):
            for _ in range(3):
                await is_told.take()

    Signals(loop, {signal.SIGUSR1: action("one"), signal.SIGUSR2: action("two")})
    loop.run(work())
    assert seen == ["two", "one", "two"]
    loop.close()


def test_an_action_may_fork_and_the_child_have_signals_of_its_own(handlers: None) -> None:
    """What the child does to its signals and its loop is nothing to the parent's."""
    loop, seen = Loop(), Mailbox()
    signals = Signals(loop, {signal.SIGUSR1: lambda: seen.post("ours")})

    def be_child() -> None:
        loop.close()
        signals.close()
        own, told = Loop(), Mailbox()
        Signals(own, {signal.SIGUSR1: lambda: told.post("theirs")})
        signal.raise_signal(signal.SIGUSR1)

        async def wait() -> str:
            with own.deadline(10):
                return str(await told.take())

        assert own.run(wait()) == "theirs"

    async def work() -> str:
        in_child(be_child)
        await loop.sleep(0.01)
        assert not seen._items  # the child's signal was not ours
        signal.raise_signal(signal.SIGUSR1)
        with loop.deadline(10):
            return str(await seen.take())

    assert loop.run(work()) == "ours"
    signals.close()
    loop.close()


def test_signals_that_nobody_has_an_action_for(handlers: None) -> None:
    """They end the wait, no more."""
    loop = Loop()
    Signals(loop, {})
    signal.signal(signal.SIGUSR1, lambda *_: None)

    async def work() -> None:
        signal.raise_signal(signal.SIGUSR1)
        await loop.sleep(0.01)

    loop.run(work())
    loop.close()
