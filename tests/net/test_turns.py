"""Turns: never more than so many, in order, and nobody who has left is waited for."""

import random
from collections.abc import Iterator

import pytest
from ends import no_garbage

from muonsocks.net.loop import Loop
from muonsocks.net.task import Task, Waitable
from muonsocks.net.turns import Turns


class Crowd:
    """Tasks that take a turn, keep it until they are told and give it back."""

    def __init__(self, most: int) -> None:
        self.loop = Loop()
        self.turns = Turns(most)
        self.have: list[int] = []
        self.doors: dict[int, Waitable] = {}

    def come(self, number: int, stays: bool = True) -> Task:
        async def one() -> None:
            try:
                await self.turns.take()
            except LookupError:
                return
            self.have.append(number)
            if stays:
                self.doors[number] = Waitable()
                await self.doors[number]
            self.turns.give_back()

        return self.loop.spawn(one(), pytest.fail)

    def leave(self, number: int) -> None:
        self.doors.pop(number).wake()


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    crowd = Crowd(2)
    yield crowd
    crowd.loop.close()


def test_so_many_and_then_in_order(crowd: Crowd) -> None:
    for number in range(5):
        crowd.come(number)
    assert crowd.have == [0, 1]
    crowd.leave(1)
    assert crowd.have == [0, 1, 2]
    crowd.leave(0)
    crowd.leave(2)
    assert crowd.have == [0, 1, 2, 3, 4]
    crowd.leave(3)
    crowd.leave(4)
    crowd.come(5)
    crowd.come(6)
    crowd.come(7)
    assert crowd.have == [0, 1, 2, 3, 4, 5, 6]


def test_who_is_interrupted_leaves_the_queue(crowd: Crowd) -> None:
    tasks = [crowd.come(number) for number in range(6)]
    for number in (2, 4):
        tasks[number].interrupt(LookupError())
        assert tasks[number].is_over
    assert crowd.have == [0, 1]
    crowd.leave(0)
    crowd.leave(1)
    assert crowd.have == [0, 1, 3, 5]
    crowd.leave(3)
    crowd.leave(5)
    assert not crowd.turns._waiting
    assert crowd.turns._free == 2


def test_a_turn_may_be_given_back_by_another(crowd: Crowd) -> None:
    for number in range(4):
        crowd.come(number)
    crowd.turns.give_back()
    assert crowd.have == [0, 1, 2]


def test_nobody_goes_before_those_who_wait(crowd: Crowd) -> None:
    """Not even one who comes while turns are handed out."""
    crowd.come(0)
    crowd.come(1)

    async def first() -> None:
        await crowd.turns.take()
        crowd.turns.give_back()
        crowd.come(99)

    crowd.loop.spawn(first(), pytest.fail)
    crowd.come(3)
    crowd.leave(0)
    assert crowd.have == [0, 1, 3]
    crowd.leave(1)
    assert crowd.have == [0, 1, 3, 99]


def test_a_long_queue_of_short_turns(crowd: Crowd) -> None:
    """They follow each other, and are not called by each other: that would be too deep."""
    crowd.come(0)
    crowd.come(1)
    for number in range(2, 20_000):
        crowd.come(number, stays=False)
    crowd.leave(0)
    assert crowd.have == list(range(20_000))


def test_after_a_failure_that_ends_the_handing_out(crowd: Crowd) -> None:
    """Nothing is lost: the next turn that is given back goes on with it."""

    class Raised(Exception):
        pass

    def complain(error: BaseException) -> None:
        raise error

    async def fail() -> None:
        await crowd.turns.take()
        crowd.turns.give_back()
        raise Raised

    crowd.come(0)
    crowd.come(1)
    crowd.loop.spawn(fail(), complain)
    crowd.come(2)
    crowd.come(3)
    with pytest.raises(Raised):
        crowd.turns.give_back()
    crowd.turns.give_back()
    assert crowd.have == [0, 1, 2, 3]


@pytest.mark.parametrize("seed", range(20))
def test_any_story(seed: int) -> None:
    """Against a plain list of who waits."""
    chance, most = random.Random(seed), 3
    crowd, waiting, inside = Crowd(most), list[int](), list[int]()
    tasks: dict[int, Task] = {}
    with no_garbage():
        for number in range(400):
            match chance.choice(("come", "come", "leave", "leave", "interrupt")):
                case "come":
                    tasks[number] = crowd.come(number)
                    waiting.append(number)
                case "leave" if inside:
                    gone = inside.pop(chance.randrange(len(inside)))
                    crowd.leave(gone)
                case "interrupt" if waiting:
                    tasks[waiting.pop(chance.randrange(len(waiting)))].interrupt(LookupError())
            while waiting and len(inside) < most:
                inside.append(waiting.pop(0))
            assert sorted(crowd.doors) == sorted(inside)
        for number in waiting:
            tasks[number].interrupt(LookupError())
        for number in inside:
            crowd.leave(number)
    assert all(task.is_over for task in tasks.values())
