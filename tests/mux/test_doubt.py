"""The doubt about one who does not say HELLO: how long it lasts, and what is kept until then."""

import pytest
from classic_joined import GREETING
from classic_port import frame
from hand import REQUEST, Clock, play

from muonsocks.mux.doubt import Doubt
from muonsocks.net.loop import Loop

PIECE = frame(3, REQUEST)


class Doubtful:
    """A doubt, and what it has decided."""

    def __init__(self, loop: Loop, is_host: bool = True) -> None:
        self.decided: list[list[bytes]] = []
        self.doubt = Doubt(loop, is_host, self.decided.append)
        self.hear = self.doubt.hear


def test_it_lasts_for_a_second_from_the_first_piece_on(loop: Loop, clock: Clock) -> None:
    async def story() -> None:
        one = Doubtful(loop)
        one.hear(PIECE)
        await clock.passes(loop, 0.9)
        one.hear(b"and more")
        assert not one.decided
        await clock.passes(loop, 0.15)
        assert one.decided == [[PIECE, b"and more"]]
        await clock.passes(loop, 3)
        one.hear(PIECE)
        await clock.passes(loop, 1.1)
        assert one.decided[1:] == [[PIECE]], "each has a second of its own"

    play(loop, story)


@pytest.mark.parametrize("is_host", [True, False], ids=["host", "guest"])
def test_it_begins_where_the_older_pair_does(loop: Loop, clock: Clock, is_host: bool) -> None:
    async def story() -> None:
        one = Doubtful(loop, is_host)
        first = PIECE if is_host else GREETING[0]
        for piece in (b"stale", frame(3, b"data"), first, b"more", first):
            one.hear(piece)
        await clock.passes(loop, 1.1)
        assert one.decided == [[first, b"more", first]]

    play(loop, story)


@pytest.mark.parametrize("is_host", [True, False], ids=["host", "guest"])
def test_what_is_of_neither_is_dropped(loop: Loop, clock: Clock, is_host: bool) -> None:
    async def story() -> None:
        one = Doubtful(loop, is_host)
        one.hear(GREETING[0] if is_host else PIECE)
        await clock.passes(loop, 1.1)
        assert not one.decided and not one.doubt._pieces

    play(loop, story)


@pytest.mark.parametrize(
    "pieces",
    [[b"x"] * 1023, [bytes(10_000)] * 52 + [bytes(4277)], [bytes((1 << 19) - 12), bytes(1 << 19)]],
    ids=["reads", "bytes", "a large one"],
)
def test_it_is_over_when_there_is_as_much_as_is_kept(loop: Loop, pieces: list[bytes]) -> None:
    """Nothing of it is lost; and there is room for as much again."""

    async def story() -> None:
        one = Doubtful(loop)
        for count in range(1, 3):
            one.hear(PIECE)
            for piece in pieces:
                assert len(one.decided) == count - 1
                one.hear(piece)
            assert one.decided[-1] == [PIECE, *pieces]
            assert one.doubt._timer is None

    play(loop, story)


def test_nothing_is_left_of_it_when_there_is_none_any_more(loop: Loop, clock: Clock) -> None:
    async def story() -> None:
        one = Doubtful(loop)
        one.hear(PIECE)
        one.doubt.reset()
        await clock.passes(loop, 1.1)
        assert not one.decided
        one.hear(b"no request")
        await clock.passes(loop, 1.1)
        assert not one.decided

    play(loop, story)
