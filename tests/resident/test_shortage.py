"""When workers say that something has run out, and that it has not any more."""

import pytest
from ends import Lines

from muonsocks.net.loop import Loop
from muonsocks.resident import shortage
from muonsocks.resident.board import SERVED, SHORT, Board
from muonsocks.resident.shortage import Shortage

OVER = "the shortage is over"


def test_the_first_worker_says_so_and_the_last_that_it_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shortage, "_QUIET", 0.02)
    loop, log, board = Loop(), Lines(), Board(2)
    pausing = [False, False]
    first, second = (
        Shortage(loop, board, log, lambda number=number: pausing[number])  # type: ignore[misc]
        for number in range(2)
    )

    async def story() -> None:
        board.take_column(0)
        first.meet("no descriptors")
        first.meet("no memory")
        assert (log.lines, board.total(SHORT)) == (["no descriptors"], 1)
        board.take_column(1)
        second.meet("no descriptors")
        assert (log.lines, board.total(SHORT)) == (["no descriptors"], 2)
        second.forget()  # it ends, and the supervisor clears what it had on the board
        second.forget()
        board.clear(1)
        board.take_column(0)
        await loop.sleep(0.1)
        assert board.total(SHORT) == 1, "nobody was served since"
        pausing[0] = True
        board.add(SERVED, 1)
        await loop.sleep(0.1)
        assert board.total(SHORT) == 1, "it takes none yet"
        pausing[0] = False
        await loop.sleep(0.1)
        assert (log.lines, board.total(SHORT)) == (["no descriptors", OVER], 0)
        first.meet("no memory")
        assert log.lines[2:] == ["no memory"]
        first.forget()
        board.add(SERVED, 1)
        await loop.sleep(0.1)
        assert log.lines[2:] == ["no memory"]

    loop.run(story())
    loop.close()
