"""Calls in threads: what they return or raise, and what if the loop or the system is not there."""

import errno
import threading
from collections.abc import Iterator

import pytest
from ends import PATIENCE, no_garbage, nothing_left_behind

from muonsocks.net import threads
from muonsocks.net.loop import Loop
from muonsocks.net.task import Mailbox


@pytest.fixture
def loop() -> Iterator[Loop]:
    with nothing_left_behind():
        loop = Loop()
        yield loop
        loop.close()


def test_result_and_arguments(loop: Loop) -> None:
    main_thread = threading.get_ident()

    async def main() -> object:
        assert await loop.in_thread(threading.get_ident) != main_thread
        return await loop.in_thread(divmod, 7, 2)

    assert loop.run(main()) == (3, 1)


def test_exception(loop: Loop) -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await loop.in_thread(divmod, 7, 0)
        assert await loop.in_thread(divmod, 7, 1) == (7, 0)

    loop.run(main())


def test_system_exit_stays_in_its_task(loop: Loop) -> None:
    def leave() -> None:
        raise SystemExit(3)

    async def main() -> None:
        with pytest.raises(SystemExit):
            await loop.in_thread(leave)

    loop.run(main())


def test_many_at_once(loop: Loop) -> None:
    """They all wait for each other, and each gets its own answer."""
    count = 50
    barrier, answers = threading.Barrier(count, timeout=PATIENCE), Mailbox()

    def meet(number: int) -> int:
        barrier.wait()
        return number

    async def one(number: int) -> None:
        answers.post(await loop.in_thread(meet, number) == number)

    async def main() -> list[bool]:
        for number in range(count):
            loop.spawn(one(number), pytest.fail)
        return [await answers.take() for _ in range(count)]

    assert loop.run(main()) == [True] * count


def test_loop_goes_on_while_a_thread_works(loop: Loop) -> None:
    go_on = threading.Event()

    async def main() -> bool:
        loop.call_later(0.001, go_on.set)
        return await loop.in_thread(go_on.wait, PATIENCE)

    assert loop.run(main())


def test_nobody_waits_any_more(loop: Loop) -> None:
    """The time limit has passed; the answer that comes later wakes nobody."""
    go_on = threading.Event()

    async def main() -> None:
        with pytest.raises(TimeoutError), loop.deadline(0.001):
            await loop.in_thread(go_on.wait, PATIENCE)
        go_on.set()
        await loop.in_thread(str)
        await loop.sleep(0.001)

    loop.run(main())


def test_loop_is_closed_meanwhile() -> None:
    go_on, done = threading.Event(), threading.Event()
    complaints: list[object] = []

    def work() -> None:
        go_on.wait(PATIENCE)

    async def main() -> None:
        with pytest.raises(TimeoutError), loop.deadline(0.001):
            await loop.in_thread(work)

    real = threads.Threads._serve

    def serve(self: threads.Threads, job: threads._Job) -> None:
        try:
            real(self, job)
        except BaseException as error:
            complaints.append(error)
        finally:
            done.set()

    with pytest.MonkeyPatch.context() as patch, nothing_left_behind():
        patch.setattr(threads.Threads, "_serve", serve)
        loop = Loop()
        loop.run(main())
        loop.close()
        go_on.set()
        assert done.wait(PATIENCE)
    assert not complaints


def test_no_thread_can_be_started(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "start_new_thread", start)

    async def main() -> None:
        with pytest.raises(OSError) as told:
            await loop.in_thread(str)
        assert told.value.errno == errno.EAGAIN

    loop.run(main())


def test_no_cycles(loop: Loop) -> None:
    """What a call raised holds no way back to itself."""

    def fail() -> None:
        raise LookupError

    async def main() -> None:
        for _ in range(20):
            try:
                await loop.in_thread(fail)
            except LookupError:
                pass
            await loop.in_thread(str)

    with no_garbage():
        loop.run(main())
