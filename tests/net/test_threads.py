"""Calls in threads: what they return or raise, and what if the loop or the system is not there."""

import ctypes
import errno
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

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
    """A thread that is done later leaves the eventfd alone: its number may be another's then."""
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
        assert loop._threads is not None
        number = loop._threads._signal
        loop.close()
        other = os.eventfd(0, os.EFD_NONBLOCK)
        assert other == number or os.dup2(other, number)
        go_on.set()
        assert done.wait(PATIENCE)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(number)
        for fd in {other, number}:
            os.close(fd)
    assert not complaints


class Gate:
    """A function for threads that waits until it is opened, and counts who is in it."""

    def __init__(self) -> None:
        self._opened = threading.Event()
        self._lock = threading.Lock()
        self._inside = 0
        self.most = 0
        self.came: list[object] = []

    def enter(self, name: object = None) -> None:
        with self._lock:
            self._inside += 1
            self.most = max(self.most, self._inside)
            self.came.append(name)
        assert self._opened.wait(PATIENCE)
        with self._lock:
            self._inside -= 1

    def open(self) -> None:
        self._opened.set()

    async def has(self, loop: Loop, count: int) -> None:
        """Wait until so many have come."""
        with loop.deadline(PATIENCE):
            while len(self.came) < count:
                await loop.sleep(0.001)


@pytest.mark.parametrize("kind", ["waiting", "computing"])
def test_no_more_at_once_than_a_bound(loop: Loop, kind: str) -> None:
    """The rest waits, without a thread, and comes in order when there is room."""
    bound = {"waiting": threads.MOST, "computing": len(os.sched_getaffinity(0))}[kind]
    gate, over = Gate(), Mailbox()
    count = 2 * bound + 3

    async def one(number: int) -> None:
        call = loop.in_thread if kind == "waiting" else loop.compute
        await call(gate.enter, number)
        over.post(number)

    async def main() -> None:
        before = thread_numbers()
        for number in range(count):
            loop.spawn(one(number), pytest.fail)
        await gate.has(loop, bound)
        assert len(thread_numbers() - before) == bound
        if kind == "computing":
            assert await loop.in_thread(divmod, 7, 2) == (3, 1)  # is in nobody's way
        gate.open()
        with loop.deadline(PATIENCE):
            assert sorted([await over.take() for _ in range(count)]) == list(range(count))

    loop.run(main())
    assert sorted(gate.came[:bound]) == list(range(bound))  # type: ignore[type-var]
    assert gate.most == bound


def thread_numbers() -> set[str]:
    """The threads that this process has, whoever has started them: some may be about to end."""
    return set(os.listdir("/proc/self/task"))


def test_call_that_nobody_waits_for_any_more_is_not_begun(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "MOST", 1)
    gate, calls = Gate(), list[str]()

    async def hold() -> None:
        await loop.in_thread(gate.enter)

    async def main() -> None:
        holder = loop.spawn(hold(), pytest.fail)
        with pytest.raises(TimeoutError), loop.deadline(0.001):
            await loop.in_thread(calls.append, "never")
        gate.open()
        await loop.in_thread(calls.append, "afterwards")
        assert holder.is_over

    loop.run(main())
    assert calls == ["afterwards"]


