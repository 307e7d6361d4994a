"""Tasks step from wait to wait; a mailbox keeps what comes for one of them."""

import weakref

import pytest
from ends import no_garbage

from muonsocks.net.loop import Loop
from muonsocks.net.task import Mailbox, Pause, Waitable


def test_task_runs_at_once_up_to_its_first_wait() -> None:
    loop, story, door = Loop(), [], Waitable()

    async def walk() -> None:
        story.append("before")
        await door
        story.append("behind")

    task = loop.spawn(walk(), pytest.fail)
    assert (story, task.is_over, task.waits_for, door.task) == (["before"], False, door, task)
    door.wake()
    assert (story, task.is_over, door.task) == (["before", "behind"], True, None)
    door.wake()  # nobody waits
    loop.close()


def test_current_is_the_task_that_runs_and_its_waker_after_it() -> None:
    loop, seen, door = Loop(), [], Waitable()

    async def sleeper() -> None:
        await door
        seen.append(loop.current)

    async def waker() -> None:
        before = loop.current
        door.wake()
        seen.append((loop.current, before))

    first = loop.spawn(sleeper(), pytest.fail)
    second = loop.spawn(waker(), pytest.fail)
    assert seen == [first, (second, second)]
    assert loop.current is None
    loop.close()


def test_interrupt_raises_where_the_task_waits() -> None:
    loop, story, door, other = Loop(), [], Waitable(), Waitable()

    async def walk() -> None:
        try:
            await door
        except LookupError as error:
            story.append(error.args)
        await other

    task = loop.spawn(walk(), pytest.fail)
    task.interrupt(LookupError("stop"))
    assert story == [("stop",)]
    assert door.task is None
    door.wake()  # is no wake-up of the one it waits for now
    assert not task.is_over
    other.wake()
    assert task.is_over
    loop.close()


def test_failure_is_told_once() -> None:
    loop, failures = Loop(), []

    async def fail() -> None:
        raise LookupError

    task = loop.spawn(fail(), failures.append)
    assert [type(failure) for failure in failures] == [LookupError]
    assert task.is_over
    assert loop.current is None
    loop.close()


def test_mailbox_keeps_the_order_and_waits() -> None:
    loop, taken, mailbox = Loop(), [], Mailbox()

    async def take() -> None:
        while len(taken) < 4:
            taken.append(await mailbox.take())

    mailbox.post(1)
    mailbox.post(None)
    task = loop.spawn(take(), pytest.fail)
    assert taken == [1, None]
    mailbox.post(3)
    assert taken == [1, None, 3]
    mailbox.post(4)
    assert task.is_over
    mailbox.post(5)
    assert taken == [1, None, 3, 4]
    loop.close()


def test_mailbox_after_an_interrupted_wait() -> None:
    loop, taken, mailbox = Loop(), [], Mailbox()

    async def take() -> None:
        try:
            taken.append(await mailbox.take())
        except LookupError:
            taken.append(await mailbox.take())

    task = loop.spawn(take(), pytest.fail)
    task.interrupt(LookupError())
    mailbox.post("kept")
    assert taken == ["kept"]
    loop.close()


class Story:
    """Pauses, goes on, waits once more and ends; what happens is told."""

    def __init__(self) -> None:
        self.door, self.other = Waitable(), Waitable()
        self.told: list[object] = []

    async def begin(self) -> Pause:
        self.told.append("begun")
        return Pause(self.door, self.resume)

    async def resume(self, error: BaseException | None) -> str:
        self.told.append(error)
        try:
            if error is not None:
                raise error
            await self.other
        except LookupError as caught:
            self.told.append(caught.args)
            raise
        finally:
            error = None
        return "result"


def test_pause_goes_on_when_its_wait_is_over() -> None:
    loop, story = Loop(), Story()
    coroutine = story.begin()
    is_gone = weakref.ref(coroutine)
    task = loop.spawn(coroutine, pytest.fail, story.told.append)
    del coroutine
    assert (story.told, task.is_over, task.waits_for) == (["begun"], False, story.door)
    assert is_gone() is None
    story.door.wake()
    assert (story.told, task.is_over, task.waits_for) == (["begun", None], False, story.other)
    story.other.wake()
    assert (story.told, task.is_over) == (["begun", None, "result"], True)
    loop.close()


@pytest.mark.parametrize("resumed", [False, True])
def test_pause_that_is_interrupted(resumed: bool) -> None:
    loop, story, error = Loop(), Story(), LookupError("stop")
    failures: list[BaseException] = []
    task = loop.spawn(story.begin(), failures.append, pytest.fail)
    if resumed:
        story.door.wake()
    with no_garbage():
        task.interrupt(error)
        assert failures == [error] and task.is_over
        assert story.told == ["begun", None if resumed else error, ("stop",)]
        failures.clear()
        story.told.clear()
        del task, error
    story.door.wake()  # nobody waits
    loop.close()


def test_run_gives_what_comes_after_a_pause() -> None:
    loop, story = Loop(), Story()
    loop.call_later(0.001, story.door.wake)
    loop.call_later(0.002, story.other.wake)
    assert loop.run(story.begin()) == "result"
    loop.close()
