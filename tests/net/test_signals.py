"""A signal ends the wait of a loop, even one that does not interrupt the system call."""

import signal
import threading
from collections.abc import Iterator

import pytest

from muonsocks.net.loop import Loop
from muonsocks.net.signals import wake_for_signals


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
    wake_for_signals(loop)
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
