"""A signal ends the wait of a loop, even one that does not interrupt the system call."""

import signal
import threading
from collections.abc import Iterator

import pytest

from muonsocks.net.loop import Loop
from muonsocks.net.signals import Signals, deliver


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


def test_a_delivered_error_is_raised_where_the_coroutine_waits() -> None:
    """Not where the handler happens to run, in the middle of a coroutine or of the loop."""
    loop, story = Loop(), []

    async def work() -> None:
        try:
            deliver(_Told())
            story.append("goes on")
            await loop.sleep(10)
        except _Told:
            story.append("told at its wait")
            raise

    Signals(loop)
    loop.call_soon(lambda: None)  # a round comes, as after a signal
    with pytest.raises(_Told):
        loop.run(work())
    assert story == ["goes on", "told at its wait"]
    with pytest.raises(_Told):
        deliver(_Told())  # nothing runs
    signal.set_wakeup_fd(-1)
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