@pytest.mark.parametrize("kind", ["waiting", "computing"])
def test_call_that_has_begun_keeps_its_turn(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Its thread and its memory are in use, whether its task still waits or not."""
    monkeypatch.setattr(threads, "MOST", 1)
    monkeypatch.setattr(threads, "sched_getaffinity", lambda _: {0})
    gate = Gate()

    async def main() -> None:
        call = loop.in_thread if kind == "waiting" else loop.compute
        with pytest.raises(TimeoutError), loop.deadline(0.01):
            await call(gate.enter)
        with pytest.raises(TimeoutError), loop.deadline(0.01):
            await call(gate.enter)
        await gate.has(loop, 1)
        gate.open()
        await call(gate.enter)

    loop.run(main())
    assert gate.most == 1
    assert len(gate.came) == 2


def test_failed_calls_give_their_turns_back(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "MOST", 1)

    def fail() -> None:
        raise LookupError

    async def main() -> None:
        for _ in range(3):
            with pytest.raises(LookupError):
                await loop.in_thread(fail)
            with monkeypatch.context() as patch, pytest.raises(OSError):
                patch.setattr(threads, "start_new_thread", refuse)
                await loop.in_thread(str)
        with loop.deadline(PATIENCE):
            await loop.in_thread(str)

    loop.run(main())


def refuse(*_: object) -> None:
    raise RuntimeError("can't start new thread")


def test_stacks_are_small_and_only_ours(loop: Loop) -> None:
    """Nobody else's threads are changed."""

    def stack() -> int:
        """How large this thread's stack may grow, in KiB."""
        library = ctypes.CDLL(None)
        attributes = ctypes.create_string_buffer(64)
        library.pthread_self.restype = ctypes.c_ulong
        size = ctypes.c_size_t()
        assert not library.pthread_getattr_np(ctypes.c_ulong(library.pthread_self()), attributes)
        assert not library.pthread_attr_getstacksize(attributes, ctypes.byref(size))
        library.pthread_attr_destroy(attributes)
        return size.value >> 10

    others: list[int] = []

    def other() -> None:
        others.append(stack())

    async def main() -> None:
        assert await loop.in_thread(stack) == 256

    loop.run(main())
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert others[0] > 256


def test_no_thread_can_be_started(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "start_new_thread", refuse)

    async def main() -> None:
        with pytest.raises(OSError) as told:
            await loop.in_thread(str)
        assert told.value.errno == errno.EAGAIN

    loop.run(main())


def test_no_cycles(loop: Loop) -> None:
    """What a call raised holds no way back to itself."""

    late, go_on = threading.Event(), threading.Semaphore(0)

    def fail() -> None:
        raise LookupError

    def fail_late() -> None:
        go_on.acquire(timeout=PATIENCE)
        late.set()
        raise LookupError

    async def main() -> None:
        for _ in range(20):
            try:
                await loop.in_thread(fail)
            except LookupError:
                pass
            try:
                with loop.deadline(0.001):
                    await loop.in_thread(fail_late)
            except TimeoutError:
                pass
            go_on.release()
            late.wait(PATIENCE)
            late.clear()
            await loop.in_thread(str)

    with no_garbage():
        loop.run(main())


def test_calls_that_go_on_for_loops_that_are_closed_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "MOST", 3)
    goes_on = threading.Lock()
    ended = threading.Semaphore(0)

    def work() -> None:
        with goes_on:
            ended.release()

    async def give_up() -> None:
        with pytest.raises(TimeoutError), loop.deadline(0):
            await loop.in_thread(work)

    async def fail() -> None:
        for _ in range(5):  # and no turn is lost by that
            with pytest.raises(OSError, match="not over yet") as caught, loop.deadline(1):
                await loop.in_thread(work)
            assert caught.value.errno == errno.EAGAIN

    with nothing_left_behind(), goes_on:
        for run in (give_up, give_up, give_up, fail, fail):
            loop = Loop()
            loop.run(run())
            loop.close()
        child = os.fork()  # which has none of them
        if not child:
            loop = Loop()
            os._exit(loop.run(loop.in_thread(int, "7")))  # type: ignore[arg-type]
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    for _ in range(3):
        assert ended.acquire(timeout=PATIENCE)
    while threads._process.orphans:
        time.sleep(0.001)
    loop = Loop()
    assert loop.run(loop.in_thread(int, "8")) == 8
    loop.close()


def test_the_stacks_of_others_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when several loops start threads at the same time."""
    start = threads.start_new_thread

    def start_slowly(*arguments: Any) -> int:
        time.sleep(0.001)  # others have the processor meanwhile
        return start(*arguments)

    def work() -> None:
        loop = Loop()
        for _ in range(10):
            loop.run(loop.in_thread(int))
        loop.close()

    usual = threading.stack_size()
    workers = [threading.Thread(target=work) for _ in range(4)]
    monkeypatch.setattr(threads, "start_new_thread", start_slowly)
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found = threading.stack_size(usual)
    assert found == usual
